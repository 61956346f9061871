"""What the engine must get for targets that share a calibration. The ledger asks, so nothing is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

IDLE_SHARE = 8
"""One part in this many of the memory limit may be buffers that wait to be used again."""
BESIDE = 4 << 20
"""Mean squares that another target of the job may ask of the same calibration, beside the largest Hessian."""


def shared(costs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What the engine must get, `cpu` to be quick and the `least`, so that one calibration serves these targets.

    `costs` are those that `as_data` gave of each.
    """
    if not costs:
        return {}
    encoding = max(int(c["encoding"]) for c in costs)
    needs = {"cpu": max(int(c["memory"]) for c in costs), "least": max(int(c["least"]) for c in costs)}
    return {k: (n + BESIDE + encoding) * IDLE_SHARE // (IDLE_SHARE - 1) for k, n in needs.items()}
