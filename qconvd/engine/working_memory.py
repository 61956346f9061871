"""What converting keeps in memory, from the plan alone: what `qconvd plan` says is what the scheduler reserves."""

from __future__ import annotations

from math import prod

from qconvd.engine.plan import Plan, RowSplit, Unit

MIB = 1 << 20
LEAST_ENGINE_MEMORY = 64 * MIB
CHUNK = 16 * MIB
"""A piece of a unit that may be cut into rows; larger ones are no quicker."""


def working_memory(plan: Plan, threads: int) -> dict[str, int]:
    """Bytes that converting keeps in flight: `cpu` with all threads at work, `least` with one; `cuda` per GPU.

    As the engine counts: each of `threads + 1` pieces holds source, outputs and scratch, and an eighth is idle buffers.
    """
    cpu = max((piece(u) for u in plan.units), default=0)
    gpu = max((piece(u) - u.memory.get("cpu", 0) + u.memory.get("cuda", 0) for u in plan.units), default=0)
    return {
        "cpu": max(LEAST_ENGINE_MEMORY, cpu * (threads + 1) * 8 // 7),
        "least": max(LEAST_ENGINE_MEMORY, cpu * 2 * 8 // 7),
        "cuda": gpu if any("cuda" in u.memory for u in plan.units) else 0,
    }


def piece(unit: Unit) -> int:
    """Bytes of the smallest sensible piece: a unit that may be cut counts as a chunk of it, or one row if that is more."""
    whole = sum(4 * prod(x.shape) for x in unit.inputs) + sum(o.nbytes for o in unit.outputs)
    if isinstance(unit.rows, RowSplit):
        least = whole // max(1, unit.shape[0]) * unit.rows.multiple
        whole = min(whole, max(CHUNK, least))
    return whole + int(unit.memory.get("cpu", 0))
