"""What `qconvd convert` says while it works, where the output is no terminal."""

from __future__ import annotations

import pytest

from qconvd.cli.progress import Shown
from qconvd.progress import Progress


def test_compiling_is_told_at_once_and_has_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    with Shown() as shown:
        shown.stage("convert", ["fp16", "gguf Q4_0"])
        shown.progress("gguf Q4_0", Progress(0, 0, 0.0, doing="compiling Q4_0 (once)"))
    assert capsys.readouterr().err == "converting fp16, gguf Q4_0\ncompiling Q4_0 (once)\n"


def test_a_layer_that_is_calibrated_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It is told of several times per second; the next layer is told at once."""
    with Shown() as shown:
        for layer in (1, 2):
            for percent in (20, 40, 60):
                event = {"event": "progress", "done": 5, "total": 10, "seconds": 1.0}
                doing = f"calibrating layer {layer} of 2, {percent} %"
                shown.progress("gptq", Progress.of({**event, "doing": doing}))
    assert capsys.readouterr().err == "gptq: calibrating layer 1 of 2, 20 %\ngptq: calibrating layer 2 of 2, 20 %\n"


def test_what_a_pass_does_is_told_once_for_all_its_targets(capsys: pytest.CaptureFixture[str]) -> None:
    """Its targets tell of it by turns, and of some parts again and again."""
    with Shown() as shown:
        shown.stage("convert", ["gptq 4bit-64g", "gptq 8bit"])
        for doing in (
            "compiling the solver (once)",
            "preparing calibration",
            "preparing calibration",
            "calibrating layer 1 of 4",
        ):
            for label in ("gptq 4bit-64g", "gptq 8bit"):
                shown.progress(label, Progress(0, 0, 0.0, doing=doing))
    assert capsys.readouterr().err == (
        "converting gptq 4bit-64g, gptq 8bit\ncompiling the solver (once)\npreparing calibration\ncalibrating layer 1 of 4\n"
    )


def test_plans_say_what_stays_out_and_each_sentence_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Shown() as shown:
        shown.stage("plan", ["gptq 4bit-64g", "gptq 8bit"])
        left = [{"tensor": f"layers.{n}", "became": "F16", "reason": "too odd"} for n in range(5)]
        shown.planned("gptq 4bit-64g", {"nbytes": 1000, "notes": ["calibrated", "loads"], "left_out": left})
        shown.planned("gptq 8bit", {"nbytes": 2048, "notes": ["calibrated"], "left_out": left})
        shown.stage("convert", ["gptq 4bit-64g", "gptq 8bit"])
    assert capsys.readouterr().err.splitlines() == [
        "planning gptq 4bit-64g, gptq 8bit",
        "gptq 4bit-64g: 1000 B (1,000 bytes)",
        "gptq 8bit: 2.0 KiB (2,048 bytes)",
        "gptq 4bit-64g, gptq 8bit: calibrated",
        "gptq 4bit-64g, gptq 8bit: layers.0, layers.1, layers.2 and 2 more are stored as F16: too odd",
        "gptq 4bit-64g: loads",
        "converting gptq 4bit-64g, gptq 8bit",
    ]


def test_nothing_is_said_of_a_share_before_there_is_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qconvd.cli.progress.LINE_EVERY", 0.0)
    with Shown() as shown:
        shown.progress("fp16", Progress(0, 2048, 1.0))
        shown.progress("fp16", Progress(1024, 2048, 1.0))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fp16: 50 %, 1.0 KiB of 2.0 KiB")
