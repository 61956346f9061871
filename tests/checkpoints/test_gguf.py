"""GGUF headers: what is right is read as gguf-py reads it; every lie has its message, and none costs memory."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from checkpoint_files import (
    ARCHITECTURE,
    ARRAY,
    STRING,
    U32,
    gguf,
    key,
    row,
    text,
    whole_gguf,
)
from qconvd.checkpoints import inspect
from qconvd.checkpoints.gguf import LongArray, read_header
from qconvd.errors import BadCheckpoint, Incomplete, QconvdError, Unsupported
from qconvd.ggml_types import REMOVED, TYPES


def bad(folder: Path, content: bytes, kind: type[QconvdError] = BadCheckpoint) -> str:
    (folder / "x.gguf").write_bytes(content)
    with pytest.raises(kind) as caught:
        read_header(folder, "x.gguf")
    assert type(caught.value) is kind
    assert caught.value.where == str(folder / "x.gguf")
    return caught.value.what


def test_types_are_those_of_gguf_py() -> None:
    from gguf.constants import GGML_QUANT_SIZES

    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    assert {kind: tuple(stored) for kind, stored in TYPES.items() if kind in theirs} == theirs
    assert not set(TYPES) & set(REMOVED)


def test_reads_what_gguf_py_wrote(tmp_path: Path) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quantize

    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(128)
    writer.add_token_list([f"token {i}" for i in range(1000)])
    writer.add_token_scores([0.5] * 1000)
    writer.add_custom_alignment(64)
    random = np.random.default_rng(1)
    weights = random.standard_normal((6, 96)).astype(np.float32)
    writer.add_tensor("norm", weights[0])
    writer.add_tensor("stack", weights.reshape(2, 3, 96).astype(np.float16))
    for kind in (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q5_1):
        writer.add_tensor(kind.name, quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    ours = inspect(path)
    theirs = GGUFReader(path)
    assert [t.name for t in theirs.tensors] == list(ours.tensors)
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.offset == tensor.data_offset
        assert mine.nbytes == tensor.n_bytes
        assert mine.dtype == tensor.tensor_type.name
        assert mine.shape == tuple(reversed([int(n) for n in tensor.shape]))
    assert ours.tensors["stack"].shape == (2, 3, 96)
    assert ours.metadata["general.name"] == "Tiny"
    assert ours.metadata["llama.context_length"] == 128
    assert ours.metadata["tokenizer.ggml.tokens"] == LongArray("string", 1000)
    assert str(ours.metadata["tokenizer.ggml.scores"]) == "1000 x float32"
    assert (ours.kind, ours.name, ours.architecture, ours.path) == ("gguf", "model", "llama", tmp_path)
    assert ours.parameters == 96 + 6 * 96 * 4


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions(tmp_path: Path, version: int) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf([ARCHITECTURE], [row("a", [8], 0, 0)], 32, version=version))
    assert read_header(tmp_path, "x.gguf").version == version


def test_arrays_are_kept_if_they_are_short(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(whole_gguf())
    header = read_header(tmp_path, "x.gguf")
    assert header.metadata["split.sizes"] == [7, 8, 9]
    assert header.metadata["tokenizer.ggml.tokens"] == LongArray("string", 300)
    assert header.tensors["w"].shape == (3, 64)
    assert header.tensors["w"].nbytes == 3 * 2 * 18


def test_all_scalar_types(tmp_path: Path) -> None:
    values = {0: ("<B", 200), 1: ("<b", -3), 2: ("<H", 60000), 3: ("<h", -300), 4: ("<I", 1 << 31), 5: ("<i", -5),
              6: ("<f", 0.5), 7: ("<?", True), 10: ("<Q", 1 << 63), 11: ("<q", -(1 << 62)), 12: ("<d", 0.1)}  # fmt: skip
    keys = [key(f"k{kind}", kind, struct.pack(layout, value)) for kind, (layout, value) in values.items()]
    (tmp_path / "x.gguf").write_bytes(gguf(keys))
    assert read_header(tmp_path, "x.gguf").metadata == {f"k{kind}": value for kind, (_, value) in values.items()}


def test_every_truncation_is_incomplete(tmp_path: Path) -> None:
    whole = whole_gguf()
    for cut in range(0, len(whole) - 20, 61):
        what = bad(tmp_path, whole[:cut], Incomplete)
        assert "bytes are there" in what
    exact = len(whole)
    assert bad(tmp_path, whole[: exact - 20], Incomplete) == f"{exact - 20} of {exact} bytes are there"
    assert (
        bad(tmp_path, whole[:30], Incomplete) == "ends inside its header, in the length of a metadata key (30 bytes are there)"
    )


def test_padding_after_the_last_tensor_may_be_there_or_not(tmp_path: Path) -> None:
    for body in (36, 64):
        (tmp_path / "x.gguf").write_bytes(gguf([], [row("w", [64], 2, 0)], body))
        assert read_header(tmp_path, "x.gguf").tensors["w"].nbytes == 36
    what = bad(tmp_path, gguf([], [row("w", [64], 2, 0)], 65))
    assert what == "has 29 bytes more than its tensor table describes"


def test_not_gguf(tmp_path: Path) -> None:
    assert bad(tmp_path, b"PK\3\4" + bytes(100)) == "is no GGUF file: its magic is not there"
    assert bad(tmp_path, b"<html>sign in</html>") == "is a web page, not a GGUF file"
    assert bad(tmp_path, b"Entry not found") == "is a text of 15 bytes, not a GGUF file: 'Entry not found'"
    assert bad(tmp_path, bytes(100), Incomplete) == "begins with zeros: its header is not written yet"


def test_versions_that_are_not_read(tmp_path: Path) -> None:
    assert bad(tmp_path, gguf(version=1), Unsupported) == "is GGUF version 1, from August 2023"
    assert bad(tmp_path, gguf(version=4), Unsupported) == "is GGUF version 4; 2 and 3 are read"
    assert bad(tmp_path, gguf(version=3 << 24), Unsupported) == "is a big-endian GGUF"


def test_absurd_counts(tmp_path: Path) -> None:
    assert bad(tmp_path, gguf(counts=(1 << 60, 0))) == f"claims {1 << 60} tensors; 100000 is the most that is read"
    assert bad(tmp_path, gguf(counts=(0, 1 << 63))) == f"claims {1 << 63} metadata keys; 4096 is the most that is read"
    assert "ends inside its header" in bad(tmp_path, gguf(counts=(90_000, 0)), Incomplete)


def test_absurd_strings(tmp_path: Path) -> None:
    huge = struct.pack("<Q", 1 << 60)
    assert bad(tmp_path, gguf([huge])) == f"a metadata key claims {1 << 60} bytes; 1024 is the most that is read"
    what = bad(tmp_path, gguf([key("name", STRING, huge)]))
    assert what == f"the value of 'name' claims {1 << 60} bytes; 67108864 is the most that is read"
    large = struct.pack("<Q", 60 << 20)
    assert "ends inside its header, in the value of 'name'" in bad(tmp_path, gguf([key("name", STRING, large)]), Incomplete)
    tokens = key("t", ARRAY, struct.pack("<IQ", STRING, 1000) + huge)
    assert bad(tmp_path, gguf([tokens])) == f"the array 't' claims {1 << 60} bytes; 67108864 is the most that is read"
    name = struct.pack("<Q", 5000) + b"x" * 5000
    assert bad(tmp_path, gguf([], [name])) == "a tensor's name claims 5000 bytes; 1024 is the most that is read"


def test_absurd_arrays(tmp_path: Path) -> None:
    array = key("a", ARRAY, struct.pack("<IQ", U32, 1 << 61))
    assert bad(tmp_path, gguf([array])) == f"the array 'a' claims {1 << 61} elements; 8000000 in all is the most that is read"
    array = key("a", ARRAY, struct.pack("<IQ", U32, 7_000_000))
    assert "in the array 'a'" in bad(tmp_path, gguf([array]), Incomplete)
    assert bad(tmp_path, gguf([key("a", ARRAY, struct.pack("<IQ", ARRAY, 1))])) == "the array 'a' is an array of arrays"
    what = bad(tmp_path, gguf([key("a", ARRAY, struct.pack("<IQ", 77, 1))]))
    assert what == "the array 'a' has elements of the unknown type 77"
    assert bad(tmp_path, gguf([key("a", 13, bytes(8))])) == "the value of 'a' has the unknown type 13"


def test_too_much_text(tmp_path: Path) -> None:
    half = text(b"x" * (33 << 20))
    assert bad(tmp_path, gguf([key("a", STRING, half), key("b", STRING, half)])) == (
        "holds more than 67108864 bytes of text in its metadata"
    )


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    assert bad(tmp_path, gguf([text(b"\xff") + struct.pack("<IB", 0, 1)])) == "a metadata key is not UTF-8"
    assert bad(tmp_path, gguf([], [row(b"\xff\xfe", [8], 0, 0)], 32)) == "a tensor's name is not UTF-8"
    (tmp_path / "x.gguf").write_bytes(gguf([key("general.name", STRING, text(b"caf\xe9"))]))
    assert read_header(tmp_path, "x.gguf").metadata["general.name"] == "caf\ufffd"


def test_duplicates(tmp_path: Path) -> None:
    assert bad(tmp_path, gguf([ARCHITECTURE, ARCHITECTURE])) == "has the metadata key 'general.architecture' twice"
    assert bad(tmp_path, gguf([], [row("a", [8], 0, 0), row("a", [8], 0, 32)], 64)) == "has tensor 'a' twice"


@pytest.mark.parametrize("alignment", [0, 24, 1 << 21, 3])
def test_bad_alignment(tmp_path: Path, alignment: int) -> None:
    content = gguf([key("general.alignment", U32, struct.pack("<I", alignment))], [row("a", [8], 0, 0)], 32)
    assert bad(tmp_path, content) == f"has the alignment {alignment}, which is no power of two up to 1048576"


def test_alignment_that_is_no_number(tmp_path: Path) -> None:
    assert bad(tmp_path, gguf([key("general.alignment", STRING, text("32"))])).startswith("has the alignment '32'")
    assert bad(tmp_path, gguf([key("general.alignment", 7, b"\1")])).startswith("has the alignment True")


def test_bad_tensor_rows(tmp_path: Path) -> None:
    for tensor, what in [
        (row("a", [1] * 5, 0, 0), "tensor 'a' has 5 axes; GGUF allows 4"),
        (row("a", [8], 4242, 0), "tensor 'a' has the unknown type 4242"),
        (row("a", [33], 2, 0), "tensor 'a' has rows of 33, no multiple of Q4_0's block of 32"),
        (row("a", [128], 12, 0), "tensor 'a' has rows of 128, no multiple of Q4_K's block of 256"),
        (row("a", [1 << 32, 1 << 32], 0, 0), "tensor 'a' claims an absurd size or place"),
        (row("a", [8], 0, 1 << 63), "tensor 'a' claims an absurd size or place"),
        (row("a", [8], 0, 8), "tensor 'a' is not aligned to 32 bytes"),
    ]:
        assert bad(tmp_path, gguf([], [tensor], 64)) == what
    assert bad(tmp_path, gguf([], [row("a", [8], 31, 0)], 32), Unsupported) == (
        "tensor 'a' has the type Q4_0_4_4, which llama.cpp no longer reads"
    )
    huge = struct.pack("<Q", 1) + b"a" + struct.pack("<I", 1 << 31)
    assert bad(tmp_path, gguf([], [huge], 64)) == f"tensor 'a' has {1 << 31} axes; GGUF allows 4"


def test_overlap_and_offsets_beyond_the_file(tmp_path: Path) -> None:
    content = gguf([], [row("a", [16], 0, 0), row("b", [8], 0, 32)], 96)
    assert bad(tmp_path, content) == "has tensors that overlap: 'a' and 'b'"
    far = gguf([], [row("a", [8], 0, 0), row("b", [8], 0, 1 << 40)], 64)
    assert bad(tmp_path, far, Incomplete).endswith(f" of {(1 << 40) + len(far) - 64 + 32} bytes are there")


def test_split_sets(tmp_path: Path) -> None:
    count = [key("split.tensors.count", 5, struct.pack("<i", 2))]
    first, second = tmp_path / "X-Q4_0-00001-of-00002.gguf", tmp_path / "X-Q4_0-00002-of-00002.gguf"
    first.write_bytes(gguf([ARCHITECTURE, *count], [row("a", [8], 0, 0)], 32))
    with pytest.raises(Incomplete, match=r"1 of 2 parts are missing: X-Q4_0-00002-of-00002.gguf"):
        inspect(first)
    second.write_bytes(gguf(count, [row("b", [8], 0, 0)], 32))
    for path in (first, tmp_path):
        model = inspect(path)
        assert {t.name: t.file for t in model.tensors.values()} == {"a": first.name, "b": second.name}
        assert model.path == tmp_path
    assert inspect(first).name == "X"  # the type is no part of the name
    second.write_bytes(gguf(count, [row("a", [8], 0, 0)], 32))
    with pytest.raises(BadCheckpoint, match=r"the same tensor 'a' is in X-Q4_0-00001-of-00002.gguf and in X-Q4_0-00002-of"):
        inspect(first)
    second.write_bytes(gguf(count, [row("b", [8], 0, 0), row("c", [8], 0, 32)], 64))
    with pytest.raises(BadCheckpoint, match=r"3 tensors in all parts, but split.tensors.count says 2"):
        inspect(first)


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "X-Q4_0.gguf").write_bytes(whole_gguf())
    (tmp_path / "mmproj-X.gguf").write_bytes(whole_gguf())
    (tmp_path / "X-imatrix.gguf").write_bytes(whole_gguf())
    (tmp_path / "README.md").write_text("x")
    model = inspect(tmp_path)
    others = {"mmproj-X.gguf": "ignored", "X-imatrix.gguf": "ignored"}
    assert {f.path: f.role for f in model.files} == {"X-Q4_0.gguf": "weights", "README.md": "side", **others}
    (tmp_path / "X-Q8_0.gguf").write_bytes(whole_gguf())
    with pytest.raises(Unsupported, match=r"the folder holds 2 GGUF models: X-Q4_0.gguf, X-Q8_0.gguf\n  give qconvd one of"):
        inspect(tmp_path)


def test_an_importance_matrix_is_no_model(golden: Path) -> None:
    path = golden / "glass_en.imatrix.gguf"
    with pytest.raises(Unsupported) as caught:
        inspect(path)
    assert str(caught.value) == (
        f"{path}: is an importance matrix and no model\n  give qconvd the model that it was made of, and name the matrix in "
        "the target: gguf: {imatrix: FILE}"
    )
