"""What a recipe may say under `ggml`, and the types of such files."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from qconvd.api import FormatOptions, type_list

LEGACY = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q5_1": "Q5_1", "q5_0": "Q5_0", "q4_1": "Q4_1", "q4_0": "Q4_0"}
"""Files in which every weight has one type, as people spell it, and the type."""
K_TYPES = {
    "q6_K": "Q6_K", "q5_K_M": "Q5_K_M", "q5_K_S": "Q5_K_S", "q4_K_M": "Q4_K_M", "q4_K_S": "Q4_K_S", "q3_K_L": "Q3_K_L",
    "q3_K_M": "Q3_K_M", "q3_K_S": "Q3_K_S", "q2_K": "Q2_K",
}  # fmt: skip
"""Mixes of the K types, and llama-quantize's name of each."""
TYPES = {**LEGACY, **K_TYPES}
SHORT = {
    "q4": "q4_0", "q5": "q5_0", "q8": "q8_0", "fp16": "f16", "fp32": "f32", "float16": "f16", "float32": "f32",
    "q3_k": "q3_K_M", "q4_k": "q4_K_M", "q5_k": "q5_K_M",
}  # fmt: skip


def type_name(text: Any) -> str:
    """A file's type as people spell it. Raises ValueError with what there is."""
    word = str(text).strip().lower()
    word = SHORT.get(word, word)
    found = next((name for name in TYPES if name.lower() == word.lower()), None)
    if found is not None:
        return found
    near = difflib.get_close_matches(word, TYPES, n=1)
    hint = f" (did you mean {near[0]}?)" if near else f"; it has {', '.join(TYPES)}"
    raise ValueError(f"ggml has no type {str(text).strip()!r}{hint}")


def type_names(given: Any) -> tuple[str, ...]:
    """Types from a list or from text such as `q8_0, q4_0`, each once."""
    return type_list(given, type_name, "[q8_0, q4_0]", f"ggml has {', '.join(TYPES)}")


Types = Annotated[tuple[str, ...], BeforeValidator(type_names, json_schema_input_type=Any)]


class GgmlOptions(FormatOptions):
    """One file for every type."""

    types: Types = Field(
        min_length=1,
        description="Types to make, one file each, e.g. `[q8_0, q4_0]`; the K types for LLaMA only.",
        json_schema_extra={"type": ["array", "string"], "items": {"enum": [*TYPES, *(t for t in K_TYPES.values())]}},
    )
    expand_gqa: bool = Field(
        False,
        description="Grouped-query attention, which the header cannot say: write every key and value head once for each of its "
        "query heads. The same numbers come out; the file is larger, and so is its cache.",
    )
    allow_requantize: bool = Field(
        False,
        description="From a GGUF or GGML file that is quantized already: make the type from its rounded weights, which are "
        "worse than the original's.",
    )

    def of(self, name: str) -> GgmlOptions:
        """The options of one file."""
        return self.model_copy(update={"types": (name,)})
