"""GGML's tokens as GGUF's metadata: what each token is for is told from its place and its bytes.

Byte-level vocabularies come without their merges. Where ids count merges, as in GPT-2's and every tokenizer that was trained
like it, the merges can be had again: a token's is the pair that all earlier merges leave of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qconvd.api import BadCheckpoint, ModelInfo, Unsupported, ggml_vocabulary
from qconvd_gguf.families.base import Metadata
from qconvd_gguf.tokenizer import tokenizer_metadata
from qconvd_gguf.tokenizer.byte_level import character_of
from qconvd_gguf.tokenizer.files import BYTE, CONTROL, NORMAL, SENTENCEPIECE, SPACE, UNKNOWN, UNUSED

PRE = {"gpt2": "gpt-2", "gptj": "gpt-2", "gpt_neox": "olmo"}
FIRST_BYTE, LAST_BYTE = 3, 258
"""Where LLaMA's vocabularies have their byte tokens."""
LONGEST = 512
"""Bytes of a token beyond which nobody looks for its merge."""


def tokenizer_keys(model: ModelInfo) -> tuple[dict[str, Any], list[str]]:
    """The `tokenizer.*` keys and notes. A tokenizer beside the file, in the folder of its model, knows more and goes first."""
    if any(model.has(name) for name in ("tokenizer.json", *SENTENCEPIECE)):
        found, notes = tokenizer_metadata(model, int(model.metadata["n_vocab"]), None)
        return {key: value for key, _, value in found}, [
            *notes,
            "the vocabulary is that of the tokenizer's files beside the GGML",
        ]
    tokens = ggml_vocabulary(model)
    family = str(model.metadata["family"])
    if family == "llama":
        return _llama(tokens, str(model.path), scored=model.metadata["container"] != "GGML")
    return _byte_level([token for token, _ in tokens], PRE[family], str(model.path))


def typed_keys(keys: Mapping[str, Any]) -> Metadata:
    """The same keys with the types that GGUF has for them."""
    kinds = {"tokens": "arr[str]", "scores": "arr[f32]", "token_type": "arr[i32]", "merges": "arr[str]",
             "precompiled_charsmap": "arr[u8]", "tokenizer.chat_templates": "arr[str]"}  # fmt: skip
    found: Metadata = []
    for key, value in keys.items():
        kind = kinds.get(key) or kinds.get(key.rpartition(".")[2])
        scalar = "bool" if isinstance(value, bool) else "u32" if isinstance(value, int) else "str"
        found.append((key, kind or scalar, value))
    return found


def _llama(tokens: Sequence[tuple[bytes, float]], where: str, *, scored: bool) -> tuple[dict[str, Any], list[str]]:
    texts, types = [], []
    for number, (token, _) in enumerate(tokens):
        text, kind = _piece(number, token, where)
        texts.append(text)
        types.append(kind)
    notes = [] if scored else ["the file has no scores, so that readers cut texts into other tokens than the model's tokenizer"]
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [score for _, score in tokens], "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False,
    }, notes  # fmt: skip


def _piece(number: int, token: bytes, where: str) -> tuple[str, int]:
    """Text and type in GGUF."""
    if number < FIRST_BYTE:
        return (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL))[number]
    if not token:
        return f"<|control_{number}|>", CONTROL
    if number <= LAST_BYTE and len(token) == 1:
        return f"<0x{token[0]:02X}>", BYTE
    try:
        return token.decode().replace(" ", SPACE), NORMAL
    except UnicodeDecodeError as error:
        raise BadCheckpoint(
            f"token {number} is no text", where=where, fix="put the model's tokenizer beside the file"
        ) from error


def _byte_level(tokens: Sequence[bytes], pre: str, where: str) -> tuple[dict[str, Any], list[str]]:
    merges, special = _merges(tokens)
    trained = next((n for n in range(len(tokens), 0, -1) if n - 1 not in special), 0)
    """Tokens before the last ones that no merge makes: those were added to the tokenizer."""
    odd = sum(number < trained for number in special)
    if odd > max(16, trained // 20):
        what = f"the merges of its vocabulary cannot be told: {odd} of {trained} tokens are no two earlier ones"
        fix = "put the model's tokenizer.json beside the file, in a folder"
        raise Unsupported(what, where=where, fix=fix)
    letters = character_of()
    texts, types, seen = [], [], set()
    for number, token in enumerate(tokens):
        text = token.decode(errors="replace") if number in special else "".join(letters[byte] for byte in token)
        if text in seen or not text:
            text = f"<|unused_{number}|>"
        seen.add(text)
        texts.append(text)
        unused = text == f"[PAD{number}]" or text.startswith("<|unused_")
        types.append(UNUSED if unused else CONTROL if number in special else NORMAL)
    last = (
        max(special, default=len(tokens) - 1) if not any(t == "<|endoftext|>" for t in texts) else texts.index("<|endoftext|>")
    )
    keys: Mapping[str, Any] = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join("".join(letters[b] for b in part) for part in pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": last, "tokenizer.ggml.eos_token_id": last, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    return dict(keys), [f"the vocabulary came without merges: {len(merges)} were told from the order of its tokens"]


def _merges(tokens: Sequence[bytes]) -> tuple[list[tuple[bytes, bytes]], set[int]]:
    """The merge of each token in the order of ids, and the ids of tokens that no merge makes."""
    ranks: dict[bytes, int] = {}
    merges, special = [], set()
    for token in tokens:
        if len(token) == 1:
            ranks[token] = -1
    for number, token in enumerate(tokens):
        if len(token) == 1 and ranks[token] < 0:
            ranks[token] = number
            continue
        parts = _left(token, ranks, number) if 1 < len(token) <= LONGEST and token not in ranks else []
        if len(parts) == 2 and all(part in ranks for part in parts):
            merges.append((parts[0], parts[1]))
            ranks[token] = number
        else:
            special.add(number)
    return merges, special


def _left(token: bytes, ranks: Mapping[bytes, int], limit: int) -> list[bytes]:
    """What merging by tokens with smaller ids leaves."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best = min(
            ((rank, at) for at in range(len(parts) - 1)
             if (rank := ranks.get(parts[at] + parts[at + 1], limit)) < limit and len(parts[at] + parts[at + 1]) > 1),
            default=None,
        )  # fmt: skip
        if best is None:
            break
        at = best[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
