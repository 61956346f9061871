"""Which type each tensor gets: the choices of llama.cpp's converter and of llama-quantize.

F32, F16 and BF16 are made as `convert_hf_to_gguf.py --outtype` makes them, the quantized types as `llama-quantize` makes them
from a BF16 or F16 file. Source: llama.cpp, conversion/base.py (`prepare_tensors`) and src/llama-quant.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qconvd.api import rows_columns, storage

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
"""The types that can be asked for, and llama.cpp's number of a file of that type (`general.file_type`)."""

PLAIN = ("F32", "F16", "BF16")
WEIGHT_TYPES = (*FILE_TYPES, "Q6_K")
"""Types that single tensors can have."""

ALWAYS_F32 = ("position_embd.weight", "token_types.weight")
NEVER_QUANTIZED = (
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "attn_rel_b.weight",
)
"""Parts of names of matrices that are small or that decide much: llama-quantize leaves them, the converter makes them F32."""


@dataclass(frozen=True)
class Choice:
    """The type of one tensor; `reason` says why it is another than asked for, empty for vectors and norms."""

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
    pure: bool = False


def choose(name: str, shape: Sequence[int], wish: Wish, tied: bool) -> Choice:
    """The type of the tensor `name` of row-major `shape`; `tied` if the file has no `output.weight`."""
    if len(shape) < 2 or name.endswith("_norm.weight"):
        return Choice("F32")
    if wish.file in PLAIN and "attn_rel_b" in name:
        return Choice(wish.file)
    if name in ALWAYS_F32 or any(part in name for part in NEVER_QUANTIZED) or not name.endswith(".weight"):
        return Choice("F32", "readers expect it as F32")
    if wish.file in PLAIN:
        return Choice(wish.file)
    return _fallback(_quantized(name, shape, wish, tied), shape)


def file_order(names: Sequence[str]) -> list[str]:
    """Names in the order of llama-quantize: what belongs to no layer first, then by layer, each alphabetically."""

    def key(name: str) -> tuple[int, str]:
        parts = name.split(".")
        return (int(parts[1]) if parts[0] == "blk" and parts[1].isdecimal() else -1), name

    return sorted(names, key=key)


def _quantized(name: str, shape: Sequence[int], wish: Wish, tied: bool) -> Choice:
    if name == "token_embd.weight" and wish.embedding:
        return Choice(wish.embedding, "token_embedding_type asks for it")
    head = name == "output.weight" or (tied and name == "token_embd.weight")
    if not head or wish.pure:
        return Choice(wish.file)
    if wish.output:
        return Choice(wish.output, "output_tensor_type asks for it")
    if wish.file == "Q8_0" or _fits("Q8_0", shape) is False:
        return Choice("Q8_0")
    return Choice("Q6_K", "the output layer gets more bits")


def _fallback(choice: Choice, shape: Sequence[int]) -> Choice:
    """llama-quantize's chain for rows that the blocks do not divide: Q6_K to Q8_0, and whatever still does not fit to F16."""
    if _fits(choice.dtype, shape):
        return choice
    columns = rows_columns(tuple(shape))[1]
    reason = f"rows of {columns} weights are no multiple of {choice.dtype}'s block of {storage(choice.dtype).block}"
    smaller = "Q8_0" if choice.dtype == "Q6_K" and _fits("Q8_0", shape) else "F16"
    return Choice(smaller, reason, fallback=True)


def _fits(dtype: str, shape: Sequence[int]) -> bool:
    return shape[-1] % storage(dtype).block == 0
