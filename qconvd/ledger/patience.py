"""How long to wait before something that failed is tried again, and how often."""

from __future__ import annotations

RETRIES = 3
"""Attempts that may crash before a target fails for good."""
FIRST_DELAY = 30.0
LONGEST_DELAY = 3600.0


def backoff(failures: int) -> float:
    """Seconds to wait after the n-th failure: 30, 60, 120, … at most an hour."""
    return min(FIRST_DELAY * 2.0 ** min(16, max(0, failures - 1)), LONGEST_DELAY)
