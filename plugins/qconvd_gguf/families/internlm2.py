"""InternLM 2 and 2.5: llama with other names, and query, key and value in one tensor by key head.

Source: the modeling_internlm2.py that comes with the checkpoints; the tensor and key names of llama.cpp's architecture
`internlm2`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import Family, Limit, Tensor
from qconvd_gguf.families.decoder import (
    BLOCK,
    FFN,
    FREQUENCIES,
    HIDDEN,
    KV,
    LAYER,
    NUMBERS,
    SILU,
    UNSAID_HEAD_DIM,
    VOCAB,
    Q,
    common_keys,
    linear,
    norm,
    usual_head_width,
)
from qconvd_gguf.families.rope import dynamic_note
from qconvd_gguf.families.steps import Part, RopePairs, Ungrouped

INTERNLM2 = {**NUMBERS, "said_head_dim": UNSAID_HEAD_DIM}
WQKV, ROWS, MLP = LAYER + "attention.wqkv.weight", f"{Q}+2*{KV}", LAYER + "feed_forward."
BY_KIND = Ungrouped("kv_heads", "heads/kv_heads")
QUERY = (BY_KIND, Part("0", Q), RopePairs("heads"))
KEY = (BY_KIND, Part(Q, f"{Q}+{KV}"), RopePairs("kv_heads"))
VALUE = (BY_KIND, Part(f"{Q}+{KV}", ROWS))

FAMILY = Family(
    name="internlm2",
    architectures=("InternLM2ForCausalLM",),
    prefixes=("model.",),
    numbers=INTERNLM2,
    metadata=common_keys(INTERNLM2),
    tensors=(
        Tensor("token_embd.weight", "{p}tok_embeddings.weight", (VOCAB, HIDDEN)),
        Tensor("output.weight", "output.weight", (VOCAB, HIDDEN)),
        *norm("output_norm", "{p}norm"),
        *norm(BLOCK + "attn_norm", LAYER + "attention_norm"),
        Tensor(BLOCK + "attn_q.weight", WQKV, (ROWS, HIDDEN), QUERY),
        Tensor(BLOCK + "attn_k.weight", WQKV, (ROWS, HIDDEN), KEY),
        Tensor(BLOCK + "attn_v.weight", WQKV, (ROWS, HIDDEN), VALUE),
        *linear(BLOCK + "attn_output", LAYER + "attention.wo", HIDDEN, Q),
        *norm(BLOCK + "ffn_norm", LAYER + "ffn_norm"),
        *linear(BLOCK + "ffn_gate", MLP + "w1", FFN, HIDDEN),
        *linear(BLOCK + "ffn_up", MLP + "w3", FFN, HIDDEN),
        *linear(BLOCK + "ffn_down", MLP + "w2", HIDDEN, FFN),
    ),
    ignored=FREQUENCIES,
    limits=(
        SILU,
        Limit("bias", (False,), "llama.cpp knows this family without biases"),
        Limit("tie_word_embeddings", (False,), "llama.cpp wants an output layer of its own in this family"),
    ),
    checks=(usual_head_width,),
    notes=(dynamic_note,),
)
