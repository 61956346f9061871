"""Sizes, durations and counts as people write them: `20GiB`, `5 GB`, `30s`, `1h30m`, `70B` parameters.

Text to number, and back for printing. Units of 1000 and of 1024 differ as in IEC 80000-13: `GB` is 10^9, `GiB` is 2^30.
"""

from __future__ import annotations

import math
import re

SIZE_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}

LONGEST_NUMBER = 32
"""Digits of a number that somebody can have meant; thousands of them are no float."""

_NUMBER = re.compile(r"(\d+(?:[._]\d+)*)\s*([a-zA-Z]*)")


def size(value: str | float) -> int:
    """Bytes of `20GiB`, `5 GB`, `512M` (2^20, as in `ulimit`) or a bare number. Raises ValueError with a sentence."""
    return _whole(_amount(value, SIZE_UNITS, "a size", "20GiB, 5 GB or 512MiB"))


def count(value: str | float) -> int:
    """Parameters of `70B`, `135M`, `1.5b` or a bare number. Raises ValueError with a sentence."""
    return _whole(_amount(value, COUNT_UNITS, "a number of parameters", "70B, 1.5B or 135M"))


def duration(value: str | float) -> float:
    """Seconds of `30s`, `2h`, `1h30m`, `500ms` or a bare number. Raises ValueError with a sentence."""
    if isinstance(value, str):
        parts = re.findall(r"\d+(?:\.\d+)?\s*[a-zA-Z]+", value)
        if len(parts) > 1 and re.sub(r"\s", "", "".join(parts)) == re.sub(r"\s", "", value):
            return sum(duration(part) for part in parts)
    return _amount(value, DURATION_UNITS, "a duration", "30s, 5m or 2h")


def show_size(nbytes: float) -> str:
    """`256.6 MiB`; under one KiB the bytes themselves."""
    if abs(nbytes) < 1024:
        return f"{nbytes:.0f} B"
    power = min(4, int(math.log(abs(nbytes), 1024)))
    return f"{nbytes / 1024**power:.{1 if power < 3 else 2}f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def write_size(nbytes: int) -> str:
    """As `size` reads it, exact and short: `1GiB`, `5GB`; bytes that are no multiple of anything stay a number."""
    written = [("kB", 10**3), ("MB", 10**6), ("GB", 10**9), ("TB", 10**12)]
    written += [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)]
    number, unit = min(((nbytes // n, unit) for unit, n in written if nbytes and nbytes % n == 0), default=(nbytes, ""))
    return f"{number}{unit}"


def write_duration(seconds: float) -> str:
    """As `duration` reads it: `60s`, `0.5s`."""
    return f"{seconds:g}s"


def show_duration(seconds: float) -> str:
    """`45s`, `2m 05s`, `1h 02m`, `3d 4h`."""
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def show_count(number: int) -> str:
    """`134.5M`, `1.24B`; under a thousand the number itself."""
    for power, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= power:
            return f"{number / power:.{2 if power >= 10**9 else 1}f}{unit}"
    return str(number)


def _amount(value: str | float, units: dict[str, int] | dict[str, float], what: str, example: str) -> float:
    wrong = ValueError(f"{_shown(value)} is not {what}; write for example {example}")
    if isinstance(value, bool):
        raise wrong
    if isinstance(value, int | float):
        if not math.isfinite(value) or value < 0:
            raise wrong
        return value
    found = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise wrong
    number, unit = found[1].replace("_", ""), found[2].lower()
    if unit not in units:
        raise ValueError(f"{found[2]!r} in {value!r} is not a unit of {what.partition(' ')[2]}; write for example {example}")
    if number.count(".") > 1:
        raise wrong
    if len(number) > LONGEST_NUMBER:
        raise wrong
    # Integers stay integers: 2**63 bytes must not go through a float.
    return int(number) * units[unit] if "." not in number else float(number) * units[unit]


def _whole(value: float) -> int:
    return value if isinstance(value, int) else round(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}…{text[-1]}"
