"""Writing that survives a power loss: a file is there whole or not at all, and a folder's entries are on disk.

What is promised, and in which order things are synced for that, is told in docs/explanation/durability.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path

NO_SUCH_THING = (errno.EINVAL, errno.ENOTSUP)
"""What a file system says that cannot sync a folder; it then has nothing to sync there."""


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SUCH_THING:
            raise
    finally:
        os.close(descriptor)


def sync_folders(folders: Iterable[Path]) -> None:
    """Put the entries of several folders on disk, each once."""
    for folder in dict.fromkeys(folders):
        sync_folder(folder)


def sync_file(path: Path) -> None:
    """Put a file's content and size on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folder: Path, below: Path | None = None) -> None:
    """Create a folder and its parents, and put all their names on disk.

    Also of those that are there already: whoever made them may have been killed before they were synced. It goes up to `below`,
    or to the root of the file system, or to the first folder that may not be read.
    """
    for path in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
        path.mkdir(exist_ok=True)
    top = below.resolve() if below else None
    path = folder.resolve()
    while path not in (top, path.parent) and path.stat().st_dev == path.parent.stat().st_dev:
        try:
            sync_folder(path.parent)
        except PermissionError:
            return
        path = path.parent


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file's content so that it is the old or the new, never a part, and is on disk when this returns."""
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    finally:
        os.close(descriptor)
    fresh.replace(path)
    sync_folder(path.parent)
