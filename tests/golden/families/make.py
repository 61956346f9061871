"""Make the records of this folder: `python tests/golden/families/make.py LLAMA_CPP [NAME …]`, all without names.

LLAMA_CPP is a checkout of llama.cpp (the records here are of the one in llama-cpp-python 0.3.36). transformers says which
tensors a checkpoint of a class has; a model that is not in the table here keeps those of its record. The weights are those of
tests/family_models.py; llama.cpp's converter makes an F16 file.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[2]
sys.path.insert(0, str(TESTS))

import family_models  # noqa: E402
import gguf_files  # noqa: E402

SMALL: dict[str, Any] = dict(
    vocab_size=family_models.VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=258,
    eos_token_id=259,
    pad_token_id=257,
)
RMS = dict(rms_norm_eps=1e-5)
THETA = dict(rope_type="default", rope_theta=50000.0)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)  # fmt: skip
YARN = dict(rope_type="yarn", rope_theta=50000.0, factor=4.0, original_max_position_embeddings=64)
MINISTRAL3 = YARN | dict(beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1)
LONG = dict(
    rope_type="longrope", rope_theta=50000.0, original_max_position_embeddings=256,
    short_factor=[1.0 + i / 8 for i in range(6)], long_factor=[1.5 + i for i in range(6)], partial_rotary_factor=0.75,
)  # fmt: skip
# llama.cpp cuts gemma3's embeddings to the tokens that tokenizer.json names, so these have no others.
GEMMA = SMALL | dict(head_dim=32, rms_norm_eps=1e-5, num_key_value_heads=1, vocab_size=family_models.TOKENS)
PARTIAL = dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)
GEMMA3 = GEMMA | dict(
    num_hidden_layers=7, sliding_window=16, query_pre_attn_scalar=32,
    rope_parameters=dict(
        full_attention=dict(rope_type="linear", factor=4.0, rope_theta=50000.0),
        sliding_attention=dict(rope_type="default", rope_theta=5000.0),
    ),
)  # fmt: skip
VISION = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
)  # fmt: skip
VARIANTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SMALL | RMS | dict(rope_parameters=LLAMA3, head_dim=32, attention_bias=True, mlp_bias=True)),
    "mistral": ("mistral", SMALL | RMS | dict(rope_parameters=THETA, head_dim=24, sliding_window=None)),
    "mistral3-vision": (
        "mistral3",
        dict(
            text_config=SMALL | RMS | dict(model_type="mistral", rope_parameters=THETA, head_dim=24, sliding_window=None),
            image_token_index=260, vision_config=VISION | dict(model_type="pixtral", head_dim=8), spatial_merge_size=2,
        ),
    ),
    "ministral3": ("ministral3", SMALL | RMS | dict(rope_parameters=MINISTRAL3, head_dim=32, tie_word_embeddings=True)),
    "mixtral": ("mixtral", SMALL | RMS | dict(rope_parameters=THETA, num_local_experts=11, num_experts_per_tok=3)),
    "qwen2": ("qwen2", SMALL | RMS | dict(rope_parameters=YARN, tie_word_embeddings=True)),
    "qwen2moe": (
        "qwen2_moe",
        SMALL | RMS | dict(rope_parameters=THETA, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=48)
        | dict(shared_expert_intermediate_size=80, norm_topk_prob=False),
    ),
    "qwen3": ("qwen3", SMALL | RMS | dict(rope_parameters=THETA, head_dim=32, tie_word_embeddings=False)),
    "qwen3moe": (
        "qwen3_moe",
        SMALL | RMS | dict(rope_parameters=THETA, head_dim=32, num_experts=6, num_experts_per_tok=3)
        | dict(moe_intermediate_size=48, norm_topk_prob=True),
    ),
    "gemma": ("gemma", GEMMA | dict(rope_parameters=THETA | dict(rope_theta=10000.0))),
    "gemma2": (
        "gemma2",
        GEMMA | dict(sliding_window=16, query_pre_attn_scalar=32, rope_parameters=THETA | dict(rope_theta=10000.0)),
    ),
    "gemma3": ("gemma3_text", GEMMA3),
    "gemma3-vision": (
        "gemma3",
        dict(text_config=GEMMA3, mm_tokens_per_image=4, image_token_index=260, boi_token_index=260, eoi_token_index=260)
        | dict(vision_config=VISION),
    ),
    "phi3": ("phi3", SMALL | RMS | dict(rope_parameters=THETA, sliding_window=None)),
    "phi3-longrope": (
        "phi3",
        SMALL | RMS | dict(rope_parameters=LONG, sliding_window=None, max_position_embeddings=512)
        | dict(original_max_position_embeddings=256, tie_word_embeddings=True),
    ),
    "granite": (
        "granite",
        SMALL | RMS | dict(rope_parameters=THETA, attention_multiplier=0.3, embedding_multiplier=2.0)
        | dict(residual_multiplier=0.5, logits_scaling=1.5, attention_bias=True, mlp_bias=True),
    ),
    "granitemoe-shared": (
        "granitemoeshared",
        SMALL | RMS | dict(rope_parameters=THETA, attention_multiplier=0.3, embedding_multiplier=2.0)
        | dict(residual_multiplier=0.5, logits_scaling=1.5, num_local_experts=5, num_experts_per_tok=2)
        | dict(shared_intermediate_size=80),
    ),
    "granitemoe": (
        "granitemoe",
        SMALL | RMS | dict(rope_parameters=THETA, attention_multiplier=0.3, embedding_multiplier=2.0)
        | dict(residual_multiplier=0.5, logits_scaling=1.5, num_local_experts=5, num_experts_per_tok=2),
    ),
    "olmo": ("olmo", SMALL | dict(rope_parameters=THETA, clip_qkv=2.0)),
    "olmo2": ("olmo2", SMALL | RMS | dict(rope_parameters=THETA)),
    "stablelm": (
        "stablelm",
        SMALL | dict(rope_parameters=PARTIAL, use_qkv_bias=True),
    ),
    "stablelm-parallel": (
        "stablelm",
        SMALL | dict(rope_parameters=PARTIAL, qk_layernorm=True, use_parallel_residual=True),
    ),
    "smollm3": ("smollm3", SMALL | RMS | dict(rope_parameters=THETA, num_hidden_layers=5, tie_word_embeddings=True)),
    "glm4": (
        "glm4",
        SMALL | RMS | dict(rope_parameters=THETA | dict(partial_rotary_factor=0.5), head_dim=32, attention_bias=True),
    ),
    "command-r": ("cohere", SMALL | dict(rope_parameters=THETA, logit_scale=0.5)),
    "command-r-plus": ("cohere", SMALL | dict(rope_parameters=THETA, logit_scale=0.5, num_hidden_layers=64, use_qk_norm=True)),
    "cohere2": (
        "cohere2",
        SMALL | dict(rope_parameters=THETA, logit_scale=0.5, sliding_window=16, num_hidden_layers=5, rotary_pct=1.0),
    ),
}  # fmt: skip
NOT_CONVERTED = {"stablelm-parallel": "llama.cpp's converter loses the norms of single heads and stops"}


def checkpoint(model_type: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """config.json and the tensors of a checkpoint of this class, as transformers saves them."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.for_model(model_type, **deepcopy(dict(fields)))
    auto = AutoModelForImageTextToText if "vision_config" in fields else AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        auto.from_config(config, dtype=torch.float32).save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
        saved = json.loads((Path(folder) / "config.json").read_text())
    return {k: v for k, v in saved.items() if k != "transformers_version"}, shapes


def internlm2() -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Its code is not in transformers; the checkpoint is llama's under other names, with one tensor for q, k and v."""
    config = SMALL | RMS | dict(architectures=["InternLM2ForCausalLM"], model_type="internlm2", rope_theta=50000.0)
    config |= dict(bias=False, tie_word_embeddings=False, hidden_act="silu", dtype="float32")
    shapes = {"model.tok_embeddings.weight": [288, 64], "model.norm.weight": [64], "output.weight": [288, 64]}
    for i in range(3):
        layer = f"model.layers.{i}."
        shapes |= {layer + "attention.wqkv.weight": [128, 64], layer + "attention.wo.weight": [64, 64]}
        shapes |= {layer + f"feed_forward.{w}.weight": s for w, s in (("w1", [96, 64]), ("w2", [64, 96]), ("w3", [96, 64]))}
        shapes |= {layer + "attention_norm.weight": [64], layer + "ffn_norm.weight": [64]}
    return config, shapes


def converted(llama_cpp: Path, folder: Path, architecture: str) -> Path:
    """llama.cpp's F16 file of the model in `folder`."""
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import gguf
    from conversion import get_model_class
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda *_: family_models.PRE
    kind = get_model_class(architecture)
    # The families' own ways with tokenizers are another matter, and want files that a tiny model has not.
    kind.set_vocab = lambda self: self._set_vocab_gpt2()
    out = folder / "model.gguf"
    kind(folder, gguf.LlamaFileType.MOSTLY_F16, out, eager=True).write()
    return out


def main(llama_cpp: Path, names: list[str]) -> None:
    for name in names or sorted({*VARIANTS, *family_models.NAMES}):
        kept = {} if name in VARIANTS or name == "internlm2" else family_models.record(name)
        if kept:
            config, shapes = kept["config"], kept["checkpoint"]
        else:
            config, shapes = internlm2() if name == "internlm2" else checkpoint(*VARIANTS[name])
        record: dict[str, Any] = {"config": config, "checkpoint": shapes}
        if "tensors" in kept or (not kept and name not in NOT_CONVERTED):
            with tempfile.TemporaryDirectory() as folder:
                model = family_models.make(Path(folder) / "model", config, shapes)
                path = converted(llama_cpp, model, config["architectures"][0])
                keys = {k: v for k, v in gguf_files.metadata(path).items() if not k.startswith("tokenizer.")}
                tensors = {k: [*v[:2], v[2][:24]] for k, v in gguf_files.tensors(path).items()}
            record |= {"made_with": "llama-cpp-python 0.3.36, F16", "metadata": keys, "tensors": tensors}
        text = json.dumps(record, separators=(",", ":"))
        with (Path(__file__).parent / f"{name}.json.gz").open("wb") as file:
            file.write(gzip.compress(text.encode(), mtime=0))
        print(name, len(shapes), "tensors", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
