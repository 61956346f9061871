"""Tiny encoders and encoder-decoders, rebuilt from records as those of tests/family_models.py are; hand-made tokenizers."""

from __future__ import annotations

import base64
import gzip
import json
import string
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import family_models
import gguf_models

RECORDS = Path(__file__).parent / "golden" / "families" / "encoders"
NAMES = tuple(sorted(path.name.removesuffix(".json.gz") for path in RECORDS.glob("*.json.gz")))
VOCAB = 288
PRE = family_models.PRE
WORDS = ("the", "cat", "sat", "on", "mat", "größe", "cafe", "naive", "hat", "th", "ing", "er", "at")
TEXT = "The cat sat on the mat, singing: 12 hats! Größer"
"""Known to every tiny tokenizer."""
POOLINGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


def record(name: str) -> dict[str, Any]:
    with gzip.open(RECORDS / f"{name}.json.gz") as file:
        return dict(json.load(file))


def make(out: Path, found: Mapping[str, Any]) -> Path:
    """Write the checkpoint of a record in float32: config, tensors, tokenizer and what says how it pools."""
    # T5 does not divide attention scores by a head's width: usual weights make it choose one token with certainty.
    scale = 0.3 if found["tokenizer"] == "spiece" else 1.0
    tensors = {name: _weights(name, tuple(shape), scale) for name, shape in found["checkpoint"].items()}
    gguf_models.write(out, tensors, found["config"])
    TOKENIZERS[found["tokenizer"]](out)
    if pooling := found.get("pooling"):
        modules = [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
        (out / "modules.json").write_text(json.dumps(modules))
        (out / "1_Pooling").mkdir()
        (out / "1_Pooling" / "config.json").write_text(json.dumps({flag: pooling == k for k, flag in POOLINGS.items()}))
    return out


def _weights(name: str, shape: tuple[int, ...], scale: float) -> Any:
    x = family_models.weights(name, shape) * np.float32(scale if len(shape) > 1 else 1)
    # Norms of encoders are called LayerNorm, norm1 and the like.
    return x + 1 if "norm" in name.lower() and name.endswith("weight") and x.mean() < 0.5 else x


def wordpiece(out: Path) -> None:
    """BERT's kind: lower case, ## inside words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation, "ö", "ß"]
    tokens = [*special, *letters, *("##" + c for c in letters), *(w for w in WORDS if len(w) > 1), "##ing", "##er", "##s"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    names = dict(cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]")
    data = {
        "normalizer": dict(
            type="BertNormalizer", clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
        ),
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template("[CLS]", "[SEP]", 2, 3, separators=1),
        "decoder": dict(type="WordPiece", prefix="##", cleanup=True),
        "model": dict(
            type="WordPiece", unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=100, vocab=vocab
        ),
    }
    _save(out, data, {text: i for i, text in enumerate(special)}, names | {"tokenizer_class": "PreTrainedTokenizerFast"})


def byte_bpe(out: Path) -> None:
    """RoBERTa's kind: bytes, four merges, two separators between texts."""
    from tokenizers.pre_tokenizers import ByteLevel

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    merges = [["t", "h"], ["th", "e"], ["c", "a"], ["ca", "t"]]
    tokens = [*special, *sorted(ByteLevel.alphabet()), *("".join(m) for m in merges), "<mask>"]
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    data = {
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": dict(
            type="RobertaProcessing", sep=["</s>", 2], cls=["<s>", 0], trim_offsets=True, add_prefix_space=False
        ),
        "decoder": level,
        "model": dict(
            type="BPE", vocab={t: i for i, t in enumerate(tokens)}, merges=merges, unk_token=None, byte_fallback=False
        ),
    }
    names = dict(bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", unk_token="<unk>", pad_token="<pad>")
    marked = {text: i for i, text in enumerate(special)} | {"<mask>": len(tokens) - 1}
    _save(out, data, marked, names | {"mask_token": "<mask>", "tokenizer_class": "PreTrainedTokenizerFast"})


def unigram(out: Path) -> None:
    """XLM-RoBERTa's kind as tokenizer.json."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(text, 0.0) for text in special] + PIECES + [("<mask>", 0.0)]
    space = dict(type="Metaspace", replacement="▁", prepend_scheme="always", split=True)
    data = {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(EMPTY_TABLE).decode()},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]},
        "post_processor": _template("<s>", "</s>", 0, 2, separators=2),
        "decoder": space,
        "model": dict(type="Unigram", unk_id=3, vocab=pieces, byte_fallback=False),
    }
    names = dict(bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", unk_token="<unk>", pad_token="<pad>")
    marked = {text: i for i, text in enumerate(special)} | {"<mask>": len(pieces) - 1}
    _save(out, data, marked, names | {"mask_token": "<mask>", "tokenizer_class": "PreTrainedTokenizerFast"})


def spiece(out: Path, first: Sequence[str] = ("<pad>", "</s>", "<unk>")) -> None:
    """T5's kind: a SentencePiece unigram file, with `first` before all other pieces."""
    kinds = {"<unk>": 2, "<pad>": 3, "<s>": 3, "</s>": 3}
    ids = {40: "<unk>", 41: "<s>", 42: "</s>", 43: "<pad>"}
    pieces = [*((text, 0.0) for text in first), *PIECES]
    data = b"".join(
        _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kinds.get(text, 1)]))
        for text, score in pieces
    )
    numbers = (_number(field, first.index(text) if text in first else -1) for field, text in ids.items())
    trainer = b"\x18\x01" + b"".join(numbers)
    (out / "spiece.model").write_bytes(data + _field(2, trainer) + _field(3, _field(1, b"identity")))


EMPTY_TABLE = struct.pack("<I", 1024) + bytes(1025)
"""A normalization table of SentencePiece that changes nothing: a trie without children."""


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value % (1 << 64))


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _template(cls: str, sep: str, cls_id: int, sep_id: int, *, separators: int) -> dict[str, Any]:
    first, last = {"SpecialToken": {"id": cls, "type_id": 0}}, {"SpecialToken": {"id": sep, "type_id": 0}}
    one, two = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    known = {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in ((cls, cls_id), (sep, sep_id))}
    pair = [first, one, *[last] * separators, two, last]
    return {"type": "TemplateProcessing", "single": [first, one, last], "pair": pair, "special_tokens": known}


def _save(out: Path, data: dict[str, Any], special: Mapping[str, int], settings: Mapping[str, Any]) -> None:
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    added = [{"id": number, "content": text} | flags for text, number in special.items()]
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added} | data
    (out / "tokenizer.json").write_text(json.dumps(whole))
    (out / "tokenizer_config.json").write_text(json.dumps(settings))


BERT_CLEANS = dict(clean_text=True, handle_chinese_chars=True, strip_accents=None)
WORD_PIECES = dict(continuing_subword_prefix="##", max_input_chars_per_word=100)
NO_TRIM = dict(trim_offsets=True, add_prefix_space=False)
PIECES = [("▁", -3.0), *(("▁" + w, -5.0 - i / 8) for i, w in enumerate(WORDS)), ("ing", -6.0), ("s", -6.5)] + [
    (c, -8.0 - i / 64)
    for i, c in enumerate([*string.ascii_lowercase.replace("s", ""), *string.ascii_uppercase, *string.digits, *",.!:;öß"])
]
TOKENIZERS = {"wordpiece": wordpiece, "byte_bpe": byte_bpe, "unigram": unigram, "spiece": spiece}
