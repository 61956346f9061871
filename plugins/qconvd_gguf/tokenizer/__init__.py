"""A model's tokenizer as GGUF metadata: which kind it is, its tokens, its special tokens, its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qconvd.api import ModelInfo, Unsupported
from qconvd_gguf.families.base import Metadata
from qconvd_gguf.tokenizer import byte_bpe, pieces, sentencepiece_model, unigram, wordpiece
from qconvd_gguf.tokenizer.files import UNKNOWN, TokenizerFiles
from qconvd_gguf.tokenizer.special import chat_template, normalizer, special_tokens

T5_UNKNOWN = 2
"""The unknown token of a unigram model that names none, in llama.cpp."""


def tokenizer_metadata(model: ModelInfo, vocab_size: int, pre: str | None) -> tuple[Metadata, list[str]]:
    """The `tokenizer.*` keys and warnings, in the order of llama.cpp's converter.

    `vocab_size` is the number of rows of the embeddings: unused ids are filled up. `pre` overrides what the tokenizer's
    behaviour says about `tokenizer.ggml.pre`. Raises `Unsupported` for a tokenizer that llama.cpp would not run alike.
    """

    def make() -> tuple[Metadata, list[str]]:
        files = TokenizerFiles.of(model)
        keys, notes = _vocabulary(files, vocab_size, pre)
        special = special_tokens(files, vocab_size, _unknown(keys), notes)
        return [*keys, *special, *chat_template(files), *normalizer(files)], notes

    # All files of a model have the same, and reading a large vocabulary is most of what a plan takes.
    return model.once(("tokenizer.*", vocab_size, pre), make)


def _unknown(keys: Metadata) -> int | None:
    """The unknown token of a unigram model where it is not T5's, which llama.cpp would take."""
    found = {key: value for key, _, value in keys}
    types = found["tokenizer.ggml.token_type"]
    if found["tokenizer.ggml.model"] != "t5" or UNKNOWN not in types:
        return None
    unknown = types.index(UNKNOWN)
    return None if unknown == T5_UNKNOWN else unknown


def _vocabulary(files: TokenizerFiles, vocab_size: int, pre: str | None) -> tuple[Metadata, list[str]]:
    """Tokens, scores or merges, and types, from whichever file says most."""
    if files.sentencepiece is not None and sentencepiece_model.is_one(files.sentencepiece):
        model = sentencepiece_model.load(files.sentencepiece, files.sentencepiece_path)
        if model.kind == "bpe":
            return pieces.from_sentencepiece(files, model, vocab_size)
        if model.kind != "unigram":
            what = f"SentencePiece models of the kind {model.kind} are not supported"
            raise Unsupported(what, where=files.sentencepiece_path, fix="unigram and BPE are")
        if files.json is None or not files.fairseq:
            return unigram.from_sentencepiece(files, model, vocab_size)
    if files.json is None:
        fix = "add tokenizer.json (or a SentencePiece tokenizer.model) from the model's own repository"
        raise Unsupported("the model has no tokenizer that gguf can read", where=files.where, fix=fix)
    kind = _kind(files.json)
    if kind == "WordPiece":
        return wordpiece.from_json(files, vocab_size, pre)
    if kind == "Unigram":
        return unigram.from_json(files, vocab_size)
    if kind != "BPE":
        fix = "BPE, SentencePiece and WordPiece are"
        raise Unsupported(f"tokenizers of the kind {kind} are not supported", where=files.json_path, fix=fix)
    if byte_bpe.is_byte_level(files.json):
        return byte_bpe.from_json(files, vocab_size, pre)
    return pieces.from_json(files, vocab_size)


def _kind(data: Mapping[str, Any]) -> str:
    """The model's type; tokenizer.json files from before it was written are BPE if they have merges."""
    model = data.get("model")
    if not isinstance(model, Mapping):
        return "none"
    return str(model.get("type") or ("BPE" if "merges" in model else "none"))
