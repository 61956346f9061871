"""What a task needs of the machine, in bytes, from what the plans of its targets say."""

from __future__ import annotations

from collections.abc import Sequence

from qconvd.engine.calibration_needs import shared
from qconvd.ledger.records import Target

MIB = 1 << 20
BASE_MEMORY = 320 * MIB
"""A worker with numpy and compiled kernels that holds no weights yet."""
PLAN_MEMORY = 512 * MIB
"""Headers and a tokenizer."""
VERIFY_MEMORY = 768 * MIB
"""Blocks of an artifact, and sampled rows beside those of the model."""
FETCH_MEMORY = 512 * MIB
"""The client with what it has in flight. Counts for nobody: fetching goes on beside a conversion that holds all there is."""

PUBLISH_MEMORY = 512 * MIB
"""The Hub's client, and blocks of the files that it sends."""


def need_of(kind: str, targets: Sequence[Target]) -> dict[str, int]:
    """`memory` that makes it quick, the `least` it can do with, `disk` and `gpu_memory`.

    Targets of one conversion share the reading, so the working memory of the largest counts; each writes its own files.
    """
    if kind == "plan":
        return {"memory": PLAN_MEMORY, "least": PLAN_MEMORY // 2, "disk": 0, "gpu_memory": 0}
    if kind == "publish":
        return {"memory": PUBLISH_MEMORY, "least": PUBLISH_MEMORY // 2, "disk": 0, "gpu_memory": 0}
    if kind == "verify":
        return {"memory": VERIFY_MEMORY, "least": VERIFY_MEMORY // 2, "disk": 0, "gpu_memory": 0}
    memory = [t.plan.get("memory", {}) for t in targets]
    # Targets of one source and text share their calibration; those that do not are calibrated one after the other.
    memory.append(shared([t.plan["calibration"] for t in targets if t.plan.get("calibration")]))
    return {
        "memory": BASE_MEMORY + max((int(m.get("cpu", 0)) for m in memory), default=0),
        "least": BASE_MEMORY + max((int(m.get("least", 0)) for m in memory), default=0),
        "disk": sum(int(t.plan.get("nbytes", 0)) for t in targets) + sum(_scratch(targets).values()),
        "gpu_memory": max((int(m.get("cuda", 0)) for m in memory), default=0),
    }


def _scratch(targets: Sequence[Target]) -> dict[str, int]:
    """Disk that calibrating takes meanwhile, by its folder, which targets may share."""
    found: dict[str, int] = {}
    for target in targets:
        if one := target.plan.get("calibration"):
            found[one["folder"]] = max(found.get(one["folder"], 0), int(one["scratch"]))
    return found


def fetch_need(nbytes: int) -> dict[str, int]:
    """As `need_of`, for a model of `nbytes` on the Hub: `cache` is room on the Hub cache's disk."""
    return {"memory": FETCH_MEMORY, "least": FETCH_MEMORY // 2, "disk": 0, "gpu_memory": 0, "cache": nbytes}
