"""The source digest changes with everything that matters and with nothing else, and stays cheap for large models."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from checkpoint_files import CONFIG, header_of, safetensors, whole_gguf, write_model, write_safetensors, write_sharded
from qconvd.checkpoints import identity, inspect
from qconvd.checkpoints.identity import BLOCK, BLOCKS, SMALL
from qconvd.errors import BadCheckpoint, Incomplete


def digest(path: Path) -> str:
    return identity(inspect(path))


def test_names_of_folders_and_times_do_not_matter(tmp_path: Path) -> None:
    first = write_sharded(tmp_path / "first")
    second = tmp_path / "elsewhere" / "second"
    shutil.copytree(first, second)
    for file in second.iterdir():
        os.utime(file, (1, 1))
    assert digest(first) == digest(second)
    assert digest(first).startswith("sha256:")
    assert len(digest(first)) == 7 + 64


def test_ignored_files_do_not_matter(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    before = digest(model)
    for name in ("modeling.py", "pytorch_model.bin", "picture.png", ".DS_Store"):
        (model / name).write_bytes(b"x")
    assert digest(model) == before


def test_every_byte_of_a_small_model_matters(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    seen = {digest(model)}
    weights = (model / "model.safetensors").read_bytes()
    start = len(weights) - 240
    for at in (start, start + 131, len(weights) - 1):
        (model / "model.safetensors").write_bytes(weights[:at] + bytes([weights[at] ^ 1]) + weights[at + 1 :])
        seen.add(digest(model))
    (model / "model.safetensors").write_bytes(weights)
    (model / "tokenizer.json").write_text("{ }")
    seen.add(digest(model))
    (model / "tokenizer.json").unlink()
    seen.add(digest(model))
    (model / "config.json").write_text(json.dumps(CONFIG | {"rope_theta": 5e5}))
    seen.add(digest(model))
    (model / "chat_template.jinja").write_text("x")
    seen.add(digest(model))
    write_safetensors(
        model / "model.safetensors", {"a.weight": ("F32", [8, 4]), "b.weight": ("BF16", [3, 16]), "norm": ("F16", [8])}
    )
    seen.add(digest(model))
    assert len(seen) == 9


def large(path: Path, sizes: dict[str, int]) -> Path:
    """A model with tensors of so many bytes, mostly holes: it takes no room."""
    write_model(path)
    header, size = header_of({name: ("U8", [count]) for name, count in sizes.items()})
    head = safetensors(header, b"")
    with (path / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    return path


def poke(model: Path, tensor: str, at: int, count: int = 1) -> None:
    info = inspect(model).tensors[tensor]
    with (model / info.file).open("r+b") as file:
        file.seek(info.offset + at)
        file.write(b"x" * count)


def test_every_tensor_of_a_large_model_matters(tmp_path: Path) -> None:
    sizes = {f"layers.{i}": 40 << 20 for i in range(500)} | {f"norms.{i}": 8192 for i in range(500)}
    model = large(tmp_path / "m", sizes)
    assert inspect(model).weight_bytes > 20_000_000_000
    seen = {digest(model)}
    for tensor, size in [("layers.0", 40 << 20), ("layers.250", 40 << 20), ("layers.499", 40 << 20), ("norms.7", 8192)]:
        poke(model, tensor, size // 2, 4096)
        poke(model, tensor, size - 1)
        assert digest(model) not in seen
        seen.add(digest(model))
    poke(model, "layers.100", (40 << 20) - 1)
    assert digest(model) not in seen


def test_what_is_read_of_a_large_model_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = inspect(large(tmp_path / "m", {f"experts.{i}": 1 << 20 for i in range(6000)}))
    read = 0
    real = os.pread

    def counted(descriptor: int, count: int, offset: int) -> bytes:
        nonlocal read
        found = real(descriptor, count, offset)
        read += len(found)
        return found

    monkeypatch.setattr(os, "pread", counted)
    identity(model)
    assert read < BLOCKS * BLOCK + (1 << 20) < SMALL


def test_files_that_change_meanwhile(tmp_path: Path) -> None:
    model = inspect(write_model(tmp_path / "m"))
    weights = tmp_path / "m" / "model.safetensors"
    whole = weights.stat().st_size
    os.truncate(weights, whole - 1)
    with pytest.raises(Incomplete, match=f"{whole - 1} of {whole} bytes are there"):
        identity(model)
    os.truncate(weights, whole + 1)
    with pytest.raises(BadCheckpoint, match=r"has grown"):
        identity(model)
    weights.unlink()
    with pytest.raises(Incomplete, match=r"is not there"):
        identity(model)


def test_gguf(tmp_path: Path) -> None:
    content = whole_gguf()
    (tmp_path / "a.gguf").write_bytes(content)
    before = digest(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes(content.replace(b"t299", b"t29x"))
    assert digest(tmp_path / "a.gguf") != before
