"""What `qconvd convert` says while it works, where the output is no terminal."""

from __future__ import annotations

import pytest

from qconvd.cli.progress import Shown
from qconvd.progress import Progress


def test_compiling_is_told_at_once_and_has_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    with Shown() as shown:
        shown.stage("convert", ["fp16", "gguf Q4_0"])
        shown.progress("gguf Q4_0", Progress(0, 0, 0.0, doing="compiling Q4_0 (once)"))
    assert capsys.readouterr().err == "converting fp16, gguf Q4_0\ngguf Q4_0: compiling Q4_0 (once)\n"


def test_a_layer_that_is_calibrated_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It is told of several times per second; the next layer is told at once."""
    with Shown() as shown:
        for layer in (1, 2):
            for percent in (20, 40, 60):
                event = {"event": "progress", "done": 5, "total": 10, "seconds": 1.0}
                doing = f"calibrating layer {layer} of 2, {percent} %"
                shown.progress("gptq", Progress.of({**event, "doing": doing}))
    assert capsys.readouterr().err == "gptq: calibrating layer 1 of 2, 20 %\ngptq: calibrating layer 2 of 2, 20 %\n"
