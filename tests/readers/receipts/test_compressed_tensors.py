"""int8, int4 and FP8 artifacts are those that vLLM opened: same bytes, and it computed what they say.

What is made here has the same bytes on any machine. receipts.py opens artifacts with vLLM, in an environment of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import reader_models
from compressed_artifacts import Case, rounded
from reader_artifacts import digest

RECEIPTS: dict[str, Any] = json.loads((Path(__file__).parent / "compressed.json").read_text())
AGAIN = "run tests/readers/receipts/receipts.py --of compressed (CONTRIBUTING.md says how)"
ONLY_ON_A_GPU = {
    ("int8", "w8a16"): "Quant type (uint8b128) not supported by CPUWNA16",
    ("fp8", "block"): "requires AMX tile support",
}
"""What vLLM's build for CPUs has no kernel for, in its own words; it reads config and layout before it says so."""
HALF = 1e-4
"""Divergence in nats that is left to arithmetic in float16; a step off in every zero point is thousands of times that."""
ROUNDED = 2e-2
"""The same where activations are rounded as well: one between two codes goes to another than ours, and moves what follows."""


@pytest.mark.parametrize("model", ["wide", "narrow"])
def test_every_artifact_has_a_receipt(model: str, glass: Path, tmp_path: Path) -> None:
    source = reader_models.make(model, glass, tmp_path / "source")
    for number, case in enumerate(c for c in rounded() if c.model == model):
        made = case.make(source, tmp_path / str(number))
        receipt = RECEIPTS.get(digest(made.folder))
        assert receipt, f"{case.name} has no receipt: {AGAIN}"
        assert "vLLM" in [reader.name for reader in made.plan.loads_with]
        refusal = ONLY_ON_A_GPU.get((case.format, scheme(case)), "")
        said = receipt["readers"]["vllm"].get("refused", "")
        assert refusal in said if refusal else not said, case.name


def scheme(case: Case) -> str:
    return str(case.options.get("scheme", "w8a16" if case.format == "int8" else ""))


def test_vllm_computed_what_the_artifacts_say() -> None:
    for receipt in RECEIPTS.values():
        answer = receipt["readers"]["vllm"]
        if "refused" not in answer:
            rounds = "w8a8" in receipt["artifact"] or "fp8" in receipt["artifact"]
            assert answer["divergence"] < (ROUNDED if rounds else HALF), receipt
            assert answer["top1"] > (0.8 if rounds else 0.95), receipt
