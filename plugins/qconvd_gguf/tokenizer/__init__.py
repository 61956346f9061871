"""A model's tokenizer as GGUF metadata: which kind it is, its tokens, its special tokens, its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qconvd.api import ModelInfo, Unsupported
from qconvd_gguf.families.base import Metadata
from qconvd_gguf.tokenizer import byte_bpe, pieces, sentencepiece_model
from qconvd_gguf.tokenizer.files import TokenizerFiles
from qconvd_gguf.tokenizer.special import chat_template, special_tokens


def tokenizer_metadata(model: ModelInfo, vocab_size: int, pre: str | None) -> tuple[Metadata, list[str]]:
    """The `tokenizer.*` keys and warnings, in the order of llama.cpp's converter.

    `vocab_size` is the number of rows of the embeddings: unused ids are filled up. `pre` overrides what the tokenizer's
    behaviour says about `tokenizer.ggml.pre`. Raises `Unsupported` for a tokenizer that llama.cpp would not run alike.
    """
    files = TokenizerFiles.of(model)
    if files.sentencepiece is not None and sentencepiece_model.is_one(files.sentencepiece):
        keys, notes = pieces.from_sentencepiece(files, vocab_size)
    elif files.json is None:
        fix = "add tokenizer.json (or a SentencePiece tokenizer.model) from the model's own repository"
        raise Unsupported("the model has no tokenizer that gguf can read", where=files.where, fix=fix)
    elif (kind := _kind(files.json)) != "BPE":
        raise Unsupported(
            f"tokenizers of the kind {kind} are not supported", where=files.json_path, fix="BPE and SentencePiece are"
        )
    elif byte_bpe.is_byte_level(files.json):
        keys, notes = byte_bpe.from_json(files, vocab_size, pre)
    else:
        keys, notes = pieces.from_json(files, vocab_size)
    return [*keys, *special_tokens(files, vocab_size, notes), *chat_template(files)], notes


def _kind(data: Mapping[str, Any]) -> str:
    """The model's type; tokenizer.json files from before it was written are BPE if they have merges."""
    model = data.get("model")
    if not isinstance(model, Mapping):
        return "none"
    return str(model.get("type") or ("BPE" if "merges" in model else "none"))
