"""What plans say of themselves in sentences; commands, logs and status files say the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from qconvd.engine.plan import LeftOut

Label = TypeVar("Label")
SHOWN = 3
"""Tensors that are named of each kind of exception."""


def sentences(notes: Sequence[str], left_out: Iterable[LeftOut]) -> list[str]:
    """The notes of a plan, and what is treated otherwise than the rest: tensors of one reason together."""
    groups: dict[tuple[str, str], list[LeftOut]] = defaultdict(list)
    for one in left_out:
        groups[one.became, one.reason].append(one)
    return [
        *notes,
        *(
            f"{_names(members)} {_became(became, len(members))}: {reason}"
            for (became, reason), members in groups.items()
            # A note tells of most exceptions already, in its own words.
            if not any(reason in note for note in notes)
        ),
    ]


def cut_off(tensors: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What a manifest's counts per tensor say of weights that the new type cannot hold; empty if it can."""
    found = {name: counts["overflows"] for name, counts in tensors.items() if counts.get("overflows")}
    if not found:
        return []
    count, names = sum(found.values()), [name for name, _ in sorted(found.items(), key=lambda item: -item[1])]
    shown = f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more" if len(names) > SHOWN else ", ".join(names)
    weights = "1 weight is" if count == 1 else f"{count:,} weights are"
    return [f"{weights} too large for the type, and wrong in the result: {shown}"]


def told(plan: Mapping[str, Any]) -> list[str]:
    """The same of a plan's data as the plan task leaves it: its `notes` and `left_out`."""
    return sentences([str(note) for note in plan.get("notes", ())], (LeftOut(**one) for one in plan.get("left_out", ())))


def told_once(said: Mapping[Label, Iterable[str]]) -> dict[tuple[Label, ...], list[str]]:
    """What is said of each label, the other way round: each sentence once, below all labels that it is said of."""
    labels: dict[str, list[Label]] = defaultdict(list)
    for label, told in said.items():
        for sentence in told:
            labels[sentence].append(label)
    found: dict[tuple[Label, ...], list[str]] = defaultdict(list)
    for sentence, of in labels.items():
        found[tuple(of)].append(sentence)
    return dict(found)


def _names(members: Sequence[LeftOut]) -> str:
    shown = ", ".join(m.tensor for m in members[:SHOWN])
    return f"{shown} and {len(members) - SHOWN} more" if len(members) > SHOWN else shown


def _became(became: str, count: int) -> str:
    verb = "is" if count == 1 else "are"
    return f"{verb} dropped" if became == "dropped" else f"{verb} stored as {became}"
