"""SentencePiece's model file: pieces through its own library, and the settings that the library does not show.

The file is a protocol buffer: field 2 is the trainer's settings (field 3: 1 unigram, 2 BPE, 3 words, 4 characters), field 3
the normalizer's (field 2: its table of replacements, 3: whether a space is put before the text, 4: whether several spaces
become one). Source: sentencepiece_model.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qconvd.api import BadCheckpoint
from qconvd_gguf.tokenizer.files import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED

KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    kind: str
    space_prefix: bool
    merges_spaces: bool
    charsmap: bytes
    pieces: list[Piece]


def is_one(data: bytes) -> bool:
    """Whether a tokenizer.model is SentencePiece's; some models ship a tiktoken table under that name."""
    try:
        return any(number == 1 and isinstance(value, bytes) for number, value in _fields(data))
    except (IndexError, ValueError):
        return False


def load(data: bytes, where: str) -> SentencePieceModel:
    """The model. Raises `BadCheckpoint` with the library's complaint."""
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_proto=data)
    except Exception as error:  # the binding raises RuntimeError and others
        raise BadCheckpoint(f"the sentencepiece library cannot read it: {error}", where=where) from error
    settings = dict(_fields(data))
    trainer, normalizer = dict(_fields(settings.get(2, b""))), dict(_fields(settings.get(3, b"")))
    pieces = [_piece(processor, i) for i in range(processor.get_piece_size())]
    return SentencePieceModel(
        kind=KINDS.get(trainer.get(3, 1), "other"),
        space_prefix=bool(normalizer.get(3, 1)),
        merges_spaces=bool(normalizer.get(4, 1)),
        charsmap=normalizer.get(2, b""),
        pieces=pieces,
    )


def _piece(processor: Any, number: int) -> Piece:
    kinds = {
        UNKNOWN: processor.is_unknown, CONTROL: processor.is_control, UNUSED: processor.is_unused, BYTE: processor.is_byte,
    }  # fmt: skip
    kind = next((kind for kind, test in kinds.items() if test(number)), NORMAL)
    return Piece(processor.id_to_piece(number), processor.get_score(number), kind)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protocol buffer's fields: int for varints, bytes for anything longer."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(wire, 0)
        if (not size and wire != 2) or at + size > len(data):
            raise ValueError("no protocol buffer")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("no protocol buffer")
