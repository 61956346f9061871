"""A GGUF file as the source of another: any architecture, its metadata carried over, as llama-quantize does it.

No family is needed, since the tensors have GGUF's names and shapes already. Source: llama.cpp, src/llama-quant.cpp.
"""

from __future__ import annotations

import base64
import re
from dataclasses import replace

from qconvd.api import BLOCKS, Cast, Dequantize, Expr, ModelInfo, Read, TensorInfo, Unsupported, gguf_metadata
from qconvd_gguf.families.base import Metadata
from qconvd_gguf.mapping import Mapped
from qconvd_gguf.mixes import Choice

SET_ANEW = frozenset({"general.file_type", "general.quantization_version", "split.no", "split.count", "split.tensors.count"})
"""Keys that say what the file is; those of the source say what that was."""
ALIGNMENT = "general.alignment"
_LAYER = re.compile(r"(?:\w+\.)?blk\.(\d+)\.")


def tensors(model: ModelInfo) -> tuple[Mapped, ...]:
    """Every tensor as float weights, in the order of the file.

    Raises `Unsupported` for a type that cannot be decoded.
    """
    return tuple(Mapped(t.name, weights(t, model), layer_of(t.name), packed=Read.of(t)) for t in model.tensors.values())


def choice(tensor: TensorInfo, wanted: Choice, allowed: bool, model: ModelInfo, form: str = "gguf") -> Choice:
    """The type of a tensor for which `wanted` was chosen.

    Raises `Unsupported` where weights that were rounded once would be rounded again without anybody having asked for it.
    """
    if tensor.dtype in BLOCKS and wanted.dtype != tensor.dtype and not allowed:
        raise Unsupported(
            f"is quantized already ({tensor.dtype}), and {wanted.dtype} made from it is worse than from the original",
            where=f"{model.path / tensor.file}, tensor {tensor.name}",
            fix="start from the F16, BF16 or F32 file or the original checkpoint, or say `allow_requantize: true` "
            f"under {form}",
        )
    return wanted


def copied(mapped: Mapped, chosen: Choice) -> Mapped:
    """A tensor that keeps its type is copied byte for byte."""
    packed = mapped.packed
    return replace(mapped, expr=packed) if packed is not None and chosen.dtype == packed.dtype else mapped


def metadata(model: ModelInfo) -> Metadata:
    """The source's keys and values in their order, without those that are set anew.

    The alignment is the one value that decides where the tensors lie: it goes on as a number, of the type that llama.cpp reads.
    """
    keys: Metadata = []
    for key, value in gguf_metadata(model):
        if key == ALIGNMENT:
            keys.append((key, "u32", model.metadata[key]))
        elif key not in SET_ANEW:
            keys.append((key, "raw", base64.b64encode(value).decode()))
    return keys


def weights(tensor: TensorInfo, model: ModelInfo) -> Expr:
    """A tensor of a GGUF or GGML file as float weights. Raises `Unsupported` for a type that cannot be decoded."""
    read = Read.of(tensor)
    if tensor.dtype in BLOCKS:
        from qconvd_ggml.decode import TYPES

        if tensor.dtype not in TYPES:
            where = f"{model.path / tensor.file}, tensor {tensor.name}"
            raise Unsupported(f"is {tensor.dtype}, which cannot be decoded", where=where, fix="take a GGUF of another type")
        options = {"type": tensor.dtype, "columns": tensor.columns}
        return Dequantize((read,), "ggml", tensor.shape, "F32", options)
    return Cast(read, "F32") if tensor.dtype == "F64" else read


def layer_of(name: str) -> int | None:
    """The layer that a tensor of GGUF belongs to."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None
