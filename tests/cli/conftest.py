"""The command line, called in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import Qconvd, called_in


@pytest.fixture
def qconvd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Qconvd:
    """Run a command as the console script does, in an empty folder."""
    return called_in(tmp_path, monkeypatch, capsys)
