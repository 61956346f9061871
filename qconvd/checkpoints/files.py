"""The files of a model's folder: which are weights, which are carried along, and how to read them without being harmed.

Whoever can put files into a watched folder decides what is read here, so nothing is trusted: names are checked before they
become paths, only regular files are opened (a FIFO would block for ever), and every read is bounded.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qconvd.checkpoints import json_text
from qconvd.checkpoints.base import FileInfo
from qconvd.errors import BadCheckpoint, Incomplete, QconvdError

CONFIG_LIMIT = 16 << 20
"""Bytes of a config.json; real ones stay under 100 kB."""

INDEX_LIMIT = 100_000_000
"""Bytes of an index; that of a model with 100,000 tensors takes about 10 MB."""

JSON_VALUES = 4_000_000
"""Commas and brackets in a JSON text; more would take gigabytes once parsed, whatever the text's own size."""

ENTRIES = 20_000
"""Entries of a model's folder."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_POINTER_SIZE = 1024

MODEL_ENDINGS = frozenset({".safetensors", ".gguf", ".ggml", ".bin", ".pt", ".pth", ".ckpt"})
"""Endings of single files that are, or look like, a model."""

_SIDE = re.compile(
    r"""(config | generation_config | special_tokens_map | added_tokens | tokenizer | tokenizer_config | vocab | tekken
       | (|image_|video_|audio_)preprocessor_config | (|image_|video_)processor_config | feature_extractor_config
       | chat_template | modules | (sentence_\w+|config_sentence_transformers) ) \.json
    | vocab[\w.-]*\.(txt|json) | merges\.txt | tokenizer[\w.-]*\.(json|model|txt|vocab) | chat_template[\w.-]*\.(json|jinja)
    | [\w.-]+\.(model|spm|tiktoken|jinja) | tokenizer\.model\.v\d\w*
    | (LICEN[CS]E|COPYING|NOTICE|USE_POLICY)[\w.-]* | README\.md""",
    re.VERBOSE,
)
_SIDE_FOLDER = re.compile(r"\d+_[A-Z][A-Za-z]+|additional_chat_templates")
_TEMPORARY = re.compile(
    r".*(\.(part|partial|incomplete|tmp|temp|crdownload|opdownload|aria2|download|filepart|!qb|!ut|bc!|swp|st-temp)|~)"
    r"|tmp_pack_\w+|~syncthing~.*",
    re.IGNORECASE,
)
# rsync writes `model.safetensors` as `.model.safetensors.AbCdEf` until it is whole.
_RSYNC = re.compile(r"\..+\.(safetensors|gguf|json|txt|model|bin|pt|pth|jinja|md|py)\.[A-Za-z0-9]{6}")


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands under a name in a folder; a symlink is described by what it points to."""

    name: str
    kind: Literal["file", "folder", "dangling", "special", "unreadable"]
    size: int = 0
    link: bool = False


def is_hidden(name: str) -> bool:
    return name.startswith(".")


def is_temporary(name: str) -> bool:
    """Whether a program gives this name to a file that it has not finished: a download, a copy, an edit."""
    return bool(_TEMPORARY.fullmatch(name) or _RSYNC.fullmatch(name))


def absolute(path: Path) -> Path:
    """The absolute path without `..`. Symlinks stay: the link's own name is the model's."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (resolve would follow symlinks)


def is_folder(path: Path) -> bool:
    """As `Path.is_dir`, but never raising: what may not be looked at is no folder."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_there(path: Path) -> bool:
    """As `Path.exists`, but never raising."""
    try:
        return path.exists()
    except OSError:
        return False


def is_side_folder(name: str) -> bool:
    """Whether a subfolder holds side files: sentence-transformers' `1_Pooling`, transformers' extra chat templates."""
    return bool(_SIDE_FOLDER.fullmatch(name))


def is_side_file(path: str) -> bool:
    """Whether a file of this path is carried into artifacts: config, tokenizer, template, licence, card; never code."""
    folder, _, name = path.rpartition("/")
    if folder:
        return is_side_folder(folder) and name.endswith((".json", ".jinja"))
    return bool(_SIDE.fullmatch(name))


_GGUF_TYPE = re.compile(r"(?<=.)[-._](?:I?Q\d(?:_[0-9A-Z]+)*|TQ\d_\d|MXFP4(?:_MOE)?|BF16|FP?16|FP?32)$", re.IGNORECASE)

_GGML_TYPE = re.compile(r"(?<=.)[-._]ggml(?:v\d)?(?:[-._](?:Q\d(?:_[0-9A-Z]+)*|FP?16|FP?32))?$", re.IGNORECASE)


def model_name(path: Path) -> str:
    """The name that a model's outputs are made from: the folder's, or the file's without its ending and shard number.

    What only says that the model is a GGUF or GGML, and of which type (`-GGUF`, `.Q4_K_M`, `.ggmlv3.q4_0`), is no part of it.
    A snapshot in the Hugging Face cache (`models--owner--name/snapshots/<revision>`) is called by its repository's name.
    """
    path = absolute(path)
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rpartition("--")[2]
    ending = path.suffix.lower()
    if ending in MODEL_ENDINGS and not is_folder(path):
        name = re.sub(r"-\d{5,6}-of-\d{5,6}$", "", path.name[: -len(ending)])
        if ending in (".bin", ".ggml"):
            return _GGML_TYPE.sub("", name)
        return _GGUF_TYPE.sub("", name) if ending == ".gguf" else name
    name = re.sub(r"(?<=.)-(?:GGUF|GGML)$|(?<=.)-ggml-q\d\w*$", "", path.name, flags=re.IGNORECASE)
    return _GGUF_TYPE.sub("", name) if name != path.name else name


def entries(folder: Path, most: int | None = ENTRIES) -> list[Entry]:
    """What is in a folder, sorted by name. Names that are not UTF-8 and entries that vanish meanwhile are left out.

    Raises `Incomplete` if the folder cannot be read and `BadCheckpoint` if it holds more than `most` entries.
    """
    found: list[Entry] = []
    try:
        with os.scandir(folder) as listing:
            for item in listing:
                if most is not None and len(found) >= most:
                    raise BadCheckpoint(f"holds more than {most} entries", where=str(folder))
                entry = _entry(item)
                if entry is not None:
                    found.append(entry)
    except OSError as error:
        raise unreadable(folder, error) from error
    return sorted(found, key=lambda e: e.name)


def inventory(folder: Path, weights: set[str]) -> tuple[FileInfo, ...]:
    """The files of a model's folder with their roles, sorted by path; hidden and temporary names are left out.

    `weights` are the relative paths of the files that hold the model's tensors. Subfolders are not entered, except those
    that hold side files. Raises `BadCheckpoint` for a symlink that leaves a git work tree: a clone may bring one to read a
    file that was never part of the model.
    """
    here = entries(folder)
    found: dict[str, int] = {}
    for entry in here:
        if is_hidden(entry.name) or is_temporary(entry.name):
            continue
        if entry.kind == "file":
            found[entry.name] = entry.size
        elif entry.kind == "dangling" and is_side_file(entry.name):
            raise Incomplete("is a symlink to a file that is not there", where=str(folder / entry.name), fix=_FINISH)
        elif entry.kind == "folder" and is_side_folder(entry.name):
            inner = entries(folder / entry.name)
            found |= {f"{entry.name}/{e.name}": e.size for e in inner if e.kind == "file" and not is_hidden(e.name)}
    if any(e.name == ".git" for e in here):
        _check_links(folder, [e.name for e in here if e.link])
    for path in weights:
        if path not in found:
            found[path] = file_size(folder / path)
    return tuple(FileInfo(path, size, _role(path, weights)) for path, size in sorted(found.items()))


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, int]]:
    """A file descriptor and the size of a regular file.

    Raises `Incomplete` if it is not there, may not be read, or is a Git LFS pointer, and `BadCheckpoint` if it is no
    regular file. An OSError inside the block becomes a QconvdError as well.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO that nobody writes to would never return.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise BadCheckpoint(f"is {what} where a file should be", where=str(path), fix="replace it with the file")
        if status.st_size < LFS_POINTER_SIZE and os.pread(descriptor, len(LFS_POINTER), 0) == LFS_POINTER:
            raise lfs_pointer(path)
        yield descriptor, status.st_size
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        os.close(descriptor)


def read_at(descriptor: int, offset: int, count: int) -> bytes:
    """Up to `count` bytes at `offset`; fewer only at the end of the file."""
    parts: list[bytes] = []
    while count > 0:
        part = os.pread(descriptor, count, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_json(path: Path, limit: int, **options: Any) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes; `options` are those of `json.loads`.

    Raises `Incomplete` if the file is empty or missing, `BadCheckpoint` if it is something else.
    """
    with opened(path) as (descriptor, size):
        if size > limit:
            raise BadCheckpoint(f"{size} bytes are too many for a {path.name} (the limit is {limit})", where=str(path))
        text = read_at(descriptor, 0, size)
    if not text.strip(b"\0 \t\r\n"):
        raise Incomplete("is empty", where=str(path), fix=_FINISH)
    value = parse_json(text, str(path), **options)
    if not isinstance(value, dict):
        raise BadCheckpoint(f"holds a {type(value).__name__} where a JSON object should be", where=str(path))
    return value


def parse_json(text: bytes, where: str, what: str = "is", **options: Any) -> Any:
    """JSON from hostile hands: bounded before it is parsed, and every way to fail becomes `BadCheckpoint`."""
    if text.count(b",") + text.count(b"[") + text.count(b"{") > JSON_VALUES:
        raise BadCheckpoint(f"{what} not sensible JSON: more than {JSON_VALUES} values", where=where)
    try:
        return json_text.loads(text, **options)
    except ValueError as error:
        raise BadCheckpoint(f"{what} not valid JSON: {error}", where=where, fix="copy or download the file again") from error


def once(where: str, place: str = "") -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """An `object_pairs_hook` for JSON objects in which no key may stand twice: of two, only the last would count."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise BadCheckpoint(f"has {quoted(twice)} twice{place}", where=where, fix="copy or download the file again")
        return found

    return pairs


def file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> QconvdError:
    """The error for a file or folder that the system will not give us."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if path.is_symlink():
            return Incomplete("is a symlink to a file that is not there", where=str(path), fix=_FINISH)
        return Incomplete("is not there", where=str(path), fix=_FINISH)
    reason = os.strerror(error.errno or errno.EIO)
    if error.errno in (errno.EACCES, errno.EPERM):
        user = _user()
        return Incomplete(
            f"cannot be read: {reason}", where=str(path), fix=f"let the user {user} read it: chmod -R a+rX {path}"
        )
    return Incomplete(f"cannot be read: {reason}", where=str(path), fix="check the disk or the network mount")


def lfs_pointer(path: Path) -> Incomplete:
    return Incomplete("is a Git LFS pointer, not the file itself", where=str(path), fix=f"run `git lfs pull` in {path.parent}")


def truncated(path: Path, have: int, need: int) -> Incomplete:
    return Incomplete(f"{have} of {need} bytes are there", where=str(path), fix=_FINISH)


def quoted(name: str) -> str:
    """A name from a hostile file, fit for a message."""
    return repr(name if len(name) <= 120 else name[:117] + "…")


_FINISH = "wait for the copy to finish, or copy the file again"


def _user() -> str:
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _role(path: str, weights: set[str]) -> Literal["weights", "side", "ignored"]:
    if path in weights:
        return "weights"
    return "side" if is_side_file(path) else "ignored"


def _entry(item: os.DirEntry[str]) -> Entry | None:
    try:
        item.name.encode()
    except UnicodeEncodeError:
        return None
    link = item.is_symlink()
    try:
        status = item.stat()
    except (FileNotFoundError, NotADirectoryError):
        return Entry(item.name, "dangling", link=True) if link else None
    except OSError as error:
        kind: Literal["dangling", "unreadable"] = "dangling" if error.errno == errno.ELOOP else "unreadable"
        return Entry(item.name, kind, link=link)
    if stat.S_ISREG(status.st_mode):
        return Entry(item.name, "file", status.st_size, link)
    return Entry(item.name, "folder" if stat.S_ISDIR(status.st_mode) else "special", link=link)


def _check_links(folder: Path, names: list[str]) -> None:
    root = os.path.realpath(folder)
    for name in names:
        target = os.path.realpath(folder / name)
        if os.path.commonpath([root, target]) != root:
            raise BadCheckpoint(
                f"is a symlink that leaves the git work tree (to {target})",
                where=str(folder / name),
                fix="replace it with the file itself if it belongs to the model",
            )
