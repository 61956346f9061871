"""Which tensors of a checkpoint are linears of its decoder layers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from qconvd.checkpoints.base import ModelInfo, TensorInfo
from qconvd.errors import Unsupported

LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.")
NOT_A_LAYER = re.compile(r"vision|visual|image|audio|encoder\.|embed|wte|wpe|lm_head")
"""Towers beside the decoder, and what stands before and behind its layers."""
NOT_A_LINEAR = re.compile(r"(?:^|\.)(?:gate|shared_expert_gate)$|router|conv1d|relative_attention_bias$")
"""Routers of experts, convolutions of state-space layers, tables of positions; by the module's name."""
CONV1D = re.compile(r"(?:^|\.)h\.\d+\.(?:attn\.c_(?:attn|proj)|mlp\.c_(?:fc|proj))$")
"""GPT-2's Conv1D, whose weights are stored as (in, out)."""
FLOATS = ("F32", "F16", "BF16")
PACKED = ("qweight", "weight_packed", "SCB")
JOINED = ((("q_proj", "k_proj", "v_proj"), "qkv_proj"), (("gate_proj", "up_proj"), "gate_up_proj"))
"""What vLLM joins into one linear, and how it calls the result."""
FROM_WHAT = "convert the model that it was made from"


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear of a layer that may be quantized."""

    tensor: TensorInfo
    module: str
    """The tensor's name without `.weight`."""
    layer: int
    transposed: bool = False
    """Whether it is stored as (in, out)."""

    @property
    def rows(self) -> int:
        """Out features."""
        return self.tensor.shape[1] if self.transposed else self.tensor.shape[0]

    @property
    def columns(self) -> int:
        """In features."""
        return self.tensor.shape[0] if self.transposed else self.tensor.shape[1]


@dataclass(frozen=True, slots=True)
class Kept:
    """A linear of a layer, or a stack of such, that stays as it is, and why."""

    tensor: TensorInfo
    module: str
    reason: str


def linears(model: ModelInfo, format: str) -> Iterator[Linear | Kept]:
    """All linears of decoder layers; `Kept` are stacks of matrices, which no reader of these formats knows.

    `format` is what messages call the format. Raises `Unsupported` for a model that is quantized already, and for a GGUF.
    """
    _check(model, format)
    conv1d = model.config.get("model_type") == "gpt2"
    for tensor in model.tensors.values():
        module, _, kind = tensor.name.rpartition(".")
        layer = layer_of(tensor.name)
        if kind in PACKED or tensor.name.endswith(".weight_scale_inv"):
            raise Unsupported(
                f"holds packed weights ({tensor.dtype}): the model is quantized already", where=tensor.name, fix=FROM_WHAT
            )
        if layer is None or NOT_A_LINEAR.search(module) or NOT_A_LAYER.search(module):
            continue
        if len(tensor.shape) == 3 and tensor.dtype in FLOATS:
            yield Kept(tensor, tensor.name.removesuffix(".weight"), f"a stack of matrices, which no {format} reader knows")
        if kind != "weight" or len(tensor.shape) != 2:
            continue
        if tensor.dtype not in FLOATS:
            raise Unsupported(
                f"is stored as {tensor.dtype}; {format} is made from unquantized weights",
                where=tensor.name,
                fix="convert from the model's 16-bit release",
            )
        yield Linear(tensor, module, layer, conv1d and bool(CONV1D.search(module)))


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor's name tells."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


def inside_layer(module: str) -> str:
    """A module's name within its layer: `self_attn.q_proj`."""
    return LAYER.split(module, maxsplit=1)[-1]


def in_order(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """Embedding, layers by number, head; as stored within each, so that a pass reads and writes from front to back."""
    return sorted(tensors, key=_place)


def unevenly_joined(quantized: Collection[str], left_out: Sequence[str]) -> str:
    """Members of a set that vLLM joins into one linear, where some are quantized and some are not; empty if there are none."""
    for members, _ in JOINED:
        for module in left_out:
            before, _, last = module.rpartition(".")
            if last in members and any(f"{before}.{m}" in quantized for m in members):
                return " and ".join(members)
    return ""


_OTHERS = {"gguf": "a GGUF's", "ggml": "a GGML file's"}
"""Containers with names of their own, and how to call them."""


def _check(model: ModelInfo, format: str) -> None:
    where = str(model.path)
    if model.kind in _OTHERS:
        raise Unsupported(
            f"{_OTHERS[model.kind]} tensors are named and ordered for its readers; {format} is made from the checkpoint",
            where=str(model.path / model.files[0].path) if len(model.files) == 1 else where,
            fix="convert that one; if there is none, make it of this file first (`--to bf16`)",
        )
    if not model.config:
        raise Unsupported(f"has no config.json, without which nobody can load {format}", where=where, fix="add it")
    told = model.config.get("quantization_config")
    if isinstance(told, dict) and (method := told.get("quant_method")):
        raise Unsupported(f"is quantized already, with {method}", where=where, fix=FROM_WHAT)


def _place(tensor: TensorInfo) -> tuple[int, int, str, int]:
    layer = layer_of(tensor.name)
    if layer is not None:
        return 1, layer, tensor.file, tensor.offset
    return (0 if re.search(r"embed|\.wte|\.wpe|^wte|^wpe", tensor.name) else 2), 0, tensor.file, tensor.offset
