"""A SentencePiece model file from tokens, scores and types. Source: sentencepiece_model.proto."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from qconvd_gguf.tokenizer.files import BYTE, UNKNOWN

BPE = 2


def written(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], *, space_prefix: bool) -> bytes | None:
    """The file's bytes; None for a vocabulary that the library would not load: without one unknown token, or a piece twice."""
    if list(types).count(UNKNOWN) != 1 or len(set(tokens)) != len(tokens) or "" in tokens:
        return None
    pieces = b"".join(
        _bytes(1, _bytes(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
        for text, score, kind in zip(tokens, scores, types, strict=True)
    )
    trainer = _number(3, BPE) + _number(4, len(tokens)) + _number(35, int(BYTE in types)) + _number(40, types.index(UNKNOWN))
    normalizer = _bytes(1, b"identity") + _number(3, int(space_prefix)) + _number(4, 0) + _number(5, 1)
    made = pieces + _bytes(2, trainer) + _bytes(3, normalizer)
    return made if _loads(made) else None


def _loads(data: bytes) -> bool:
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_proto=data)
    except Exception:  # noqa: BLE001 — the binding raises RuntimeError and others; tokenizer.json does without this file
        return False
    return True


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))
