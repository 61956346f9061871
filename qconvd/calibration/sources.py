"""Where calibration text comes from: files, folders, datasets in the Hub cache, and the text that comes with qconvd.

Text is streamed: no file is held in memory, so a text may be of any size.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvd.calibration.options import DATASET, DEFAULT
from qconvd.checkpoints.files import is_folder, opened
from qconvd.errors import QconvdError
from qconvd.hub.cache import cache_folder
from qconvd.input_files import sha256_of
from qconvd.quantities import show_size

BUNDLED = Path(__file__).parent / "text"
PLAIN, LINES, TABLES = (".txt", ".md"), ".jsonl", ".parquet"
SEGMENT = 1 << 16
"""Characters of a plain text that are taken at once; a longer text is cut behind a line, or after as much again without one."""
LINE_LIMIT = 16 << 20
"""Bytes of a line of .jsonl."""
ROLES: Mapping[str, str] = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
"""Other names for who speaks, as ShareGPT and its kin write them."""
FIELDS = "text, content, messages or conversations"


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of text, or a conversation: then `turns` holds (role, content)."""

    text: str = ""
    turns: tuple[tuple[str, str], ...] = ()


def digest(text: str) -> str:
    """SHA-256 over the contents of a text's files and their names in it. Raises `QconvdError` if there is no such text."""
    root, files = _files(text)
    found = hashlib.sha256()
    for path in files:
        # Of a single file only the ending counts, which says how it is read.
        name = os.fsencode(path.relative_to(root)) if path != root else path.suffix.encode()
        with opened(path) as (descriptor, _):
            found.update(name + f"\0{sha256_of(descriptor)}\n".encode())
    return found.hexdigest()


def dataset(text: str) -> str:
    """A dataset with the commit that its revision stands for now. Raises `QconvdError` if it is not in the Hub cache."""
    return f"{text.partition('@')[0]}@{_snapshot(text).name}"


def documents(text: str) -> Iterator[Document]:
    """Every document of a text, in the order of its files' names. Raises `QconvdError`."""
    for path in _files(text)[1]:
        if path.suffix == LINES:
            yield from _conversations(path)
        elif path.suffix == TABLES:
            yield from _table(path)
        else:
            yield from _plain(path)


def shown(text: str) -> str:
    """A text's name in messages."""
    return "the text that comes with qconvd" if text == DEFAULT else text


def _files(text: str) -> tuple[Path, Sequence[Path]]:
    """The folder that names are relative to, and the files; a file alone is both."""
    root = BUNDLED if text == DEFAULT else _snapshot(text) if text.startswith(DATASET) else Path(text)
    endings = (*PLAIN, LINES, *([TABLES] if text.startswith(DATASET) else []))
    if root.is_file():
        return root, [root]
    if not root.exists():
        fix = "name a file or folder that is there as `text` under `calibration`, or hub:datasets/owner/name"
        raise QconvdError("there is no calibration text here", where=str(root), fix=fix)
    found = sorted(
        Path(folder) / name
        for folder, _, names in os.walk(root)
        for name in names
        if name.endswith(endings) and not name.startswith(".") and (root != BUNDLED or name.endswith(".txt"))
    )
    if not found:
        kinds = " or ".join((", ".join(endings[:-1]), endings[-1]))
        raise QconvdError(
            f"holds no calibration text: no file ends in {kinds}", where=str(root), fix="name another folder, or a file"
        )
    return root, found


def _snapshot(text: str) -> Path:
    """The snapshot of a dataset's revision (its newest, if none is named) in the Hub cache of this machine."""
    repo, _, revision = text.removeprefix(DATASET).partition("@")
    folder = cache_folder() / f"datasets--{repo.replace('/', '--')}"
    option = f" --revision {revision}" if revision else ""
    fix = f"download it once: hf download --repo-type dataset {repo}{option}"
    if not is_folder(folder / "refs"):
        raise QconvdError(f"the dataset {repo} is not in the Hub cache", where=str(folder.parent), fix=fix)
    try:
        commit = (folder / "refs" / (revision or "main")).read_text().strip()
    except OSError:
        commit = revision
    found = folder / "snapshots" / commit
    if not commit or "/" in commit or commit.startswith(".") or not is_folder(found):
        of = f"the revision {revision} of {repo}" if revision else f"the dataset {repo}"
        raise QconvdError(f"{of} is only partly in the Hub cache", where=str(folder), fix=fix)
    return found


def _plain(path: Path) -> Iterator[Document]:
    with opened(path) as (descriptor, _), os.fdopen(os.dup(descriptor), "rb") as raw:
        file = io.TextIOWrapper(raw, "utf-8", errors="replace")
        while text := file.read(SEGMENT):
            if "\0" in text:
                raise QconvdError("is no text: it has zero bytes", where=str(path), fix="name a text in UTF-8")
            yield Document(text + (file.readline(SEGMENT) if len(text) == SEGMENT else ""))


def _conversations(path: Path) -> Iterator[Document]:
    with opened(path) as (descriptor, _), os.fdopen(os.dup(descriptor), "rb") as raw:
        number = 0
        while line := raw.readline(LINE_LIMIT):
            number += 1
            where = f"{path}, line {number}"
            if len(line) == LINE_LIMIT and not line.endswith(b"\n"):
                what = f"is longer than {show_size(LINE_LIMIT)}"
                raise QconvdError(what, where=where, fix="cut it into several, or give long texts as .txt")
            if line.strip():
                yield from _pieces(_document(_parsed(line, where), where))


def _parsed(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise QconvdError(f"is not valid JSON: {error}", where=where, fix="a .jsonl has one JSON object per line") from None


def _document(value: Any, where: str) -> Document:
    if not isinstance(value, Mapping):
        raise QconvdError(f"holds a {type(value).__name__}, not an object", where=where, fix=f"give it {FIELDS}")
    for name in ("messages", "conversations"):
        if isinstance(value.get(name), list):
            turns = tuple(_turn(turn, where) for turn in value[name])
            return Document("\n\n".join(content for _, content in turns), turns)
    for name in ("text", "content"):
        if isinstance(value.get(name), str):
            return Document(_whole(value[name]))
    names = ", ".join(map(str, value)) or "nothing"
    raise QconvdError(f"has no text that is known: its fields are {names}", where=where, fix=f"a line needs {FIELDS}")


def _whole(text: str) -> str:
    """Without halves of characters, which JSON can hold and no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _pieces(document: Document) -> Iterator[Document]:
    """A long text as several. A conversation stays one."""
    if document.turns or len(document.text) <= 2 * SEGMENT:
        yield document
        return
    for at in range(0, len(document.text), SEGMENT):
        yield Document(document.text[at : at + SEGMENT])


def _turn(value: Any, where: str) -> tuple[str, str]:
    role, content = (
        (value.get("role", value.get("from")), value.get("content", value.get("value")))
        if isinstance(value, Mapping)
        else (None, None)
    )
    if isinstance(content, list):  # parts, of which some may be images
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    if not isinstance(role, str) or not isinstance(content, str):
        raise QconvdError("has a turn without role and content", where=where, fix='{"role": "user", "content": "…"} is one')
    return ROLES.get(role, role), _whole(content)


def _table(path: Path) -> Iterator[Document]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        fix = "pip install pyarrow, or name a dataset of .txt or .jsonl files"
        raise QconvdError(
            "is Parquet, which is read with pyarrow, and that is not installed", where=str(path), fix=fix
        ) from None
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                yield from _pieces(_document(row, str(path)))
