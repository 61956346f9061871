"""GGUF files in llama.cpp: it loads them, cuts text into the same tokens, and computes what transformers computes.

The Kullback-Leibler divergences asserted here are upper bounds in nats per token; docs/reference/gguf.md has the measured ones.
SmolLM2's weights went through Q4_1 before they were published in this form, which is why Q4_1 keeps them better than Q5_1.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gguf_models
from gguf_files import converted
from gguf_readers import Llama, generated, mean_kl, reference
from installed import install, python
from olmo import write_olmo

pytestmark = pytest.mark.readers

BOUNDS = {"F32": 1e-5, "F16": 1e-4, "BF16": 1e-3, "Q8_0": 0.01, "Q4_0": 0.6, "Q4_1": 0.2, "Q5_0": 0.2, "Q5_1": 0.3}
TEXT = (
    "The café's naïve façade: déjà vu! Größe, Ελληνικά, Български. 漢字とかな, 한국어, กขค. 🙂🚀👩‍💻\n"
    "def f(x: int) -> int:\n\treturn x ** 2  # 12345 != 67_890\n"
    "<|im_start|>user\nHello<|im_end|>\n"
    "Once upon a time there was a little girl who lived in a village near the forest."
)
ALICE = (
    "Alice was beginning to get very tired of sitting by her sister on the bank,\nand of having nothing to do:  once or twice…"
)
ALPHABET_TEXT = ALICE.replace("…", "--")


@pytest.fixture(scope="module", params=["smollm2", "glass"])
def files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str, dict[str, Path]]]:
    """The source, a text that its tokenizer knows, and a file of each type."""
    source: Path = request.getfixturevalue(request.param)
    out = tmp_path_factory.mktemp(request.param)
    yield source, TEXT if request.param == "smollm2" else ALPHABET_TEXT, converted(source, list(BOUNDS), out)
    shutil.rmtree(out)


def test_tokens_are_the_sources_tokens_and_logits_follow_it(files: tuple[Path, str, dict[str, Path]]) -> None:
    from tokenizers import Tokenizer

    source, text, made = files
    wanted = Tokenizer.from_file(str(source / "tokenizer.json")).encode(text).ids
    theirs = reference(source, wanted)
    kl = {}
    for type_, path in made.items():
        llama = Llama(path)
        assert llama.tokens(text, special=True) == wanted, type_
        kl[type_] = mean_kl(theirs, llama.logits(wanted))
    print(source.name, {type_: f"{value:.2g}" for type_, value in kl.items()})
    assert {type_: value for type_, value in kl.items() if not value < BOUNDS[type_]} == {}


@pytest.mark.parametrize("type_", ["F16", "Q8_0", "Q4_0"])
def test_a_current_llama_cpp_goes_on_writing(files: tuple[Path, str, dict[str, Path]], type_: str) -> None:
    source, _, made = files
    assert generated(made[type_], "Alice said").strip() == _greedy(source, "Alice said", made[type_]).strip()


def _greedy(source: Path, prompt: str, path: Path) -> str:
    """What the older build writes for the same file, token by token."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    ids, llama = tokenizer.encode(prompt).ids, Llama(path)
    start = len(ids)
    for _ in range(8):
        ids.append(int(llama.logits(ids)[-1].argmax()))
    return str(tokenizer.decode(ids)[len(tokenizer.decode(ids[:start])) :])


SMALL = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, head_dim=None, num_key_value_heads=2
)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": gguf_models.CONFIGS["llama"] | SMALL,
    "biases": gguf_models.CONFIGS["llama"] | SMALL | {"attention_bias": True, "mlp_bias": True},
    "wide heads, tied": gguf_models.CONFIGS["llama-tied"] | SMALL | {"head_dim": 32},
    "llama 3": gguf_models.CONFIGS["llama"] | SMALL | {"head_dim": 32, "rope_scaling": LLAMA3},
    "linear scaling": gguf_models.CONFIGS["llama"] | SMALL | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "mistral": gguf_models.CONFIGS["llama"]
    | SMALL
    | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None, "num_key_value_heads": 1},
    "gpt2": gguf_models.CONFIGS["gpt2"] | {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "gpt2, wide": gguf_models.CONFIGS["gpt2"] | {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_inner": 96},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_a_family_computes_what_transformers_computes(variant: str, smollm2: Path, tmp_path: Path) -> None:
    config = {k: v for k, v in VARIANTS[variant].items() if v is not None} | {"torch_dtype": "float32"}
    # Ten times the usual spread: with small weights, a wrong rotation would hardly show in the logits.
    tensors = {n: _lively(gguf_models.weights(n, s)) for n, s in gguf_models.shapes(config).items()}
    gguf_models.write(tmp_path / "model", tensors, config)
    shutil.copy(smollm2 / "tokenizer.json", tmp_path / "model")
    made = converted(tmp_path / "model", ["F32", "F16"], tmp_path / "out")
    ids = list(np.random.default_rng(1).integers(0, 49152, 96))
    theirs = reference(tmp_path / "model", ids)
    assert mean_kl(theirs, Llama(made["F32"]).logits(ids)) < 1e-4
    assert mean_kl(theirs, Llama(made["F16"]).logits(ids)) < 1e-3


@pytest.mark.parametrize("clip", [None, 1.5])
def test_a_family_from_outside_computes_what_transformers_computes(clip: float | None, smollm2: Path, tmp_path: Path) -> None:
    """The package that docs/how-to/add-a-gguf-family.md shows."""
    install(Path(__file__).parents[1] / "thirdparty" / "qconvd-olmo", tmp_path / "site")
    write_olmo(tmp_path / "model", {"clip_qkv": clip})
    shutil.copy(smollm2 / "tokenizer.json", tmp_path / "model")
    code = """
import json, sys
from pathlib import Path
from gguf_files import converted
print(json.dumps({type_: str(path) for type_, path in converted(Path(sys.argv[1]), ["F32"], Path(sys.argv[2])).items()}))
"""
    made = python(code, tmp_path / "site", str(tmp_path / "model"), str(tmp_path / "out"))
    ids = list(np.random.default_rng(1).integers(0, 49152, 96))
    assert mean_kl(reference(tmp_path / "model", ids), Llama(Path(made["F32"])).logits(ids)) < 1e-4


def _lively(x: np.ndarray) -> np.ndarray:
    return x * np.float32(10) if x.ndim == 2 else x
