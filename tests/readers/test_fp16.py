"""fp16, bf16 and f32 outputs of real models, read by transformers and safetensors and held against torch's casts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from converted import Converted, converted

pytestmark = pytest.mark.readers
TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def assert_equal_to_torch(made: Converted, dtype: str) -> None:
    """Every tensor of the artifact has the bits of torch's cast of the model's."""
    source = load_file(made.model.path / "model.safetensors")
    names = set()
    for path in made.folder.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            assert torch.equal(tensor, source[name].to(TORCH[dtype])), name
            assert tensor.dtype == TORCH[dtype]
            names.add(name)
    assert names == source.keys()


def assert_loads(made: Converted, dtype: str) -> None:
    """transformers loads the folder as it is, in the type that its config says, with every weight found."""
    assert AutoConfig.from_pretrained(made.folder).dtype == TORCH[dtype]
    model, info = AutoModelForCausalLM.from_pretrained(made.folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == TORCH[dtype]
    source = load_file(made.model.path / "model.safetensors")
    state = model.state_dict()
    for name, tensor in source.items():
        assert torch.equal(state[name], tensor.to(TORCH[dtype])), name
    tokens = AutoTokenizer.from_pretrained(made.folder)("Alice was beginning", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert torch.isfinite(model(tokens).logits).all()


@pytest.fixture(scope="module")
def smollm2_fp16(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return converted(smollm2, tmp_path_factory.mktemp("smollm2"))


def test_smollm2_is_bit_equal_to_the_cast(smollm2_fp16: Converted) -> None:
    assert_equal_to_torch(smollm2_fp16, "fp16")


def test_smollm2_loads_and_gives_the_logits_of_the_cast_model(smollm2: Path, smollm2_fp16: Converted) -> None:
    assert AutoConfig.from_pretrained(smollm2_fp16.folder).dtype == torch.float16
    tokens = AutoTokenizer.from_pretrained(smollm2_fp16.folder)("Grüße, 世界 🙂 def f(x):", return_tensors="pt")["input_ids"]
    ours, info = AutoModelForCausalLM.from_pretrained(smollm2_fp16.folder, output_loading_info=True)
    theirs = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float16)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_smollm2_is_verified_and_its_losses_are_known(smollm2_fp16: Converted) -> None:
    report = smollm2_fp16.verify()
    assert report.tensors == len(smollm2_fp16.model.tensors)
    assert report.rows > 1000
    assert report.not_checked == ()
    assert report.max_error <= 2**-25
    assert smollm2_fp16.manifest.errors["overflows"] == 0


def test_sizes_are_as_planned(smollm2_fp16: Converted) -> None:
    plan = smollm2_fp16.plan
    made = {p.name: p.stat().st_size for p in smollm2_fp16.folder.iterdir() if p.name != "qconvd.json"}
    assert made == {f.path: f.nbytes for f in (*plan.files, *plan.side_files)}
    assert plan.nbytes == sum(made.values())


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "f32"])
@pytest.mark.parametrize("shard", ["5GB", "300KB"])
def test_glass_in_every_type_and_sharded(glass: Path, tmp_path: Path, dtype: str, shard: str) -> None:
    made = converted(glass, tmp_path, dtype=dtype, max_shard_size=shard)
    shards = sorted(p.name for p in made.folder.glob("*.safetensors"))
    assert (len(shards) > 3) == (shard == "300KB")
    assert_equal_to_torch(made, dtype)
    assert_loads(made, dtype)
    made.verify()


def test_an_index_names_every_tensor_and_counts_the_bytes(glass: Path, tmp_path: Path) -> None:
    made = converted(glass, tmp_path, max_shard_size="300KB")
    index = json.loads((made.folder / "model.safetensors.index.json").read_text())
    where = {name: p.name for p in made.folder.glob("*.safetensors") for name in load_file(p)}
    assert index["weight_map"] == where
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in made.plan.tensors)
    assert index["metadata"]["total_parameters"] == made.model.parameters
