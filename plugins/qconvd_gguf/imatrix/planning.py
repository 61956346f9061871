"""The plan of an importance matrix: a unit for each tensor, made of what is gathered for it. Headers are read, no weights.

What is stored follows llama.cpp, tools/imatrix/imatrix.cpp, `collect_imatrix`.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from qconvd.api import (
    CalibrationOptions,
    ContainerSpec,
    ModelInfo,
    NameParts,
    Plan,
    StatRequest,
    Unit,
    Whole,
    calibration_spec,
    container,
    imatrix_metadata,
    imatrix_tensors,
)
from qconvd_gguf import mapping
from qconvd_gguf.families import family_of
from qconvd_gguf.gathered import fed
from qconvd_gguf.mapping import Mapped, listed
from qconvd_gguf.mixes.roles import EMBEDDINGS, OUTPUT, is_kept

SHOWN = 3


def plan(model: ModelInfo, calibration: CalibrationOptions, name: NameParts) -> Plan:
    """Raises `Unsupported`."""
    spec = calibration_spec(calibration, model)
    seen = mapping.apply(family_of(model), model)
    quantized = {t.name: t for t in seen.tensors if not is_kept(t.name, t.expr.shape, seen.family.name)}
    linears = fed({t.name: t.expr for t in quantized.values()}, model)
    units = tuple(_unit(quantized[name], linears[name], model) for name in sorted(linears))
    outputs = [output for unit in units for output in unit.outputs]
    container_spec = ContainerSpec("gguf", imatrix_metadata(spec.dataset, spec.samples, spec.length))
    without = [n for n in quantized if n not in linears and n not in (*EMBEDDINGS, OUTPUT)]
    return Plan(
        container=container_spec,
        files=container("gguf").layout(container_spec, outputs),
        units=units,
        name=name,
        notes=(f"nothing can be gathered for {len(without)} tensors: {listed(without, SHOWN)}",) if without else (),
        calibration=replace(spec, linears=linears),
    )


def _unit(tensor: Mapped, linears: tuple[str, ...], model: ModelInfo) -> Unit:
    """Experts have rows of their own; other stacks (heads of latent attention) are fed the same, and have one long row."""
    shape = tensor.expr.shape
    experts = sum(prod(model.tensors[name].shape[:-2]) for name in linears)
    matrices = prod(shape[:-2]) // experts
    outputs = imatrix_tensors(tensor.name, experts, matrices * shape[-1])
    return Unit(
        id=tensor.name,
        layer=tensor.layer,
        inputs=(),
        outputs=outputs,
        rows=Whole(),
        statistics=(StatRequest(tensor.name, "square_sums"),),
        memory={"cpu": 2 * sum(output.nbytes for output in outputs)},
        options={"matrices": matrices},
    )
