"""Thousands of damaged GGUF files and importance matrices: a plan or a QconvdError comes out, and no claim costs memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOM = 96 << 20
"""Bytes by which planning 6,000 files of 60 kB may grow: buffers and what Python keeps, whatever the files claim."""


def test_damaged_files_are_planned_or_refused(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "damaged_gguf.py"
    command = [sys.executable, "-W", "error", str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(said["found"]) == {"F16", "Q8_0", "Q4_0", "imatrix.gguf", "imatrix.dat"}
    for name, counts in said["found"].items():
        assert counts["planned"] + counts["refused"] == 1200, name
        # Nearly all damage shows, in many places; some leaves a file that is as good as before.
        assert counts["refused"] > 800, name
        assert counts["planned"] > 10, name
        assert counts["messages"] > 8, name
    assert said["grown"] < ROOM
