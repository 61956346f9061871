"""GGML's block types on the CPU: encoders, decoders and error bounds, for the formats that store weights in these types.

    kernels.encode     rows of BF16, F16 or F32 weights to a block type, F32, F16 or BF16, with or without an importance matrix
    decode.decode      those bytes back to float32, in plain numpy; shares no code with the encoders
    decode.error_bound how far a right decoding may be from the weights
    dequantize         the operation that reads these types as a source
    cuda               some of these types on a GPU, in torch and Triton
    cache              which kernels there are, and where they are kept between runs

The bytes are llama.cpp's own; docs/reference/kernels.md says how far that goes. Within: tile.py holds what kernels are built
from, measure.py sums up the error, weighting.py says what errors count with an importance matrix, symmetric.py, affine.py and
scales.py are ggml's searches, k_layout.py how K types lie in memory; legacy.py, legacy_weighted.py, affine_k.py, q3_k.py,
q6_k.py, iq4.py, mxfp4.py, ternary.py and cast.py are types; iq1.py, iq2.py and iq3.py stand on on_lattice.py (a search),
closest.py (which point is best) and lattice.py (the points). kernels.py is the way in. Importing this package is
cheap: numba and numpy are imported with kernels and decode, so import those where weights are at hand.
"""

from __future__ import annotations

from collections.abc import Iterable

from qconvd.api import Finding, Operation, hookimpl, kernel_findings
from qconvd_ggml.dequantize import GgmlDequantize


@hookimpl
def qconvd_operations() -> Iterable[Operation]:
    """`ggml`: packed weights as float32."""
    return (GgmlDequantize(),)


@hookimpl
def qconvd_findings(warm: bool) -> Iterable[Finding]:
    """Whether the kernels are compiled already, for `qconvd doctor`."""
    from qconvd_ggml.cache import CACHE

    if not warm:
        return kernel_findings("GGUF kernels", CACHE, None)
    from qconvd_ggml.kernels import ready

    return kernel_findings("GGUF kernels", CACHE, ready)
