"""Make the records of the older decoders and of DeepSeek: `python tests/golden/families/make_older.py LLAMA_CPP [NAME …]`.

As make.py does, but llama.cpp's converter reads config.json itself here: what transformers 5 makes of an old config lacks keys
that the converter asks for, and published checkpoints have.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import make
from make import RMS, SMALL, THETA

import family_models
import gguf_files

HEADS = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
TOKENS = {k: SMALL[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size")}
PART = dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)
FALCON = TOKENS | dict(hidden_size=64, num_attention_heads=8, num_hidden_layers=3, bias=False, alibi=False)
GROUPED = FALCON | dict(num_kv_heads=2, new_decoder_architecture=True)
LATENT = HEADS | RMS | dict(
    num_key_value_heads=4, kv_lora_rank=24, qk_rope_head_dim=16, qk_nope_head_dim=20, v_head_dim=28, moe_intermediate_size=48,
    n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=2, first_k_dense_replace=1,
)  # fmt: skip
V2 = LATENT | dict(rope_parameters=THETA, n_group=1, topk_group=1, norm_topk_prob=False, topk_method="greedy")
YARN = dict(
    rope_type="yarn", rope_theta=50000.0, factor=4.0, original_max_position_embeddings=64, beta_fast=32, beta_slow=1,
    mscale=0.707, mscale_all_dim=0.707,
)  # fmt: skip
VARIANTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gptneox": ("gpt_neox", HEADS | dict(rope_parameters=PART, hidden_act="gelu_new", layer_norm_eps=1e-5)),
    "gptneox-serial": (
        "gpt_neox",
        HEADS | dict(rope_parameters=PART | dict(partial_rotary_factor=0.25), use_parallel_residual=False)
        | dict(hidden_act="gelu", layer_norm_eps=1e-6),
    ),
    "phi2": (
        "phi",
        SMALL | dict(rope_parameters=PART, num_key_value_heads=4, hidden_act="gelu_new", intermediate_size=256),
    ),
    "phi2-grouped": ("phi", SMALL | dict(rope_parameters=PART | dict(rope_theta=50000.0), hidden_act="gelu_new")),
    "starcoder2": (
        "starcoder2",
        SMALL | dict(rope_parameters=THETA, norm_epsilon=1e-5, sliding_window=None, tie_word_embeddings=True),
    ),
    "starcoder2-untied": (
        "starcoder2",
        SMALL | dict(rope_parameters=THETA, norm_epsilon=1e-5, sliding_window=None, tie_word_embeddings=False)
        | dict(num_key_value_heads=1),
    ),
    "bloom": ("bloom", TOKENS | dict(hidden_size=96, n_layer=3, n_head=6, seq_length=128, layer_norm_epsilon=1e-5)),
    "mpt": (
        "mpt",
        TOKENS | dict(d_model=96, n_heads=6, n_layers=3, max_seq_len=128)
        | dict(attn_config=dict(clip_qkv=3.0, alibi=True, alibi_bias_max=8)),
    ),
    "falcon-7b": ("falcon", FALCON | dict(num_attention_heads=4, multi_query=True, parallel_attn=True)),
    "falcon-40b": ("falcon", GROUPED),
    "falcon-11b": (
        "falcon",
        GROUPED | dict(num_ln_in_parallel_attn=1, rope_parameters=dict(rope_type="default", rope_theta=500042.0))
        | dict(ffn_hidden_size=160, tie_word_embeddings=False),
    ),
    "deepseek2": ("deepseek_v2", V2 | dict(q_lora_rank=40, routed_scaling_factor=1.5)),
    "deepseek2-lite": (
        "deepseek_v2",
        V2 | dict(q_lora_rank=None, routed_scaling_factor=1.0, num_hidden_layers=26, first_k_dense_replace=24)
        | dict(intermediate_size=64, n_routed_experts=4, num_experts_per_tok=2),
    ),
    "deepseek2-plain": ("deepseek_v2", V2 | dict(q_lora_rank=None, routed_scaling_factor=1.0)),
    "deepseek3": (
        "deepseek_v3",
        LATENT | dict(q_lora_rank=40, rope_parameters=YARN, n_group=4, topk_group=2, norm_topk_prob=True)
        | dict(routed_scaling_factor=1.7),
    ),
}  # fmt: skip
PUBLISHED: Mapping[str, dict[str, Any]] = {
    "gptneox": dict(rotary_pct=0.5),
    "gptneox-serial": dict(rotary_pct=0.25),
    "mpt": dict(architectures=["MPTForCausalLM"]),
    "deepseek2": dict(scoring_func="softmax"),
    "deepseek3": dict(scoring_func="sigmoid", topk_method="noaux_tc"),
}
"""What published configs say besides."""
ADDED_BY_5 = {("falcon-7b", "num_kv_heads"), *((name, "head_dim") for name in VARIANTS if name.startswith("deepseek"))}
NOT_CONVERTED = {
    "falcon-11b": "llama.cpp's converter forgets the rotation's base and the width of the MLP",
    "phi2-grouped": "llama.cpp's converter forgets the rotation's base and the key heads",
    "deepseek2-plain": "llama.cpp's converter forgets the rank of the queries, without which llama.cpp does not load the file",
}


def main(llama_cpp: Path, names: list[str]) -> None:
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    from conversion.base import ModelBase

    for name in names or VARIANTS:
        config, shapes = make.checkpoint(*VARIANTS[name])
        config = {k: v for k, v in config.items() if (name, k) not in ADDED_BY_5} | PUBLISHED.get(name, {})
        record: dict[str, Any] = {"config": config, "checkpoint": shapes}
        if name not in NOT_CONVERTED:
            ModelBase.load_hparams = staticmethod(lambda *_, said=config, **__: dict(said))
            with tempfile.TemporaryDirectory() as folder:
                model = family_models.make(Path(folder) / "model", config, shapes)
                path = make.converted(llama_cpp, model, config["architectures"][0])
                keys = {k: v for k, v in gguf_files.metadata(path).items() if not k.startswith("tokenizer.")}
                tensors = {k: [*v[:2], v[2][:24]] for k, v in gguf_files.tensors(path).items()}
            record |= {"made_with": "llama-cpp-python 0.3.36, F16", "metadata": keys, "tensors": tensors}
        text = json.dumps(record, separators=(",", ":"))
        (Path(__file__).parent / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        print(name, len(shapes), "tensors", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
