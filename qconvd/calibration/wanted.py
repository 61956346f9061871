"""Which groups of linears which layer must gather for the statistics that are asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from qconvd.calibration.errors import unsupported
from qconvd.calibration.network import Network
from qconvd.calibration.trace import LayerTrace
from qconvd.engine.plan import CalibrationSpec, StatKind, StatRequest

SHOWN = 5
"""Linears that a message names."""
Wave: TypeAlias = dict[int, set[StatKind]]
"""By group, what is added up for it in one run of a layer."""


@dataclass
class Layer:
    """What one layer gathers. The output layer's is the one after the last decoder layer's."""

    kinds: Wave = field(default_factory=dict)
    requests: dict[StatRequest, tuple[int, ...]] = field(default_factory=dict)
    """The groups behind each request, one for each expert."""


def wanted(
    network: Network, traces: Sequence[LayerTrace], spec: CalibrationSpec, requests: Collection[StatRequest]
) -> list[Layer]:
    """What each layer gathers. Raises `Unsupported` that names the linears which text does not go through."""
    places = {tensor: (i, groups) for i, trace in enumerate(traces) for tensor, groups in trace.groups.items()}
    layers = [Layer() for _ in traces]
    missing: list[str] = []
    for request in requests:
        tensors = spec.linears.get(request.linear, (request.linear,))
        if request.kind == "mean_square" and tensors == (network.head_tensor,):
            layers += [Layer()] if len(layers) == len(traces) else []
            _add(layers[-1], request, (0,))
            continue
        found = [places.get(tensor) for tensor in tensors]
        if not all(found) or len({place[0] for place in found if place}) > 1:
            missing.append(request.linear)
            continue
        groups = tuple(group for place in found if place for group in place[1])
        if request.kind == "hessian" and len(groups) > 1:
            missing.append(f"{request.linear} (its {len(groups)} experts have no Hessian in common)")
            continue
        _add(layers[next(place[0] for place in found if place)], request, groups)
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        what = f"no text goes through {', '.join(missing[:SHOWN])}{more} when transformers runs this model"
        raise unsupported(network.model, what, "leave these out of what is calibrated, or choose another format")
    return layers


def packed(kinds: Mapping[int, Collection[StatKind]], columns: Sequence[int], room: int) -> list[Wave]:
    """All that a layer gathers, in as few waves as fit into `room` bytes of Hessians each; one larger than that runs alone.

    Mean squares are small, and a stack of experts wants all of them at once: the first wave has them all.
    """
    waves: list[Wave] = []
    left: list[int] = []
    hessians = [group for group, wanted in kinds.items() if "hessian" in wanted]
    for group in sorted(hessians, key=lambda g: (-columns[g], g)):
        need = nbytes({"hessian"}, columns[group])
        place = next((i for i, free in enumerate(left) if need <= free), None)
        if place is None:
            place = len(waves)
            waves.append({})
            left.append(room)
        left[place] -= need
        waves[place][group] = {"hessian"}
    for group, wanted in kinds.items():
        if "mean_square" in wanted:
            waves = waves or [{}]
            waves[0].setdefault(group, set()).add("mean_square")
    return waves


def nbytes(kinds: Collection[StatKind], columns: int) -> int:
    """Bytes of the sums of a group: float32 products, float64 squares."""
    return ("hessian" in kinds) * 4 * columns * columns + ("mean_square" in kinds) * 8 * columns


def _add(layer: Layer, request: StatRequest, groups: tuple[int, ...]) -> None:
    layer.requests[request] = groups
    for group in groups:
        layer.kinds.setdefault(group, set()).add(request.kind)
