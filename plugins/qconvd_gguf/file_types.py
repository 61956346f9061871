"""The types a file can have: llama-quantize's presets, the community's `_L` variants of them, and the types of single tensors.

Source: llama.cpp, `enum llama_ftype` (llama.h), `QUANT_OPTIONS` (tools/quantize) and `llama_ftype_get_default_type`
(src/llama-quant.cpp). The `_L` variants are what bartowski and others publish: llama-quantize with
`--token-embedding-type q8_0 --output-tensor-type q8_0`.
"""

from __future__ import annotations

from typing import NamedTuple


class FileType(NamedTuple):
    """`number` is `general.file_type`; `dtype` is the type of every tensor for which the mix of this name has no rule."""

    number: int
    dtype: str
    mix: str = ""
    """The preset whose rules count, if not the one of this name."""
    ends: str = ""
    """The type of embeddings and output layer, if the name itself says so."""


FILE_TYPES = {
    "F32": FileType(0, "F32"), "F16": FileType(1, "F16"), "BF16": FileType(32, "BF16"),
    "Q8_0": FileType(7, "Q8_0"), "Q6_K": FileType(18, "Q6_K"),
    "Q5_K_M": FileType(17, "Q5_K"), "Q5_K_S": FileType(16, "Q5_K"), "Q5_1": FileType(9, "Q5_1"), "Q5_0": FileType(8, "Q5_0"),
    "Q4_K_M": FileType(15, "Q4_K"), "Q4_K_S": FileType(14, "Q4_K"), "Q4_1": FileType(3, "Q4_1"), "Q4_0": FileType(2, "Q4_0"),
    "IQ4_NL": FileType(25, "IQ4_NL"), "IQ4_XS": FileType(30, "IQ4_XS"), "MXFP4_MOE": FileType(38, "MXFP4"),
    "Q3_K_L": FileType(13, "Q3_K"), "Q3_K_M": FileType(12, "Q3_K"), "Q3_K_S": FileType(11, "Q3_K"),
    "IQ3_M": FileType(27, "IQ3_S"), "IQ3_S": FileType(26, "IQ3_S"), "IQ3_XS": FileType(22, "IQ3_S"),
    "IQ3_XXS": FileType(23, "IQ3_XXS"), "Q2_K": FileType(10, "Q2_K"), "Q2_K_S": FileType(21, "Q2_K"),
    "IQ2_M": FileType(29, "IQ2_S"), "IQ2_S": FileType(28, "IQ2_XS"), "IQ2_XS": FileType(20, "IQ2_XS"),
    "IQ2_XXS": FileType(19, "IQ2_XXS"), "IQ1_M": FileType(31, "IQ1_M"), "IQ1_S": FileType(24, "IQ1_S"),
    "TQ2_0": FileType(37, "TQ2_0"), "TQ1_0": FileType(36, "TQ1_0"),
    "Q6_K_L": FileType(18, "Q6_K", "Q6_K", "Q8_0"), "Q5_K_L": FileType(17, "Q5_K", "Q5_K_M", "Q8_0"),
    "Q4_K_L": FileType(15, "Q4_K", "Q4_K_M", "Q8_0"), "Q3_K_XL": FileType(13, "Q3_K", "Q3_K_L", "Q8_0"),
    "Q2_K_L": FileType(10, "Q2_K", "Q2_K", "Q8_0"),
}  # fmt: skip
"""What `types` may name, from the best to the smallest."""

PLAIN = ("F32", "F16", "BF16")
"""Files as the converter writes them; all others are llama-quantize's."""

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}
"""Names of tensor types that llama-quantize (MXFP4: we) takes for a preset when they name a file."""

WEIGHT_TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4",
    "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0",
)  # fmt: skip
"""Types that single tensors can have."""

WEIGHTED = frozenset(WEIGHT_TYPES) - {*PLAIN, "Q8_0", "MXFP4", "TQ1_0", "TQ2_0"}
"""Types whose encoding looks at an importance matrix; ggml ignores it for the others."""

NEEDS_IMATRIX = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})
"""Types that llama-quantize refuses to make without one; Q2_K too, but only in a Q2_K_S file."""
