"""GPTQ artifacts of small models in every combination of options that a reader may take or refuse, and their fingerprints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converted import Converted, converted
from qconvd_gptq.options import GptqOptions

BITS, GROUPS, ORDERS = (2, 3, 4, 8), (32, 64, 128, 1024, -1), ("none", "static", "desc_act")
FORMATS = ("gptq", "gptq_v2")
LICENSE = Path(__file__).parent.parent / "LICENSE"
"""A text to calibrate with."""


@dataclass(frozen=True)
class Case:
    """An artifact to be made: of which model (reader_models.KINDS), with which options."""

    model: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Unique, and legible in a list of receipts."""
        short = " partial" if self.options.get("partial_groups") else ""
        modules = "".join(f" {k}: {v}".replace("'", "") for k, v in self.options.get("modules", {}).items())
        return f"{self.model} {self.parsed.variant}{short}{modules}"

    @property
    def parsed(self) -> GptqOptions:
        return GptqOptions(**self.options)

    def make(self, source: Path, out: Path) -> Converted:
        """Through the engine, in this process."""
        return converted(source, out, "gptq", **self.options)


def rounded() -> Iterator[Case]:
    """Rounded to nearest: the same bytes on any machine."""
    for bits, group, sym, stored in itertools.product(BITS, GROUPS, (True, False), FORMATS):
        yield Case("wide", dict(method="rtn", bits=bits, group_size=group, sym=sym, checkpoint_format=stored))
    for bits, group, sym in itertools.product(BITS, (128, 1024), (True, False)):
        yield Case("narrow", dict(method="rtn", bits=bits, group_size=group, sym=sym, partial_groups=True))
    for bits, group in itertools.product(BITS, (64, 128)):  # at 128 most linears stay in 16 bits
        yield Case("narrow", dict(method="rtn", bits=bits, group_size=group))
    for modules in MODULES:
        yield Case("wide-2", dict(method="rtn", modules=modules))


MODULES: tuple[dict[str, Any], ...] = (
    {"down_proj": {"bits": 8}},
    {"self_attn": {"group_size": 32}},
    {"o_proj": "skip"},
    {"k_proj": "skip"},
    {"mlp": "skip"},
    {"layers\\.1\\.": "skip"},
    {"layers\\.1\\.mlp\\.": "skip", "down_proj": {"bits": 8, "group_size": 64}},
)
"""Linears that are treated otherwise than the rest."""


def calibrated() -> Iterator[Case]:
    """Solved with a calibration: bytes depend on the machine's arithmetic."""
    for bits, group, sym, order, stored in itertools.product(BITS, GROUPS, (True, False), ORDERS, FORMATS):
        options = dict(bits=bits, group_size=group, sym=sym, act_order=order, checkpoint_format=stored)
        yield Case("wide", options | {"calibration": {"text": str(LICENSE), "samples": 16, "length": 64}})
