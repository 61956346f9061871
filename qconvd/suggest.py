"""`(did you mean …?)` for a word that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as ` (did you mean X?)`, or nothing where none is near. Case does not count."""
    spelt = {k.casefold(): k for k in known}
    near = difflib.get_close_matches(word.casefold(), spelt, n=1, cutoff=0.6)
    return f" (did you mean {spelt[near[0]]}?)" if near else ""
