"""Small random checkpoints whose rows are multiples of 256, as llama.cpp's records of them were made from.

Weights depend on nothing but the tensor's name, so that everyone makes the same bytes; tokenizer files come from SmolLM2.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
BASE = dict(vocab_size=49152, bos_token_id=1, eos_token_id=2, pad_token_id=2, torch_dtype="bfloat16")
LLAMA = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=512, num_attention_heads=8, num_key_value_heads=2,
    head_dim=64, intermediate_size=1536, num_hidden_layers=16, max_position_embeddings=2048, rms_norm_eps=1e-5,
    rope_theta=100000.0, hidden_act="silu", attention_bias=False, mlp_bias=False, **BASE,
)  # fmt: skip
CONFIGS: Mapping[str, dict[str, Any]] = {
    "llama": LLAMA | {"tie_word_embeddings": False},
    "llama-tied": LLAMA | {"tie_word_embeddings": True},
    "gpt2": dict(
        architectures=["GPT2LMHeadModel"],
        model_type="gpt2",
        n_embd=512,
        n_head=8,
        n_layer=8,
        n_positions=1024,
        n_ctx=1024,
        n_inner=None,
        layer_norm_epsilon=1e-5,
        activation_function="gelu_new",
        **BASE,
    ),
    "mixtral": LLAMA
    | dict(architectures=["MixtralForCausalLM"], model_type="mixtral", tie_word_embeddings=False, sliding_window=None)
    | dict(intermediate_size=768, num_hidden_layers=8, num_local_experts=8, num_experts_per_tok=2),
    "qwen3moe": LLAMA
    | dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", tie_word_embeddings=False, norm_topk_prob=True)
    | dict(num_hidden_layers=8, moe_intermediate_size=256, num_experts=16, num_experts_per_tok=4, mlp_only_layers=[]),
}


def make(kind: str, tokenizer: Path, out: Path) -> None:
    """Write the checkpoint `kind` with the tokenizer of the folder `tokenizer`."""
    config = CONFIGS[kind]
    write(out, checkpoint(config), config)
    for name in TOKENIZER:
        shutil.copy(tokenizer / name, out)


def write(out: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], file: str = "model.safetensors") -> None:
    """A checkpoint folder; uint16 arrays are bfloat16 bit patterns."""
    out.mkdir(parents=True, exist_ok=True)
    kinds = {"uint16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64", "int32": "I32"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in sorted(tensors.items()):
        span = [at, at + tensor.nbytes]
        header[name] = {"dtype": kinds[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": span}
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with (out / file).open("wb") as target:
        target.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in sorted(tensors.items()):
            target.write(np.ascontiguousarray(tensor).tobytes())
    (out / "config.json").write_text(json.dumps(config, indent=1))


def checkpoint(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every tensor of a model as bfloat16 bit patterns."""
    return {name: bfloat16(weights(name, shape)) for name, shape in shapes(config).items()}


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes as transformers has them."""
    return _gpt2(config) if config["model_type"] == "gpt2" else _llama(config)


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Normal weights with outliers, seeded by the name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    flat = x.reshape(-1)
    at = rng.integers(0, flat.size, max(1, flat.size // 2000))
    flat[at] *= rng.uniform(4, 20, at.size).astype(np.float32)
    if len(shape) == 1 and ("norm" in name or "ln_" in name) and name.endswith("weight"):
        x = x + 1
    return x


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Bit patterns, rounded to nearest even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _llama(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    d, f = c["hidden_size"], c["intermediate_size"]
    width = c.get("head_dim") or d // c["num_attention_heads"]
    q, kv = c["num_attention_heads"] * width, c["num_key_value_heads"] * width
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,)}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        linears = {
            "self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, q),
        } | ({} if _experts(c) else {"mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)})  # fmt: skip
        for name, shape in linears.items():
            found[f"{layer}{name}.weight"] = shape
            if c.get("mlp_bias" if name.startswith("mlp") else "attention_bias"):
                found[f"{layer}{name}.bias"] = shape[:1]
        for name, shape in _experts(c).items():
            found[layer + name] = shape
        found[layer + "input_layernorm.weight"] = found[layer + "post_attention_layernorm.weight"] = (d,)
    if not c.get("tie_word_embeddings", False):
        found["lm_head.weight"] = (c["vocab_size"], d)
    return found


def _experts(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What a layer of a mixture has in place of the MLP."""
    d = c["hidden_size"]
    if c["model_type"] == "mixtral":
        count, f = c["num_local_experts"], c["intermediate_size"]
        one = {"w1": (f, d), "w2": (d, f), "w3": (f, d)}
        experts = {f"block_sparse_moe.experts.{e}.{name}.weight": shape for e in range(count) for name, shape in one.items()}
        return {"block_sparse_moe.gate.weight": (count, d), **experts}
    if c["model_type"] == "qwen3_moe":
        count, f, width = c["num_experts"], c["moe_intermediate_size"], (c["head_dim"],)
        one = {"gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}
        experts = {f"mlp.experts.{e}.{name}.weight": shape for e in range(count) for name, shape in one.items()}
        return {"mlp.gate.weight": (count, d), **experts, "self_attn.q_norm.weight": width, "self_attn.k_norm.weight": width}
    return {}


def _gpt2(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    d = c["n_embd"]
    f = c.get("n_inner") or 4 * d
    found: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (c["vocab_size"], d),
        "transformer.wpe.weight": (c["n_positions"], d),
    }
    for i in range(c["n_layer"]):
        layer = f"transformer.h.{i}."
        linears = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, f), "mlp.c_proj": (f, d)}
        for name, shape in linears.items():
            found[f"{layer}{name}.weight"], found[f"{layer}{name}.bias"] = shape, shape[1:]
        for name in ("ln_1", "ln_2"):
            found[f"{layer}{name}.weight"] = found[f"{layer}{name}.bias"] = (d,)
    found["transformer.ln_f.weight"] = found["transformer.ln_f.bias"] = (d,)
    return found


def tiny(out: Path, vocab: int, **config: Any) -> Path:
    """A Llama with two narrow layers and no tokenizer, for tests that look at everything but the weights."""
    wanted = LLAMA | dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    wanted |= dict(head_dim=16, vocab_size=vocab, tie_word_embeddings=True) | config
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    wanted = {k: v for k, v in wanted.items() if k not in names or k in config}
    write(out, checkpoint(wanted), wanted)
    return out
