"""GGUF from GGUF: the bytes that the checkpoint would give, metadata carried over, nothing rounded twice unasked."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants

from gguf_files import converted, opened, planned, tensors
from qconvd.checkpoints import inspect
from qconvd.errors import Incomplete, Unsupported


@pytest.fixture(scope="module")
def files(glass: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """glassllm (rows of 341 among others) as F16, Q8_0 and Q4_0, straight from its checkpoint."""
    return converted(glass, ["F16", "Q8_0", "Q4_0"], tmp_path_factory.mktemp("direct"), name="glass_en")


@pytest.mark.parametrize("type_", ["F16", "Q8_0", "Q4_0"])
def test_from_a_gguf_as_from_the_checkpoint(files: dict[str, Path], tmp_path: Path, type_: str) -> None:
    made = converted(files["F16"], [type_], tmp_path)[type_]
    assert tensors(made) == {n: tensors(files[type_])[n] for n in tensors(made)}
    ours, direct = opened(made), opened(files[type_])
    keys = [k for k in ours.fields if not k.startswith("GGUF.")]
    assert sorted(keys) == sorted(k for k in direct.fields if not k.startswith("GGUF."))
    assert {k: ours.fields[k].contents() for k in keys} == {k: direct.fields[k].contents() for k in keys}
    # As llama-quantize sets them, these two come last, whatever the type.
    assert keys[-2:] == ["general.quantization_version", "general.file_type"]


def test_what_is_rounded_already_is_not_rounded_again_unasked(files: dict[str, Path]) -> None:
    with pytest.raises(Unsupported) as caught:
        planned(files["Q8_0"], "Q4_0")
    assert caught.value.what == "is quantized already (Q8_0), and Q4_0 made from it is worse than from the original"
    assert caught.value.where == f"{files['Q8_0']}, tensor blk.0.attn_k.weight"
    assert caught.value.fix.endswith("or say `allow_requantize: true` under gguf")


def test_the_same_type_again_is_a_copy(files: dict[str, Path], tmp_path: Path) -> None:
    made = converted(files["Q8_0"], ["Q8_0"], tmp_path)["Q8_0"]
    assert tensors(made) == tensors(files["Q8_0"])


def test_asked_for_weights_are_decoded_and_rounded_again(files: dict[str, Path], tmp_path: Path) -> None:
    made = converted(files["Q8_0"], ["Q4_0"], tmp_path, allow_requantize=True)["Q4_0"]
    name = "blk.0.ffn_up.weight"
    source = next(t for t in opened(files["Q8_0"]).tensors if t.name == name)
    decoded = quants.dequantize(source.data, GGMLQuantizationType.Q8_0)
    wanted = quants.quantize(decoded, GGMLQuantizationType.Q4_0)
    found = next(t for t in opened(made).tensors if t.name == name)
    assert found.tensor_type == GGMLQuantizationType.Q4_0
    np.testing.assert_array_equal(found.data, wanted)


def foreign(path: Path, *more: tuple[str, np.ndarray], alignment: int | None = None) -> Path:
    """A file of an architecture that nobody knows, with types of metadata and tensors that our own writer never makes."""
    writer = GGUFWriter(path, "owl")
    writer.add_uint64("owl.wings", 2**40)
    writer.add_float64("owl.pitch", 0.1)
    writer.add_int8("owl.mood", -3)
    writer.add_array("owl.songs", [f"hoo {i}" for i in range(1000)])
    writer.add_array("owl.ids", list(range(700)))
    writer.add_string("owl.text", "grüße 🦉")
    writer.add_file_type(1)
    if alignment:
        writer.add_custom_alignment(alignment)
    rng = np.random.default_rng(1)
    writer.add_tensor("owl.lookup", np.arange(12, dtype=np.int32).reshape(3, 4))
    writer.add_tensor("owl.table", np.arange(6, dtype=np.int64))
    writer.add_tensor("owl.pitch.weight", rng.standard_normal((2, 4)))
    writer.add_tensor("blk.0.wing.weight", rng.standard_normal((8, 64), dtype=np.float32).astype(np.float16))
    writer.add_tensor("blk.0.wing_norm.weight", rng.standard_normal(64, dtype=np.float32))
    writer.add_tensor("blk.0.wing.bias", rng.standard_normal(8).astype(np.float16))
    for name, value in more:
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_any_architecture_with_whatever_its_metadata_and_tensors_are(tmp_path: Path) -> None:
    source = foreign(tmp_path / "Owl-F16.gguf")
    made = converted(source, ["Q4_0"], tmp_path / "out")["Q4_0"]
    theirs, ours = opened(source), opened(made)
    set_anew = {"general.file_type", "general.quantization_version"}
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF.") and key not in set_anew:
            assert ours.fields[key].types == field.types, key
            assert ours.fields[key].contents() == field.contents(), key
    assert ours.fields["general.file_type"].contents() == 2
    before = {t.name: t for t in theirs.tensors}
    after = {t.name: t for t in ours.tensors}
    assert {n: t.tensor_type.name for n, t in after.items()} == {
        "owl.lookup": "I32", "owl.table": "I64", "owl.pitch.weight": "F16", "blk.0.wing.weight": "Q4_0",
        "blk.0.wing_norm.weight": "F32", "blk.0.wing.bias": "F16",
    }  # fmt: skip
    for name in ("owl.lookup", "owl.table", "blk.0.wing_norm.weight", "blk.0.wing.bias"):
        np.testing.assert_array_equal(after[name].data, before[name].data)
    assert inspect(source).name == "Owl"


def test_an_alignment_is_kept(tmp_path: Path) -> None:
    """llama-quantize carries the key over, too, but places the tensors at multiples of 32 (`align` in src/llama-quant.cpp)."""
    source = foreign(tmp_path / "Owl-F16.gguf", alignment=128)
    made = converted(source, ["Q4_0"], tmp_path / "out")["Q4_0"]
    ours = opened(made)
    assert ours.fields["general.alignment"].contents() == 128
    assert all((t.data_offset - ours.data_offset) % 128 == 0 for t in ours.tensors)
    theirs = {t.name: t.data for t in opened(source).tensors}
    np.testing.assert_array_equal(next(t.data for t in ours.tensors if t.name == "owl.table"), theirs["owl.table"])


def test_a_type_that_nobody_decodes_is_refused_by_name(tmp_path: Path) -> None:
    source = foreign(tmp_path / "Owl-F16.gguf")
    data = bytearray(source.read_bytes())
    # The tensor table says NVFP4 (id 40, 36 bytes for 64 weights) where it said F16: smaller, so the file must lose its rest.
    name = b"blk.0.wing.weight"
    at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4 + 16
    assert struct.unpack_from("<I", data, at) == (1,)
    struct.pack_into("<I", data, at, 40)
    source.write_bytes(data)
    with pytest.raises(Unsupported) as caught:
        planned(source, "Q8_0")
    assert caught.value.what == "is NVFP4, which cannot be decoded"
    assert caught.value.fix == "take a GGUF of another type"


def test_a_split_model_is_read_as_one_and_written_as_one(files: dict[str, Path], tmp_path: Path) -> None:
    parts = split(files["F16"], tmp_path / "parts", split_max_tensors=10)
    assert [p.name for p in parts] == [f"model-F16-{i:05}-of-00004.gguf" for i in range(1, 5)]
    made = converted(parts[0], ["Q8_0"], tmp_path / "out")["Q8_0"]
    whole = converted(files["F16"], ["Q8_0"], tmp_path / "whole")["Q8_0"]
    assert made.read_bytes() == whole.read_bytes()
    parts[2].unlink()
    with pytest.raises(Incomplete, match=r"1 of 4 parts are missing: model-F16-00003-of-00004\.gguf"):
        inspect(parts[0])


def split(source: Path, out: Path, **options: Any) -> list[Path]:
    """`source` again as F16, in parts."""
    first = converted(source, ["F16"], out / "work", **options)["F16"]
    return sorted(first.parent.glob("*.gguf"))


def test_parts_are_those_of_gguf_split(files: dict[str, Path], tmp_path: Path) -> None:
    parts = split(files["F16"], tmp_path, split_max_tensors=10)
    readers = [opened(p) for p in parts]
    assert [len(r.tensors) for r in readers] == [10, 10, 10, 8]
    for number, reader in enumerate(readers):
        keys = [k for k in reader.fields if not k.startswith("GGUF.")]
        assert keys[-3:] == ["split.no", "split.tensors.count", "split.count"]
        assert [reader.fields[k].contents() for k in keys[-3:]] == [number, 38, 4]
        assert len(keys) == 3 or number == 0
    names = [t.name for r in readers for t in r.tensors]
    assert names == [t.name for t in opened(converted(files["F16"], ["F16"], tmp_path / "w")["F16"]).tensors]


def test_parts_by_size_hold_no_more_than_allowed_and_never_cut_a_tensor(files: dict[str, Path], tmp_path: Path) -> None:
    plan = planned(files["F16"], "F16", split_max_size="200KB")
    sizes = [[p.nbytes for p in f.tensors] for f in plan.files]
    assert len(sizes) > 5
    assert all(len(part) == 1 or sum(-(-n // 32) * 32 for n in part) <= 200_000 for part in sizes)
    assert any(sum(part) > 150_000 for part in sizes if len(part) > 1)
    tight = planned(files["F16"], "F16", split_max_size=1000)
    assert [len(f.tensors) for f in tight.files] == [1] * 38


@pytest.mark.readers
def test_llama_cpp_runs_a_split_model_as_the_whole_one(files: dict[str, Path], tmp_path: Path) -> None:
    from gguf_readers import Llama

    parts = split(files["F16"], tmp_path, split_max_tensors=7)
    tokens = list(range(4, 24))
    np.testing.assert_array_equal(Llama(parts[0]).logits(tokens), Llama(files["F16"]).logits(tokens))
