"""AWQ checkpoints in the layout `gemm`: `qweight`, `qzeros` and `scales` for each linear. K is its inputs, N its outputs.

W[k, n] = (q[k, n] - z[g, n]) * scales[g, n] with g = k // group size; `qweight` and `qzeros` are packed along N, eight values
of 4 bits to a word in the order 0, 2, 4, 6, 1, 3, 5, 7. Source: AutoAWQ, `awq/modules/linear/gemm.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qconvd.checkpoints.base import TensorInfo
from qconvd.checkpoints.quantized.gptq import SCALES
from qconvd.checkpoints.quantized.parts import Parts, as_floats, stored
from qconvd.checkpoints.refusals import refuse_quantized
from qconvd.engine.expr import Dequantize, Transpose


def reader(said: Mapping[str, Any], label: str, where: str) -> Callable[[Parts], None]:
    """Who unpacks a checkpoint of this config. Raises `Unsupported` for the layouts of other kernels."""
    layout = str(said.get("version") or "gemm").lower()
    group = said.get("group_size", said.get("q_group_size"))
    if layout != "gemm" or said.get("bits", said.get("w_bit")) != 4 or not isinstance(group, int):
        raise refuse_quantized(f"{label}, {layout}", where, "AWQ is read in the layout gemm, with 4 bits")

    def unpack(parts: Parts) -> None:
        for module, packed in list(parts.ending("qweight")):
            _linear(parts, module, packed, group)

    return unpack


def _linear(parts: Parts, module: str, packed: TensorInfo, group: int) -> None:
    if packed.dtype != "I32" or len(packed.shape) != 2:
        raise parts.wrong(packed, f"is {packed.dtype} {list(packed.shape)}, no matrix of I32")
    k, n = packed.shape[0], packed.shape[1] * 8
    size = group if group > 0 else k
    if k % max(1, size):
        raise parts.wrong(packed, f"has {k} inputs, which groups of {size} do not divide")
    groups = k // max(1, size)
    scales = parts.take(f"{module}.scales", (groups, n), dtypes=SCALES)
    zeros = parts.take(f"{module}.qzeros", (groups, n // 8), dtypes=("I32",))
    xs = (Transpose(stored(packed)), as_floats(Transpose(stored(scales))), Transpose(stored(zeros)))
    options = {"columns": k, "group": size}
    parts.make(f"{module}.weight", packed, (n, k), Dequantize(xs, "awq", (n, k), options=options))
