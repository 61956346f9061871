"""Folders that calibrations are kept in, beside the work folders of the targets that they are for.

A target's work folder says which one it needs. One that no work folder needs any more is removed: by the worker that
committed or dropped the last of its targets, or by the daemon when it has removed the work folders that nobody wants.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from qconvd.engine.durable import write_whole
from qconvd.engine.plan import CalibrationSpec

PREFIX = "calibration-"
NEEDED = "calibration"
"""In a target's work folder: the name of the folder that it needs."""
LOCK = "lock"


def folder_name(spec: CalibrationSpec, identity: str, *, target: str = "", device: str = "cpu") -> str:
    """The folder of a calibration among the work folders: the same for all targets that can share it.

    `identity` is the model's. Quantized activations are those of one `target`, so they are its own.
    """
    about = asdict(replace(spec, text="", linears={}))
    own = target if spec.stream == "quantized" else ""
    words = json.dumps([about, identity, own, device], sort_keys=True)
    return PREFIX + hashlib.sha256(words.encode()).hexdigest()[:16]


def need(work: Path, name: str) -> None:
    """Say durably that a target's work folder needs the calibration of this name. To be said before it is made or locked."""
    write_whole(work / NEEDED, name.encode())


def need_no_more(work: Path) -> None:
    (work / NEEDED).unlink(missing_ok=True)


def remove_unneeded(root: Path) -> list[Path]:
    """Remove the calibrations among the work folders under `root` that none of them needs and nobody holds; returns them."""
    removed = []
    for folder in sorted(root.glob(f"{PREFIX}*")):
        if folder.name in _needed(root):
            continue
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Somebody may have come to need it until it was locked.
            if folder.name not in _needed(root):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
    return removed


def _needed(root: Path) -> set[str]:
    found = set()
    for path in root.glob(f"*/{NEEDED}"):
        try:
            found.add(path.read_text())
        except OSError:
            continue
    return found
