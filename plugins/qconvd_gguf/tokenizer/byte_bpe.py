"""Byte-level BPE (GPT-2's and every successor's): llama.cpp's tokenizer model `gpt2`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

from qconvd.api import BadCheckpoint, Unsupported
from qconvd_gguf.families.base import Metadata
from qconvd_gguf.tokenizer.files import NORMAL, TokenizerFiles, filled, fitting_vocab
from qconvd_gguf.tokenizer.pretokenizers import CHECK_TEXT, KNOWN


def is_byte_level(data: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json turns bytes into printable characters before it merges."""
    return any(_has_byte_level(data.get(part)) for part in ("pre_tokenizer", "decoder"))


def from_json(files: TokenizerFiles, vocab_size: int, pre: str | None) -> tuple[Metadata, list[str]]:
    """Tokens, their types and the merges. Raises `Unsupported` if the pre-tokenizer is none that llama.cpp has."""
    name = pre or pre_tokenizer(files)
    tokens, types = _tokens(files, vocab_size)
    keys: Metadata = [
        ("tokenizer.ggml.model", "str", "gpt2"),
        ("tokenizer.ggml.pre", "str", name),
        ("tokenizer.ggml.tokens", "arr[str]", tokens),
        ("tokenizer.ggml.token_type", "arr[i32]", types),
        ("tokenizer.ggml.merges", "arr[str]", _merges(files)),
    ]
    notes = [f"tokenizer.ggml.pre is {pre} because the options say so, not because it was recognised"] if pre else []
    return keys, notes


def pre_tokenizer(files: TokenizerFiles) -> str:
    """llama.cpp's name of the pre-tokenizer. Raises `Unsupported` for one that it is not known to have."""
    found = known_pre_tokenizer(files)
    if found is None:
        raise Unsupported(
            f"the pre-tokenizer is none that llama.cpp is known to have (check hash {_hashes(files)[0]})",
            where=files.json_path,
            fix="if you know which one it behaves like, say so in the target: gguf: {types: [q8_0], pre: llama-bpe}",
        )
    return found


def known_pre_tokenizer(files: TokenizerFiles) -> str | None:
    """llama.cpp's name of the pre-tokenizer, found by what the tokenizer makes of a check text, or None."""
    return next((KNOWN[found] for found in _hashes(files) if found in KNOWN), None)


def _hashes(files: TokenizerFiles) -> list[str]:
    """Hashes of what the tokenizer makes of the check text.

    The ids with special tokens are what llama.cpp's converter hashes; as tokenizer_config.json can change which special
    tokens are added, they are tried without them and with BOS as well.
    """
    plain = files.tokenizer.encode(CHECK_TEXT, add_special_tokens=False).ids
    bos = files.named("bos")
    first = files.tokenizer.token_to_id(bos) if bos else None
    tries = [files.tokenizer.encode(CHECK_TEXT).ids, plain, *([[first, *plain]] if first is not None else [])]
    return [sha256(str(ids).encode()).hexdigest() for ids in tries]


def _tokens(files: TokenizerFiles, vocab_size: int) -> tuple[list[str], list[int]]:
    tokens, types = filled(vocab_size)
    vocab = fitting_vocab(files, vocab_size)
    for text, number in vocab.items():
        tokens[number], types[number] = text, NORMAL
    for number, added in files.added.items():
        seen = added if added.normalized else replace(added, text=_normalized(files, added.text))
        tokens[number], types[number] = seen.entry
    return tokens, types


def _normalized(files: TokenizerFiles, text: str) -> str:
    """The token as it comes back from encoding it: llama.cpp matches added tokens against text as it is."""
    back = str(files.tokenizer.decode(files.tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False))
    return back if back and "\ufffd" not in back else text


def _merges(files: TokenizerFiles) -> list[str]:
    assert files.json is not None
    merges = files.json["model"].get("merges") or []
    if not merges:
        raise BadCheckpoint("the tokenizer has no merges", where=files.json_path)
    if isinstance(merges[0], str):
        return list(merges)
    # A space inside a part would end it; byte-level BPE writes it as the character 256 places on.
    return [" ".join(part.replace(" ", "\u0120") for part in pair) for pair in merges]


def _has_byte_level(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    inner = [p for key in ("pretokenizers", "decoders") if isinstance(parts := part.get(key), list) for p in parts]
    return part.get("type") == "ByteLevel" or any(_has_byte_level(p) for p in inner)
