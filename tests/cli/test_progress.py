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
