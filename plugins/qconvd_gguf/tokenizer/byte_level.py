"""The alphabet of byte-level BPE: a printable character for every byte. Source: GPT-2's encoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache


@cache
def byte_of() -> Mapping[str, int]:
    """The byte that each character stands for: itself if it is printable, else one of those from 256 on, in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(rest)}


@cache
def character_of() -> Mapping[int, str]:
    """The character of each byte."""
    return {byte: character for character, byte in byte_of().items()}
