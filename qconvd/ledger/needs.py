"""What a task needs of the machine, in bytes, from what the plans of its targets say."""

from __future__ import annotations

from collections.abc import Sequence

from qconvd.ledger.records import Target

MIB = 1 << 20
PLAN_MEMORY = 512 * MIB
"""A plan reads headers and a tokenizer; its worker may not take more than this."""
VERIFY_MEMORY = 768 * MIB
BASE_MEMORY = 384 * MIB
"""A worker with numpy and compiled kernels that holds no weights yet."""


def need_of(kind: str, targets: Sequence[Target]) -> dict[str, int]:
    """`memory`, `disk` and `gpu_memory`. Targets of one conversion share the reading, so the working memory of the largest
    counts; each writes its own files."""
    if kind == "plan":
        return {"memory": PLAN_MEMORY, "disk": 0, "gpu_memory": 0}
    if kind == "verify":
        return {"memory": VERIFY_MEMORY, "disk": 0, "gpu_memory": 0}
    memory = [t.plan.get("memory", {}) for t in targets]
    return {
        "memory": BASE_MEMORY + max((m.get("cpu", 0) for m in memory), default=0),
        "disk": sum(int(t.plan.get("nbytes", 0)) for t in targets),
        "gpu_memory": max((m.get("cuda", 0) for m in memory), default=0),
    }
