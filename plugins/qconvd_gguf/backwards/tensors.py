"""A family's tensors read from right to left: what llama.cpp's tensors were in the checkpoint.

Each step of a family knows how it is undone. Where one tensor of the checkpoint became several, each with a `Part` of it, these
are joined again; where many became one stack (experts), it is taken apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from qconvd.api import Concat, Expr, Reshape, Slice, Unsupported
from qconvd_gguf.families.base import Family, Tensor, product
from qconvd_gguf.families.steps import Part


def undone(family: Family, numbers: Mapping[str, Any], tensors: Mapping[str, Expr]) -> dict[str, Expr]:
    """The checkpoint's tensors by name, made of GGUF's. Raises `Unsupported` for one that cannot be made, or is left over."""
    if numbers[family.layers] > len(tensors):
        raise Unsupported(f"{numbers[family.layers]} layers are said to be in {len(tensors)} tensors")
    found: dict[str, Expr] = {}
    used: set[str] = set()
    groups: dict[str, list[Tensor]] = {}
    for tensor in family.tensors:
        groups.setdefault(tensor.source, []).append(tensor)
    others = family.other_names is not None and family.other_names(tensors)
    for group in groups.values():
        for layer in _layers(group, numbers, family):
            names = [tensor.name.replace("{i}", str(layer)) for tensor in group]
            there = [name for name in names if name in tensors]
            if not there:
                continue
            if len(there) < len(names) and len(group) > 1:
                raise Unsupported(f"the file has {there[0]}, but lacks {next(n for n in names if n not in tensors)}")
            used.update(there)
            made = _joined(group, [tensors[name] for name in names], numbers)
            source = group[0].also[0] if others and group[0].also else group[0].source
            source = source.replace("{p}", family.prefixes[0]).replace("{i}", str(layer))
            found |= _apart(source, made) if group[0].stack else {source: made}
    made_here = {made.name for made in family.made}
    left = [name for name in tensors if name not in used and name not in made_here]
    if left:
        raise Unsupported(
            f"no tensor of {family.architectures[0]} becomes {left[0]}" + (f" ({len(left)} such)" * (len(left) > 1))
        )
    return found


def _layers(group: Sequence[Tensor], numbers: Mapping[str, Any], family: Family) -> Sequence[int | None]:
    if "{i}" not in group[0].name:
        return (None,)
    layers = range(numbers[group[0].over or family.layers])
    return [i for i in layers if group[0].where is None or group[0].where(i, numbers)]


def _joined(group: Sequence[Tensor], parts: Sequence[Expr], numbers: Mapping[str, Any]) -> Expr:
    """One tensor from its parts: what follows the part is undone, they are joined, what comes before the part is undone."""
    if len(group) == 1:
        expr = parts[0]
        for step in reversed(group[0].steps):
            expr = step.undo(expr, numbers)
        return expr
    cuts = [next((n for n, step in enumerate(t.steps) if isinstance(step, Part)), None) for t in group]
    placed: list[tuple[int, int, Expr]] = []
    before, axis = group[0].steps[: cuts[0] or 0], 0
    for tensor, cut, part in zip(group, cuts, parts, strict=True):
        if cut is None or tensor.steps[:cut] != before:
            raise Unsupported(f"{tensor.source} became several tensors in a way that cannot be undone")
        step, expr = tensor.steps[cut], part
        assert isinstance(step, Part)
        for after in reversed(tensor.steps[cut + 1 :]):
            expr = after.undo(expr, numbers)
        axis = step.axis
        placed.append((product(step.start, numbers), product(step.stop, numbers), expr))
    placed.sort(key=lambda p: p[:2])
    if placed[0][0] or any(a[1] != b[0] for a, b in pairwise(placed)):
        raise Unsupported(f"the parts of {group[0].source} in the file do not make up the whole")
    expr = Concat(tuple(part for _, _, part in placed), axis)
    for step in reversed(before):
        expr = step.undo(expr, numbers)
    return expr


def _apart(source: str, stack: Expr) -> dict[str, Expr]:
    return {source.replace("{e}", str(e)): Reshape(Slice(stack, 0, e, e + 1), stack.shape[1:]) for e in range(stack.shape[0])}
