"""Which runtimes load what, and what is in the way where one does not. docs/reference/int8.md names the versions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

from qconvd.api import JOINED, Detail, Linear, unevenly_joined
from qconvd_compressed.schemes import BLOCK, Codebook, Floats, Integers, LlmInt8, Scheme

ReaderName: TypeAlias = Literal["transformers", "vllm"]
READERS: dict[ReaderName, str] = {"transformers": "transformers", "vllm": "vLLM"}
"""How each is shown."""
_EXPERT = re.compile(r"\.experts\.\d+\.")


def note(reader: ReaderName, scheme: Scheme) -> str:
    """What the reader needs for it."""
    if isinstance(scheme, LlmInt8 | Codebook):
        return "with bitsandbytes and accelerate" if reader == "transformers" else "on GPUs, with bitsandbytes"
    if reader == "transformers":
        # Its other way to load forgets that zero points are packed (compressed-tensors 0.19).
        asymmetric = isinstance(scheme, Integers) and not scheme.symmetric
        return "with compressed-tensors" + (" and CompressedTensorsConfig(dequantize=True)" if asymmetric else "")
    # Of 8-bit weights alone and of blocks of floats its CPU build (0.32) has no kernel, or one for AMX.
    unpaired = isinstance(scheme, Integers) and scheme.bits == 8 and not scheme.activations
    return "on GPUs" if unpaired or (isinstance(scheme, Floats) and scheme.blocks) else ""


def hindrance(reader: ReaderName, scheme: Scheme, linears: Sequence[Linear], left_out: Sequence[str]) -> str:
    """Why a reader refuses this model's artifact; empty if it does not."""
    if reader == "vllm":
        if mixed := unevenly_joined({x.module for x in linears}, left_out):
            return f"it joins {mixed}, which are not all quantized"
        if isinstance(scheme, Floats) and scheme.blocks and (odd := _half_blocks(linears)):
            return f"it joins linears by whole blocks of {BLOCK} outputs, and {odd.module} has {odd.rows}"
    if reader == "transformers" and (expert := next((x for x in linears if _EXPERT.search(x.module)), None)):
        return f"it keeps the experts of a layer as one tensor, and here each is quantized by itself, as {expert.module} is"
    return ""


def _half_blocks(linears: Sequence[Linear]) -> Linear | None:
    """A linear that vLLM joins with others and that does not end with a block."""
    members = {name for names, _ in JOINED for name in names}
    return next((x for x in linears if x.rows % BLOCK and x.module.rpartition(".")[2] in members), None)


def details(format: str) -> Sequence[Detail]:
    """For `qconvd formats FORMAT`: what there is, as the files have it."""
    rows = {
        "int8": [
            ("int8", "compressed-tensors, pack-quantized", "weights in 8 bits, a scale per row", "transformers, vLLM on GPUs"),
            ("int8: w8a8", "compressed-tensors, int-quantized", "the same, and activations by token", "vLLM, transformers"),
            ("bnb-8bit", "bitsandbytes, LLM.int8()", "8 bits, a scale per row; outliers in 16", "transformers, vLLM on GPUs"),
        ],
        "int4": [
            ("int4", "compressed-tensors, pack-quantized", "4 bits, a scale per 128 inputs", "vLLM, transformers"),
            ("int4: 32g", "the same", "a scale per 32 inputs; 64g, 128g, channel", "vLLM, transformers"),
            ("int4: 128g-asym", "the same", "and a zero point", "vLLM, transformers (dequantized)"),
            ("bnb-4bit", "bitsandbytes, nf4", "one of 16 numbers, a scale per 64 weights", "transformers, QLoRA, vLLM on GPUs"),
            ("int4: fp4", "bitsandbytes, fp4", "the same with other numbers", "transformers, QLoRA, vLLM on GPUs"),
        ],
        "fp8": [
            ("fp8", "compressed-tensors, float-quantized", "E4M3, a scale per row; activations by token", "vLLM, transformers"),
            ("fp8: block", "the same", "a scale per block of 128 x 128", "transformers, vLLM on GPUs"),
        ],
    }  # fmt: skip
    if format not in rows:
        return ()
    return (Detail("Layouts", ("target", "stored as", "what is stored", "read by"), rows[format]),)
