"""Every type and preset of llama.cpp's records, with and without importance: types of all tensors, bytes of some of each type.

Whole files of a few types are in test_records.py. All presets of six models would be hours of encoding; but every type is used
on every model, with and without the imatrix, plain and for stacks of experts, and each tensor that is made is made whole.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import pytest

import gguf_models
from gguf_files import differences, metadata, planned, tensors
from imatrix_files import made_up
from qconvd.api import ContainerSpec, NameParts, Plan, Unit, container
from qconvd.checkpoints import inspect
from qconvd.engine.plan import Device
from qconvd.engine.run import ConvertTarget, Limits, convert
from qconvd.plugins import plugins
from qconvd_gguf import mapping
from qconvd_gguf.families import family_of
from qconvd_gguf.file_types import PLAIN
from qconvd_gguf.mixes import traits_of
from qconvd_gguf.units import Typed, typed

MODELS = ("smollm2", "random_llama", "random_llama-tied", "random_gpt2", "random_mixtral", "random_qwen3moe")
LARGE = 1 << 20
"""Weights; larger tensors are only made where a type has no smaller one."""


@dataclass(frozen=True)
class Recorded:
    """A model, llama.cpp's records of it, and what we would make of it, by label: `Q4_K_M`, `Q4_K_M.imatrix`."""

    kind: str
    folder: Path
    imatrix: Path
    theirs: dict[str, Any]
    ours: dict[str, Typed]


@pytest.fixture(scope="module", params=MODELS)
def recorded(
    request: pytest.FixtureRequest, smollm2: Path, golden: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recorded]:
    kind = request.param
    work = tmp_path_factory.mktemp(kind)
    folder = smollm2
    if kind.startswith("random_"):
        folder = work / "source"
        gguf_models.make(kind.removeprefix("random_"), smollm2, folder)
    with gzip.open(golden / f"{kind}_gguf.json.gz") as file:
        theirs = json.load(file)["types"]
    model = inspect(folder)
    seen = mapping.apply(family_of(model), model)
    imatrix = made_up(work / f"{kind.removeprefix('random_')}.imatrix", [(m.name, m.expr.shape) for m in seen.tensors])
    traits = traits_of(theirs["BF16"]["metadata"])
    options = plugins().formats["gguf"].Options
    ours = {}
    for label in theirs:
        preset, _, weighted = label.partition(".")
        given = options.model_validate({"types": [preset], **({"imatrix": str(imatrix)} if weighted else {})})
        ours[label] = typed(model, seen.tensors, traits, given)
    yield Recorded(kind, folder, imatrix, theirs, ours)
    shutil.rmtree(work)


def test_every_tensor_has_llama_cpps_type_shape_and_place(recorded: Recorded) -> None:
    for label, made in recorded.ours.items():
        ours = {u.id: [u.outputs[0].dtype, list(reversed(u.outputs[0].shape))] for u in made.units}
        assert differences(ours, {n: t[:2] for n, t in recorded.theirs[label]["tensors"].items()}) == [], label


def test_bytes_of_every_type_are_llama_cpps(recorded: Recorded, tmp_path: Path) -> None:
    samples = sampled(recorded)
    made = encoded(recorded, samples, tmp_path)
    for label, units in samples.items():
        theirs = recorded.theirs[label]["tensors"]
        assert differences(tensors(made[label]), {u.id: theirs[u.id] for u in units}) == [], label
    if recorded.kind != "smollm2":
        used = {(u.outputs[0].dtype, bool(u.statistics)) for units in samples.values() for u in units}
        assert {"Q8_0", "Q4_0", "Q6_K"} <= {dtype for dtype, _ in used}


def test_every_metadata_key_of_a_mix_is_llama_cpps(recorded: Recorded, tmp_path: Path) -> None:
    label = "Q4_K_M.imatrix" if "Q4_K_M.imatrix" in recorded.theirs else "Q4_K_M"
    options = {"imatrix": str(recorded.imatrix)} if label.endswith("imatrix") else {}
    plan = planned(recorded.folder, "Q4_K_M", recorded.kind, **options)
    (file,) = plan.files
    path = tmp_path / "planned.gguf"
    path.write_bytes(container("gguf").header(plan.container, file, plan.tensors))
    with path.open("r+b") as sparse:
        sparse.truncate(file.nbytes)
    ours, theirs = metadata(path), recorded.theirs[label]["metadata"]
    # The random models had no lasting name when the records were made, so theirs lack it.
    if "general.name" not in theirs:
        del ours["general.name"]
    else:
        assert file.nbytes == recorded.theirs[label]["size"]
    assert differences(ours, theirs) == []


def sampled(recorded: Recorded) -> dict[str, list[Unit]]:
    """For each (type, weighed or not, stacked or not) one or two tensors, by the label whose file they are from."""
    found: dict[tuple[str, bool, bool], list[tuple[str, Unit]]] = {}
    for label, made in recorded.ours.items():
        for unit in made.units:
            dtype, weighed = unit.outputs[0].dtype, bool(unit.statistics)
            if dtype not in PLAIN:
                found.setdefault((dtype, weighed, len(unit.outputs[0].shape) > 2), []).append((label, unit))
    samples: dict[str, list[Unit]] = {}
    for candidates in found.values():
        small = [c for c in candidates if prod(c[1].outputs[0].shape) <= LARGE] or candidates[:1]
        for label, unit in {small[0][1].id: small[0], small[-1][1].id: small[-1]}.values():
            samples.setdefault(label, []).append(unit)
    return samples


def encoded(recorded: Recorded, samples: dict[str, list[Unit]], out: Path) -> dict[str, Path]:
    """One pass that makes a file of some tensors for each label."""
    gguf = plugins().formats["gguf"]
    targets = []
    for label, units in samples.items():
        spec = ContainerSpec("gguf", (("general.architecture", "str", "llama"),))
        files = container("gguf").layout(spec, [u.outputs[0] for u in units])
        files = tuple(replace(f, path=f.path.replace("{stem}", label)) for f in files)
        importance = recorded.ours[label].importance
        statistics = (importance.file,) if importance else ()
        plan = Plan(spec, files, tuple(units), NameParts("gguf", label, shared=True), statistics=statistics)
        targets.append(ConvertTarget(label, plan, gguf.encoder(plan, Device()), out / label, {"artifact": label}))
    limits = Limits(memory=256 << 20, threads=2)
    results = convert(
        inspect(recorded.folder), targets, limits, operations={}, on_event=lambda _: None, cancelled=lambda: False
    )
    for label, result in results.items():
        if isinstance(result, Exception):
            raise AssertionError(f"{label} failed") from result
    return {t.id: t.work / "files" / t.plan.files[0].path for t in targets}
