"""GGUF read backwards: every family's records become a checkpoint that becomes the same GGUF, or a refusal says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import family_models
import gguf_files
from converted import converted
from qconvd.api import Plan
from qconvd.checkpoints import inspect
from qconvd.errors import Unsupported
from qconvd.plugins import plugins

RECORDS = {name: family_models.record(name) for name in family_models.NAMES}
REFUSED = {
    "deepseek2": "qk_nope_head_dim is missing",
    "deepseek2-lite": "qk_nope_head_dim is missing",
    "deepseek2-plain": "qk_nope_head_dim is missing",
    "deepseek3": "qk_nope_head_dim is missing",
    "ministral3": "Mistral3ForConditionalGeneration is multimodal, and the other parts of the model are not in the file",
    "mistral3-vision": "Mistral3ForConditionalGeneration is multimodal, and the other parts of the model are not in the file",
    "phi3-longrope": "rope_factors_long.weight would be None, and is (6,)",
}


def gguf_of(name: str, out: Path, type_: str = "F32") -> Path:
    record = RECORDS[name]
    source = family_models.make(out / "m", family_models.old_spelling(record["config"]), record["checkpoint"])
    made = converted(source, out / "gguf", "gguf", types=[type_], pre=family_models.PRE)
    return made.folder / made.plan.files[0].path


def planned(path: Path, **options: Any) -> Plan:
    fp16 = plugins().formats["fp16"]
    return fp16.plan(inspect(path), fp16.Options.model_validate(options))


@pytest.mark.parametrize("name", [name for name in RECORDS if name not in REFUSED])
def test_every_family_becomes_a_checkpoint_that_becomes_the_same_gguf(name: str, tmp_path: Path) -> None:
    first = gguf_of(name, tmp_path)
    back = converted(first, tmp_path / "back", "fp16", dtype="f32")
    back.verify()
    again = converted(back.folder, tmp_path / "again", "gguf", types=["F32"], pre=family_models.PRE)
    second = again.folder / again.plan.files[0].path
    assert gguf_files.tensors(second) == gguf_files.tensors(first)
    arch = inspect(first).architecture
    ours, theirs = gguf_files.metadata(second), gguf_files.metadata(first)
    wanted = {k: v for k, v in theirs.items() if k.startswith((f"{arch}.", "tokenizer."))}
    assert {key: ours.get(key) for key in wanted} == wanted


@pytest.mark.parametrize("name", REFUSED)
def test_what_config_json_would_not_say_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        planned(gguf_of(name, tmp_path))
    assert caught.value.what == f"the original checkpoint cannot be rebuilt: {REFUSED[name]}"
    assert caught.value.fix == "convert the checkpoint that it was made from"


def test_weights_that_were_rounded_are_decoded_and_that_is_told(tmp_path: Path) -> None:
    first = gguf_of("mistral", tmp_path, "Q8_0")
    back = converted(first, tmp_path / "back", "fp16", dtype="f32")
    back.verify()
    assert "the weights were rounded to Q8_0 before" in back.plan.notes[-1]
    # Values of Q8_0 are Q8_0's again: encoding what was decoded gives the same blocks.
    again = converted(back.folder, tmp_path / "again", "gguf", types=["Q8_0"], pre=family_models.PRE)
    assert gguf_files.tensors(again.folder / again.plan.files[0].path) == gguf_files.tensors(first)


def test_real_models_come_back_with_their_tokenizers(smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2's GGUF says all that transformers needs, and its tokenizer cuts text as the original's."""
    from tokenizers import Tokenizer

    gguf = plugins().formats["gguf"]
    made = converted(smollm2, tmp_path / "g", "gguf", types=["BF16"])
    back = converted(made.folder / made.plan.files[0].path, tmp_path / "b", "fp16", dtype="bf16")
    assert gguf.name == "gguf"
    ours, theirs = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in (back.folder, smollm2))
    for text in (
        "Once upon a time, in 1984: déjà vu!",
        "def f(x):\n\treturn x ** 2",
        "<|im_start|>user\nHi<|im_end|>",
        "漢字 🙂",
    ):
        assert ours.encode(text).ids == theirs.encode(text).ids
    config = json.loads((back.folder / "config.json").read_text())
    wanted = json.loads((smollm2 / "config.json").read_text())
    for key in (
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
        "tie_word_embeddings",
    ):
        assert config[key] == wanted[key], key
    settings = json.loads((back.folder / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == json.loads((smollm2 / "tokenizer_config.json").read_text())["chat_template"]
    again = converted(back.folder, tmp_path / "again", "gguf", types=["BF16"])
    assert gguf_files.tensors(again.folder / again.plan.files[0].path) == gguf_files.tensors(
        made.folder / made.plan.files[0].path
    )


def test_an_architecture_that_no_family_knows_is_refused(tmp_path: Path) -> None:
    from checkpoint_files import STRING, gguf, key, row, text

    path = tmp_path / "x.gguf"
    path.write_bytes(gguf([key("general.architecture", STRING, text("rwkv7"))], [row("w", [4, 2], 0, 0)], 32))
    with pytest.raises(Unsupported) as caught:
        planned(path)
    assert caught.value.what == "the architecture rwkv7 is not known, so its tensors cannot be named"
