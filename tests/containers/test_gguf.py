"""The GGUF container: its bytes as the gguf library reads them, sizes to the byte, and what it refuses."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvd.containers.gguf import LONG, GgufContainer, packed_metadata
from qconvd.engine.plan import ContainerSpec, OutputTensor
from qconvd.errors import QconvdError, Unsupported

CONTAINER = GgufContainer()
TENSORS = [
    OutputTensor("a.weight", "F32", (3, 5), 60),
    OutputTensor("norm", "F16", (7,), 14),
    OutputTensor("experts", "Q8_0", (2, 3, 64), 2 * 3 * 68),
    OutputTensor("last", "BF16", (1,), 2),
]
METADATA: tuple[tuple[str, str, Any], ...] = (
    ("general.architecture", "str", "llama"),
    ("u8", "u8", 255), ("i8", "i8", -128), ("u16", "u16", 65535), ("i16", "i16", -32768), ("u32", "u32", 2**32 - 1),
    ("i32", "i32", -(2**31)), ("f32", "f32", 0.5), ("bool", "bool", True), ("u64", "u64", 2**64 - 1), ("i64", "i64", -(2**63)),
    ("f64", "f64", 1e-300), ("text", "str", "grüße 🙂"), ("empty", "arr[str]", []), ("words", "arr[str]", ["a", "", "ü"]),
    ("scores", "arr[f32]", [0.5, -1.0]), ("ids", "arr[i32]", [1, -2]), ("flags", "arr[bool]", [True, False]),
)  # fmt: skip


def written(path: Path, spec: ContainerSpec, tensors: list[OutputTensor]) -> Path:
    """A file as the engine makes it: header, then every tensor at its place, zeros between."""
    (file,) = CONTAINER.layout(spec, tensors)
    data = bytearray(file.nbytes)
    header = CONTAINER.header(spec, file, tensors)
    data[: len(header)] = header
    for number, placed in enumerate(file.tensors, 1):
        assert not any(data[placed.offset : placed.offset + placed.nbytes])
        data[placed.offset : placed.offset + placed.nbytes] = bytes([number]) * placed.nbytes
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_the_gguf_library_reads_every_value_and_tensor(tmp_path: Path, alignment: int | None) -> None:
    from gguf import GGUFReader

    more = (("general.alignment", "u32", alignment),) if alignment else ()
    path = written(tmp_path / "x.gguf", ContainerSpec("gguf", (*METADATA, *more)), TENSORS)
    reader = GGUFReader(path)
    for key, _, value in METADATA:
        if key != "empty":  # the library cannot name the contents of an empty array
            assert reader.get_field(key).contents() == value, key
    assert reader.alignment == (alignment or 32)
    assert [k for k in reader.fields if not k.startswith("GGUF.")] == [k for k, _, _ in (*METADATA, *more)]
    for number, (theirs, ours) in enumerate(zip(reader.tensors, TENSORS, strict=True), 1):
        assert theirs.name == ours.name
        assert theirs.tensor_type.name == ours.dtype
        assert theirs.shape.tolist() == list(reversed(ours.shape))
        assert theirs.data_offset % (alignment or 32) == 0
        raw = np.ascontiguousarray(theirs.data).view(np.uint8)
        assert raw.size == ours.nbytes
        assert set(raw.reshape(-1).tolist()) == {number}


def test_reading_back_gives_what_was_laid_out(tmp_path: Path) -> None:
    spec = ContainerSpec("gguf", METADATA)
    path = written(tmp_path / "x.gguf", spec, TENSORS)
    (file,) = CONTAINER.layout(spec, TENSORS)
    found = CONTAINER.read(path)
    assert [(t.name, t.dtype, t.shape, t.file, t.nbytes) for t in found] == [
        (t.name, t.dtype, t.shape, "x.gguf", t.nbytes) for t in TENSORS
    ]
    assert [t.offset for t in found] == [p.offset for p in file.tensors]
    assert file.nbytes % 32 == 0
    assert path.stat().st_size == file.nbytes


def test_the_first_bytes_are_those_of_the_specification() -> None:
    spec = ContainerSpec("gguf", (("k", "u32", 7),))
    tensor = OutputTensor("t", "F32", (2, 1), 8)
    (file,) = CONTAINER.layout(spec, [tensor])
    key = struct.pack("<Q1sII", 1, b"k", 4, 7)
    info = struct.pack("<Q1sIQQIQ", 1, b"t", 2, 1, 2, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + key + info
    assert CONTAINER.header(spec, file, [tensor]) == head + bytes(-len(head) % 32)
    assert file.path == "{stem}.gguf"
    assert file.nbytes == len(head) + -len(head) % 32 + 32


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ((("k", "u8", 256),), "metadata key k: '256' is no u8"),
        ((("k", "str", 5),), "metadata key k: '5' is no str"),
        ((("k", "arr[i32]", ["x"]),), "metadata key k: \"['x']\" is no arr[i32]"),
        ((("k", "u128", 1),), "GGUF has no metadata type 'u128'"),
        ((("k", "str", "\ud800"),), "metadata key k: "),
        ((("k", "u8", 1), ("k", "u8", 1)), "metadata keys are given twice: ['k']"),
        ((("general.alignment", "u32", 48),), "general.alignment: 48 is no alignment"),
    ],
)
def test_metadata_that_gguf_cannot_hold(metadata: tuple[tuple[str, str, Any], ...], message: str) -> None:
    with pytest.raises(QconvdError) as caught:
        CONTAINER.layout(ContainerSpec("gguf", metadata), TENSORS)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (OutputTensor("t", "U64", (1,), 8), "tensor t: GGUF has no tensor type U64"),
        (OutputTensor("t", "F32", (1, 1, 1, 1, 1), 4), "tensor t: GGUF holds tensors of 1 to 4 axes, not 5"),
        (OutputTensor("t", "F32", (), 4), "not 0"),
        (OutputTensor("t" * 64, "F32", (1,), 4), "names in GGUF have at most 63 bytes"),
    ],
)
def test_tensors_that_gguf_cannot_hold(tensor: OutputTensor, message: str) -> None:
    with pytest.raises(Unsupported) as caught:
        CONTAINER.layout(ContainerSpec("gguf"), [tensor])
    assert message in str(caught.value)


def test_a_value_from_another_file_is_taken_over_byte_for_byte(tmp_path: Path) -> None:
    from gguf import GGUFReader

    value = struct.pack("<IIQ", 9, 10, 2) + struct.pack("<QQ", 1, 2**63)  # an array of two u64
    spec = ContainerSpec("gguf", (("general.architecture", "str", "owl"), ("x", "raw", base64.b64encode(value).decode())))
    path = written(tmp_path / "x.gguf", spec, TENSORS)
    assert value in path.read_bytes()
    assert GGUFReader(path).fields["x"].contents() == [1, 2**63]
    broken = ContainerSpec("gguf", (("x", "raw", "no base64!"),))
    with pytest.raises(QconvdError, match="is no raw: "):
        CONTAINER.layout(broken, TENSORS)


def test_long_arrays_are_packed_once_for_all_files() -> None:
    metadata = (
        ("general.architecture", "str", "owl"),
        ("tokens", "arr[str]", [f"Wört {i}" for i in range(LONG)]),
        ("scores", "arr[f32]", [0.5] * LONG),
        ("few", "arr[str]", ["a", "b"]),
    )
    packed = packed_metadata(metadata)
    assert [(key, kind) for key, kind, _ in packed] == [
        ("general.architecture", "str"), ("tokens", "raw"), ("scores", "raw"), ("few", "arr[str]"),
    ]  # fmt: skip
    plain, same = ContainerSpec("gguf", metadata), ContainerSpec("gguf", tuple(packed))
    (file,) = CONTAINER.layout(plain, TENSORS)
    assert CONTAINER.layout(same, TENSORS) == (file,)
    assert CONTAINER.header(same, file, TENSORS) == CONTAINER.header(plain, file, TENSORS)
    with pytest.raises(QconvdError) as caught:
        packed_metadata([("scores", "arr[f32]", ["high"] * LONG)])
    assert "is no arr[f32]: required argument is not a float" in str(caught.value)
    assert caught.value.where == "metadata key scores"


def test_parts_keep_an_alignment_that_is_not_the_usual_one() -> None:
    spec = ContainerSpec("gguf", (("general.alignment", "u32", 64),), {"max_tensors": 2})
    files = CONTAINER.layout(spec, TENSORS)
    assert [f.path for f in files] == ["{stem}-00001-of-00002.gguf", "{stem}-00002-of-00002.gguf"]
    assert [f.shard for f in files] == [1, 2]
    assert all(p.offset % 64 == 0 for f in files for p in f.tensors)
    assert all(b"general.alignment" in base64.b64decode(f.header) for f in files)


def test_more_parts_than_gguf_can_number() -> None:
    many = [OutputTensor(f"t{i}", "F32", (1,), 4) for i in range(65536)]
    with pytest.raises(QconvdError, match=r"a split into 65536 files is more than GGUF can number \(65535\)"):
        CONTAINER.layout(ContainerSpec("gguf", (), {"max_tensors": 1}), many)
