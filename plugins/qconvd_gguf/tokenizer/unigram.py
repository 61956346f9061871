"""SentencePiece unigram models (T5, XLM-RoBERTa): llama.cpp's tokenizer model `t5`.

llama.cpp finds the most probable split itself, and normalizes with SentencePiece's own table (`precompiled_charsmap`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from qconvd.api import BadCheckpoint
from qconvd_gguf.families.base import Metadata
from qconvd_gguf.tokenizer.files import (
    ADDED_SCORE,
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED_SCORE,
    USER_DEFINED,
    TokenizerFiles,
    filled,
    fitting_vocab,
)
from qconvd_gguf.tokenizer.sentencepiece_model import Piece, SentencePieceModel

FAIRSEQ = [Piece("<s>", 0.0, CONTROL), Piece("<pad>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL), Piece("<unk>", 0.0, UNKNOWN)]
"""What XLM-RoBERTa has in place of the first three pieces of its SentencePiece model; `<mask>` is its last token."""


def from_sentencepiece(files: TokenizerFiles, model: SentencePieceModel, vocab_size: int) -> tuple[Metadata, list[str]]:
    """Pieces, scores and types of a SentencePiece file, then the added tokens of the other files."""
    pieces = [*FAIRSEQ, *model.pieces[3:]] if files.fairseq else model.pieces
    tokens, types = filled(vocab_size)
    scores = [UNUSED_SCORE] * vocab_size
    for number, piece in enumerate(pieces[:vocab_size]):
        tokens[number], scores[number], types[number] = piece.text, piece.score, piece.type
    if files.fairseq and vocab_size > len(pieces):
        tokens[len(pieces)], scores[len(pieces)], types[len(pieces)] = "<mask>", 0.0, CONTROL
    for text, number in files.extra.items():
        if number < vocab_size:
            tokens[number], scores[number], types[number] = text, ADDED_SCORE, USER_DEFINED
    for number, added in files.added.items():
        if len(pieces) <= number < vocab_size:
            (tokens[number], types[number]), scores[number] = added.entry, ADDED_SCORE
    keys = _keys(tokens, scores, types, model.space_prefix, model.merges_spaces, model.charsmap)
    return keys, _notes(types)


def from_json(files: TokenizerFiles, vocab_size: int) -> tuple[Metadata, list[str]]:
    """A unigram tokenizer.json; how it treats spaces is told from its behaviour."""
    assert files.json is not None
    model = files.json["model"]
    tokens, types = filled(vocab_size)
    scores = [UNUSED_SCORE] * vocab_size
    log_probabilities = _vocab(model, files.json_path)
    for text, number in fitting_vocab(files, vocab_size).items():
        tokens[number], types[number] = text, BYTE if re.fullmatch("<0x[0-9A-Fa-f]{2}>", text) else NORMAL
        scores[number] = log_probabilities[number] if number < len(log_probabilities) else ADDED_SCORE
    for number, added in files.added.items():
        tokens[number], types[number] = added.entry
    unknown = model.get("unk_id")
    if isinstance(unknown, int) and unknown < vocab_size:
        types[unknown] = UNKNOWN
    run = files.tokenizer
    merged = run.encode("x  x", add_special_tokens=False).ids == run.encode("x x", add_special_tokens=False).ids
    charsmap = _charsmap(files.json.get("normalizer"), files.json_path)
    notes = _notes(types)
    space_prefix = _puts_space(run)
    if merged and not space_prefix:
        # llama.cpp puts a space in front of every text whose spaces it merges: rather no merging than that.
        merged = False
        notes.append("llama.cpp does not make one of several spaces for this tokenizer: text must come without")
    return _keys(tokens, scores, types, space_prefix, merged, charsmap), notes


def _keys(
    tokens: list[str], scores: list[float], types: list[int], space_prefix: bool, merges_spaces: bool, charsmap: bytes
) -> Metadata:
    keys: Metadata = [
        ("tokenizer.ggml.model", "str", "t5"),
        ("tokenizer.ggml.pre", "str", "default"),
        ("tokenizer.ggml.tokens", "arr[str]", tokens),
        ("tokenizer.ggml.scores", "arr[f32]", scores),
        ("tokenizer.ggml.token_type", "arr[i32]", types),
        ("tokenizer.ggml.add_space_prefix", "bool", space_prefix),
        ("tokenizer.ggml.remove_extra_whitespaces", "bool", merges_spaces),
    ]
    if charsmap:
        keys.append(("tokenizer.ggml.precompiled_charsmap", "arr[u8]", list(charsmap)))
    return keys


def _vocab(model: Mapping[str, Any], where: str) -> list[float]:
    try:
        return [float(score) for _, score in model["vocab"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BadCheckpoint("the vocabulary is no list of pieces and scores", where=where) from error


def _puts_space(run: Any) -> bool:
    """Whether a text gets a space in front."""
    first = run.encode("x", add_special_tokens=False).tokens[:1]
    return bool(first) and str(first[0]).startswith(SPACE)


def _charsmap(part: Any, where: str) -> bytes:
    """SentencePiece's normalization table, wherever in the chain of normalizers it stands; empty if there is none."""
    if not isinstance(part, Mapping):
        return b""
    if part.get("type") == "Precompiled":
        try:
            return base64.b64decode(part.get("precompiled_charsmap") or "", validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise BadCheckpoint("precompiled_charsmap is no base64", where=where) from error
    return next((found for p in part.get("normalizers") or [] if (found := _charsmap(p, where))), b"")


def _notes(types: list[int]) -> list[str]:
    if BYTE not in types:
        return []
    return ["llama.cpp does not fall back to bytes with a unigram tokenizer: characters outside its alphabet become unknown"]
