"""The type of every tensor of a file: what was asked for by name, else the mix's choice, else what its shape allows.

Source: llama.cpp, `llama_tensor_get_type`, `tensor_type_fallback` and `tensor_requires_imatrix` (src/llama-quant.cpp).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qconvd.api import BLOCKS, Unsupported, storage
from qconvd_gguf.file_types import FILE_TYPES, NEEDS_IMATRIX, PLAIN
from qconvd_gguf.mixes import rules
from qconvd_gguf.mixes.roles import EMBEDDINGS, OUTPUT, Role, always_f32, is_kept, role_of
from qconvd_gguf.mixes.rules import Place, Rule, answer
from qconvd_gguf.mixes.traits import Traits


class Tensor(NamedTuple):
    """A tensor to choose a type for: row-major `shape`, and the type that llama-quantize would find it in."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Choice:
    """The type of one tensor; `reason` says why it is another than the file's, empty for vectors and norms."""

    dtype: str
    reason: str = ""
    fallback: bool = False
    """Whether the tensor's shape forced it: worth a warning."""


@dataclass(frozen=True)
class Wish:
    """What was asked for: the file's type and llama-quantize's options that change single tensors."""

    file: str
    output: str | None = None
    embedding: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    """(regular expression, type): the first that is found in a name decides."""
    pure: bool = False
    keep_output: bool = False
    imatrix: bool = False


def choose(tensors: Sequence[Tensor], wish: Wish, traits: Traits) -> dict[str, Choice]:
    """A type for each tensor. They come in the order of llama-quantize, as some rules count tensors of a role.

    Raises `Unsupported` for an override that changes nothing.
    """
    made = _File(tensors, wish, traits)
    choices = {tensor.name: made.choose(tensor) for tensor in tensors}
    if idle := [pattern for pattern, _ in wish.overrides if pattern not in made.used]:
        names = [t.name for t in tensors if not is_kept(t.name, t.shape, traits.arch) and _layer(t.name) in (None, 0)]
        raise Unsupported(
            f"tensor_types: {', '.join(map(repr, idle))} is found in no name of a tensor that is quantized",
            fix=f"those of this model, and as in layer 0 in every layer: {', '.join(names)}",
        )
    return choices


def convert(tensors: Sequence[Tensor], dtype: str) -> dict[str, Choice]:
    """The types of a file as the converter writes it, in F32, F16 or BF16."""
    return {
        t.name: Choice("F32", _why_kept(t._replace(dtype="F32")) if dtype != "F32" else "")
        if always_f32(t.name, t.shape)
        else Choice(dtype)
        for t in tensors
    }


def check_imatrix(choices: Mapping[str, Choice], wish: Wish) -> None:
    """Raise `Unsupported` where a type needs an importance matrix and there is none."""
    if not wish.imatrix and (lacking := [n for n, c in choices.items() if needs_imatrix(n, c.dtype, wish.file)]):
        raise Unsupported(
            f"{wish.file} needs an importance matrix: without one {lacking[0]} would be useless as {choices[lacking[0]].dtype}",
            fix="say `imatrix: auto`, give `imatrix:` a file made of this model by llama-imatrix, or choose a type that needs "
            "none, e.g. iq4_xs, q3_k_s or q2_k",
        )


def needs_imatrix(name: str, dtype: str, file: str) -> bool:
    """Whether llama-quantize refuses to make this tensor without importance."""
    if name in EMBEDDINGS or name == OUTPUT:
        return False
    return dtype in NEEDS_IMATRIX or (dtype == "Q2_K" and file == "Q2_K_S")


def file_order(names: Sequence[str]) -> list[str]:
    """Names in the order of llama-quantize: what belongs to no layer first, then by layer, each alphabetically."""
    return sorted(names, key=lambda name: (layer if (layer := _layer(name)) is not None else -1, name))


class _File:
    """Counts the tensors of each role while types are chosen."""

    def __init__(self, tensors: Sequence[Tensor], wish: Wish, traits: Traits) -> None:
        self.wish, self.traits = wish, traits
        preset = FILE_TYPES[wish.file]
        self.mix, self.dtype = preset.mix or wish.file, preset.dtype
        self.output, self.embedding = wish.output or preset.ends, wish.embedding or preset.ends
        self.overrides = [(pattern, re.compile(pattern), dtype) for pattern, dtype in wish.overrides]
        roles = [role_of(t.name) for t in tensors]
        self.tied = "output" not in roles
        self.values = roles.count("v")
        self.seen: Counter[Role] = Counter()
        self.used: set[str] = set()

    def choose(self, tensor: Tensor) -> Choice:
        name, shape = tensor.name, tensor.shape
        if is_kept(name, shape, self.traits.arch):
            return Choice(tensor.dtype, _why_kept(tensor))
        if self.wish.file in PLAIN:
            return Choice(self.dtype)
        if self.wish.keep_output and name == OUTPUT:
            return Choice(tensor.dtype, "leave_output_tensor asks for it")
        return self._fitting(self._wanted(tensor), shape)

    def _wanted(self, tensor: Tensor) -> Choice:
        name, role = tensor.name, role_of(tensor.name)
        override = self._override(name)
        if role == "embeddings" and self.embedding and not (override and name == EMBEDDINGS[1]):
            return Choice(self.embedding, self._who("token_embedding_type"))
        if role == "output" and self.output:
            return Choice(self.output, self._who("output_tensor_type"))
        if override:
            return override
        if self.wish.pure:
            return Choice(self.dtype)
        dtype = self._mixed(tensor, role) or self.dtype
        return Choice(dtype, "" if dtype == self.dtype else self._why(role))

    def _override(self, name: str) -> Choice | None:
        for pattern, compiled, dtype in self.overrides:
            if compiled.search(name):
                self.used.add(pattern)
                return Choice(dtype, f"tensor_types asks for it: {pattern}")
        return None

    def _mixed(self, tensor: Tensor, role: Role) -> str | None:
        """The mix's choice; None for the file's type. Only tensors that come here are counted."""
        if self.traits.arch == "glm5-next" and any(p in tensor.name for p in ("attn_q_a", "attn_q_b", "nextn.eh_proj")):
            return "Q8_0"
        if role == "output" or (role == "embeddings" and self.tied):
            return self.output or self._head(tensor)
        if self.mix == "MXFP4_MOE":
            return "MXFP4" if self._is_expert(tensor, role) else "Q8_0"
        if role == "embeddings":
            return rules.EMBEDDINGS.get(self.mix)
        place = self._place(tensor.name, role)
        return self._two_bits(place, role) if self.mix in rules.TWO_BITS else self._by_role(place, role)

    def _head(self, tensor: Tensor) -> str:
        if self.mix == "MXFP4_MOE" or self.traits.falcon or not _fits(self.dtype, tensor.shape) or self.dtype == "Q8_0":
            return "Q8_0"
        return rules.OUTPUT.get(self.mix, "Q6_K")

    def _is_expert(self, tensor: Tensor, role: Role) -> bool:
        # In BailingMoE 3, MLA's projections have three axes too.
        stacked = len(tensor.shape) > 2 and tensor.shape[-3] > 1
        return stacked and (self.traits.arch != "bailingmoe3" or role in ("ffn up", "ffn gate", "ffn down"))

    def _place(self, name: str, role: Role) -> Place:
        """Where the tensor stands among those of its role. With experts, the layer's number is taken from the name."""
        index = self.seen[role]
        self.seen[role] += 1
        if role == "v":
            return Place(index, self.values, self.traits, self.wish.imatrix)
        layer = _layer(name)
        if self.traits.experts > 1 and self.mix not in rules.TWO_BITS and layer is not None:
            index = layer
        return Place(index, self.traits.layers, self.traits, self.wish.imatrix)

    def _two_bits(self, place: Place, role: Role) -> str | None:
        sensitive, attention_output = rules.TWO_BITS[self.mix]
        if role == "v":
            return "Q4_K" if place.traits.grouped or place.traits.experts >= 4 else sensitive
        if role == "k":
            return "Q4_K" if place.traits.experts == 8 else None
        if role == "ffn down":
            return sensitive if place.first(8) else None
        if role == "attention output":
            return "Q5_K" if place.traits.experts == 8 else attention_output
        return None

    def _by_role(self, place: Place, role: Role) -> str | None:
        eight = place.traits.experts == 8
        if role == "v":
            return "Q8_0" if eight else self._values(place)
        if role == "k" and eight:
            return "Q8_0"
        if role == "attention output" and eight and not place.traits.falcon:
            return "Q5_K" if self.mix in rules.ATTENTION_OUTPUT_OF_8_EXPERTS else None
        return answer(_TABLES[role].get(self.mix) if role in _TABLES else None, place)

    def _values(self, place: Place) -> str:
        dtype = answer(rules.VALUES.get(self.mix), place) or self.dtype
        return "Q5_K" if place.traits.shared_values and dtype in ("Q3_K", "Q4_K") else dtype

    def _fitting(self, choice: Choice, shape: tuple[int, ...]) -> Choice:
        """A row that the type's blocks do not divide gets a type of smaller blocks, and F16 where there is none."""
        if _fits(choice.dtype, shape):
            return choice
        smaller = next((t for t in (_SMALLER.get(choice.dtype),) if t and _fits(t, shape)), "F16")
        block = storage(choice.dtype).block
        reason = f"rows of {shape[-1]} weights are no multiple of {choice.dtype}'s block of {block}"
        return Choice(smaller, reason, fallback=True)

    def _who(self, option: str) -> str:
        given = self.wish.embedding if option == "token_embedding_type" else self.wish.output
        return f"{option} asks for it" if given else f"{self.wish.file} has {FILE_TYPES[self.wish.file].ends} there"

    def _why(self, role: Role) -> str:
        if role == "output" or (role == "embeddings" and self.tied):
            return "the output layer gets more bits"
        return f"the mix {self.mix} has another type for {_WORDS[role]}"


_WORDS = {
    "embeddings": "embeddings", "v": "attention values", "k": "attention keys", "q": "attention queries",
    "attention output": "attention outputs", "ffn up": "ffn_up in some layers", "ffn gate": "ffn_gate in some layers",
    "ffn down": "ffn_down in some layers", "other": "it",
}  # fmt: skip

_TABLES: dict[Role, dict[str, Rule]] = {
    "k": dict(rules.KEYS), "q": dict(rules.QUERIES), "attention output": dict(rules.ATTENTION_OUTPUT),
    "ffn down": dict(rules.DOWN), "ffn gate": dict(rules.GATE), "ffn up": dict(rules.UP),
}  # fmt: skip

_SMALLER = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""What a type of blocks of 256 falls back to: blocks of 32."""


def _why_kept(tensor: Tensor) -> str:
    if len(tensor.shape) < 2 or tensor.name.endswith("_norm.weight"):
        return ""
    return "readers expect it as F32" if tensor.dtype == "F32" else "llama-quantize leaves such tensors as they are"


def _fits(dtype: str, shape: tuple[int, ...]) -> bool:
    return dtype not in BLOCKS or shape[-1] % storage(dtype).block == 0


def _layer(name: str) -> int | None:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else None
