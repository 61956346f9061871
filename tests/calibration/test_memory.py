"""What calibration keeps in memory and on disk is known before, and held to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import calibration_kit as kit
from qconvd.calibration import budget
from qconvd.calibration.pricing import price
from qconvd.checkpoints import ModelInfo
from qconvd.engine.plan import StatRequest
from qconvd.statistics.hessian import Hessian


@pytest.fixture
def model(tmp_path: Path) -> ModelInfo:
    return kit.family(tmp_path, "mixtral")


def requests(model: ModelInfo) -> list[StatRequest]:
    return [StatRequest(name, "hessian") for name in kit.linears(model)]


def test_less_memory_takes_more_waves_and_gives_the_same(model: ModelInfo, tmp_path: Path) -> None:
    wanted = requests(model)
    ample = kit.calibration(model, wanted, tmp_path / "a", kit.spec_of(model))
    all_at_once = kit.gathered(ample)
    least = price(model, kit.spec_of(model), wanted, kit.MEMORY).memory
    # Enough for the largest statistic, and for three of the smaller ones.
    tight = least - sum(4 * h.columns**2 for h in distinct(all_at_once)) // 3 + 300_000
    plan = price(model, kit.spec_of(model), wanted, tight)
    assert plan.layers == 3 and min(plan.waves) > 1 and plan.memory < least
    calibration = kit.calibration(model, wanted, tmp_path / "b", kit.spec_of(model), memory=tight)
    found: dict[str, Hessian] = {}
    for layer in range(calibration.layers):
        waves = list(calibration.waves(layer))
        assert len(waves) == plan.waves[layer]
        for wave in waves:
            assert not found.keys() & wave.keys()
            found |= wave
        calibration.finish(layer)
    assert found.keys() == all_at_once.keys() == {r.key for r in wanted}
    for key, hessian in found.items():
        np.testing.assert_array_equal(hessian.array, all_at_once[key].array)


def distinct(found: dict[str, Hessian]) -> list[Hessian]:
    """Of one layer."""
    return list({id(h): h for key, h in found.items() if ".0." in key}.values())


def test_linears_that_are_fed_the_same_share_one_object(model: ModelInfo, tmp_path: Path) -> None:
    found = kit.gathered(kit.calibration(model, requests(model), tmp_path / "work"))
    layer = "model.layers.0."
    q, k, v, o = (found[f"{layer}self_attn.{n}_proj.weight:hessian"] for n in "qkvo")
    assert q is k is v and q is not o
    gate, down, up = (found[f"{layer}block_sparse_moe.experts.3.w{n}.weight:hessian"] for n in (1, 2, 3))
    assert gate is up and gate is not down
    assert not q.array.flags.writeable and (q.array == q.array.T).all()


@pytest.mark.parametrize(("dtype", "element"), [("float32", 4), ("bfloat16", 2)])
def test_the_price_says_what_the_folder_takes(model: ModelInfo, tmp_path: Path, dtype: str, element: int) -> None:
    spec = kit.spec_of(model, samples=7, dtype=dtype)
    priced = price(model, spec, requests(model), kit.MEMORY)
    assert priced.tokens == 7 * 24
    calibration = kit.calibration(model, requests(model), tmp_path / "work", spec)
    next(calibration.waves(0))
    files = [p.stat().st_size for p in (tmp_path / "work").iterdir() if "hidden" in p.name]
    assert sum(files) == priced.scratch == 2 * (7 * 24 * 64 * element + 32)
    calibration.close()


def test_pricing_reads_no_weights(model: ModelInfo) -> None:
    file = model.path / "model.safetensors"
    spec = kit.spec_of(model)
    with file.open("r+b") as weights:
        weights.truncate(min(t.offset for t in model.tensors.values()))
    assert price(model, spec, requests(model), kit.MEMORY).layers == 3


def test_long_samples_are_run_in_smaller_batches(model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "TOKENS", 100)
    calibration = kit.calibration(model, requests(model), tmp_path / "work", kit.spec_of(model, samples=9))
    assert calibration._budget.batch == 4
    assert kit.gathered(calibration)["model.layers.2.self_attn.q_proj.weight:hessian"].tokens == 9 * 24


def test_experts_that_no_token_reached_are_reported(model: ModelInfo, tmp_path: Path) -> None:
    """Sixteen tokens cannot reach eleven experts with sixteen tokens each."""
    events = []
    wanted = requests(model)
    spec = kit.spec_of(model, samples=1, length=16)
    calibration = kit.calibration(model, wanted, tmp_path / "work", spec, on_event=events.append)
    found = kit.gathered(calibration)
    told = [e for e in events if e["event"] == "not-reached"]
    few = {e["linear"] for e in told}
    assert few == {r.linear for r in wanted if ".experts." in r.linear and found[r.key].tokens == 0}
    assert few and all(e["tokens"][0] < 16 for e in told)
    assert all(not found[f"{name}:hessian"].array.any() for name in few)
    assert all(calibration.counts[e["linear"]] == tuple(e["tokens"]) for e in told)


def test_a_stack_of_experts_is_one_statistic(model: ModelInfo, tmp_path: Path) -> None:
    experts = tuple(f"model.layers.1.block_sparse_moe.experts.{e}.w2.weight" for e in range(11))
    spec = kit.spec_of(model, linears={"blk.1.ffn_down_exps.weight": experts})
    single = [StatRequest(name, "mean_square") for name in experts]
    stack = StatRequest("blk.1.ffn_down_exps.weight", "mean_square")
    calibration = kit.calibration(model, [stack, *single], tmp_path / "work", spec)
    assert calibration.layer_of(stack) == 1
    found = kit.gathered(calibration)
    np.testing.assert_array_equal(found[stack.key], np.concatenate([found[r.key] for r in single]))
    assert found[stack.key].shape == (11 * 96,) and found[stack.key].dtype == np.float32
    assert sum(calibration.counts[stack.linear]) == 3 * 24 * 3  # each token goes to three


def test_what_the_output_layer_is_fed_comes_last(tmp_path: Path) -> None:
    import plain_model
    from qconvd.calibration.samples import tokens

    for name, head in (
        ("llama", "lm_head.weight"),
        ("gemma2", "model.embed_tokens.weight"),
        ("falcon-7b", "transformer.word_embeddings.weight"),
    ):
        model = kit.family(tmp_path, name)
        spec = kit.spec_of(model, linears={"output.weight": (head,)})
        request = StatRequest("output.weight", "mean_square")
        calibration = kit.calibration(model, [request], tmp_path / f"{name}-work", spec)
        assert calibration.layers == 4 and calibration.layer_of(request) == 3
        found = kit.gathered(calibration)
        _, fed = plain_model.Plain(model.path).run(tokens(model, spec))
        rows = fed["lm_head"][0].astype(np.float64)
        np.testing.assert_allclose(found[request.key], (rows**2).mean(0), rtol=1e-3)
