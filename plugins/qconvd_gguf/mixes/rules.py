"""The rules of llama-quantize's presets: a table for each role, from the preset to the type it wants, or a rule for that.

A rule is asked with the tensor's place and answers with a type, or None for the file's own type. Source: llama.cpp,
`llama_tensor_get_type_impl` (src/llama-quant.cpp). Its branch for fused QKV is never reached there, as that counts as values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from qconvd_gguf.mixes.traits import Traits


@dataclass(frozen=True)
class Place:
    """The `index`-th of `count` tensors of its role, in a model of these traits."""

    index: int
    count: int
    traits: Traits
    imatrix: bool

    def first(self, share: int) -> bool:
        """Whether it is in the first `1/share` of the layers."""
        return self.index < self.count // share

    @property
    def wants_more_bits(self) -> bool:
        """llama-quantize's `use_more_bits`: the first and last eighth, and every third layer between them."""
        i, n = self.index, self.count
        return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


Answer: TypeAlias = str | None
Rule: TypeAlias = str | Callable[[Place], Answer]


def answer(rule: Rule | None, place: Place) -> Answer:
    return rule(place) if callable(rule) else rule


def grouped(yes: str, no: Answer = None) -> Rule:
    return lambda p: yes if p.traits.grouped else no


def early(share: int, yes: str, no: Answer = None) -> Rule:
    return lambda p: yes if p.first(share) else no


def among_first(number: int, yes: str, no: Answer = None) -> Rule:
    return lambda p: yes if p.index < number else no


def more_bits(yes: str, no: Answer = None) -> Rule:
    return lambda p: yes if p.wants_more_bits else no


def with_imatrix(yes: Rule | None, no: Rule | None) -> Rule:
    return lambda p: answer(yes if p.imatrix else no, p)


def falcon(yes: Rule | None, no: Rule | None) -> Rule:
    return lambda p: answer(yes if p.traits.falcon else no, p)


def _q3_k_m_down(p: Place) -> Answer:
    if p.first(16):
        return "Q5_K"
    return "Q4_K" if not p.traits.falcon or p.wants_more_bits else None


def _q4_k_m_down_of_falcon(p: Place) -> Answer:
    return "Q6_K" if p.first(16) else "Q5_K" if p.wants_more_bits else None


def _iq3_m_down(p: Place) -> Answer:
    return "Q4_K" if p.first(8) or (p.traits.experts == 8 and p.wants_more_bits) else None


def _middle(p: Place) -> Answer:
    return "IQ3_XXS" if p.count // 8 <= p.index < 7 * p.count // 8 else None


VALUES: Mapping[str, Rule] = {
    "Q2_K": grouped("Q4_K", "Q3_K"),
    "Q2_K_S": grouped("Q4_K"),
    "IQ3_XXS": lambda p: "Q4_K" if p.traits.grouped else None if p.imatrix else "IQ3_S",
    "IQ3_XS": grouped("Q4_K"),
    "IQ3_S": grouped("Q4_K"),
    "IQ3_M": "Q4_K",
    "Q3_K_M": among_first(2, "Q5_K", "Q4_K"),
    "Q3_K_L": "Q5_K",
    "IQ4_NL": grouped("Q5_K"),
    "IQ4_XS": grouped("Q5_K"),
    "Q4_K_M": more_bits("Q6_K"),
    "Q5_K_M": more_bits("Q6_K"),
    "Q4_K_S": among_first(4, "Q5_K"),
}

KEYS: Mapping[str, Rule] = {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}

QUERIES: Mapping[str, Rule] = {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}

ATTENTION_OUTPUT: Mapping[str, Rule] = {
    "Q2_K": falcon(None, "Q3_K"),
    "IQ3_XXS": falcon(None, "IQ3_S"),
    "Q3_K_M": falcon(None, "Q4_K"),
    "Q3_K_L": falcon("Q4_K", "Q5_K"),
    "IQ3_M": falcon(None, "Q4_K"),
}

ATTENTION_OUTPUT_OF_8_EXPERTS = frozenset({
    "Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS",
})  # fmt: skip
"""Presets that make it Q5_K in a model of eight experts (not Falcon): beside the experts it is small."""

DOWN: Mapping[str, Rule] = {
    "Q2_K": "Q3_K",
    "Q2_K_S": early(8, "Q4_K"),
    "IQ3_XXS": with_imatrix(None, early(8, "Q4_K", "Q3_K")),
    "Q3_K_M": _q3_k_m_down,
    "IQ3_M": _iq3_m_down,
    "Q3_K_L": falcon("Q4_K", "Q5_K"),
    "Q4_K_M": falcon(_q4_k_m_down_of_falcon, more_bits("Q6_K")),
    "Q5_K_M": more_bits("Q6_K"),
    "Q4_K_S": falcon(None, early(8, "Q5_K")),
    "IQ4_NL": with_imatrix(None, early(8, "Q5_K")),
    "IQ4_XS": with_imatrix(None, early(8, "Q5_K")),
    # With an imatrix the first of these go astray in the symmetric types.
    "Q4_0": with_imatrix(early(8, "Q4_1"), None),
    "Q5_0": with_imatrix(early(8, "Q5_1"), None),
}

GATE: Mapping[str, Rule] = {"IQ3_XS": _middle}

UP: Mapping[str, Rule] = {"IQ3_XS": _middle}

EMBEDDINGS: Mapping[str, str] = {
    "IQ2_XXS": "Q2_K", "IQ2_XS": "Q2_K", "IQ1_S": "Q2_K", "IQ1_M": "Q2_K", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S",
    "IQ3_XXS": "IQ3_S", "TQ1_0": "Q4_K", "TQ2_0": "Q4_K",
}  # fmt: skip
"""Embeddings that are not the output layer as well."""

OUTPUT = dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M"), "Q5_K")
"""The output layer of these; it is Q6_K in all others but Q8_0."""

TWO_BITS: Mapping[str, tuple[str, str | None]] = {
    "IQ1_S": ("Q2_K", "IQ2_XXS"), "IQ1_M": ("Q2_K", "IQ2_XXS"), "IQ2_XXS": ("Q2_K", None), "IQ2_XS": ("Q2_K", None),
    "IQ2_S": ("IQ3_S", "IQ3_S"), "IQ2_M": ("IQ3_S", "IQ3_S"),
}  # fmt: skip
"""Presets of two bits and less have rules of their own: (the type of what is sensitive, that of the attention's output)."""
