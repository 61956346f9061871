"""What lies in a watched folder: which entries may be models, and for each, whether it is a model and all there.

The look at a model reads its own bytes and the names around it; that nothing changed for a while is for the watcher to say,
by comparing fingerprints (watch/settle.py). Files may vanish, appear and change at any moment here, so nothing that happens to
them is an exception.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qconvd import checkpoints
from qconvd.checkpoints import ModelInfo, NotAModel
from qconvd.checkpoints.files import (
    LFS_POINTER_SIZE,
    MODEL_ENDINGS,
    Entry,
    absolute,
    entries,
    is_folder,
    is_hidden,
    is_side_file,
    is_side_folder,
    is_temporary,
    is_there,
    opened,
    unreadable,
)
from qconvd.checkpoints.refusals import OTHER_WEIGHTS
from qconvd.engine.manifest import manifest_paths
from qconvd.errors import Incomplete, QconvdError
from qconvd.holes import unwritten

log = logging.getLogger(__name__)

LEFT_OVER = 3600.0
"""Seconds after which a temporary file that has not changed counts as left behind by a program that was stopped."""

DEPTH = 2
"""Levels below a watched folder at which models are found: `hf download` makes `owner/name`."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at one path found."""

    state: Literal["complete", "incomplete", "refused", "not-a-model"]
    reason: str = ""
    """Why it is not `complete`: a sentence with the place it speaks of."""
    fix: str = ""
    """What to do about it; may be empty."""
    model: ModelInfo | None = None
    """The model, if it is `complete`."""
    fingerprint: str = ""
    """Changes whenever a relevant file is added, removed, renamed, written or given other permissions; needs no reading."""


def name_of(path: Path) -> str:
    """The name that the outputs of the model at `path` are made from."""
    return checkpoints.model_name(path)


def candidates(folder: Path, *, ignore: Collection[Path] = ()) -> list[Path]:
    """The paths in a watched folder that may be models, sorted: folders, and lone files with a model's ending.

    Found are folders that hold a config.json or weights of any kind, down to `owner/name`, and snapshots in the layout of
    the Hugging Face cache. Passed over are hidden and temporary names, folders with our manifest, everything in `ignore`,
    and a folder that was already met by another way (so symlinks cannot loop). A folder that may not be read is a candidate:
    `look` says so. Raises OSError if the watched folder itself cannot be listed.
    """
    with os.scandir(folder):
        pass  # entries() would call it incomplete; for a watched folder the caller wants to know
    ignored = {os.path.realpath(p) for p in ignore}
    return sorted(_search(folder, DEPTH, {os.path.realpath(folder)}, ignored))


def openings(folder: Path, found: Collection[Path]) -> list[Path]:
    """Folders where a model can appear though nothing happens in the watched folder itself: owners', and those still empty.

    `found` is what `candidates` gave. Above come first: `owner`, then `owner/name`.
    """
    models = {p.parent.parent if p.parent.name == "snapshots" else p for p in found}
    above: list[Path] = []
    level = [folder]
    for _ in range(DEPTH):
        level = [p for near in level if not _is_cached(near) for p in _plain_folders(near, models)]
        above += level
    return above


def look(path: Path, *, ignore: Collection[Path] = (), now: float | None = None, artifacts: bool = False) -> Look:
    """Look at one candidate. Never raises for what is on the disk.

    What carries our manifest is no model, unless `artifacts` says that somebody asks for it by name.

    `ignore` are folders that hold no sources, such as the output; `now` is the time in seconds since the epoch that temporary
    files are held against (`LEFT_OVER`). A model is `complete` when its headers agree with its files, no temporary file is
    beside it, and no file has a hole where weights should be. What may not be read is `incomplete`, since a chmod mends it.
    """
    path = absolute(path)
    before = fingerprint(path)
    try:
        _check_name(path, ignore)
        if not artifacts and _is_ours(path):
            fix = "`qconvd convert` makes other formats of it all the same"
            raise NotAModel("was made by qconvd: it carries a manifest", where=str(path), fix=fix)
        _check_temporary(path, time.time() if now is None else now)
        model = checkpoints.inspect(path)
        _check_pointers(model)
        _check_holes(model)
    except Incomplete as error:
        return Look("incomplete", _reason(error, path), error.fix, fingerprint=before)
    except NotAModel as error:
        return Look("not-a-model", _reason(error, path), error.fix, fingerprint=before)
    except QconvdError as error:
        return Look("refused", _reason(error, path), error.fix, fingerprint=before)
    except OSError as error:  # from a plugin's reader, or a race that none foresaw; the next look tells
        found = unreadable(path, error)
        return Look("incomplete", found.what, found.fix, fingerprint=before)
    except MemoryError:
        what = "there was not enough memory to look at it"
        return Look("incomplete", what, "give the daemon more, or wait until others have less", fingerprint=before)
    except Exception as error:  # a defect of a reader, ours or a plugin's: one model must not stop all others
        log.exception("looking at %s failed", path, extra={"action": "model.defect", "path": path})
        return Look("refused", f"a defect of qconvd or of a plugin: {type(error).__name__} (the log has the traceback)",
                    "please report it", fingerprint=before)  # fmt: skip
    if fingerprint(path) != before:
        return Look("incomplete", "changed while it was looked at", "wait for the copy to finish", fingerprint=before)
    return Look("complete", model=model, fingerprint=before)


def fingerprint(path: Path) -> str:
    """A digest of names, sizes, times, inodes and permissions of all files that belong to a candidate. Reads no file.

    ctime is part of it: copying programs set mtime back to the original's when they are done, ctime they cannot set.
    """
    digest = hashlib.sha256()
    for name, place in sorted(_relevant(path)):
        try:
            status = place.stat()
            line = f"{status.st_mode} {status.st_dev} {status.st_ino}"
            if not stat.S_ISDIR(status.st_mode):  # what matters of a folder's content is listed by name
                line += f" {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        except OSError as error:
            line = f"errno {error.errno}"
        digest.update(os.fsencode(f"{name}\0{line}\0"))
    return digest.hexdigest()[:32]


def _search(folder: Path, depth: int, seen: set[str], ignored: set[str]) -> Iterator[Path]:
    try:
        found = entries(folder, most=None)
    except QconvdError:
        return
    # The real folder before a link to it: the link is then the second way, and passed over.
    for entry in sorted(found, key=lambda e: (e.link, e.name)):
        path = folder / entry.name
        if is_hidden(entry.name) or is_temporary(entry.name):
            continue
        if entry.kind == "folder":
            yield from _search_folder(path, depth, seen, ignored)
        elif entry.kind in ("file", "dangling") and path.suffix.lower() in MODEL_ENDINGS and _is_first_part(entry.name):
            if os.path.realpath(path) not in seen:
                seen.add(os.path.realpath(path))
                yield path
        elif entry.kind == "unreadable":
            yield path


def _search_folder(path: Path, depth: int, seen: set[str], ignored: set[str]) -> Iterator[Path]:
    real = os.path.realpath(path)
    if real in seen or real in ignored:
        return
    seen.add(real)
    try:
        if manifest_paths(path):
            return
        inside = entries(path)
    except (OSError, QconvdError):
        yield path  # look() says why it cannot be read
        return
    if _is_cached(path) and any(e.name == "snapshots" for e in inside):
        yield from _snapshot(path)
    elif any(_hints_at_model(e) for e in inside):
        yield path
    elif depth > 1:
        yield from _search(path, depth - 1, seen, ignored)


def _plain_folders(folder: Path, models: Collection[Path]) -> list[Path]:
    """Folders in `folder` that are neither hidden, nor models, nor artifacts of ours; none if it went away meanwhile."""
    try:
        inside = [folder / e.name for e in entries(folder, most=None) if e.kind == "folder" and not is_hidden(e.name)]
        # Models first: every scan comes here, and looking for a manifest lists a folder.
        return [p for p in inside if p not in models and not manifest_paths(p)]
    except (OSError, QconvdError):
        return []


def _is_cached(path: Path) -> bool:
    """Whether it is named as the Hugging Face cache names a repository."""
    return path.name.startswith("models--")


def _snapshot(repository: Path) -> Iterator[Path]:
    """The snapshot of a cached repository that `refs/main` names, or the only one."""
    try:
        revision = (repository / "refs" / "main").read_text(errors="replace").strip()[:64]
        snapshots = [e.name for e in entries(repository / "snapshots") if e.kind == "folder"]
    except (OSError, QconvdError):
        revision, snapshots = "", [e.name for e in _entries_or_none(repository / "snapshots") if e.kind == "folder"]
    chosen = revision if revision in snapshots else snapshots[0] if len(snapshots) == 1 else ""
    if chosen:
        yield repository / "snapshots" / chosen


def _hints_at_model(entry: Entry) -> bool:
    if is_hidden(entry.name):
        return False
    name = re.sub(r"\.(part|partial|incomplete|tmp|crdownload|aria2|download|filepart)$", "", entry.name.lower())
    if entry.kind == "folder":
        return name.endswith(".mlpackage")
    ending = Path(name).suffix
    known = ending in MODEL_ENDINGS or ending in OTHER_WEIGHTS
    return known or name in ("config.json", "adapter_config.json", "model_index.json") or name.endswith(".index.json")


def _is_first_part(name: str) -> bool:
    """Whether a lone file stands for itself: of a split set only the first part does."""
    match = re.search(r"-(\d{5})-of-\d{5}\.gguf$", name)
    return match is None or int(match[1]) == 1


def spelled(path: Path) -> str:
    """A path as text. Raises `NotAModel` for one that cannot be written down."""
    where = str(path)
    try:
        where.encode()
    except UnicodeEncodeError:
        raise NotAModel("the name is not UTF-8", where=ascii(where), fix="rename it") from None
    return where


def _check_name(path: Path, ignore: Collection[Path]) -> None:
    where = spelled(path)
    if is_hidden(path.name) or is_temporary(path.name):
        raise NotAModel("the name is hidden or temporary", where=where)
    real = Path(os.path.realpath(path))
    for folder in ignore:
        if real.is_relative_to(os.path.realpath(folder)):
            raise NotAModel(f"lies in {folder}, which holds no sources", where=where)


def _is_ours(path: Path) -> bool:
    """Whether a folder has a manifest by name: one that is damaged, or of another version, still says who made the folder."""
    try:
        return is_folder(path) and bool(manifest_paths(path))
    except OSError:
        return False


def _check_temporary(path: Path, now: float) -> None:
    """Raise `Incomplete` if a program that writes this model has not finished."""
    for place in _unfinished(path):
        try:
            age = now - place.stat().st_mtime
        except OSError:
            continue  # it was renamed or removed: finished
        # aria2 removes its control file when the download is whole, and only then.
        if age < LEFT_OVER or (place.suffix == ".aria2" and is_there(place.with_suffix(""))):
            fix = f"wait for the program that writes it; if none does, remove {place.name}"
            raise Incomplete("is a file that is still being written", where=str(place), fix=fix)


def _unfinished(path: Path) -> Iterator[Path]:
    """Temporary files beside a lone file, or anywhere that copying and downloading programs leave them in a folder."""
    if not is_folder(path):
        for entry in _entries_or_none(path.parent):
            # `x.gguf.part`, `x.gguf~`, rsync's `.x.gguf.AbCdEf`
            if is_temporary(entry.name) and entry.name.lstrip(".").startswith((f"{path.name}.", f"{path.name}~")):
                yield path.parent / entry.name
        return
    here = _entries_or_none(path)
    for entry in here:
        if entry.kind == "file" and is_temporary(entry.name):
            yield path / entry.name
    folders: list[Path] = []
    if any(entry.name == ".git" for entry in here):
        for name in ("index.lock", "HEAD.lock", "shallow.lock", "config.lock"):
            if is_there(path / ".git" / name):
                yield path / ".git" / name
        folders += [path / ".git" / "lfs" / "incomplete", path / ".git" / "lfs" / "tmp", path / ".git" / "objects" / "pack"]
    if any(entry.name == ".cache" for entry in here):
        folders.append(path / ".cache" / "huggingface" / "download")
    if path.parent.name == "snapshots":
        folders.append(path.parent.parent / "blobs")
    for folder in folders:
        for entry in _entries_or_none(folder):
            if entry.kind == "file" and (is_temporary(entry.name) or folder.parent.name == "lfs"):
                yield folder / entry.name


def _check_pointers(model: ModelInfo) -> None:
    """Raise `Incomplete` for a tokenizer or config that Git LFS has not fetched; weights are checked by their reader."""
    for file in model.files:
        if file.role == "side" and file.size < LFS_POINTER_SIZE:
            with opened(model.path / file.path):
                pass


def _check_holes(model: ModelInfo) -> None:
    """Raise `Incomplete` if a weights file has a hole that the weights do not explain (holes.py)."""
    for file in model.files:
        if file.role == "weights":
            tensors = [t for t in model.stored.values() if t.file == file.path]
            found = unwritten(model.path / file.path, tensors)
            if found:
                start, end = found
                raise Incomplete(
                    f"nothing was written yet from byte {start} to {end}",
                    where=str(model.path / file.path),
                    fix="wait for the download; if these bytes are meant to be zero, copy the file with `cp --sparse=never`",
                )


def _relevant(path: Path) -> Iterator[tuple[str, Path]]:
    """Files by relative name whose change may change what a look finds."""
    yield "", path
    for place in _unfinished(path):
        yield f"unfinished {place.name}", place
    if not is_folder(path):
        if (match := re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", path.name)) is not None:
            for entry in _entries_or_none(path.parent):
                if entry.name.startswith(match[1]):
                    yield entry.name, path.parent / entry.name
        return
    for entry in _entries_or_none(path):
        if entry.kind == "folder" and is_side_folder(entry.name):
            for inner in _entries_or_none(path / entry.name):
                if is_side_file(f"{entry.name}/{inner.name}"):
                    yield f"{entry.name}/{inner.name}", path / entry.name / inner.name
        elif entry.kind != "folder" and not is_hidden(entry.name):
            yield entry.name, path / entry.name


def _entries_or_none(folder: Path) -> list[Entry]:
    try:
        return entries(folder)
    except QconvdError:
        return []


def _reason(error: QconvdError, path: Path) -> str:
    """The reason with its place, as far as that is not the model itself."""
    if not error.where or error.where == str(path):
        return error.what
    place = error.where.removeprefix(f"{path}/")
    return f"{place}: {error.what}"
