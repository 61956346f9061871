"""Encoders in llama.cpp: what they make of every token, of a pair to be scored, or of a text to be answered, as transformers
computes it.

llama.cpp computes GELU from a table in F16 and by its tanh form, hence bounds of a hundredth and not less.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import encoder_models
from gguf_files import converted, metadata
from gguf_readers import Llama, embedded, mean_kl, reranked

pytestmark = pytest.mark.readers

SENTENCES = (
    "The café's naïve façade: déjà vu! Größe, Ελληνικά, Български. 漢字とかな, กขค. 🙂🚀👩‍💻",
    "def f(x: int) -> int:\n\treturn x ** 2  # 12345 != 67_890",
    "A man is eating food.",
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do.",
)
"""No Korean: older builds of llama.cpp do not take its syllables apart as BERT's tokenizer does."""
CLASSIFIERS = ("bert-classifier", "xlm-roberta-reranker")
ANSWERS = ("t5", "flan-t5", "umt5")
CODE_ELSEWHERE = ("nomic-bert-moe",)
"""No class of transformers to compare with."""
EMBEDDERS = [name for name in encoder_models.NAMES if name not in (*CLASSIFIERS, *ANSWERS, *CODE_ELSEWHERE)]


def files(name: str, tmp_path: Path) -> tuple[dict[str, Any], Path, dict[str, Path]]:
    record = encoder_models.record(name)
    model = encoder_models.make(tmp_path / "model", record)
    options = {"pre": encoder_models.PRE} if record["tokenizer"] == "byte_bpe" else {}
    return record, model, converted(model, ["F32", "F16"], tmp_path / "out", **options)


def tokens(count: int, vocab: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(2).integers(5, vocab, count)]


@pytest.mark.parametrize("name", EMBEDDERS)
def test_embeddings_of_tokens_are_transformers(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, T5EncoderModel

    record, model, made = files(name, tmp_path)
    load = T5EncoderModel if name.startswith("t5") else AutoModel
    ids = tokens(60, record["config"]["vocab_size"])
    with torch.no_grad():
        source = load.from_pretrained(model, dtype=torch.float32).eval()
        theirs = source(torch.tensor([ids])).last_hidden_state[0].numpy()
    off = {type_: _distance(Llama(path).embeddings(ids), theirs) for type_, path in made.items()}
    print(name, {type_: f"{value:.1e}" for type_, value in off.items()})
    assert max(off.values()) < 1e-2


def test_minilms_sentences_are_transformers(minilm: Path, tmp_path: Path) -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    made = converted(minilm, ["F32", "F16", "Q8_0"], tmp_path)
    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    source = AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    llama = Llama(made["F32"])
    theirs = []
    for text in SENTENCES:
        ids = tokenizer.encode(text).ids
        assert llama.tokens(text, special=True) == ids
        with torch.no_grad():
            mean = source(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()
        theirs.append(mean / np.linalg.norm(mean))
    for type_, least in (("F32", 0.99999), ("F16", 0.99999), ("Q8_0", 0.999)):
        cosines = (embedded(made[type_], SENTENCES) * np.array(theirs)).sum(axis=1)
        print("minilm", type_, cosines.min())
        assert cosines.min() > least


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_scores_are_transformers(name: str, tmp_path: Path) -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForSequenceClassification

    _, model, made = files(name, tmp_path)
    query, texts = "the cat", ("the hat", "singing on the mat")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    source = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        # llama.cpp has one kind of token only, which is why no token types are given here.
        theirs = [float(source(torch.tensor([tokenizer.encode(query, t).ids])).logits[0, 0]) for t in texts]
    assert _distance(reranked(made["F32"], query, texts), np.array(theirs)) < 1e-2


def test_the_newest_llama_cpp_tells_cases_apart(tmp_path: Path) -> None:
    record = encoder_models.record("bert")
    model = encoder_models.make(tmp_path / "model", record)
    data = json.loads((model / "tokenizer.json").read_text())
    data["normalizer"] |= {"lowercase": False, "strip_accents": False}
    (model / "tokenizer.json").write_text(json.dumps(data))
    made = converted(model, ["F32"], tmp_path / "out")["F32"]
    # Capitals and é are not in the vocabulary: a reader that lower-cases would know them.
    lower, upper, unknown = embedded(made, ["the cat", "THE CAT", "\u6f22 \u5b57"])
    assert np.allclose(upper, unknown, atol=1e-3)
    assert not np.allclose(upper, lower, atol=1e-3)


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_transformers(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    record, model, made = files(name, tmp_path)
    ids, answer = tokens(60, record["config"]["vocab_size"]), [0, *tokens(30, record["config"]["vocab_size"])]
    with torch.no_grad():
        source = AutoModelForSeq2SeqLM.from_pretrained(model, dtype=torch.float32).eval()
        theirs = source(torch.tensor([ids]), decoder_input_ids=torch.tensor([answer])).logits[0].numpy()
    for path in made.values():
        assert mean_kl(theirs, Llama(path).answers(ids, answer)) < 1e-3


@pytest.mark.parametrize("name", encoder_models.NAMES)
def test_every_kind_of_tokenizer_is_cut_alike(name: str, tmp_path: Path) -> None:
    record, model, made = files(name, tmp_path)
    ours = Llama(made["F32"]).tokens(encoder_models.TEXT, special=True)
    assert ours == _theirs(model, encoder_models.TEXT)
    assert metadata(made["F32"])["tokenizer.ggml.model"] == {"wordpiece": "bert", "byte_bpe": "gpt2"}.get(
        record["tokenizer"], "t5"
    )


def _theirs(model: Path, text: str) -> list[int]:
    if (model / "tokenizer.json").exists():
        from tokenizers import Tokenizer

        return list(Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids)
    from sentencepiece import SentencePieceProcessor

    # T5 ends every text with its EOS.
    return [*SentencePieceProcessor(model_file=str(model / "spiece.model")).encode(text), 1]


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How far apart, relative to how large."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
