"""What cannot be calibrated is refused in words, before anything long begins."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer

import calibration_kit as kit
from qconvd import checkpoints
from qconvd.calibration import sources
from qconvd.calibration.options import CalibrationOptions, calibration_spec
from qconvd.calibration.pricing import price
from qconvd.calibration.samples import tokens
from qconvd.checkpoints import ModelInfo
from qconvd.engine.plan import StatRequest
from qconvd.errors import QconvdError, Unsupported


@pytest.fixture
def llama(tmp_path: Path) -> ModelInfo:
    return kit.family(tmp_path, "llama")


def hessian(name: str) -> list[StatRequest]:
    return [StatRequest(name, "hessian")]


Q = "model.layers.0.self_attn.q_proj.weight"


def refused(model: ModelInfo, requests: list[StatRequest], memory: int = kit.MEMORY, **spec: object) -> QconvdError:
    with pytest.raises(QconvdError) as caught:
        price(model, kit.spec_of(model, **spec), requests, memory)
    return caught.value


def test_no_text(llama: ModelInfo, tmp_path: Path) -> None:
    text = kit.small_text(tmp_path)
    options = CalibrationOptions(text=str(text))
    text.unlink()
    with pytest.raises(QconvdError) as caught:
        calibration_spec(options, llama)
    assert str(caught.value) == (
        f"{text}: there is no calibration text here\n"
        "  name a file or folder that is there as `text` under `calibration`, or hub:datasets/owner/name"
    )


@pytest.mark.parametrize("address", ["https://example.org/a.txt", "http://example.org"])
def test_a_web_address_is_no_text(address: str) -> None:
    with pytest.raises(ValidationError, match="is on the web; download it, and name the file"):
        CalibrationOptions(text=address)


def test_a_text_that_is_too_short(llama: ModelInfo, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("x" * 100)
    error = refused(llama, hessian(Q), text=tmp_path / "short.txt", samples=8)
    assert error.what == (
        "the calibration text is too short: it has 100 tokens, which make 4 samples of 24; 8 of them (192 tokens) are asked for"
    )
    assert error.where == str(tmp_path / "short.txt")
    assert error.fix == "name a longer text under `calibration`, or ask for fewer or shorter samples"


def test_a_text_that_changed(llama: ModelInfo, tmp_path: Path) -> None:
    spec = kit.spec_of(llama)
    Path(spec.text).write_text("other")
    calibration = kit.calibration(llama, [], tmp_path / "work", spec)
    with pytest.raises(QconvdError, match="the calibration text changed since it was planned with"):
        calibration.finish(0)


def test_a_text_that_changed_since_the_recipe_was_read(llama: ModelInfo, tmp_path: Path) -> None:
    text = kit.small_text(tmp_path)
    options = CalibrationOptions(text=str(text))
    text.write_text("other")
    with pytest.raises(QconvdError) as caught:
        calibration_spec(options, llama)
    assert str(caught.value) == (
        f"{text}: the calibration text changed since the recipe was read\n"
        "  reload the daemon (SIGHUP, or `systemctl reload qconvd`) or run the command again"
    )


def test_a_text_that_changes_while_it_is_read(llama: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = kit.spec_of(llama)

    def documents(text: str) -> Iterator[sources.Document]:
        yield from sources.documents(text)
        Path(text).write_text("other")  # somebody else does

    monkeypatch.setattr("qconvd.calibration.samples.documents", documents)
    with pytest.raises(QconvdError, match="the calibration text changed since it was planned with"):
        tokens(llama, spec)


def test_no_tokenizer(llama: ModelInfo) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (llama.path / name).unlink()
    with pytest.raises(Unsupported) as caught:
        kit.spec_of(checkpoints.inspect(llama.path))
    assert caught.value.what == "calibration needs the model's tokenizer, and there is none"
    assert caught.value.fix == "add tokenizer.json or tokenizer.model of the model to the folder"


def test_a_tokenizer_of_another_model(llama: ModelInfo, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(llama.path / "tokenizer.json"))
    tokenizer.add_tokens([*map(str, range(100, 140)), " the "])
    tokenizer.save(str(llama.path / "tokenizer.json"))
    calibration = kit.calibration(checkpoints.inspect(llama.path), [], tmp_path / "work", kit.spec_of(llama, samples=99))
    with pytest.raises(QconvdError, match="its tokenizer gives the token 301, and the model has 288"):
        calibration.finish(0)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"vocab_size": 90}, "transformers cannot build LlamaForCausalLM from its config.json: "),
        ({"hidden_size": "64"}, "transformers cannot read its config.json: "),
        ({"head_dim": 7}, "transformers cannot read its config.json: "),
        ({"partial_rotary_factor": 99}, "transformers' LlamaForCausalLM cannot run as its config.json says: "),
        (
            {"vocab_size": 10**12},
            "model.embed_tokens.weight is 288 x 64, and transformers' LlamaForCausalLM wants 1000000000000 x 64",
        ),
        ({"num_hidden_layers": 10**9}, "its config.json says 1000000000 layers, and the checkpoint has 51 tensors in all"),
    ],
)
def test_a_config_that_makes_no_model(llama: ModelInfo, changes: dict[str, object], what: str) -> None:
    assert refused(kit.reconfigured(llama, **changes), hessian(Q)).what.startswith(what)


@pytest.mark.parametrize(("architecture", "model_type"), [("BertForMaskedLM", "bert"), ("T5ForConditionalGeneration", "t5")])
def test_no_causal_language_model(llama: ModelInfo, architecture: str, model_type: str) -> None:
    model = kit.reconfigured(
        llama, architectures=[architecture], model_type=model_type, is_encoder_decoder=model_type == "t5" or None
    )
    with pytest.raises(Unsupported, match=f"calibration needs a causal language model; this is {architecture}") as caught:
        kit.spec_of(model)
    assert caught.value.fix == "choose a format that needs no calibration"


def test_remote_code(llama: ModelInfo) -> None:
    (llama.path / "modeling_mine.py").write_text("raise SystemExit('run')")
    auto = {"AutoModelForCausalLM": "modeling_mine.MyForCausalLM", "AutoConfig": "modeling_mine.MyConfig"}
    model = kit.reconfigured(llama, auto_map=auto, architectures=["MyForCausalLM"], model_type="mine")
    error = refused(model, hessian(Q))
    assert error.what == (
        "MyForCausalLM is not in transformers; it would need the code that comes with the model, which qconvd never runs"
    )
    assert error.fix == "choose a format that needs no calibration"


def test_code_beside_a_model_that_transformers_has_is_not_run(llama: ModelInfo) -> None:
    (llama.path / "modeling_mine.py").write_text("raise SystemExit('run')")
    model = kit.reconfigured(llama, auto_map={"AutoModelForCausalLM": "modeling_mine.MyForCausalLM"})
    assert price(model, kit.spec_of(model), hessian(Q), kit.MEMORY).layers == 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_no_numbers_name_the_linear(llama: ModelInfo, tmp_path: Path, value: float) -> None:
    norm = kit.read(llama, "model.layers.1.post_attention_layernorm.weight").copy()
    norm[3] = value
    model = kit.rewritten(llama, tmp_path / "broken", {"model.layers.1.post_attention_layernorm.weight": norm})
    wanted = [StatRequest(f"model.layers.1.mlp.{n}_proj.weight", "hessian") for n in ("gate", "down")]
    calibration = kit.calibration(model, wanted, tmp_path / "work", kit.spec_of(model))
    with pytest.raises(QconvdError) as caught:
        kit.gathered(calibration)
    assert caught.value.what == "model.layers.1.mlp.gate_proj.weight (layer 1) is fed NaN or infinite activations"
    assert caught.value.fix == "the model or its conversion is damaged, or it needs a wider type than it has"


def test_activations_that_nobody_asks_for_name_the_layer(llama: ModelInfo, tmp_path: Path) -> None:
    norm = np.full_like(kit.read(llama, "model.layers.1.input_layernorm.weight"), np.nan)
    model = kit.rewritten(llama, tmp_path / "broken", {"model.layers.1.input_layernorm.weight": norm})
    wanted = hessian("model.layers.2.self_attn.q_proj.weight")
    with pytest.raises(QconvdError, match="layer 1 gives NaN or infinite activations"):
        kit.gathered(kit.calibration(model, wanted, tmp_path / "work", kit.spec_of(model)))


def test_too_little_memory_is_known_before_the_start(llama: ModelInfo) -> None:
    error = refused(llama, hessian(Q), memory=256 << 20)
    assert error.what.startswith("calibration needs at least 48")
    assert "of memory, and limits.memory allows 256.0 MiB: " in error.what and "for the largest statistic" in error.what
    assert error.fix == "raise limits.memory (--memory), or calibrate with shorter samples"


def test_linears_that_text_does_not_go_through_are_named(llama: ModelInfo) -> None:
    error = refused(llama, [*hessian(Q), *hessian("model.norm.weight"), *hessian("model.embed_tokens.weight")])
    assert error.what == ("no text goes through model.norm.weight, model.embed_tokens.weight when transformers runs this model")


def test_a_missing_weight_is_found_from_headers(llama: ModelInfo) -> None:
    tensors = dict(llama.tensors)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    error = refused(kit.with_tensors(llama, tensors), hessian(Q))
    assert error.what == (
        "transformers' LlamaForCausalLM has the parameter model.layers.1.mlp.up_proj.weight, and the checkpoint nothing that "
        "is known to hold it"
    )


def test_samples_longer_than_the_models_context(llama: ModelInfo) -> None:
    error = refused(llama, hessian(Q), length=300)
    assert error.what == "samples of 300 tokens are longer than the model's context of 256"
    assert error.fix == "say `length: 256` or less under `calibration`, or leave it out"


def test_where_nothing_is_said_samples_are_as_long_as_the_context_at_the_most(llama: ModelInfo) -> None:
    assert kit.spec_of(llama, length=None).length == 256
    assert kit.spec_of(kit.reconfigured(llama, max_position_embeddings=4096), length=None).length == 512
    assert kit.spec_of(kit.gpt2(llama.path.parent / "gpt2"), length=None).length == 256
    within = kit.reconfigured(llama, max_position_embeddings=None, text_config={"max_position_embeddings": 40})
    assert kit.spec_of(within, length=None).length == 40
    assert kit.spec_of(kit.reconfigured(llama, text_config=None), length=None).length == 512


def test_a_length_that_transformers_alone_knows_to_be_too_much(llama: ModelInfo) -> None:
    error = refused(kit.reconfigured(llama, max_position_embeddings=None), hessian(Q), length=4096)
    assert error.what == "samples of 4096 tokens are longer than the model's context of 2048"


@pytest.mark.parametrize("context", [0, -1, 15])
def test_a_context_that_is_none(llama: ModelInfo, context: int) -> None:
    error = refused(kit.reconfigured(llama, max_position_embeddings=context), hessian(Q))
    assert error.what == (
        f"its config.json says a context of {context} tokens (max_position_embeddings), and calibration needs 16 at least"
    )
    assert error.fix == (
        "put the model's real max_position_embeddings into config.json, or choose a format that needs no calibration"
    )


def test_experts_of_a_class_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = kit.family(tmp_path, "mixtral")
    monkeypatch.setattr("qconvd.calibration.trace.VERIFIED", frozenset({"OtherExperts"}))
    error = refused(model, hessian(Q))
    assert error.what == "the experts of MixtralExperts are not known to calibration, which knows OtherExperts"


def test_without_transformers_it_says_what_to_install(llama: ModelInfo, tmp_path: Path) -> None:
    code = f"""
import sys
from dataclasses import replace
sys.modules["transformers"] = None  # as if it were not installed
from pathlib import Path
from qconvd import checkpoints
from qconvd.calibration.options import CalibrationOptions, calibration_spec
from qconvd.calibration.pricing import price
from qconvd.engine.plan import StatRequest
model = checkpoints.inspect(Path({str(llama.path)!r}))
try:
    price(model, calibration_spec(CalibrationOptions(), model), [StatRequest({Q!r}, "hessian")], 1 << 30)
except Exception as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == (
        "calibration runs models through torch and transformers, and transformers is not installed\n"
        "  pip install 'qconvd[calibration]'\n"
    )
