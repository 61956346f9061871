"""Thousands of damaged GGML files: a plan or a QconvdError comes out, and no claim costs memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOM = 96 << 20
"""Bytes by which planning 3,600 files of up to half a megabyte may grow, whatever the files claim."""


def test_damaged_files_are_planned_or_refused(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "damaged_ggml.py"
    command = [sys.executable, "-W", "error", str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(said["found"]) == {"ggjt", "ggmf", "gpt2"}
    for name, counts in said["found"].items():
        assert counts["planned"] + counts["refused"] == 1200, name
        assert counts["refused"] > 600, name
        assert counts["planned"] > 10, name
        assert counts["messages"] > 8, name
    assert said["grown"] < ROOM
