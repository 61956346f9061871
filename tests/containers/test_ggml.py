"""The GGML container: its bytes are those that convert.py of June 2023 wrote, and its reader finds what was placed."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from ggml_files import TYPES, gpt2, gpt2_tensors, llama, llama_tensors, llama_tokens
from qconvd.containers.ggml import GgmlContainer
from qconvd.engine.plan import ContainerSpec, OutputTensor
from qconvd.errors import QconvdError, Unsupported

GGML = GgmlContainer()
NUMBERS = [300, 64, 192, 4, 2, 16, 1]


def spec(family: str = "llama", numbers: Any = NUMBERS, tokens: Any = None, scores: Any = None) -> ContainerSpec:
    tokens = [token for token, _ in llama_tokens()] if tokens is None else tokens
    metadata = [("numbers", "arr[u32]", numbers), ("tokens", "arr[bytes]", [t.decode("latin-1") for t in tokens])]
    if family == "llama":
        metadata.append(("scores", "arr[f32]", [s for _, s in llama_tokens()] if scores is None else scores))
    return ContainerSpec("ggml", tuple(metadata), {"family": family})


def outputs(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> list[OutputTensor]:
    found = []
    for name, (kind, shape) in tensors.items():
        _, block, size = TYPES[kind]
        count = 1
        for axis in shape:
            count *= axis
        found.append(OutputTensor(name, kind, shape, count // block * size))
    return found


def written(path: Path, made: ContainerSpec, tensors: list[OutputTensor], like: bytes) -> bytes:
    """A file with this container's structure and the other's numbers."""
    (file,) = GGML.layout(made, tensors)
    content = bytearray(file.nbytes)
    head = GGML.header(made, file, tensors)
    content[: len(head)] = head
    for at, data in GGML.between(made, file, tensors).items():
        content[at : at + len(data)] = data
    for place in file.tensors:
        content[place.offset : place.offset + place.nbytes] = like[place.offset : place.offset + place.nbytes]
    path.write_bytes(content)
    return bytes(content)


@pytest.mark.parametrize("matrix", ["F16", "F32", "Q4_0", "Q8_0"])
def test_llamas_structure_is_that_of_the_old_writer(tmp_path: Path, matrix: str) -> None:
    theirs = llama(matrix=matrix)
    tensors = outputs(llama_tensors(matrix))
    assert written(tmp_path / "x.bin", spec(), tensors, theirs) == theirs
    assert [(t.name, t.dtype, t.shape, t.nbytes) for t in GGML.read(tmp_path / "x.bin")] == [
        (t.name, t.dtype, t.shape, t.nbytes) for t in tensors
    ]


def test_gpt2s_structure_is_that_of_the_old_writer(tmp_path: Path) -> None:
    tokens = [bytes([byte]) for byte in range(256)]
    made = spec("gpt2", [256, 32, 64, 4, 2, 1], tokens)
    theirs = gpt2(tokens)
    assert written(tmp_path / "x.bin", made, outputs(gpt2_tensors(256)), theirs) == theirs


def test_records_and_padding_are_all_that_lies_between_tensors(tmp_path: Path) -> None:
    content = written(tmp_path / "x.bin", spec(), outputs(llama_tensors()), llama())
    ranges, tensors = GGML.ranges(tmp_path / "x.bin"), GGML.read(tmp_path / "x.bin")
    assert len(ranges) == len(tensors)
    for (start, stop), tensor in zip(ranges, tensors, strict=True):
        assert content[start:stop].endswith(tensor.name.encode())
        assert not any(content[stop : tensor.offset])
        assert tensor.offset % 32 == 0
        assert tensor.offset - stop < 32


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (OutputTensor("w", "BF16", (2, 2), 8), "GGML files have no tensor type BF16"),
        (OutputTensor("w", "F32", (2, 2, 2), 32), "GGML files hold tensors of 1 or 2 axes, not 3"),
        (OutputTensor("w", "F32", (1, 2**32), 2**34), "its shape does not fit into 32 bits"),
    ],
)
def test_what_a_record_cannot_say_is_refused(tensor: OutputTensor, reason: str) -> None:
    with pytest.raises(Unsupported) as caught:
        GGML.layout(spec(), [tensor])
    assert reason in caught.value.what


def test_numbers_that_no_header_holds_are_refused() -> None:
    with pytest.raises(Unsupported) as caught:
        GGML.header(spec(numbers=[2**32, 64, 192, 4, 2, 16, 1]), GGML.layout(spec(), [])[0], [])
    assert "a number does not fit into 32 bits" in caught.value.what
    with pytest.raises(QconvdError) as found:
        GGML.layout(spec(scores=[0.5]), [])
    assert found.value.what == "7 numbers and 1 scores are not what a llama file holds"
    with pytest.raises(QconvdError) as other:
        GGML.layout(spec("bloom", tokens=[]), [])
    assert (other.value.what, other.value.fix) == ("GGML has no family 'bloom'", "known: llama, gpt2, gptj, gpt_neox")


def test_the_header_is_as_long_as_the_vocabulary_makes_it() -> None:
    head = GGML.header(spec(), GGML.layout(spec(), [])[0], [])
    assert head[:8] == struct.pack("<II", 0x67676A74, 3)
    assert len(head) == 8 + 28 + sum(8 + len(token) for token, _ in llama_tokens())
