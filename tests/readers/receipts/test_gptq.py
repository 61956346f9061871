"""GPTQ artifacts are those that other people's readers opened: same bytes, and the readers did what plans say of them.

What is made here is rounded to nearest, whose bytes are the same on any machine. receipts.py opens artifacts with the readers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import reader_models
from gptq_artifacts import Case, rounded
from qconvd_gptq.readers import READERS
from reader_artifacts import digest

RECEIPTS: dict[str, Any] = json.loads((Path(__file__).parent / "gptq.json").read_text())
AGAIN = "run tests/readers/receipts/receipts.py (CONTRIBUTING.md says how)"
CLAIMED = {"gptqmodel": "gptqmodel", "transformers": "transformers", "vllm": "vllm-marlin"}
"""The reader of a plan that one of a receipt stands for: this vLLM has the same rules for CPUs, and fewer kernels."""
ONLY_ON_A_CPU = ("Only types = [ScalarType.uint4b8] are supported", "_weight_int4pack_mm_cpu: expect qGroupSize")
"""What kernels for CPUs lack, of which plans say nothing or a note: vLLM's has no 8 bits, torch's of 4 bits no wide groups."""
EXACT = {"float32": 1e-5, "float16": 1e-4}
"""Divergence in nats that is left to a reader's arithmetic; a step off in every zero point is thousands of times that."""
HALF_AT_BEST = {"TorchAtenLinear": 1e-3}
"""Kernels that compute in bfloat16 whatever they are given."""


@pytest.fixture(scope="module")
def models(glass: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: reader_models.make(kind, glass, folder / kind) for kind in reader_models.KINDS}


def parts() -> list[Any]:
    """Cases by model and bits, so that they are spread over processes."""
    cases: dict[str, list[Case]] = {}
    for case in rounded():
        cases.setdefault(f"{case.model} {case.parsed.bits[0]}", []).append(case)
    return [pytest.param(found, id=name) for name, found in cases.items()]


@pytest.mark.parametrize("cases", parts())
def test_every_artifact_has_receipts_which_say_what_its_plan_says(
    cases: list[Case], models: dict[str, Path], tmp_path: Path
) -> None:
    for number, case in enumerate(cases):
        made = case.make(models[case.model], tmp_path / str(number))
        receipt = RECEIPTS.get(digest(made.folder))
        assert receipt, f"{case.name} has no receipt: {AGAIN}"
        assert receipt["readers"].keys() == CLAIMED.keys(), f"{case.name} lacks receipts: {AGAIN}"
        promised = {reader.name for reader in made.plan.loads_with}
        for reader, answer in receipt["readers"].items():
            if any(words in answer.get("refused", "") for words in ONLY_ON_A_CPU):
                continue
            if reader == "transformers" and case.parsed.partial_groups:
                continue  # it takes short last groups or not, by the kernel that it happens to choose: nothing to promise
            assert ("refused" not in answer) == (READERS[CLAIMED[reader]] in promised), (case.name, reader, answer)


def test_whatever_a_reader_opened_it_read_rightly() -> None:
    for receipt in RECEIPTS.values():
        for reader, answer in receipt["readers"].items():
            if "refused" not in answer:
                allowed = max([EXACT[answer["dtype"]], *(HALF_AT_BEST.get(kernel, 0) for kernel in answer["kernels"])])
                assert answer["divergence"] < allowed, (receipt["artifact"], reader, answer)
                assert answer["top1"] > 0.9, (receipt["artifact"], reader, answer)
