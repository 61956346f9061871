"""The command line, called in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from command_line import Qconvd, Said
from qconvd.cli import main


@pytest.fixture
def qconvd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Qconvd:
    """Run a command as the console script does, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QCONVD_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["qconvd", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Said(int(ended.value.code or 0), printed.out, printed.err)

    return run
