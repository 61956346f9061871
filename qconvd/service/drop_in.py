"""The drop-in that makes the packaged unit one for this interpreter and this config."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qconvd.errors import QconvdError
from qconvd.service.access import Access, access, at_home, program

if TYPE_CHECKING:
    from qconvd.config import Config


def command() -> list[str]:
    """How this installation of qconvd is started: the script beside its interpreter, or the interpreter itself."""
    script = Path(sys.executable).parent / "qconvd"
    return [str(script)] if os.access(script, os.X_OK) else [sys.executable, "-P", "-m", "qconvd"]


def drop_in(config: Config, *, user: bool) -> str:
    """The text for `qconvd.service.d/`."""
    start = started([*command(), "run", "--config", str(config.path)])
    lines = [f"# For {_shown(str(config.path))}. Install it again when the folders in there change;",
             "# what else you want goes into a drop-in of another name."]  # fmt: skip
    if user:
        return "\n".join([*lines, "[Service]", "ExecStart=", f"ExecStart={start}", ""])
    needs = access(config, program())
    return "\n".join([
        *lines, "[Unit]", _setting("RequiresMountsFor", sorted({*needs.written, *needs.read})),
        "[Service]", "ExecStart=", f"ExecStart={start}", *_folders(needs), "",
    ])  # fmt: skip


def _folders(needs: Access) -> list[str]:
    """ProtectSystem=strict makes everything read-only, ProtectHome and PrivateTmp hide: here is what is let through.

    The minus lets the service start where a folder is away; it is not to be reached then until the service is started again.
    """
    plain, hidden = needs.plain, needs.hidden
    lines = [_setting("ReadWritePaths", plain.written, "-"), _setting("ReadOnlyPaths", plain.read, "-")]
    if any(map(at_home, (*hidden.written, *hidden.read))):
        lines += ["# Homes are empty but for what is mounted below.", "ProtectHome=tmpfs"]
    lines += [_setting("BindReadOnlyPaths", hidden.read, "-"), _setting("BindPaths", hidden.written, "-")]
    return [line for line in lines if line]


def _setting(name: str, paths: Sequence[Path], before: str = "") -> str:
    return f"{name}={' '.join(quoted(before + str(p)) for p in paths)}" if paths else ""


def started(words: Sequence[str]) -> str:
    """A command line as ExecStart takes it. Variables are put in everywhere but in the program's own name."""
    return " ".join([quoted(words[0]), *(quoted(word).replace("$", "$$") for word in words[1:])])


def quoted(word: str) -> str:
    """A word as systemd reads it back (systemd.syntax(7)), with no specifier in it.

    Raises `QconvdError` for a line break or another control character, which no unit can hold.
    """
    if any(ord(c) < 32 or ord(c) == 127 for c in word):
        raise QconvdError("holds a control character, which no unit of systemd can name", where=_shown(word), fix="rename it")
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{plain}"' if any(c.isspace() or c in "'\"\\;#:" for c in word) else plain


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
