"""A model on the Hub as a folder without its weights: side files, and weights files that are a header and then a hole.

To every reader that is the model, so it can be inspected, matched with recipes and planned to the byte before any weight is
fetched. Headers are read by range requests; the lengths are those that the Hub lists, and the files take no room on the disk.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvd import checkpoints
from qconvd.checkpoints.base import ModelInfo
from qconvd.checkpoints.gguf import METADATA_LIMIT
from qconvd.checkpoints.gguf import read_header as read_gguf_header
from qconvd.checkpoints.safetensors import HEADER_LIMIT
from qconvd.checkpoints.shards import choose_shards
from qconvd.checkpoints.torch import NAMING as TORCH
from qconvd.checkpoints.torch.heads import fill
from qconvd.engine.durable import sync_folder, write_whole
from qconvd.errors import BadCheckpoint, HubBusy, OutOfSpace, QconvdError, Unsupported
from qconvd.hub.address import Address
from qconvd.hub.cache import holds
from qconvd.hub.client import Hub, RemoteFile, RemoteModel
from qconvd.hub.selection import beside, digest, is_ours, refuse_unread, visible

AT_A_TIME = 8
MOST_BEGUN = 32
"""Files of which the first bytes are asked for to tell GGML from pickles; repositories of GGML hold about fifteen."""
FIRST = 64 << 10
"""Bytes of a safetensors file that are asked for at first: most headers are shorter."""
FIRST_GGUF = 1 << 20
"""Of a GGUF, whose header holds the vocabulary; each further question is for eight times as much."""


@dataclass(frozen=True)
class Found:
    """A model on the Hub, known well enough to plan it. `model` is the folder of heads as a reader describes it."""

    address: Address
    remote: RemoteModel
    model: ModelInfo
    files: tuple[RemoteFile, ...]
    """What has to be fetched."""

    @property
    def digest(self) -> str:
        return digest(self.files)

    @property
    def listing(self) -> list[dict[str, Any]]:
        """What has to be fetched, as the ledger keeps it."""
        return [{"path": f.path, "size": f.size, "sha256": f.sha256, "oid": f.oid} for f in self.files]

    @property
    def nbytes(self) -> int:
        return sum(f.size for f in self.files)


def look(hub: Hub, address: Address, folder: Path, *, ours: bool = False) -> Found:
    """Resolve an address to its commit, list it, and make its heads below `folder`, which may hold them from an earlier time.

    Raises `HubRefused` and `HubBusy`; `Unsupported`, `BadCheckpoint` and `Incomplete` as the readers of local models do; and
    `NotAModel` for a repository that qconvd published, unless `ours` says that somebody asks for it by name.
    """
    commit = hub.commit_of(address.repo, address.revision)
    remote = hub.listed(address.repo, commit)
    if is_ours(remote) and not ours:
        fix = "`qconvd convert` makes other formats of it all the same"
        raise checkpoints.NotAModel("was made by qconvd: it carries a manifest or the tag", where=address.locator, fix=fix)
    hub.may_read(address.repo)
    return of_commit(hub, address, remote, folder)


def of_commit(hub: Hub, address: Address, remote: RemoteModel, folder: Path) -> Found:
    """As `look`, for a commit that was listed already."""
    place = folder / remote.commit / "heads"
    try:
        _refuse_unread(hub, address, remote)
        if not _intact(remote, place):
            _make(hub, remote, place)
        model = checkpoints.inspect(place)
    except QconvdError as error:
        _say_where(error, place, address.locator)
        raise
    needed = {f.path for f in model.files if f.role != "ignored"} | {f.path for f in beside(remote.files)}
    files = tuple(f for f in remote.files if f.path in needed)
    name = checkpoints.model_name(Path("/", address.name))
    return Found(address, remote, dataclasses.replace(model, name=name), files)


def _refuse_unread(hub: Hub, address: Address, remote: RemoteModel) -> None:
    """Asks for the first bytes of a few files, and only where no other weights are there."""
    sizes = {f.path: f.size for f in visible(remote.files)}
    asked = 0

    def begins(name: str) -> bytes:
        nonlocal asked
        asked += 1
        return hub.read(remote.repo, remote.commit, name, 0, 4) if sizes[name] >= 4 and asked <= MOST_BEGUN else b""

    refuse_unread(address.locator, list(sizes), begins)


def _intact(remote: RemoteModel, place: Path) -> bool:
    """Whether the heads are there, and not what a power failure or somebody's hand has left of them."""
    there = {f.path: f for f in remote.files}
    try:
        small = {f.path for f in beside(remote.files)}
        if not all(holds(place / path, there[path]) for path in small):
            return False
        weights = [p for p in place.iterdir() if p.name in there and p.name not in small]
        return all(p.stat().st_size == there[p.name].size and (_begins(p) or not there[p.name].size) for p in weights)
    except OSError:
        return False


def _begins(path: Path) -> bool:
    """Whether a file begins with a header, and not with the hole that follows it."""
    with path.open("rb") as file:
        return any(file.read(8))


def _make(hub: Hub, remote: RemoteModel, place: Path) -> None:
    """The folder appears whole or not at all."""
    draft = place.with_name(".heads")

    def whole(file: RemoteFile) -> None:
        data = hub.read(remote.repo, remote.commit, file.path, 0, file.size) if file.size else b""
        found = file.hasher()
        found.update(data)
        if len(data) != file.size or found.hexdigest() != file.content:
            what = f"{file.path} arrives with another content than the Hub lists"
            raise HubBusy(what, where=file.path, fix="it is tried again by itself")
        (draft / file.path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(draft / file.path, data)

    try:
        for old in (draft, place):
            shutil.rmtree(old, ignore_errors=True)
        draft.mkdir(parents=True)
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(whole, beside(remote.files)))
            list(pool.map(lambda file: _head(hub, remote, file, draft), _weights(remote, draft)))
        sync_folder(draft)
        draft.rename(place)
        sync_folder(place.parent)
    except OSError as error:
        what = f"cannot be kept: {os.strerror(error.errno or 0)}"
        if error.errno in (errno.EFBIG, errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ):
            raise BadCheckpoint(f"its name or size {what}", where=str(error.filename or draft)) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace("the disk of the state folder is full", where=str(draft), fix="make room there") from error
        raise QconvdError(what, where=str(draft), fix="look at the state folder and its disk") from error


def _weights(remote: RemoteModel, draft: Path) -> Sequence[RemoteFile]:
    """The files that hold the model's tensors: its safetensors, or where there are none, its GGUF, or its torch files."""
    there = {f.path: f for f in visible(remote.files)}
    if any(name.endswith(".safetensors") for name in there):
        _, shards = choose_shards(draft, there)
        return [there[shard] for shard in shards]
    found = [f for name, f in there.items() if name.lower().endswith(".gguf")]
    for file in found:  # the reader says which of them are one model
        (draft / file.path).touch()
    if found or not any(TORCH.files.fullmatch(name) for name in there):
        return found
    _, shards = choose_shards(draft, there, TORCH)
    return [there[shard] for shard in shards]


def _head(hub: Hub, remote: RemoteModel, file: RemoteFile, folder: Path) -> None:
    """A file of its full length, of which only the header is there."""
    if file.path.endswith(".safetensors"):
        data = hub.read(remote.repo, remote.commit, file.path, 0, min(FIRST, file.size))
        length = 8 + int.from_bytes(data[:8], "little")
        if len(data) < length <= min(HEADER_LIMIT + 8, file.size):
            data += hub.read(remote.repo, remote.commit, file.path, len(data), length - len(data))
        _write(folder / file.path, data[:length] if len(data) >= 8 else data, file.size)
        return
    if TORCH.files.fullmatch(file.path):
        _torch_head(hub, remote, file, folder)
        return
    count = min(FIRST_GGUF, file.size)
    data = b""
    while True:
        data += hub.read(remote.repo, remote.commit, file.path, len(data), count - len(data))
        _write(folder / file.path, data, file.size)
        try:
            read_gguf_header(folder, file.path)
        except BadCheckpoint:
            if count >= min(METADATA_LIMIT, file.size):
                return  # whatever is wrong with it, the reader says so
            count = min(8 * count, METADATA_LIMIT, file.size)
        else:
            return


def _torch_head(hub: Hub, remote: RemoteModel, file: RemoteFile, folder: Path) -> None:
    path = folder / file.path
    _write(path, b"", file.size)
    with path.open("r+b") as held:
        # Whatever is wrong with it, the reader says so.
        with suppress(Unsupported, BadCheckpoint):
            fill(held.fileno(), file.size, lambda at, count: hub.read(remote.repo, remote.commit, file.path, at, count), "")
        os.fsync(held.fileno())


def _write(path: Path, data: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.ftruncate(file.fileno(), max(size, len(data)))
        os.fsync(file.fileno())


def _say_where(error: QconvdError, place: Path, locator: str) -> None:
    """What a reader says of the folder of heads is true of the repository."""
    for folder in (place, place.with_name(".heads")):
        error.where = error.where.replace(str(folder), locator)
        error.fix = error.fix.replace(str(folder), locator)
    if error.fix == "give qconvd one of the files":  # as somebody could with a folder
        error.fix = "take a repository with one of them, or the one with the original's safetensors"
    if not error.where.startswith(locator):
        error.where = f"{locator}/{error.where}" if error.where else locator
