"""GGUF files made by the real engine, and what other people's software reads in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from qconvd.checkpoints import inspect
from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.plan import Device, Plan
from qconvd.engine.run import ConvertTarget, Limits, convert
from qconvd.intake import fingerprint
from qconvd.plugins import container, plugins

if TYPE_CHECKING:
    from gguf import GGUFReader


def planned(folder: Path, type_: str, name: str | None = None, **options: Any) -> Plan:
    """The plan of one type for the model in `folder`, which may be called otherwise."""
    gguf = plugins().formats["gguf"]
    model = inspected(folder)
    if name not in (None, model.name):
        model = replace(model, name=name)
    return gguf.plan(model, gguf.Options.model_validate({"types": [type_], **options}))


def inspected(folder: Path) -> ModelInfo:
    """The model in `folder`, inspected anew when something in it has changed: it keeps its vocabulary once that is read."""
    return _inspected(folder, fingerprint(folder))


@lru_cache(maxsize=2)
def _inspected(folder: Path, state: str) -> ModelInfo:
    return inspect(folder)


def converted(folder: Path, types: Sequence[str], out: Path, name: str | None = None, **options: Any) -> dict[str, Path]:
    """One pass over the model in `folder`; the files by type."""
    gguf = plugins().formats["gguf"]
    targets = []
    for type_ in types:
        plan = planned(folder, type_, name, **options)
        files = tuple(replace(f, path=f.path.replace("{stem}", f"model-{type_}")) for f in plan.files)
        plan = replace(plan, files=files)
        targets.append(ConvertTarget(type_, plan, gguf.encoder(plan, Device()), out / type_, {"artifact": type_}))
    limits = Limits(memory=256 << 20, threads=2)
    operations = plugins().operations
    model = inspected(folder)
    results = convert(model, targets, limits, operations=operations, on_event=lambda _: None, cancelled=lambda: False)
    for type_, result in results.items():
        if isinstance(result, Exception):
            raise AssertionError(f"{type_} failed") from result
    made = {t.id: t.work / "files" / t.plan.files[0].path for t in targets}
    for target in targets:
        for file in target.plan.files:
            assert (target.work / "files" / file.path).stat().st_size == file.nbytes
        assert sum(f.nbytes for f in target.plan.files) == target.plan.nbytes
    return made


def metadata(path: Path) -> dict[str, Any]:
    """The metadata as llama.cpp's records have it (long values as digests), read with the gguf library."""
    return {k: _short(f.contents()) for k, f in opened(path).fields.items() if not k.startswith("GGUF.")}


def opened(path: Path) -> GGUFReader:
    """The gguf library's reader of a file.

    It takes several slices for each word of a vocabulary. Slices of a plain array cost a fifth of those of numpy's memmap.
    """
    from gguf import GGUFReader

    mapped = np.memmap
    with mock.patch.object(np, "memmap", lambda path, mode: np.asarray(mapped(path, mode=mode))):
        return GGUFReader(path)


def tensors(path: Path) -> dict[str, list[Any]]:
    """Type, shape in GGUF's order and digest of every tensor, in file order."""
    with path.open("rb") as file:
        found = {}
        for tensor in container("gguf").read(path):
            file.seek(tensor.offset)
            found[tensor.name] = [tensor.dtype, list(reversed(tensor.shape)), sha256(file.read(tensor.nbytes)).hexdigest()]
    return found


def tensor_bytes(path: Path, name: str) -> bytes:
    """The stored bytes of one tensor."""
    place = next(t for t in container("gguf").read(path) if t.name == name)
    with path.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.nbytes)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What two records disagree on; digests may be shortened in one of them."""
    found = [
        f"{k}: {ours.get(k)!r}, llama.cpp {theirs.get(k)!r}"
        for k in {**ours, **theirs}
        if not _same(ours.get(k), theirs.get(k))
    ]
    if not found and list(ours) != list(theirs):
        found.append(f"order: {list(ours)}, llama.cpp {list(theirs)}")
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b) == 3:
        return a[:2] == b[:2] and bool(b[2]) and a[2].startswith(b[2])
    return bool(a == b)


def _short(value: Any) -> Any:
    long = isinstance(value, list) or (isinstance(value, str) and len(value) > 100)
    return f"sha256:{sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()}" if long else value
