"""Where qconvd keeps what it can make again: compiled kernels, and how fast this machine was."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """The folder that the environment names for what qconvd may cache; nothing is made.

    `$QCONVD_CACHE_DIR`, else the first of `$CACHE_DIRECTORY` (systemd), else `$XDG_CACHE_HOME/qconvd`, else `~/.cache/qconvd`.
    """
    if named := os.environ.get("QCONVD_CACHE_DIR"):
        return Path(named).absolute()
    if given := os.environ.get("CACHE_DIRECTORY"):
        return Path(given.partition(":")[0]).absolute()
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home).absolute() / "qconvd"
    return Path("~/.cache/qconvd").expanduser().absolute()
