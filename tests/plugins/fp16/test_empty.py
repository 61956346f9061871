"""Tensors without elements: a line in a header, however many rows it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qconvd.api import Device
from qconvd.checkpoints import inspect
from qconvd.engine.run import ConvertTarget, Limits, convert
from qconvd.plugins import plugins


@pytest.mark.parametrize("shape", [[2**40, 0], [0, 4], [0], [3, 0, 2]])
def test_tensors_without_elements_cost_nothing(tmp_path: Path, shape: list[int]) -> None:
    header = {
        "empty": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]},
        "weight": {"dtype": "BF16", "shape": [4, 4], "data_offsets": [0, 32]},
    }
    text = json.dumps(header).encode()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))
    (folder / "config.json").write_text('{"architectures": ["X"]}')
    model, fmt = inspect(folder), plugins().formats["fp16"]
    plan = fmt.plan(model, fmt.Options())
    target = ConvertTarget("t", plan, fmt.encoder(plan, Device()), tmp_path / "work", {"artifact": "x"})
    made = convert(model, [target], Limits(64 << 20, 1), operations={}, on_event=lambda _: None, cancelled=lambda: False)
    assert not isinstance(made["t"], Exception), made["t"]
    assert {f.path for f in made["t"].files} == {"model.safetensors", "config.json"}
    written = tmp_path / "work" / "files" / "model.safetensors"
    length = int.from_bytes(written.read_bytes()[:8], "little")
    assert json.loads(written.read_bytes()[8 : 8 + length])["empty"]["shape"] == shape
