"""GGML files in other people's readers: ctransformers and llm-rs compute what the same weights give elsewhere.

That a file loads proves little: ctransformers loads gpt2 files with tensors missing. So logits are compared, with those that
transformers computes from the very weights of the file, decoded by numpy.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import ggml_models
from converted import converted
from gguf_readers import Llama, generated, mean_kl, reference

pytestmark = pytest.mark.readers

TYPES = ("f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
FAMILIES = ("llama", "gpt2", "gptj", "gpt_neox")
SMALLEST = 0.999
"""Readers multiply blocks by activations that they round to 8 bits themselves, so that logits follow and are not the same."""


def ggml(source: Path, out: Path, kind: str, **options: bool) -> Path:
    made = converted(source, out, "ggml", types=[kind], **options)
    made.verify()
    return (made.folder / made.plan.files[0].path).rename(out / f"model.ggmlv3.{kind}.bin")


def last(path: Path, family: str, ids: Sequence[int]) -> np.ndarray:
    """ctransformers' logits at the last position."""
    import ctransformers.llm

    model = ctransformers.llm.LLM(str(path), model_type=family, lib="avx2")
    model.eval(list(ids), batch_size=5)
    return np.array(model.logits, np.float32)


def greedy(path: Path, family: str, ids: Sequence[int], count: int) -> list[int]:
    """What ctransformers goes on with."""
    made = list(ids)
    for _ in range(count):
        made.append(int(last(path, family, made).argmax()))
    return made[len(ids) :]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def tokens(count: int = 24) -> list[int]:
    return [int(i) for i in np.random.default_rng(1).integers(3, ggml_models.VOCAB - 200, count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_type_computes_what_its_weights_give(family: str, tmp_path: Path) -> None:
    source, ids = ggml_models.make(tmp_path / "m", family), tokens()
    found = {}
    for kind in TYPES:
        file = ggml(source, tmp_path / kind, kind)
        weights = converted(file, tmp_path / f"{kind}-st", "fp16", dtype="f32")
        found[kind] = correlation(last(file, family, ids), reference(weights.folder, ids)[-1])
    print(family, {kind: f"{value:.6f}" for kind, value in found.items()})
    assert {kind: value for kind, value in found.items() if not value >= SMALLEST} == {}
    theirs, made = list(ids), []
    for _ in range(6):
        made.append(int(reference(source, theirs)[-1].argmax()))
        theirs.append(made[-1])
    assert greedy(tmp_path / "f16" / "model.ggmlv3.f16.bin", family, ids, 6) == made


def test_k_types_compute_what_their_weights_give(tmp_path: Path) -> None:
    source = ggml_models.make(tmp_path / "m", "llama", spread=2.5, hidden_size=256, head_dim=64, intermediate_size=768)
    ids = tokens()
    found = {}
    for kind in ("q2_K", "q3_K_M", "q4_K_M", "q5_K_S", "q6_K"):
        file = ggml(source, tmp_path / kind, kind)
        weights = converted(file, tmp_path / f"{kind}-st", "fp16", dtype="f32")
        found[kind] = correlation(last(file, "llama", ids), reference(weights.folder, ids)[-1])
    print({kind: f"{value:.6f}" for kind, value in found.items()})
    assert {kind: value for kind, value in found.items() if not value >= SMALLEST} == {}


def test_expanded_heads_compute_what_grouped_ones_do(tmp_path: Path) -> None:
    source, ids = ggml_models.make(tmp_path / "m", "llama", num_key_value_heads=2, tie_word_embeddings=True), tokens()
    file = ggml(source, tmp_path / "f32", "f32", expand_gqa=True)
    assert correlation(last(file, "llama", ids), reference(source, ids)[-1]) > 0.99999


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_current_llama_cpp_computes_the_same_from_the_gguf_of_it(family: str, tmp_path: Path) -> None:
    source, ids = ggml_models.make(tmp_path / "m", family), tokens()
    for kind in ("f16", "q8_0", "q4_0"):
        file = ggml(source, tmp_path / kind, kind)
        made = converted(file, tmp_path / f"{kind}-gguf", "gguf", types=[kind.upper()])
        gguf = made.folder / made.plan.files[0].path
        llama = Llama(gguf)
        before, after = last(file, family, ids), llama.logits(ids)[-1]
        assert correlation(before, after) >= SMALLEST, kind
        assert before.argmax() == after.argmax(), kind
        weights = converted(file, tmp_path / f"{kind}-st", "fp16", dtype="f32")
        assert mean_kl(reference(weights.folder, ids), llama.logits(ids)) < 0.02, kind
    text = "Alice had peeped into the book: once or twice"
    # LLaMA's old readers were handed the space before a text, which GGUF's put there themselves.
    import ctransformers.llm

    old = ctransformers.llm.LLM(str(file), model_type=family, lib="avx2").tokenize(f" {text}" if family == "llama" else text)
    assert llama.tokens(text, special=True) == old
    assert isinstance(generated(gguf, text, 4), str)


@pytest.mark.parametrize("family", FAMILIES)
def test_llm_rs_cuts_text_alike_and_writes_the_same(family: str, tmp_path: Path) -> None:
    """llm-rs puts token 1, LLaMA's BOS, before every text, whatever the family: ctransformers is asked with it, too."""
    if importlib.util.find_spec("llm_rs") is None:
        pytest.skip("llm-rs is not installed")
    import ctransformers.llm
    import llm_rs

    kinds = {"llama": llm_rs.Llama, "gpt2": llm_rs.Gpt2, "gptj": llm_rs.GptJ, "gpt_neox": llm_rs.GptNeoX}
    source, text = ggml_models.make(tmp_path / "m", family), " Alice had peeped into the book"
    once = llm_rs.GenerationConfig(top_k=1, max_new_tokens=8, seed=1, repetition_penalty=1.0)
    for kind in ("f16", "q8_0", "q4_0"):
        file = ggml(source, tmp_path / kind, kind)
        # Its threads spin while they wait: more of them than cores take minutes.
        model = kinds[family](str(file), session_config=llm_rs.SessionConfig(threads=2))
        theirs = ctransformers.llm.LLM(str(file), model_type=family, lib="avx2")
        ids = [int(t) for t in model.tokenize(text)]
        assert ids == [t for t in theirs.tokenize(text) if t != 1], kind
        written = model.generate(text, generation_config=once).text
        assert written, kind
        if kind == "f16":
            again = b"".join(theirs.detokenize([t], decode=False) for t in greedy(file, family, [1, *ids], 8))
            assert written.encode() == again
