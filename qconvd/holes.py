"""Parts of a file that were never written.

Downloaders reserve a file at its full length and fill it in any order; a header that arrived first then promises bytes that
read as zeros. The filesystem knows them as holes (also those reserved with fallocate). But copying with `--sparse=always` and
compressing filesystems make holes of zeros that are meant. What tells them apart: a hole that is meant lies in a tensor that is
zero throughout, such as a fresh bias; a tensor that is half numbers and half hole is a download.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from qconvd.checkpoints.base import TensorInfo
from qconvd.checkpoints.files import opened, read_at

READ_LIMIT = 64 << 20
"""Bytes read to find out whether tensors with holes are zero throughout; then the hole counts as unwritten."""

_CHUNK = 1 << 16


def unwritten(path: Path, tensors: Sequence[TensorInfo]) -> tuple[int, int] | None:
    """The first byte range of the file that holds no data though the tensors need it; None if there is none.

    `tensors` are those of this file. A filesystem that knows no holes has none. Raises `Incomplete` if the file vanished.
    """
    with opened(path) as (descriptor, size):
        if not size or not _knows_holes(descriptor) or os.lseek(descriptor, 0, os.SEEK_HOLE) >= size:
            return None
        spare = READ_LIMIT
        for tensor in sorted(tensors, key=lambda t: t.offset):
            end = min(tensor.offset + tensor.nbytes, size)
            hole = os.lseek(descriptor, tensor.offset, os.SEEK_HOLE) if tensor.offset < end else end
            if hole >= end:
                continue
            read = _zeros(descriptor, tensor, spare)
            if read is None:
                return hole, _data(descriptor, hole, size)
            spare -= read
    return None


def _knows_holes(descriptor: int) -> bool:
    """Whether the filesystem answers. Most that know no holes say that all is data; some FUSE and 9p servers refuse."""
    try:
        os.lseek(descriptor, 0, os.SEEK_HOLE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    return True


def _data(descriptor: int, at: int, size: int) -> int:
    """Where data begins again at or after `at`; the file's size if it does not."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size


def _zeros(descriptor: int, tensor: TensorInfo, most: int) -> int | None:
    """Bytes that had to be read to see that a tensor is zero throughout; None if it is not, or `most` were not enough."""
    at, end, read = tensor.offset, tensor.offset + tensor.nbytes, 0
    while at < end:
        at = _data(descriptor, at, end)
        if at >= end:
            return read
        part = read_at(descriptor, at, min(_CHUNK, end - at))
        read += len(part)
        if read > most or any(part) or not part:
            return None
        at += len(part)
    return read
