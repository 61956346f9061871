"""Which tensors of a checkpoint are linears of decoder layers, and what each becomes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from qconvd.api import ModelInfo, TensorInfo, Unsupported
from qconvd_gptq.options import GptqOptions, ModuleOptions

LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.")
NOT_A_LAYER = re.compile(r"vision|visual|image|audio|encoder\.|embed|wte|wpe|lm_head")
"""Towers beside the decoder, and what stands before and behind its layers."""
NOT_A_LINEAR = re.compile(r"(?:^|\.)(?:gate|shared_expert_gate)$|router|conv1d|relative_attention_bias$")
"""Routers of experts, convolutions of state-space layers, tables of positions; by the module's name."""
CONV1D = re.compile(r"(?:^|\.)h\.\d+\.(?:attn\.c_(?:attn|proj)|mlp\.c_(?:fc|proj))$")
"""GPT-2's Conv1D, whose weights are stored as (in, out)."""
FLOATS = ("F32", "F16", "BF16")
FROM_WHAT = "convert the model that it was made from"


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear that is quantized."""

    tensor: TensorInfo
    module: str
    layer: int
    transposed: bool
    bits: int
    group_size: int
    sym: bool

    @property
    def rows(self) -> int:
        """Out features."""
        return self.tensor.shape[1] if self.transposed else self.tensor.shape[0]

    @property
    def columns(self) -> int:
        """In features."""
        return self.tensor.shape[0] if self.transposed else self.tensor.shape[1]

    @property
    def width(self) -> int:
        return self.columns if self.group_size < 0 else self.group_size

    @property
    def groups(self) -> int:
        return -(-self.columns // self.width)


@dataclass(frozen=True, slots=True)
class Kept:
    """A linear of a layer that stays as it is, and why."""

    tensor: TensorInfo
    module: str
    reason: str


def layer_of(name: str) -> int | None:
    found = LAYER.search(name)
    return int(found[1]) if found else None


def sorted_out(model: ModelInfo, options: GptqOptions) -> Iterator[Linear | Kept]:
    """All linears of decoder layers. Raises `Unsupported` for weights that are packed already."""
    if method := (model.config.get("quantization_config") or {}).get("quant_method"):
        raise Unsupported(f"is quantized already, with {method}", where=str(model.path), fix=FROM_WHAT)
    conv1d = model.config.get("model_type") == "gpt2"
    for tensor in model.tensors.values():
        module, _, kind = tensor.name.rpartition(".")
        layer = layer_of(tensor.name)
        if kind in ("qweight", "weight_packed", "SCB") or tensor.name.endswith(".weight_scale_inv"):
            raise Unsupported(
                f"holds packed weights ({tensor.dtype}): the model is quantized already", where=tensor.name, fix=FROM_WHAT
            )
        if layer is not None and len(tensor.shape) == 3 and tensor.dtype in FLOATS and not NOT_A_LINEAR.search(module):
            yield Kept(tensor, tensor.name.removesuffix(".weight"), "a stack of matrices, which no GPTQ reader knows")
        if (
            layer is None
            or kind != "weight"
            or len(tensor.shape) != 2
            or NOT_A_LAYER.search(module)
            or NOT_A_LINEAR.search(module)
        ):
            continue
        if tensor.dtype not in FLOATS:
            raise Unsupported(
                f"is stored as {tensor.dtype}; GPTQ is made from unquantized weights",
                where=tensor.name,
                fix="convert from the model's 16-bit release",
            )
        yield _decided(tensor, module, layer, conv1d and bool(CONV1D.search(module)), options)


def _decided(tensor: TensorInfo, module: str, layer: int, transposed: bool, options: GptqOptions) -> Linear | Kept:
    bits, group, sym = options.bits[0], options.group_size[0], options.sym
    for pattern, what in options.modules:
        if re.search(pattern, module):
            if not isinstance(what, ModuleOptions):
                return Kept(tensor, module, "`modules` leaves it out")
            bits, group = what.bits or bits, what.group_size or group
            sym = sym if what.sym is None else what.sym
            break
    found = Linear(tensor, module, layer, transposed, bits, group, sym)
    values = 32 if bits == 3 else 32 // bits
    if found.columns % values or found.rows % values:
        odd = f"{found.columns} inputs" if found.columns % values else f"{found.rows} outputs"
        return Kept(tensor, module, f"{odd} cannot be packed with {bits} bits, which takes a multiple of {values}")
    if found.columns % found.width and not options.partial_groups:
        return Kept(tensor, module, f"groups of {group} do not divide {found.columns} inputs; {_divides(found.columns, group)}")
    return found


def _divides(columns: int, group: int) -> str:
    """What to say instead of a group size: the next smaller one that every reader knows, else whole rows."""
    smaller = next((size for size in (128, 64, 32) if size < group and columns % size == 0), -1)
    return f"`group_size: {smaller}` would"
