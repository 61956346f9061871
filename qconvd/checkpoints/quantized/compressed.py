"""Checkpoints of compressed-tensors (llm-compressor): integers packed to words, int8, and 8-bit floats, with their scales.

| format | tensors of a linear of [N, K] |
|---|---|
| pack-quantized | weight_packed I32 [N, K * bits / 32], offset by half the range; weight_shape I64 [2] = N, K |
| int-quantized, naive-quantized | weight I8 [N, K] |
| float-quantized, naive-quantized | weight F8_E4M3 [N, K] |

With each: weight_scale, one for a tensor, a row, a group of a row or a block; and where it is asymmetric
weight_zero_point (packed along N in pack-quantized); and weight_g_idx [K] where columns were put into groups in another order.
W = (q - zero) * scale.
Source: compressed-tensors 0.19, `compressors/quantized_compressors` and `quantization/lifecycle/forward.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qconvd.checkpoints.base import TensorInfo
from qconvd.checkpoints.quantized.gptq import SCALES
from qconvd.checkpoints.quantized.parts import Parts, as_floats, stored
from qconvd.checkpoints.refusals import refuse_quantized
from qconvd.engine.expr import Cast, Dequantize, Expr

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
BITS = (1, 2, 3, 4, 5, 6, 7, 8)
_ACTIVATIONS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale", "q_scale")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights of one group of modules are stored. A group size or block of 0 is that of a whole row or tensor."""

    bits: int
    strategy: str
    group: int
    block: tuple[int, int]
    symmetric: bool


def reader(said: Mapping[str, Any], label: str, where: str) -> Callable[[Parts], None]:
    """Who unpacks a checkpoint of this config. Raises `Unsupported` for formats and transforms that are not read."""
    groups = said.get("config_groups")
    groups = [g for g in groups.values() if isinstance(g, Mapping)] if isinstance(groups, Mapping) else []
    top = str(said.get("format") or "")
    formats = {str(g.get("format") or top) for g in groups} or {top}
    readable = " and ".join((", ".join(FORMATS[:-1]), FORMATS[-1]))
    if unknown := sorted(formats - set(FORMATS)):
        raise refuse_quantized(f"{label}, {unknown[0] or 'of no format'}", where, f"compressed-tensors is read as {readable}")
    sparsity = said.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format", "dense") != "dense":
        raise refuse_quantized(f"{label}, sparse", where, "compressed-tensors is read where it is not sparse")
    if said.get("transform_config"):
        raise refuse_quantized(f"{label}, with rotations", where, "compressed-tensors is read without a transform_config")
    schemes = list(dict.fromkeys(_scheme(group.get("weights")) for group in groups))

    def unpack(parts: Parts) -> None:
        for module, packed in list(parts.ending("weight_packed")):
            _packed(parts, module, packed, schemes)
        for module, _ in list(parts.ending("weight_scale")):
            if f"{module}.weight" in parts:
                _plain(parts, module, schemes)
        for ending in _ACTIVATIONS:
            for module, _ in list(parts.ending(ending)):
                parts.drop(f"{module}.{ending}")

    return unpack


def _scheme(weights: Any) -> Scheme:
    said = weights if isinstance(weights, Mapping) else {}
    group, block = said.get("group_size"), said.get("block_structure")
    is_block = isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block)
    bits = said.get("num_bits")
    return Scheme(
        bits=bits if isinstance(bits, int) else 0,
        strategy=str(said.get("strategy") or ""),
        group=group if isinstance(group, int) and group > 0 else 0,
        block=(block[0], block[1]) if is_block and isinstance(block, list) else (0, 0),
        symmetric=said.get("symmetric") is not False,
    )


def _packed(parts: Parts, module: str, packed: TensorInfo, schemes: list[Scheme]) -> None:
    if packed.dtype != "I32" or len(packed.shape) != 2:
        raise parts.wrong(packed, f"is {packed.dtype} {list(packed.shape)}, no matrix of I32")
    n, words = packed.shape
    shape = parts.take(f"{module}.weight_shape", (2,), dtypes=("I64", "I32"))
    said = parts.numbers(shape)
    readable = [s for s in schemes if s.bits in BITS]
    if not any(said) and readable:  # a header without its data
        said = (n, _columns(parts, module, words, readable[0]))
    fitting = [s for s in readable if _holds(words, said[1], s.bits)]
    if said[0] != n or not fitting:
        what = f"has {n} rows of {words} words, which hold no weights of {list(said)} in {_bits(schemes)}"
        raise parts.wrong(packed, what)
    k = said[1]
    index = parts.find(f"{module}.weight_g_idx", (k,), dtypes=("I32", "I64"))
    scale, block = _scale(parts, module, (n, k), fitting, rows=True)
    bits, groups = fitting[0].bits, -(-k // block[1])
    zeros = _zeros(parts, module, fitting, (-(-n * bits // 32), groups), dtypes=("I32",))
    options: dict[str, Any] = {"bits": bits, "columns": k, "group": block[1]}
    xs: tuple[Expr, ...] = (stored(packed), as_floats(stored(scale)))
    if zeros:
        # Values and zero points are both offset by half the range, which cancels out.
        xs, options["zeros"] = (*xs, stored(zeros)), 0
    else:
        options["zero"] = 1 << (bits - 1)
    if index:
        xs = (*xs, stored(index))
        del options["group"]
    parts.make(f"{module}.weight", packed, (n, k), Dequantize(xs, "packed", (n, k), options=options))


def _columns(parts: Parts, module: str, words: int, scheme: Scheme) -> int:
    """The columns of a linear as its scales tell, or as many as the words hold."""
    scale = parts.take(f"{module}.weight_scale", dtypes=SCALES)
    return scale.shape[-1] * scheme.group if scheme.strategy == "group" and scale.shape else words * 32 // scheme.bits


def _holds(words: int, columns: int, bits: int) -> bool:
    """Whether so many words are a row without gaps: before 0.19 numbers of 3, 5, 6 and 7 bits were not cut in two."""
    gaps = 32 % bits != 0 and words == -(-columns // (32 // bits))
    return words == -(-columns * bits // 32) and not gaps


def _plain(parts: Parts, module: str, schemes: list[Scheme]) -> None:
    weight = parts.take(f"{module}.weight", dtypes=("I8", "F8_E4M3"))
    if len(weight.shape) != 2:
        raise parts.wrong(weight, f"is {weight.dtype} {list(weight.shape)}, no matrix")
    n, k = weight.shape
    fitting = [s for s in schemes if s.bits == 8]
    scale, (height, width) = _scale(parts, module, (n, k), fitting, rows=False)
    index = parts.find(f"{module}.weight_g_idx", (k,), dtypes=("I32", "I64"))
    zero = _zeros(parts, module, fitting, scale.shape, dtypes=("I8", "F8_E4M3", *SCALES))
    xs: tuple[Expr, ...] = (Cast(stored(weight), "F32"), as_floats(stored(scale)))
    options: dict[str, Any] = {"columns": k, "block": [height, width]}
    if zero:
        xs = (*xs, as_floats(stored(zero)))
        options["zero"] = True
    if index:
        xs = (*xs, stored(index))
        options["index"] = True
    parts.make(weight.name, weight, (n, k), Dequantize(xs, "scaled", (n, k), options=options))


def _zeros(
    parts: Parts, module: str, schemes: list[Scheme], shape: tuple[int, ...], dtypes: tuple[str, ...]
) -> TensorInfo | None:
    """The zero points of a linear, which must be there unless it may be symmetric."""
    found = parts.find if any(s.symmetric for s in schemes) else parts.take
    return found(f"{module}.weight_zero_point", shape, dtypes=dtypes)


def _scale(
    parts: Parts, module: str, shape: tuple[int, int], schemes: list[Scheme], *, rows: bool
) -> tuple[TensorInfo, tuple[int, int]]:
    """The scales of a linear, and how many (rows, columns) each holds for; the one reading that their shape allows."""
    n, k = shape
    name = f"{module}.weight_scale"
    scale = parts.take(name, dtypes=SCALES)
    found = set()
    for scheme in schemes:
        height, width = {
            "tensor": (n, k), "channel": (1, k), "group": (1, scheme.group), "block": scheme.block
        }.get(scheme.strategy, (0, 0))  # fmt: skip
        if not height or not width or (rows and height != 1):
            continue
        due = (-(-n // height), -(-k // width))
        if scale.shape == due or (due == (1, 1) and scale.shape in ((), (1,))):
            found.add((height, width))
    if len(found) != 1:
        reason = "more than one of" if found else "none of"
        raise parts.wrong(
            scale, f"has the shape {list(scale.shape)}, which fits {reason} the config's groups for {n} x {k} weights"
        )
    return scale, found.pop()


def _bits(schemes: list[Scheme]) -> str:
    return " or ".join(f"{s.bits} bits" for s in schemes if s.bits in BITS) or "1 to 8 bits"
