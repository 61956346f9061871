"""How each pre-tokenizer of llama.cpp cuts a text, as tokenizer.json says it. Source: the models' own tokenizer.json files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Splitting:
    """`pattern` cuts before the byte alphabet; without one GPT-2's does, in which `digits` stand alone if that is said."""

    pattern: str = ""
    digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    """Whether a word that is a token is taken without merging."""

    def as_json(self) -> dict[str, Any]:
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": not self.pattern}
        first: list[dict[str, Any]] = []
        if self.digits:
            first.append({"type": "Digits", "individual_digits": True})
        if self.pattern:
            first.append({"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": False})
        return {"type": "Sequence", "pretokenizers": [*first, level]} if first else level


_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+{e}|" + r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*{e}|"
_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _WORDS + r"\p{N}{1,3}" + _REST
_QWEN2 = _WORDS + r"\p{N}" + _REST

PLAIN, DIGITS = Splitting(), Splitting(digits=True)
PRE_TOKENIZERS = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "mpt", "roberta-bpe", "jais"), PLAIN),
    "olmo": Splitting(nfc=True),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "command-r"), DIGITS),
    "llama-bpe": Splitting(_LLAMA3, whole_words=True),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Splitting(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), Splitting(_QWEN2, nfc=True)),
    "stablelm2": Splitting(_QWEN2),
    "gpt-4o": Splitting(_CASED.replace("{e}", _ENDINGS + "?") + r"\p{N}{1,3}" + _SLASH),
    "tekken": Splitting(_CASED.replace("{e}", "") + r"\p{N}" + _SLASH, whole_words=True),
}
"""By `tokenizer.ggml.pre`."""
