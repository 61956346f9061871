"""Small made-up models whose tensors' types llama-quantize was asked for: see golden/make_mixes.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4_MOE",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS",
    "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0",
)  # fmt: skip

OPTIONS: Mapping[str, tuple[list[str], str]] = {
    "pure": (["--pure"], "Q4_K_M"),
    "leave": (["--leave-output-tensor"], "Q4_K_M"),
    "large": (["--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0"], "Q4_K_M"),
    "output": (["--output-tensor-type", "q5_1"], "IQ2_M"),
    "patterns": (
        ["--tensor-type", "ffn_down=q6_k", "--tensor-type", r"blk\.[13]\.=q5_k", "--tensor-type", "attn=q3_k"], "Q4_K_M",
    ),
    "pure patterns": (["--pure", "--tensor-type", "token_embd=q5_k", "--tensor-type", "output=q6_k"], "Q2_K"),
}  # fmt: skip
"""llama-quantize's arguments beside the file and the preset."""

_LLAMA: dict[str, Any] = dict(arch="llama", layers=32, heads=8, kv=8, columns=256, ff=256)

MODELS: Mapping[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "llama tied": _LLAMA | dict(tied=True, layers=22),
    "llama grouped": _LLAMA | dict(kv=2, layers=28),
    "llama 70B": _LLAMA | dict(kv=1, layers=80),
    "llama 65B": _LLAMA | dict(layers=80),
    "mixtral": _LLAMA | dict(kv=2, experts=8, layers=32),
    "four experts": _LLAMA | dict(experts=4, layers=9),
    "two experts": _LLAMA | dict(experts=2, layers=17),
    "falcon": _LLAMA | dict(arch="falcon", kv=1, qkv=True, layers=32, gate=False),
    "falcon tied": _LLAMA | dict(arch="falcon", kv=1, qkv=True, layers=60, gate=False, tied=True),
    "qwen2 72B": _LLAMA | dict(arch="qwen2", layers=80),
    "gpt2": _LLAMA | dict(arch="gpt2", qkv=True, layers=12, gate=False, tied=True, positions=True),
    "deepseek2": _LLAMA | dict(arch="deepseek2", mla=True, experts=64, layers=27, shared=True),
    "narrow": _LLAMA | dict(columns=96, ff=160, layers=8),
    "odd": _LLAMA | dict(columns=80, ff=256, layers=8, tied=True),
    "wide ff": _LLAMA | dict(columns=64, ff=512, layers=16, kv=2),
}
"""Sizes are small and unlike each other; `columns` are the rows' lengths, `ff` those of ffn_down."""


def metadata(model: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that llama.cpp wants of such an architecture."""
    arch, n = model["arch"], model["layers"]
    keys: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.block_count": n,
        f"{arch}.context_length": 128,
        f"{arch}.embedding_length": model["columns"],
        f"{arch}.feed_forward_length": model["ff"],
        f"{arch}.attention.head_count": model["heads"],
        f"{arch}.attention.head_count_kv": model["kv"],
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.attention.layer_norm_epsilon": 1e-5,
        f"{arch}.vocab_size": 64,
    }
    if experts := model.get("experts"):
        keys |= {f"{arch}.expert_count": experts, f"{arch}.expert_used_count": 2}
    if model.get("mla"):
        keys |= {
            f"{arch}.leading_dense_block_count": 1, f"{arch}.expert_shared_count": 1, f"{arch}.attention.kv_lora_rank": 128,
            f"{arch}.expert_feed_forward_length": model["ff"], f"{arch}.expert_weights_scale": 1.0,
        }  # fmt: skip
    return keys


def tensors(model: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and row-major shapes, in llama-quantize's order; two rows each, as rows do not matter."""
    d, ff, experts = model["columns"], model["ff"], model.get("experts", 0)
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (64, d), "output_norm.weight": (d,)}
    if not model.get("tied"):
        found["output.weight"] = (64, d)
    if model.get("positions"):
        found["position_embd.weight"] = (128, d)
    for i in range(model["layers"]):
        layer = f"blk.{i}."
        found[layer + "attn_norm.weight"] = found[layer + "ffn_norm.weight"] = (d,)
        if model.get("qkv"):
            linears = {"attn_qkv": d}
        elif model.get("mla"):
            linears = {"attn_q": d, "attn_kv_a_mqa": d, "attn_kv_b": 128}
        else:
            linears = {"attn_q": d, "attn_k": d, "attn_v": d}
        linears["attn_output"] = d
        if not experts or (model.get("mla") and i == 0):
            linears |= {"ffn_up": d, "ffn_down": ff} | ({"ffn_gate": d} if model.get("gate", True) else {})
        else:
            if model.get("shared"):
                linears |= {"ffn_up_shexp": d, "ffn_down_shexp": ff, "ffn_gate_shexp": d}
            for name, columns in (("ffn_up_exps", d), ("ffn_down_exps", ff), ("ffn_gate_exps", d)):
                found[f"{layer}{name}.weight"] = (experts, 2, columns)
            found[layer + "ffn_gate_inp.weight"] = (experts, d)
        found |= {f"{layer}{name}.weight": (2, columns) for name, columns in linears.items()}
    return dict(sorted(found.items(), key=lambda item: (_layer(item[0]), item[0])))


def source_dtype(name: str, shape: tuple[int, ...]) -> str:
    """The type in the file that llama-quantize is given: what the converter writes as F32, and F16."""
    return "F32" if len(shape) < 2 or "ffn_gate_inp" in name or name.startswith("position") else "F16"


def _layer(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blk.") else -1
