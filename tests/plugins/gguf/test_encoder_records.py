"""Encoders against llama.cpp's converter, tokenizers included: metadata key by key, tensors by name, order, type and bytes.

Where ours differ on purpose, the difference stands here; docs/reference/gguf.md gives the reasons.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import encoder_models
from gguf_files import converted, differences, metadata, planned, tensors

SPACES = {"tokenizer.ggml.add_space_prefix", "tokenizer.ggml.remove_extra_whitespaces"}
OTHER_KEYS = {
    "xlm-roberta": SPACES,
    "xlm-roberta-reranker": SPACES,
    "nomic-bert-moe": SPACES,
    "bert-classifier": {"general.size_label"},
}
"""llama.cpp asks transformers' settings how a unigram tokenizer.json treats spaces, qconvd the tokenizer itself."""
OTHER_TENSORS = {
    "bert-classifier": {"cls.weight", "cls.bias"},
    "t5": {"dec.output_norm.weight"},
    "umt5": {"dec.output_norm.weight"},
}
"""BERT's pooler, which llama.cpp's converter leaves out; and the division before tied output embeddings."""


@pytest.mark.parametrize("name", encoder_models.NAMES)
def test_an_encoders_file_is_llama_cpps(name: str, tmp_path: Path) -> None:
    record = encoder_models.record(name)
    path = made(record, tmp_path)
    without = OTHER_KEYS.get(name, set())
    assert differences(_ordered(metadata(path), without), _ordered(record["metadata"], without)) == []
    without = OTHER_TENSORS.get(name, set())
    ours, theirs = ({k: v for k, v in t.items() if k not in without} for t in (tensors(path), record["tensors"]))
    assert differences(ours, theirs) == []
    assert without <= set(tensors(path))


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_the_oldest_checkpoints_of_bert_are_the_same(prefix: str, tmp_path: Path) -> None:
    """They call a norm's weight gamma and its bias beta, and may begin every name with the model's."""
    record = encoder_models.record("bert")
    path = made(record, tmp_path)
    old = encoder_models.make(tmp_path / "old", record)
    weights = load_file(old / "model.safetensors")
    named = {
        prefix + (k.replace(".weight", ".gamma").replace(".bias", ".beta") if "LayerNorm" in k else k): v
        for k, v in weights.items()
    }
    named[prefix + "embeddings.position_ids"] = np.arange(128, dtype=np.int64).reshape(1, -1)
    named["cls.predictions.bias"] = np.zeros(288, np.float32)
    save_file(named, old / "model.safetensors")
    renamed = converted(old, ["F16"], tmp_path / "old_out", pre=encoder_models.PRE)["F16"]
    assert dict(sorted(tensors(renamed).items())) == dict(sorted(tensors(path).items()))
    assert {d.tensor.removeprefix(prefix) for d in planned(old, "F16").left_out if d.became == "dropped"} >= {
        "embeddings.position_ids",
        "pooler.dense.weight",
    }


def test_minilms_file_is_llama_cpps(minilm: Path, golden: Path, tmp_path: Path) -> None:
    """But for the model that its config names as its origin, and the list of data sets."""
    with gzip.open(golden / "minilm_gguf.json.gz") as file:
        record = json.load(file)
    path = converted(minilm, ["F16"], tmp_path / "out", name="MiniLM-L6-H384-uncased")["F16"]
    theirs = {k: v for k, v in record["metadata"].items() if not k.startswith(("general.organization", "general.dataset"))}
    assert differences(metadata(path), theirs) == []
    assert differences(tensors(path), record["tensors"]) == []


def test_xlm_robertas_sentencepiece_file_gives_the_same_tokens_as_its_tokenizer_json(tmp_path: Path) -> None:
    """In that file, ids are one less, and the first three pieces are others."""
    record = encoder_models.record("xlm-roberta")
    model = encoder_models.make(tmp_path / "model", record)
    wanted = {k: v for k, _, v in planned(model, "F16").container.metadata}
    settings = json.loads((model / "tokenizer_config.json").read_text())
    encoder_models.spiece(model, ["<unk>", "<s>", "</s>"])
    (model / "spiece.model").rename(model / "sentencepiece.bpe.model")
    assert {k: v for k, _, v in planned(model, "F16").container.metadata} == wanted
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    found = {k: v for k, _, v in planned(model, "F16").container.metadata}
    for key in ("tokens", "token_type"):
        assert found[f"tokenizer.ggml.{key}"] == wanted[f"tokenizer.ggml.{key}"]
    assert found["tokenizer.ggml.scores"] == pytest.approx(wanted["tokenizer.ggml.scores"])


def made(record: dict[str, Any], tmp_path: Path) -> Path:
    model = encoder_models.make(tmp_path / "model", record)
    options = {} if record["tokenizer"] in ("unigram", "spiece") else {"pre": encoder_models.PRE}
    return converted(model, ["F16"], tmp_path / "out", name="model", **options)["F16"]


def _ordered(keys: dict[str, Any], without: set[str]) -> dict[str, Any]:
    """The tokenizer's keys last and by name: llama.cpp writes them in another order for each kind."""
    wanted = {k: v for k, v in keys.items() if k not in without}
    return dict(sorted(wanted.items(), key=lambda item: item[0] if item[0].startswith("tokenizer.") else ""))
