"""GGML's block types on a GPU: which types, where they were measured, and what they need. Importing this is cheap.

    TYPES, MEASURED   what there are kernels for, and on which GPUs each was timed and held against the CPU's bytes
    encode            rows of weights that lie on a device to the bytes of a type, and the report
    staging           the same for numpy rows: pinned buffers, a stream for each of a few calls at a time
    contract          how far the bytes may be from the CPU's, and how far they are

Within: search.py holds the searches of the K types, in Triton, one lane of a program per sub-block with its weights in
registers. In plain torch: k_types.py what follows them, k_layout.py how it is packed, legacy.py the types of 32 weights,
report.py the sums of the error. docs/reference/kernels.md says what is promised. torch and triton are imported with encode,
staging and what they use, so import those where weights are at hand.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Types whose scales are searched for, which is worth a GPU."""
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", *SEARCHED)
"""Types with kernels, all without an importance matrix."""
MEASURED: Mapping[str, Collection[str]] = {}
"""By type, the GPUs on which its kernel was measured, by the name that NVML gives them.

`device: auto` chooses a GPU only for what stands here. A row is what benchmarks/cuda.py prints after a run in which the kernel
kept its contract and was faster than the CPU beside it.
"""
PIECE = 4 << 20
"""Weights that are on the way through the GPU in one piece: 16 MiB in F32."""
SLOTS = 2
"""Pieces on the GPU at a time: one is copied while the other is computed."""
_TEMPORARIES = 64
"""Bytes per weight of the largest set of intermediate results at a time (the report's, in float64): counted, not measured."""
WORKING = SLOTS * PIECE * (4 + 4 + _TEMPORARIES) + (1 << 30)
"""Bytes of GPU memory: what the pieces take, and room for the driver's context and code, which no plan can know."""


def measured_on(types: Collection[str]) -> tuple[str, ...]:
    """The GPUs on which the kernels of all these types were measured; none if there are no types."""
    found = [set(MEASURED.get(dtype, ())) for dtype in types]
    return tuple(sorted(set.intersection(*found))) if found else ()
