"""WordPiece (BERT's): llama.cpp's tokenizer model `bert`.

llama.cpp marks the start of a word with ▁ where WordPiece marks what continues one with ##, and it lower-cases and strips
accents itself as `tokenizer.ggml.normalizer.*` say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qconvd.api import Unsupported
from qconvd_gguf.families.base import Metadata
from qconvd_gguf.tokenizer.byte_bpe import known_pre_tokenizer
from qconvd_gguf.tokenizer.files import CONTROL, NORMAL, SPACE, USER_DEFINED, TokenizerFiles, filled, fitting_vocab

CASED = "the tokenizer tells upper from lower case: llama.cpp does so since it reads normalizer keys, older builds lower-case"
CONTINUED = "##"


def from_json(files: TokenizerFiles, vocab_size: int, pre: str | None) -> tuple[Metadata, list[str]]:
    """Tokens and types. Raises `Unsupported` for one whose words are not marked or cut as llama.cpp does it."""
    assert files.json is not None
    _check(files.json, files.json_path)
    tokens, types = filled(vocab_size)
    tokens = [SPACE + text for text in tokens]
    for text, number in fitting_vocab(files, vocab_size).items():
        tokens[number], types[number] = _phantom(text), NORMAL
    for number, added in files.added.items():
        tokens[number], types[number] = (added.text, CONTROL) if added.control else (_phantom(added.text), USER_DEFINED)
    # llama.cpp takes no notice of the pre-tokenizer here, so that an unknown one is no reason to refuse a model.
    name = pre or known_pre_tokenizer(files) or "default"
    keys: Metadata = [
        ("tokenizer.ggml.model", "str", "bert"),
        ("tokenizer.ggml.pre", "str", name),
        ("tokenizer.ggml.tokens", "arr[str]", tokens),
        ("tokenizer.ggml.token_type", "arr[i32]", types),
    ]
    return keys, [] if _lowercases(files) else [CASED]


def _lowercases(files: TokenizerFiles) -> bool:
    assert files.json is not None
    return bool(files.tokenizer.normalizer) and str(files.tokenizer.normalizer.normalize_str("A")) == "a"


def _phantom(text: str) -> str:
    return text.removeprefix(CONTINUED) if text.startswith(CONTINUED) else SPACE + text


def _check(data: Mapping[str, Any], where: str) -> None:
    model = data["model"]
    prefix = model.get("continuing_subword_prefix", CONTINUED)
    if prefix != CONTINUED:
        raise Unsupported(f"the tokenizer marks the inside of words with {prefix!r}, llama.cpp knows ## only", where=where)
    cutter = data.get("pre_tokenizer")
    kind = cutter.get("type") if isinstance(cutter, Mapping) else None
    if kind != "BertPreTokenizer":
        what = f"a WordPiece tokenizer that cuts words by {kind} is not supported: llama.cpp cuts them as BERT does"
        raise Unsupported(what, where=where)
