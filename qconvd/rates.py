"""How fast this machine was, so that `qconvd plan` can say about how long something takes.

Workers note it: weights per second of every kind of target, of calibrating for it, and bytes per second of what was fetched.
Each figure is the mean of the last one and of what was known before. They stand in a small file of the cache folder; lost, they
are found anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from qconvd.cache_home import cache_home
from qconvd.engine.durable import write_whole
from qconvd.engine.plan import CalibrationSpec

FILE = "rates.json"
FETCH = "fetch"
LEAST = {"convert": 20_000_000, FETCH: 16 << 20}
"""Weights or bytes below which starting up takes longer than the work."""


def note_conversion(labels: Iterable[str], weights: int, seconds: float) -> None:
    """A pass over `weights` weights made these targets, each of which is taken to have had an equal part in it."""
    known = list(labels)
    if known and weights >= LEAST["convert"]:
        _note(dict.fromkeys(known, weights * len(known) / max(seconds, 1e-3)))


def note_fetch(nbytes: int, seconds: float) -> None:
    """So many bytes came over the network."""
    if nbytes >= LEAST[FETCH]:
        _note({FETCH: nbytes / max(seconds, 1e-3)})


def conversion_seconds(labels: Iterable[str], weights: int) -> float | None:
    """About how long one pass takes to make these targets; None if one of them was never made here."""
    rates = _rates()
    found = [rates.get(label) for label in labels]
    if not found or None in found:
        return None
    return sum(weights / rate for rate in found if rate)


def calibrating(label: str, spec: CalibrationSpec) -> str:
    """What the calibration of a target is noted under, apart from the pass: it takes as long as its text is."""
    return f"{label}, calibrated on {spec.samples * spec.length} tokens"


def fetch_seconds(nbytes: int) -> float | None:
    """About how long it takes to fetch so much; None if nothing was fetched here."""
    rate = _rates().get(FETCH)
    return nbytes / rate if rate else None


def _note(new: dict[str, float]) -> None:
    rates = _rates()
    for key, rate in new.items():
        rates[key] = (rates[key] + rate) / 2 if key in rates else rate
    with suppress(OSError):  # a cache: without it nothing is said about time
        _path().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_path(), json.dumps(rates, indent=1, sort_keys=True).encode())


def _rates() -> dict[str, float]:
    try:
        found = json.loads(_path().read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(k): float(v) for k, v in found.items() if isinstance(v, int | float) and 0 < v < 1e15}


def _path() -> Path:
    return cache_home() / FILE
