"""`(did you mean …?)` for a word that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SYNONYMS = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "half": "fp16",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float32": "f32",
    "fp32": "f32",
    "float8": "fp8",
    "safetensors": "fp16",
    "bnb": "bnb-4bit",
    "ggjt": "ggml",
    "llama.cpp": "gguf",
}
"""What people write for a word of ours that no likeness of letters would find."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as ` (did you mean X?)`, or nothing where none is near. Case does not count."""
    spelt = {k.casefold(): k for k in known}
    if SYNONYMS.get(word.casefold()) in spelt:
        return f" (did you mean {SYNONYMS[word.casefold()]}?)"
    near = difflib.get_close_matches(word.casefold(), spelt, n=1, cutoff=0.6)
    return f" (did you mean {spelt[near[0]]}?)" if near else ""
