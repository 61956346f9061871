"""What a tensor is for, found from its name, and which tensors are never quantized.

Source: llama.cpp, `tensor_get_category` and `tensor_allows_quantization` (src/llama-quant.cpp), `prepare_tensors`
(conversion/base.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["output", "embeddings", "v", "k", "q", "attention output", "ffn up", "ffn gate", "ffn down", "other"]

EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT = "output.weight"

_BY_PART: tuple[tuple[str, Role], ...] = (
    ("attn_qkv.weight", "v"),
    ("attn_kv_b.weight", "v"),
    ("attn_v.weight", "v"),
    ("attn_k.weight", "k"),
    ("attn_q.weight", "q"),
    ("attn_output.weight", "attention output"),
    ("ffn_up", "ffn up"),
    ("ffn_gate", "ffn gate"),
    ("ffn_down", "ffn down"),
)
"""The first part that a name holds decides. What holds values (fused QKV, MLA's KV) is as sensitive as values alone."""

_F32 = (
    "ffn_gate_inp", "ssm_conv1d", "shortconv.conv", "time_mix_first.", "time_mix_w1.", "time_mix_w2.", "time_mix_decay_w1.",
    "time_mix_decay_w2.", "time_mix_lerp_fused.", "altup_correct_coef", "altup_predict_coef", "indexer.proj",
)  # fmt: skip
"""Parts of names of matrices that the converter writes as F32."""

_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d",
    "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight", ".position_embd",
    "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
    *(f"time_mix_{part}.weight" for part in (
        "first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2", "decay_w1", "decay_w2", "lerp_fused",
    )),
)  # fmt: skip
"""Parts of names of matrices that llama-quantize leaves as they are: small ones, or such that decide much."""

_KEPT_IN = {
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate", "indexer_compressor_ape",
        "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight", "ssm_beta.weight", "attn_kv_a_mqa.weight",
        "attn_k_b.weight", "attn_v_b.weight",
    ),
}  # fmt: skip
"""The same, of single architectures."""

_WHOLE = ("position_embd.weight", "token_types.weight")


def role_of(name: str) -> Role:
    if name == OUTPUT:
        return "output"
    if name in EMBEDDINGS:
        return "embeddings"
    return next((role for part, role in _BY_PART if part in name), "other")


def always_f32(name: str, shape: Sequence[int]) -> bool:
    """Whether readers expect the tensor as F32 in every file."""
    if len(shape) < 2 or name.endswith("_norm.weight") or not name.endswith(".weight"):
        return True
    return name in _WHOLE or any(part in name for part in _F32)


def is_kept(name: str, shape: Sequence[int], arch: str) -> bool:
    """Whether llama-quantize leaves the tensor in the type that it comes in."""
    if _axes(shape) < 2 or not name.endswith("weight") or name in _WHOLE:
        return True
    return any(part in name for part in (*_KEPT, *_KEPT_IN.get(arch, ())))


def _axes(shape: Sequence[int]) -> int:
    """As ggml counts them: leading axes of one do not count."""
    sizes = list(shape)
    while len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    return len(sizes)
