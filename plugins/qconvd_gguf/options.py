"""What a recipe may say under `gguf`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from qconvd.api import FormatOptions, Size
from qconvd_gguf.tensor_types import FILE_TYPES, WEIGHT_TYPES

SHORT = {
    "Q4": "Q4_0",
    "Q5": "Q5_0",
    "Q8": "Q8_0",
    "FP16": "F16",
    "FP32": "F32",
    "FLOAT16": "F16",
    "FLOAT32": "F32",
    "BFLOAT16": "BF16",
}
"""What people also write; a bare q4 has always meant q4_0."""


def type_name(text: Any, known: Sequence[str] = tuple(FILE_TYPES)) -> str:
    """llama.cpp's spelling of a type. Raises ValueError with what there is."""
    name = str(text).strip().upper()
    name = SHORT.get(name, name)
    if name not in known:
        raise ValueError(f"gguf has no type {str(text).strip()!r} (yet); it has {', '.join(t.lower() for t in known)}")
    return name


def type_names(given: Any) -> tuple[str, ...]:
    """Types from a list or from text such as `q8_0, q4_0`, each once."""
    words = re.split(r"[,\s]+", given.strip()) if isinstance(given, str) else given
    if not isinstance(words, list | tuple):
        raise ValueError("types are a list, e.g. [q8_0, q4_0]")
    names = tuple(dict.fromkeys(type_name(word) for word in words if str(word).strip()))
    if not names:
        raise ValueError(f"no type is named; gguf has {', '.join(t.lower() for t in FILE_TYPES)}")
    return names


def weight_type(given: Any) -> str | None:
    """The type of a single tensor."""
    return None if given is None else type_name(given, WEIGHT_TYPES)


def _spellings(names: Sequence[str]) -> list[Any]:
    return [*(n.lower() for n in names), *names]


Types = Annotated[tuple[str, ...], BeforeValidator(type_names, json_schema_input_type=Any)]
WeightType = Annotated[str | None, BeforeValidator(weight_type)]


class GgufOptions(FormatOptions):
    """One file for every type."""

    types: Types = Field(
        min_length=1,
        description="Types to make, one file each, as llama-quantize calls them, e.g. `[q8_0, q4_0]`.",
        json_schema_extra={"type": ["array", "string"], "items": {"enum": _spellings(tuple(FILE_TYPES))}},
    )
    pre: str | None = Field(
        None,
        min_length=1,
        description="The pre-tokenizer (`tokenizer.ggml.pre`), for a tokenizer that is not recognised, e.g. `llama-bpe`.",
    )
    output_tensor_type: WeightType = Field(
        None,
        description="The output layer's type in quantized files, instead of llama-quantize's choice.",
        json_schema_extra={"enum": [*_spellings(WEIGHT_TYPES), None]},
    )
    token_embedding_type: WeightType = Field(
        None,
        description="The embeddings' type in quantized files, instead of llama-quantize's choice.",
        json_schema_extra={"enum": [*_spellings(WEIGHT_TYPES), None]},
    )
    pure: bool = Field(False, description="Quantize the output layer and tied embeddings to the file's type as well.")
    split_max_size: Size = Field(
        50_000_000_000,
        gt=0,
        description="Split the file above this many bytes of tensors, e.g. `20GB`; llama.cpp's names and metadata.",
    )
    split_max_tensors: int | None = Field(None, gt=0, description="Split the file after this many tensors.")
    allow_requantize: bool = Field(
        False,
        description="From a GGUF that is quantized already: make the type from its rounded weights, which are worse than "
        "the original's.",
    )
