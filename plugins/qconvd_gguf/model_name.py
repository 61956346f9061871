"""What a model's name says: `SmolLM2-135M-Instruct` is SmolLM2, 135M, fine-tuned to Instruct.

The rules are those by which llama.cpp's converter fills `general.basename`, `general.finetune` and the like (gguf-py,
metadata.py), so that a file made here is described as one made there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

VERSION = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
TYPE = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
SIZE = re.compile(r"((a|\d+x)?\d+([._]\d+)?[kmbt]\d?|small|mini|medium|large|x?xl)", re.IGNORECASE)
FINETUNE = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
UNCHANGED = re.compile(r"v\d+(\.\d+)*|\d.*")


@dataclass(frozen=True)
class NameOf:
    """The parts of a model's name; None where it does not say."""

    basename: str | None = None
    size_label: str | None = None
    finetune: str | None = None
    version: str | None = None


def title(name: str) -> str:
    """`tiny-llama v1` as a title: words in lower case get a capital, versions and numbers stay."""
    words = name.replace("-", " ").split()
    return " ".join(w.title() if w.islower() and not UNCHANGED.fullmatch(w) else w for w in words)


def parts_of(name: str, parameters: int) -> NameOf:
    """Take a name apart. A size that is far from `parameters` is no size (`128k` is a context length)."""
    if " " in name:
        return NameOf()
    words = [w for w in name.split("-") if w]
    kinds = [""] * len(words)
    for i, word in enumerate(words):
        words[i], kinds[i] = _kind(word, first=i == 0, parameters=parameters)
    if any(k == "size" and any(map(str.isdecimal, w)) for w, k in zip(words, kinds, strict=True)):
        kinds = ["" if k == "size" and w.isalpha() else k for w, k in zip(words, kinds, strict=True)]
    # The base name is what stands before the first word of another kind; versions inside it belong to it,
    # but not those that end the whole name.
    end = 0
    while end < len(words) and (kinds[end] == "version" or (not kinds[end] and words[end][0].isalpha())):
        end += 1
    rest = [k or "finetune" for k in kinds[end:]]
    kinds = kinds[:end] + rest
    if end == len(words):
        while end and kinds[end - 1] == "version":
            end -= 1
    found = {k: [w for w, x in zip(words[end:], kinds[end:], strict=True) if x == k] for k in ("size", "finetune", "version")}
    joined = {k: "-".join(dict.fromkeys(ws) if k == "size" else ws) or None for k, ws in found.items()}
    if not any(joined.values()):
        return NameOf()
    return NameOf("-".join(words[:end]) or None, joined["size"], joined["finetune"], joined["version"])


@dataclass(frozen=True)
class Counts:
    """How many weights a model has."""

    weights: int
    experts: int = 0
    """Experts in a layer."""
    active: int = 0
    """Weights with one expert of every layer."""

    @staticmethod
    def of(shapes: Mapping[str, Sequence[int]]) -> Counts:
        """Counted over GGUF's tensors by name; `ffn_*_exps` are stacks of experts."""
        stacks = {name: shape for name, shape in shapes.items() if "_exps." in name and len(shape) > 2}
        weights = sum(prod(shape) for shape in shapes.values())
        idle = sum(prod(shape) - prod(shape[1:]) for shape in stacks.values())
        experts = sum(shape[0] for shape in stacks.values()) // len(stacks) if stacks else 0
        return Counts(weights, experts, weights - idle)


def size_label(counts: Counts) -> str:
    """`135M`, `1.2B`, `8x7B`: at least two digits; with experts, their number and the weights with one of them."""
    parameters = counts.active if counts.experts else counts.weights
    unit, suffix = next(((u, s) for u, s in ((1e12, "T"), (1e9, "B"), (1e6, "M")) if parameters > u), (1e3, "K"))
    value = parameters / unit
    digits = max(2 - len(str(round(value)).lstrip("0")), 0)
    return (f"{counts.experts}x" if counts.experts else "") + f"{value:.{digits}f}{suffix}"


def _kind(word: str, *, first: bool, parameters: int) -> tuple[str, str]:
    """The word as it is written in the metadata, and what it says: version, type, size, finetune, or nothing."""
    if VERSION.fullmatch(word):
        return word, "version"
    if TYPE.fullmatch(word):
        return word.upper(), "type"
    if not first and SIZE.fullmatch(word):
        return _size(word.replace("_", "."), parameters)
    if not first and FINETUNE.fullmatch(word):
        return word, "finetune"
    return word, ""


def _size(word: str, parameters: int) -> tuple[str, str]:
    if word[-1].isdecimal():  # bloom-7b1
        word = f"{word[:-2]}.{word[-1]}{word[-2]}"
    if len(word) > 1 and word[-2].isdecimal():
        word = word[:-1] + word[-1].upper()
    try:
        said = float(word[:-1]) * 1000 ** " KMBT".find(word[-1])
    except ValueError:
        return word, "size"
    if parameters and abs(said - parameters) > 7 * parameters // 8:
        return word[:-1] + word[-1].lower(), "finetune"
    return word, "size"
