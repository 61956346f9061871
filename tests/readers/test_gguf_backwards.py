"""GGUF files read backwards: transformers computes from the rebuilt checkpoint what it does from the original, and its own GGUF
loader finds the same tensors in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import family_models
import ggml_models
from converted import converted
from gguf_readers import mean_kl, reference

pytestmark = pytest.mark.readers

REFUSED = ("deepseek2", "deepseek2-lite", "deepseek2-plain", "deepseek3", "ministral3", "mistral3-vision", "phi3-longrope")
"""As tests/plugins/gguf/test_backwards.py has it. transformers itself has no internlm2."""
FAMILIES = tuple(name for name in family_models.NAMES if name not in (*REFUSED, "internlm2"))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_rebuilt_checkpoint_computes_what_the_original_does(name: str, tmp_path: Path) -> None:
    record = family_models.record(name)
    source = family_models.make(tmp_path / "m", record["config"], record["checkpoint"])
    gguf = converted(source, tmp_path / "g", "gguf", types=["F32"], pre=family_models.PRE)
    back = converted(gguf.folder / gguf.plan.files[0].path, tmp_path / "b", "fp16", dtype="f32")
    ids = [int(i) for i in np.random.default_rng(1).integers(0, 256, 48)]
    assert mean_kl(reference(source, ids), reference(back.folder, ids)) < 1e-6


@pytest.mark.parametrize("type_", ["F16", "Q8_0", "Q4_0"])
def test_transformers_own_loader_finds_the_same_tensors(type_: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' GGUF loader wants accelerate")
    import torch
    from transformers import AutoModelForCausalLM

    source = ggml_models.make(tmp_path / "m", "llama", num_key_value_heads=2)
    gguf = converted(source, tmp_path / "g", "gguf", types=[type_])
    file = gguf.folder / gguf.plan.files[0].path
    back = converted(file, tmp_path / "b", "fp16", dtype="f32")
    ours = AutoModelForCausalLM.from_pretrained(back.folder, dtype=torch.float32).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
