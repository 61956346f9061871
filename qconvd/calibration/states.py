"""The work folder of a calibration: hidden states between layers, durable, and whose they are.

`fingerprint.json` says what the states are of; another fingerprint starts anew. `hidden-0007.bin` is the input of layer 7:
(samples, length, hidden) in the compute type, and a digest. A file of that name is complete; whether it still is what was
written, is looked at when a calibration goes on with it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qconvd.engine.durable import sync_folder, write_whole
from qconvd.errors import OutOfSpace

log = logging.getLogger(__name__)
FINGERPRINT = "fingerprint.json"
DIGEST = 32
"""Bytes at the end of a file."""
PIECE = 1 << 20


class States:
    """Hidden states of all samples, one file for each layer that is still needed."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        """`shape` is (samples, length, hidden)."""
        self.folder = folder
        self.shape = shape
        self.dtype = dtype
        self.nbytes = shape[0] * self._sample + DIGEST
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(fingerprint, sort_keys=True, indent=1).encode()
        known = folder / FINGERPRINT
        if not known.exists() or known.read_bytes() != text:
            self.clear()
            write_whole(known, text)
        elif (at := self.position) is not None and not self._is_sound(path := self._path(at)):
            log.warning("%s is damaged: calibration starts over", path,
                        extra={"action": "calibration.damaged", "path": path})  # fmt: skip
            self.clear()

    @property
    def position(self) -> int | None:
        """The layer whose inputs are there; None before the first."""
        found = [int(path.stem.removeprefix("hidden-")) for path in self.folder.glob("hidden-*.bin")]
        return max(found, default=None)

    def clear(self) -> None:
        """Forget everything."""
        for path in [*self.folder.glob("hidden-*"), *self.folder.glob(".hidden-*")]:
            path.unlink()

    def read(self, layer: int, start: int, end: int) -> torch.Tensor:
        """Samples `start:end` of a layer's input."""
        out = torch.empty((end - start, *self.shape[1:]), dtype=self.dtype)
        view = memoryview(out.view(torch.uint8).numpy()).cast("B")
        with self._path(layer).open("rb", buffering=0) as file:
            file.seek(start * self._sample)
            while view:
                count = file.readinto(view)
                if not count:
                    raise OSError(errno.EIO, "ends too early", str(self._path(layer)))
                view = view[count:]
        return out

    def writer(self, layer: int) -> Writer:
        """Where a layer's input is written to; it is there once it is kept."""
        return Writer(self, layer)

    def drop(self, layer: int) -> None:
        self._path(layer).unlink(missing_ok=True)

    def _is_sound(self, path: Path) -> bool:
        """Whether a file is as it was written."""
        digest, left = _digest(), self.nbytes - DIGEST
        with path.open("rb") as file:
            while left and (piece := file.read(min(left, PIECE))):
                digest.update(piece)
                left -= len(piece)
            return not left and file.read() == digest.digest()

    @property
    def _sample(self) -> int:
        return self.shape[1] * self.shape[2] * int(self.dtype.itemsize)

    def _path(self, layer: int) -> Path:
        return self.folder / f"hidden-{layer:04}.bin"


class Writer:
    """Hidden states that are being written, in the order of the samples."""

    def __init__(self, states: States, layer: int) -> None:
        self.layer = layer
        self._states = states
        self._path = states._path(layer).with_name(f".hidden-{layer:04}.new")
        self._digest = _digest()
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            os.posix_fallocate(self._descriptor, 0, states.nbytes)
        except OSError as error:
            self.discard()
            raise self._full(error) from error

    def write(self, hidden: torch.Tensor) -> None:
        """Append samples, (samples, length, hidden)."""
        data = hidden.to("cpu", self._states.dtype).contiguous().view(torch.uint8).numpy()
        self._digest.update(data)
        self._append(memoryview(data).cast("B"))

    def _append(self, view: memoryview) -> None:
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise self._full(error) from error

    def keep(self) -> None:
        """Make it durable, and the layer's input from now on."""
        self._append(memoryview(self._digest.digest()))
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        self._path.replace(self._states._path(self.layer))
        sync_folder(self._states.folder)

    def discard(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._path.unlink(missing_ok=True)

    def _full(self, error: OSError) -> Exception:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        what = f"{self._states.nbytes} bytes of hidden states do not fit on the disk"
        return OutOfSpace(
            what, where=str(self._states.folder), fix="make room there, or calibrate with fewer or shorter samples"
        )


def _digest() -> Any:
    return hashlib.blake2b(digest_size=DIGEST)
