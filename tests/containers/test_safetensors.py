"""The safetensors container: what it lays out is what the safetensors library reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from qconvd.api import BadCheckpoint, ContainerSpec, OutputTensor, Unsupported, safetensors_index
from qconvd.containers.safetensors import SafetensorsContainer
from qconvd.dtypes import ELEMENT_BYTES

CONTAINER = SafetensorsContainer()


def tensor(name: str, dtype: str = "F16", *shape: int) -> OutputTensor:
    size = ELEMENT_BYTES[dtype]
    for n in shape:
        size *= n
    return OutputTensor(name, dtype, shape, size)


def spec(**options: Any) -> ContainerSpec:
    return ContainerSpec("safetensors", options=options)


def write(folder: Path, of: ContainerSpec, tensors: list[OutputTensor]) -> list[Path]:
    """The files as the engine makes them, each tensor filled with a byte of its own."""
    by_name = {t.name: (i, t) for i, t in enumerate(tensors, 1)}
    paths = []
    for file in CONTAINER.layout(of, tensors):
        data = bytearray(file.nbytes)
        header = CONTAINER.header(of, file, [by_name[p.tensor][1] for p in file.tensors])
        data[: len(header)] = header
        for placed in file.tensors:
            data[placed.offset : placed.offset + placed.nbytes] = bytes([by_name[placed.tensor][0]]) * placed.nbytes
        (folder / file.path).write_bytes(data)
        paths.append(folder / file.path)
    return paths


def test_the_library_reads_what_was_laid_out(tmp_path: Path) -> None:
    tensors = [
        tensor("a", "BF16", 3, 5),
        tensor("b", "F32", 2),
        tensor("c", "I64"),
        tensor("d", "U8", 3),
        tensor("é", "F16", 1, 1, 4),
    ]
    (path,) = write(tmp_path, spec(), tensors)
    loaded = load_file(path)
    assert {n: tuple(t.shape) for n, t in loaded.items()} == {t.name: t.shape for t in tensors}
    for number, t in enumerate(tensors, 1):
        assert bytes(loaded[t.name].reshape(-1).view(dtype=torch.uint8).tolist()) == bytes([number]) * t.nbytes
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_read_gives_back_the_layout(tmp_path: Path) -> None:
    tensors = [tensor("x", "U8", 7), tensor("w", "F16", 4, 8), tensor("empty", "F32", 0, 4), tensor("scale", "F32", 1)]
    (path,) = write(tmp_path, spec(), tensors)
    (file,) = CONTAINER.layout(spec(), tensors)
    found = {t.name: t for t in CONTAINER.read(path)}
    assert {p.tensor: (p.offset, p.nbytes) for p in file.tensors} == {n: (t.offset, t.nbytes) for n, t in found.items()}
    assert {n: (t.dtype, t.shape, t.file) for n, t in found.items()} == {t.name: (t.dtype, t.shape, path.name) for t in tensors}


def test_every_tensor_is_aligned_to_its_element_and_equals_keep_their_order() -> None:
    tensors = [tensor("d", "U8", 3), tensor("b", "F16", 5), tensor("a", "F16", 1), tensor("s", "F32", 3), tensor("i", "I64", 1)]
    (file,) = CONTAINER.layout(spec(), tensors)
    assert [p.tensor for p in file.tensors] == ["i", "s", "b", "a", "d"]
    sizes = {t.name: ELEMENT_BYTES[t.dtype] for t in tensors}
    assert all(p.offset % sizes[p.tensor] == 0 for p in file.tensors)
    assert file.tensors[0].offset % 8 == 0


def test_the_header_is_padded_and_every_byte_is_counted() -> None:
    for length in range(1, 12):
        tensors = [tensor("x" * length, "F16", 2)]
        (file,) = CONTAINER.layout(spec(), tensors)
        header = CONTAINER.header(spec(), file, tensors)
        assert len(header) % 8 == 0
        assert int.from_bytes(header[:8], "little") == len(header) - 8
        assert file.tensors[0].offset == len(header)
        assert file.nbytes == len(header) + 4
        assert json.loads(header[8:])["x" * length]["data_offsets"] == [0, 4]


def test_shards_are_filled_in_order_and_named_as_the_hub_does(tmp_path: Path) -> None:
    tensors = [tensor(f"t{i}", "F16", 10) for i in range(5)] + [tensor("large", "F16", 100), tensor("last", "F16", 1)]
    files = CONTAINER.layout(spec(max_shard_size=40), tensors)
    assert [[p.tensor for p in f.tensors] for f in files] == [["t0", "t1"], ["t2", "t3"], ["t4"], ["large"], ["last"]]
    assert [f.path for f in files] == [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    assert [f.shard for f in files] == [1, 2, 3, 4, 5]
    for path in write(tmp_path, spec(max_shard_size=40), tensors):
        assert load_file(path)


def test_one_file_has_no_number_and_no_index() -> None:
    files = CONTAINER.layout(spec(stem="consolidated"), [tensor("a", "F16", 1)])
    assert [(f.path, f.shard) for f in files] == [("consolidated.safetensors", 0)]
    assert safetensors_index(files, [tensor("a", "F16", 1)]) is None


def test_the_index_sends_readers_to_the_shards() -> None:
    tensors = [tensor("b", "F16", 10), tensor("a", "F32", 10)]
    files = CONTAINER.layout(spec(max_shard_size=40, stem="my-model"), tensors)
    index = safetensors_index(files, tensors)
    assert index is not None
    assert index.path == "my-model.safetensors.index.json"
    assert index.text is not None
    assert index.nbytes == len(index.text.encode())
    assert json.loads(index.text) == {
        "metadata": {"total_parameters": 20, "total_size": 60},
        "weight_map": {"a": "my-model-00002-of-00002.safetensors", "b": "my-model-00001-of-00002.safetensors"},
    }


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([OutputTensor("w", "Q4_0", (1, 32), 18)], "w: safetensors has no type Q4_0"),
        ([OutputTensor("w", "F16", (2, 2), 9)], "w: 9 bytes are planned for F16 [2, 2]"),
        ([tensor("w", "F16", 1), tensor("w", "F16", 1)], "w: the name is used twice"),
        ([tensor("__metadata__", "F16", 1)], "__metadata__: the name is reserved"),
    ],
)
def test_what_the_container_cannot_hold_is_refused(tensors: list[OutputTensor], message: str) -> None:
    with pytest.raises(Unsupported) as caught:
        CONTAINER.layout(spec(), tensors)
    assert str(caught.value) == message


def test_a_shard_needs_a_size() -> None:
    with pytest.raises(Unsupported, match="a shard of 0 bytes holds nothing"):
        CONTAINER.layout(spec(max_shard_size=0), [tensor("a", "F16", 1)])


def _gap(data: bytes) -> bytes:
    return data.replace(b'"data_offsets":[8,16]', b'"data_offsets":[8,15]')


def _longer(data: bytes) -> bytes:
    return data + b"\0"


def _unknown(data: bytes) -> bytes:
    return data.replace(b'"F16"', b'"F99"', 1)


@pytest.mark.parametrize("damage", [_gap, _longer, _unknown, lambda data: data[:-1], lambda _: b"", lambda _: b"\xff" * 64])
def test_damaged_files_are_named_with_the_librarys_complaint(tmp_path: Path, damage: Any) -> None:
    (path,) = write(tmp_path, spec(), [tensor("a", "F16", 4), tensor("b", "F16", 4)])
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    with pytest.raises(BadCheckpoint) as caught:
        CONTAINER.read(path)
    assert str(caught.value).startswith(f"{path}: the safetensors library cannot read it: ")
