"""GGML files from before GGUF: walked from record to record, which gives every tensor's place and the file's length.

No table says what is in such a file. What tells that it is whole: it ends where a tensor ends, and all the tensors are there
that a model with so many layers has. Read are GGJT 1 to 3, GGMF 1 and the form without a version for LLaMA, and the `ggml`
container for gpt2, gptj and gpt_neox, as far as their blocks are those of today (`CARRIED`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from qconvd.checkpoints import ggml_families
from qconvd.checkpoints.base import FileInfo, ModelInfo, TensorInfo
from qconvd.checkpoints.files import (
    CONFIG_LIMIT,
    entries,
    inventory,
    is_folder,
    is_hidden,
    is_temporary,
    model_name,
    opened,
    quoted,
    read_at,
    read_json,
)
from qconvd.checkpoints.ggml_families import LEAST, MOST, GgmlFamily
from qconvd.checkpoints.ggml_shapes import check_shapes
from qconvd.checkpoints.gguf_stream import Stream
from qconvd.errors import BadCheckpoint, Incomplete, QconvdError, Unsupported
from qconvd.ggml_types import TYPES

GGML, GGMF, GGJT, GGLA = 0x67676D6C, 0x67676D66, 0x67676A74, 0x67676C61
ENDINGS = (".bin", ".ggml")
MAX_TENSORS = 50_000
_RECORD = 12
"""Bytes of a record's numbers before the shape: axes, the length of the name, the type."""
NAME_LIMIT = 1024
TOKEN_LIMIT = 1 << 16

_PLAIN = frozenset({"F32", "F16"})
_FIVE = _PLAIN | {"Q5_0", "Q5_1"}
_ALL = frozenset(t.name for number, t in TYPES.items() if number <= 14 and t.name != "Q8_1")
CARRIED = {(GGJT, 1): _PLAIN, (GGJT, 2): _FIVE, (GGJT, 3): _ALL, (GGMF, 1): _PLAIN, (GGML, 0): _PLAIN, (GGML, 1): _FIVE,
           (GGML, 2): _ALL}  # fmt: skip
"""Types whose blocks are those of today, by magic and version; the version of `ggml` files is their ftype's thousands.

In May 2023 the order of bits changed (version 2), then the scales of Q4_0, Q4_1 and Q8_0 became halves (version 3).
"""


class Kind(NamedTuple):
    """How a file begins."""

    magic: int
    version: int
    start: int
    """Where the numbers begin."""

    @property
    def label(self) -> str:
        names = {GGML: "GGML", GGMF: f"GGMF {self.version}", GGJT: f"GGJT {self.version}"}
        return names[self.magic]


@dataclass(frozen=True, slots=True)
class GgmlFile:
    """What one file says of itself."""

    kind: Kind
    family: GgmlFamily
    numbers: Mapping[str, int]
    vocabulary: int
    """Where the first token begins."""
    tensors: Mapping[str, TensorInfo]
    records: tuple[tuple[int, int], ...]
    """Where the records before the tensors lie."""
    size: int


class GgmlReader:
    """GGML, GGMF and GGJT: a lone file, or a folder that holds one, with the config.json of its model if there is one."""

    name = "ggml"

    def claims(self, path: Path) -> bool:
        """Whether a file with one of the endings begins with one of the magics, or a folder holds such a file."""
        if path.name.lower().endswith(ENDINGS) and not is_folder(path):
            return begins(path)
        return bool(_held(path))

    def inspect(self, path: Path) -> ModelInfo:
        """Walk through the file.

        Raises `Incomplete` for missing bytes and tensors, `Unsupported` for families, versions and blocks that are not
        read and for folders of several models, `BadCheckpoint` for everything that contradicts itself.
        """
        folder = path if is_folder(path) else path.parent
        file = _one(path, _held(path)) if is_folder(path) else path.name
        found = read_file(folder, file)
        numbers = dict(found.numbers)
        config = found.family.config(numbers, {t.name: t.shape for t in found.tensors.values()})
        files = inventory(folder, {file}) if is_folder(path) else (FileInfo(file, found.size, "weights"),)
        if is_folder(path) and any(f.path == "config.json" for f in files):
            config = _beside(config, read_json(path / "config.json", CONFIG_LIMIT), str(path / "config.json"))
        metadata = {"container": found.kind.label, "family": found.family.name, **numbers}
        return ModelInfo(folder, model_name(path), self.name, found.tensors, files, config, metadata)


def begins(path: Path) -> bool:
    """Whether a file begins with one of the magics."""
    try:
        with opened(path) as (descriptor, _):
            start = read_at(descriptor, 0, 4)
    except QconvdError:
        return False
    return is_magic(start)


def is_magic(start: bytes) -> bool:
    """Whether these are the first four bytes of such a file."""
    return len(start) == 4 and int.from_bytes(start, "little") in (GGML, GGMF, GGJT, GGLA)


def read_file(folder: Path, file: str) -> GgmlFile:
    """Read and check all but the numbers of the tensors, in bounded memory whatever the file claims. Raises as `inspect`."""
    path = folder / file
    with opened(path) as (descriptor, size):
        kind = _kind(read_at(descriptor, 0, 8), str(path))
        unfinished: QconvdError | None = None
        for family in _families(kind):
            stream = Stream(descriptor, size, str(path))
            stream.skip(kind.start, "the magic")
            try:
                numbers = _numbers(stream, family)
                if numbers is None:
                    continue
                vocabulary = stream.position
                _skip_vocabulary(stream, numbers["n_vocab"], scores=kind.magic != GGML)
                first = _peek_name(stream)
            except (Incomplete, BadCheckpoint) as error:
                unfinished = error if isinstance(error, Incomplete) else unfinished
                continue
            if family.knows(first):
                return _walked(stream, kind, family, numbers, vocabulary, file, size)
        if unfinished is not None:
            raise unfinished
    if kind.magic != GGML:
        raise BadCheckpoint("has a header that is no LLaMA model's", where=str(path), fix=_AGAIN)
    what = f"is a {kind.label} file of none of the families that are read"
    raise Unsupported(what, where=str(path), fix="llama, gpt2, gptj and gpt_neox are; take the original model's safetensors")


def vocabulary(path: Path, found: GgmlFile) -> list[tuple[bytes, float]]:
    """Every token's bytes, which need be no text, and its score: 0 where the file has none."""
    scored = found.kind.magic != GGML
    with opened(path) as (descriptor, size):
        stream = Stream(descriptor, size, str(path))
        stream.skip(found.vocabulary, "the header")
        tokens = []
        for _ in range(found.numbers["n_vocab"]):
            token = stream.take(_length(stream), "a token")
            tokens.append((token, struct.unpack("<f", stream.take(4, "a score"))[0] if scored else 0.0))
        return tokens


def ggml_vocabulary(model: ModelInfo) -> list[tuple[bytes, float]]:
    """The tokens of a model that this reader inspected. Raises as `read_file` does."""
    file = next(f.path for f in model.files if f.role == "weights")
    return vocabulary(model.path / file, read_file(model.path, file))


def _kind(start: bytes, where: str) -> Kind:
    magic = int.from_bytes(start[:4], "little")
    if magic == GGML:
        return Kind(GGML, 0, 4)
    if magic == GGLA:
        fix = "merge it into its base model and give qconvd the merged model"
        raise Unsupported("is an adapter (LoRA) for GGML files, not a whole model", where=where, fix=fix)
    version = int.from_bytes(start[4:8], "little")
    if (magic, version) in CARRIED:
        return Kind(magic, version, 8)
    if magic not in (GGMF, GGJT):
        raise BadCheckpoint("is no GGML file: its magic is not there", where=where, fix=_AGAIN)
    if len(start) < 8:
        raise Incomplete(f"ends inside its header ({len(start)} bytes are there)", where=where, fix=_WAIT)
    name = "GGMF" if magic == GGMF else "GGJT"
    raise Unsupported(f"is {name} version {version}, which no reader knows", where=where, fix=_AGAIN)


def _families(kind: Kind) -> tuple[GgmlFamily, ...]:
    if kind.magic != GGML:
        return (ggml_families.LLAMA,)
    return ggml_families.GPT2, ggml_families.GPTJ, ggml_families.GPT_NEOX, ggml_families.LLAMA


def _numbers(stream: Stream, family: GgmlFamily) -> dict[str, int] | None:
    """The numbers of the header; None if they are none of a model of this family."""
    numbers = {name: stream.u32(f"the number {name}") for name in family.numbers}
    if family.counted and stream.u32("the number of tokens") != numbers["n_vocab"]:
        return None
    if any(not LEAST.get(name, 1) <= value <= MOST[name] for name, value in numbers.items()):
        return None
    width, rest = divmod(numbers["n_embd"], numbers["n_head"])
    rotated = numbers.get("n_rot", 0)
    # LLaMA rotates whole heads; its first converter called the number obsolete, and wrote it all the same.
    wrong = rotated != width if family is ggml_families.LLAMA else rotated > width
    return None if rest or not width or wrong else numbers


def _skip_vocabulary(stream: Stream, count: int, *, scores: bool) -> None:
    for _ in range(count):
        stream.skip(_length(stream) + (4 if scores else 0), "a token")


def _length(stream: Stream) -> int:
    length = stream.u32("the length of a token")
    if length > TOKEN_LIMIT:
        raise BadCheckpoint(f"has a token of {length} bytes; {TOKEN_LIMIT} is the most that is read", where=stream.where,
                            fix=_AGAIN)  # fmt: skip
    return length


def _peek_name(stream: Stream) -> str:
    """The next tensor's name, without moving on; empty where no record is."""
    axes, length = struct.unpack("<2I", stream.peek(8, "a tensor's record"))
    if not 1 <= axes <= 2 or not 0 < length <= NAME_LIMIT:
        return ""
    return stream.peek(_RECORD + 4 * axes + length, "a tensor's name")[_RECORD + 4 * axes :].decode("latin-1")


def _walked(
    stream: Stream, kind: Kind, family: GgmlFamily, numbers: dict[str, int], vocabulary: int, file: str, size: int
) -> GgmlFile:
    kind = kind._replace(version=numbers["ftype"] // 1000) if kind.magic == GGML else kind
    carried = CARRIED.get((kind.magic, kind.version), _PLAIN)
    tensors: dict[str, TensorInfo] = {}
    records = []
    unseen = set(family.axes(numbers["n_layer"]))
    while stream.position < size:
        if len(tensors) >= MAX_TENSORS:
            raise BadCheckpoint(f"holds more than {MAX_TENSORS} tensors", where=stream.where, fix=_AGAIN)
        start = stream.position
        if not unseen and (size - start < _RECORD or not _peek_name(stream)):
            what = f"has {size - start} bytes behind its last tensor, which readers take for one more"
            raise BadCheckpoint(what, where=stream.where, fix=f"{_AGAIN}; of a right file the first {start} bytes are all")
        tensor = _tensor(stream, file, carried, kind)
        records.append((start, stream.position))
        stream.skip(-stream.position % (32 if kind.magic == GGJT else 1), "padding")
        tensor = TensorInfo(tensor.name, tensor.dtype, tensor.shape, file, stream.position, tensor.nbytes)
        if tensor.name in tensors:
            raise BadCheckpoint(f"has tensor {quoted(tensor.name)} twice", where=stream.where, fix=_AGAIN)
        tensors[tensor.name] = tensor
        unseen.discard(tensor.name)
        if stream.position + tensor.nbytes > size:
            end = stream.position + tensor.nbytes
            what = f"ends inside tensor {quoted(tensor.name)}: {size} of at least {end} bytes are there"
            raise Incomplete(what, where=stream.where, fix=_WAIT)
        stream.skip(tensor.nbytes, tensor.name)
    wanted = family.wanted(numbers["n_layer"])
    missing = [name for name in wanted if name not in tensors]
    if missing:
        what = f"{len(missing)} of the {len(wanted)} tensors of its {numbers['n_layer']} layers are missing: {missing[0]}"
        raise Incomplete(what, where=stream.where, fix=_WAIT)
    check_shapes(family, numbers, {t.name: t.shape for t in tensors.values()}, stream.where)
    return GgmlFile(kind, family, numbers, vocabulary, tensors, tuple(records), size)


def _tensor(stream: Stream, file: str, carried: frozenset[str], kind: Kind) -> TensorInfo:
    """A record; where the tensor begins is not known yet."""
    axes, length, number = struct.unpack("<3I", stream.take(_RECORD, "the record of a tensor"))
    if not axes and not length:
        raise Incomplete("nothing is written yet where the next tensor should be", where=stream.where, fix=_WAIT)
    if not 1 <= axes <= 2 or not length or length > NAME_LIMIT:
        what = f"has a record of {axes} axes and a name of {length} bytes at {stream.position - _RECORD}, which is none"
        raise BadCheckpoint(what, where=stream.where, fix=_AGAIN)
    sizes = struct.unpack(f"<{axes}I", stream.take(4 * axes, "the shape of a tensor"))
    name = _text(stream, length)
    label = f"tensor {quoted(name)}"
    stored = TYPES.get(number)
    if stored is None or number > 14:
        raise BadCheckpoint(f"{label} has the unknown type {number}", where=stream.where, fix=_AGAIN)
    if stored.name not in carried:
        form = f"GGML with blocks of version {kind.version}" if kind.magic == GGML else kind.label
        what = f"{label} is {stored.name} in {form}, which are not the blocks of today"
        fix = "take a later file of the model (GGJT 3, from May 2023 on), or the original"
        raise Unsupported(what, where=stream.where, fix=fix)
    if not all(sizes) or prod(sizes) >= 1 << 40:
        raise BadCheckpoint(f"{label} claims an absurd shape {list(sizes)}", where=stream.where, fix=_AGAIN)
    if sizes[0] % stored.block:
        what = f"{label} has rows of {sizes[0]}, no multiple of {stored.name}'s block of {stored.block}"
        raise BadCheckpoint(what, where=stream.where, fix=_AGAIN)
    nbytes = prod(sizes) // stored.block * stored.size
    return TensorInfo(name, stored.name, tuple(reversed(sizes)), file, 0, nbytes)


def _text(stream: Stream, length: int) -> str:
    try:
        return stream.take(length, "a tensor's name").decode()
    except UnicodeDecodeError:
        raise BadCheckpoint("has a tensor whose name is not UTF-8", where=stream.where, fix=_AGAIN) from None


def _beside(header: dict[str, Any], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the header does not say, from the config.json of the same model. Raises `BadCheckpoint` if it is another's."""
    for key in ("vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head"):
        if key in header and config.get(key, header[key]) != header[key]:
            what = f"says {key} {config[key]!r}, but the GGML file beside it has {header[key]}"
            raise BadCheckpoint(what, where=where, fix="put the config.json of the same model there, or none")
    return {**config, **header}


def _held(folder: Path) -> list[str]:
    try:
        found = [e.name for e in entries(folder) if e.kind != "folder" and not is_hidden(e.name) and not is_temporary(e.name)]
    except QconvdError:
        return []
    return [n for n in found if n.lower().endswith(ENDINGS) and begins(folder / n)]


def _one(folder: Path, files: list[str]) -> str:
    if len(files) > 1:
        what = f"the folder holds {len(files)} GGML models: {', '.join(files[:3])}{' …' if len(files) > 3 else ''}"
        raise Unsupported(what, where=str(folder), fix="give qconvd one of the files")
    return files[0]


_AGAIN = "copy or download the file again"
_WAIT = "wait for the copy to finish, or copy the file again"
