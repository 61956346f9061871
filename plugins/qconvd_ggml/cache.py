"""Which kernels there are, and where they are kept between runs. Nothing in this module imports numba."""

from __future__ import annotations

from pathlib import Path

from qconvd.api import KernelCache

KERNELS = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "F32", "F16", "BF16",
    "Q4_0.imatrix", "Q4_1.imatrix", "Q5_0.imatrix", "Q5_1.imatrix",
    "Q2_K.imatrix", "Q3_K.imatrix", "Q4_K.imatrix", "Q5_K.imatrix", "Q6_K.imatrix", "squares",
    "IQ4_NL", "IQ4_NL.imatrix", "IQ4_XS", "IQ4_XS.imatrix", "MXFP4", "TQ1_0", "TQ2_0",
    "IQ1_S.imatrix", "IQ1_M", "IQ2_XXS.imatrix", "IQ2_XS.imatrix", "IQ2_S", "IQ3_XXS", "IQ3_S",
)  # fmt: skip
"""What `qconvd doctor --warm` compiles, by the type it writes; `.imatrix` is for encoding with an importance matrix."""
CACHE = KernelCache(Path(__file__).parent, KERNELS)
