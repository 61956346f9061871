"""Readers of plugins come before ours, and the path says which of ours reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from checkpoint_files import whole_gguf, write_model, write_sharded
from qconvd.api import CheckpointReader, ModelInfo, hookimpl
from qconvd.checkpoints import inspect
from qconvd.checkpoints.files import model_name
from qconvd.checkpoints.gguf import GgufReader
from qconvd.checkpoints.safetensors import SafetensorsReader
from qconvd.checkpoints.torch import TorchReader
from qconvd.plugins import Plugins


class Theirs:
    name = "theirs"

    def claims(self, path: Path) -> bool:
        return path.name == "special"

    def inspect(self, path: Path) -> ModelInfo:
        return ModelInfo(path, path.name, self.name, {}, ())


class Plugin:
    @staticmethod
    @hookimpl
    def qconvd_checkpoint_readers() -> Iterable[CheckpointReader]:
        return (Theirs(),)


def test_what_is_derived_from_a_model_is_computed_once(tmp_path: Path) -> None:
    model, calls = Theirs().inspect(tmp_path), []

    def make() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("not yet")
        return len(calls)

    with pytest.raises(ValueError, match="not yet"):
        model.once("a", make)
    assert (model.once("a", make), model.once("a", make), model.once("b", make)) == (2, 2, 3)
    assert Theirs().inspect(tmp_path).once("a", make) == 4


def test_a_plugins_reader_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Plugins(extra=[("theirs", Plugin)])
    assert [r.name for r in found.readers] == ["theirs", "safetensors", "gguf", "ggml", "torch"]
    monkeypatch.setattr("qconvd.plugins.plugins", lambda: found)
    assert inspect(write_model(tmp_path / "special")).kind == "theirs"
    assert inspect(write_model(tmp_path / "plain")).kind == "safetensors"


def test_what_the_readers_claim(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "whole")
    (whole / "model.gguf").write_bytes(whole_gguf())
    (whole / "pytorch_model.bin").write_bytes(b"x")
    only_index = write_sharded(tmp_path / "index", count=1)
    (only_index / "model-00001-of-00001.safetensors").unlink()
    torch = tmp_path / "torch"
    torch.mkdir()
    (torch / "pytorch_model.bin.index.json").write_text("{}")
    empty = tmp_path / "empty"
    empty.mkdir()
    readers = (SafetensorsReader(), GgufReader(), TorchReader())
    paths = (
        whole,
        only_index,
        torch,
        empty,
        Path("x.safetensors"),
        Path("x.GGUF"),
        Path("x.bin"),
        Path("x.txt"),
        tmp_path / "no",
    )
    assert {str(p.name): [r.name for r in readers if r.claims(p)] for p in paths} == {
        "whole": ["safetensors", "gguf", "torch"],
        "index": ["safetensors"],
        "torch": ["torch"],
        "empty": [],
        "x.safetensors": ["safetensors"],
        "x.GGUF": ["gguf"],
        "x.bin": ["torch"],
        "x.txt": [],
        "no": [],
    }


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Owl-1.5B-Chat-Q4_K_M.gguf", "Owl-1.5B-Chat"), ("owl.q4_0.gguf", "owl"), ("Owl-F16-00001-of-00003.gguf", "Owl"),
        ("Owl-IQ4_XS.gguf", "Owl"), ("Owl-Q3_K_XL.gguf", "Owl"), ("Owl-fp16.gguf", "Owl"), ("Owl-bf16.gguf", "Owl"),
        ("Owl-TQ1_0.gguf", "Owl"), ("Owl-MXFP4_MOE.gguf", "Owl"), ("q4_0.gguf", "q4_0"), ("Owl-2.gguf", "Owl-2"),
        ("Owl-Q4_K_M.safetensors", "Owl-Q4_K_M"), ("Owl-GGUF", "Owl"), ("Owl-Q4_K_M-GGUF", "Owl"), ("Owl-Q4_K_M", "Owl-Q4_K_M"),
    ],
)  # fmt: skip
def test_what_only_says_that_it_is_a_gguf_is_no_part_of_the_name(tmp_path: Path, file: str, name: str) -> None:
    assert model_name(tmp_path / file) == name
