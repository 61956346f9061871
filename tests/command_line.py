"""The command line, called in this process, and what tests of it hold in their hands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qconvd.cli import main


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Qconvd = Callable[..., Said]


def called_in(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Qconvd:
    """Runs commands as the console script does, in a folder, with no config but what is there."""
    monkeypatch.chdir(home)
    monkeypatch.delenv("QCONVD_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["qconvd", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Said(int(ended.value.code or 0), printed.out, printed.err)

    return run
