"""GPTQ checkpoints: `qweight`, `qzeros`, `scales` and `g_idx` for each linear. K is its inputs, N its outputs.

W[k, n] = (q[k, n] - z[g, n]) * scales[g, n] with g = g_idx[k]; `qweight` is packed along K, `qzeros` along N, as one stream of
bits, low bits first. Version 1 stores z - 1, version 2 (`checkpoint_format: gptq_v2`) z.
Sources: IST-DASLab/gptq, `quant.py`; GPTQModel, `nn_modules/qlinear` (the versions, and groups of any length).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qconvd.checkpoints.base import TensorInfo
from qconvd.checkpoints.quantized.parts import Parts, as_floats, stored
from qconvd.checkpoints.refusals import refuse_quantized
from qconvd.engine.expr import Dequantize, Expr, Transpose

BITS = (2, 3, 4, 8)
FORMATS = {"gptq": 1, "gptq_v2": 0}
"""What is added to a stored zero point."""
SCALES = ("F16", "BF16", "F32")


def reader(said: Mapping[str, Any], label: str, where: str) -> Callable[[Parts], None]:
    """Who unpacks a checkpoint of this config. Raises `Unsupported` for a variant that is laid out in another way."""
    layout = str(said.get("checkpoint_format") or ("marlin" if said.get("is_marlin_format") else "gptq"))
    bits = said.get("bits")
    if layout not in FORMATS:
        raise refuse_quantized(f"{label}, {layout}", where, f"GPTQ is read in the formats {' and '.join(FORMATS)}")
    if bits not in BITS or said.get("pack_dtype", "int32") != "int32":
        raise refuse_quantized(label, where, "GPTQ is read with 2, 3, 4 and 8 bits in words of int32")

    def unpack(parts: Parts) -> None:
        for module, packed in list(parts.ending("qweight")):
            _linear(parts, module, packed, int(bits), FORMATS[layout], said.get("group_size"))

    return unpack


def _linear(parts: Parts, module: str, packed: TensorInfo, bits: int, add: int, group: Any) -> None:
    if packed.dtype != "I32" or len(packed.shape) != 2:
        raise parts.wrong(packed, f"is {packed.dtype} {list(packed.shape)}, no matrix of I32")
    words, n = packed.shape
    index = parts.find(f"{module}.g_idx", dtypes=("I32", "I64"))
    k = index.shape[0] if index and len(index.shape) == 1 else words * 32 // bits
    # A config may give some linears other bits than the rest (GPTQModel's `dynamic`); the shapes do not lie.
    bits = next((b for b in BITS if k * b == words * 32), 0) if index else bits
    if not bits or (index and index.shape != (k,)):
        raise parts.wrong(packed, f"has {words} rows of words, which do not hold {k} rows of 2, 3, 4 or 8 bits")
    if n * bits % 32:
        raise parts.wrong(packed, f"has {n} columns, whose zero points fill no whole words of {bits} bits")
    scales = parts.take(f"{module}.scales", dtypes=SCALES)
    if len(scales.shape) != 2:
        raise parts.wrong(scales, f"has the shape {list(scales.shape)}, where a row of {n} for each group is due")
    groups = scales.shape[0]
    scales = parts.take(f"{module}.scales", (groups, n), dtypes=SCALES)
    zeros = parts.take(f"{module}.qzeros", (groups, n * bits // 32), dtypes=("I32",))
    xs: tuple[Expr, ...] = (Transpose(stored(packed)), as_floats(Transpose(stored(scales))), Transpose(stored(zeros)))
    options: dict[str, Any] = {"bits": bits, "columns": k, "zeros": add}
    if index:
        xs = (*xs, stored(index))
    else:
        options["group"] = k if not isinstance(group, int) or group <= 0 else group
        if groups != -(-k // options["group"]):
            raise parts.wrong(scales, f"has {groups} groups for {k} rows, where groups are of {options['group']}")
    parts.make(f"{module}.weight", packed, (n, k), Dequantize(xs, "packed", (n, k), options=options))
