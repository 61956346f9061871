"""Tokenizers that write a space as ▁ and merge the pair with the best score: llama.cpp's tokenizer model `llama`.

They come as SentencePiece's own file, or as a BPE tokenizer.json. In the second case the scores are made from the merges:
the earlier a token is merged, the higher its score, so that llama.cpp merges in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qconvd.api import Unsupported
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
from qconvd_gguf.tokenizer.sentencepiece_model import SentencePieceModel

HARMLESS = frozenset({"Sequence", "Prepend", "Replace"})
"""Normalizers that llama.cpp's handling of spaces does as well."""


def from_sentencepiece(files: TokenizerFiles, model: SentencePieceModel, vocab_size: int) -> tuple[Metadata, list[str]]:
    """Pieces, scores and types of a SentencePiece file, then the added tokens of the other files."""
    tokens, types = filled(vocab_size)
    scores = [UNUSED_SCORE] * vocab_size
    for number, piece in enumerate(model.pieces[:vocab_size]):
        tokens[number], scores[number], types[number] = piece.text, piece.score, piece.type
    for text, number in files.extra.items():
        if number < vocab_size:
            tokens[number], scores[number], types[number] = text, ADDED_SCORE, USER_DEFINED
    for number, added in files.added.items():
        same = number < len(model.pieces) and tokens[number] == added.text and types[number] in (CONTROL, UNKNOWN)
        if number < vocab_size and not same:
            (tokens[number], types[number]), scores[number] = added.entry, ADDED_SCORE
    notes = _too_many(max([len(model.pieces) - 1, *files.extra.values(), *files.added]), vocab_size)
    return _keys(tokens, scores, types, _prefix_said(files, model.space_prefix)), notes


def from_json(files: TokenizerFiles, vocab_size: int) -> tuple[Metadata, list[str]]:
    """A BPE tokenizer.json that writes spaces as ▁. Raises `Unsupported` for one that does not."""
    assert files.json is not None
    model, tokenizer = files.json["model"], files.tokenizer
    shown = _as_seen(tokenizer, "x x")
    if SPACE not in shown:
        what = "the tokenizer neither works on bytes nor writes spaces as ▁: llama.cpp has nothing that behaves like it"
        raise Unsupported(what, where=files.json_path)
    vocab = fitting_vocab(files, vocab_size)
    tokens, types = filled(vocab_size)
    scores = [UNUSED_SCORE] * vocab_size
    ranks = _ranks(model.get("merges") or [])
    for text, number in vocab.items():
        tokens[number], types[number] = text, BYTE if re.fullmatch("<0x[0-9A-Fa-f]{2}>", text) else NORMAL
        scores[number] = -float(ranks.get(text, len(ranks) + number))
    for number, added in files.added.items():
        (tokens[number], types[number]), scores[number] = added.entry, ADDED_SCORE
    unknown = vocab.get(model.get("unk_token") or "")
    if unknown is not None:
        types[unknown] = UNKNOWN
    return _keys(tokens, scores, types, shown.startswith(SPACE)), _warnings(files, types)


def _keys(tokens: list[str], scores: list[float], types: list[int], space_prefix: bool | None) -> Metadata:
    keys: Metadata = [
        ("tokenizer.ggml.model", "str", "llama"),
        ("tokenizer.ggml.pre", "str", "default"),
        ("tokenizer.ggml.tokens", "arr[str]", tokens),
        ("tokenizer.ggml.scores", "arr[f32]", scores),
        ("tokenizer.ggml.token_type", "arr[i32]", types),
    ]
    if space_prefix is not None:
        keys.append(("tokenizer.ggml.add_space_prefix", "bool", space_prefix))
    return keys


def _prefix_said(files: TokenizerFiles, trained: bool) -> bool | None:
    """Whether readers put a space before a text; None where that is what they do anyway."""
    said = files.settings.get("add_prefix_space")
    if isinstance(said, bool):
        return said
    return None if trained else False


def _ranks(merges: list[Any]) -> dict[str, int]:
    """The first merge that makes each token."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge), rank)
    return ranks


def _as_seen(tokenizer: Any, text: str) -> str:
    """The text as the merges see it."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is not None:
        text = "".join(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    return text


def _warnings(files: TokenizerFiles, types: list[int]) -> list[str]:
    assert files.json is not None
    notes = []
    if BYTE not in types:
        notes.append(
            "the tokenizer has no byte tokens: llama.cpp cannot encode characters outside its alphabet and may stop at them"
        )
    others = sorted(_normalizers(files.json.get("normalizer")) - HARMLESS)
    if others:
        notes.append(f"llama.cpp does not do the tokenizer's normalization ({', '.join(others)}): text must come normalized")
    return notes


def _normalizers(part: Any) -> set[str]:
    if not isinstance(part, Mapping):
        return set()
    inner: set[str] = set().union(*(_normalizers(p) for p in part.get("normalizers", [])))
    return inner | {str(part.get("type"))}


def _too_many(highest: int, vocab_size: int) -> list[str]:
    if highest < vocab_size:
        return []
    return [
        f"the tokenizer has tokens up to {highest}, the embeddings {vocab_size} rows: the rest is left out, as llama.cpp does"
    ]
