"""Tokens as GGML files hold them: bytes, with a score for LLaMA, and no word on what a token is for.

Source: llama.cpp's convert.py of June 2023 (the unknown token is ` ⁇ `, control tokens are empty, byte tokens one byte), and
the converters of ggml's examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qconvd.api import Unsupported
from qconvd_gguf.tokenizer.byte_level import byte_of
from qconvd_gguf.tokenizer.files import ADDED_SCORE, BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED

UNKNOWN_TEXT = " \u2047 ".encode()


def llama_tokens(keys: Mapping[str, Any], count: int, where: str) -> tuple[list[bytes], list[float]]:
    """Tokens and scores from the tokenizer's keys in GGUF."""
    texts, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    scores = keys.get("tokenizer.ggml.scores") or [0.0] * len(texts)
    if not len(texts) == len(types) == len(scores) == count:
        raise Unsupported(f"the tokenizer has {len(texts)} tokens, the embeddings {count} rows", where=where)
    found = [_bytes(text, kind) for text, kind in zip(texts, types, strict=True)]
    kept = [ADDED_SCORE if kind == USER_DEFINED else score for score, kind in zip(scores, types, strict=True)]
    return found, kept


def _bytes(text: str, kind: int) -> bytes:
    if kind == UNKNOWN:
        return UNKNOWN_TEXT
    if kind in (CONTROL, UNUSED):
        return b""
    if kind == BYTE:
        return bytes([int(text[3:5], 16)])
    return text.replace(SPACE, " ").encode() if kind in (NORMAL, USER_DEFINED) else text.encode()


def byte_level_tokens(keys: Mapping[str, Any]) -> list[bytes]:
    """The bytes of a byte-level vocabulary; special tokens and ids that no token has are as they are spelled."""
    texts, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    return [_plain(text) if kind == NORMAL else text.encode() for text, kind in zip(texts, types, strict=True)]


def _plain(text: str) -> bytes:
    try:
        return bytes(byte_of()[character] for character in text)
    except KeyError:  # an added token that is none of the alphabet
        return text.encode()
