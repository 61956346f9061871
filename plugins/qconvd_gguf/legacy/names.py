"""The names of GGML's tensors and of GGUF's for the same numbers; only gpt_neox's fused projection has its rows otherwise.

Sources: llama.cpp's convert.py of June 2023, ggml's examples gpt-2 and gpt-neox; llama.cpp's tensor names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

LLAMA = {
    "tok_embeddings.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "output.weight": "output.weight",
    "layers.{i}.attention.wq.weight": "blk.{i}.attn_q.weight",
    "layers.{i}.attention.wk.weight": "blk.{i}.attn_k.weight",
    "layers.{i}.attention.wv.weight": "blk.{i}.attn_v.weight",
    "layers.{i}.attention.wo.weight": "blk.{i}.attn_output.weight",
    "layers.{i}.attention_norm.weight": "blk.{i}.attn_norm.weight",
    "layers.{i}.feed_forward.w1.weight": "blk.{i}.ffn_gate.weight",
    "layers.{i}.feed_forward.w2.weight": "blk.{i}.ffn_down.weight",
    "layers.{i}.feed_forward.w3.weight": "blk.{i}.ffn_up.weight",
    "layers.{i}.ffn_norm.weight": "blk.{i}.ffn_norm.weight",
}

_PARTS = {"g": "weight", "w": "weight", "b": "bias"}
_GPT2 = {
    "model/h{i}/ln_1": "blk.{i}.attn_norm", "model/h{i}/attn/c_attn": "blk.{i}.attn_qkv",
    "model/h{i}/attn/c_proj": "blk.{i}.attn_output", "model/h{i}/ln_2": "blk.{i}.ffn_norm",
    "model/h{i}/mlp/c_fc": "blk.{i}.ffn_up", "model/h{i}/mlp/c_proj": "blk.{i}.ffn_down", "model/ln_f": "output_norm",
}  # fmt: skip
GPT2 = {"model/wte": "token_embd.weight", "model/wpe": "position_embd.weight", "model/lm_head": "output.weight"} | {
    f"{old}/{part}": f"{new}.{_PARTS[part]}"
    for old, new in _GPT2.items()
    for part in ("gb" if old.rpartition("/")[2].startswith("ln") else "wb")
}

_NEOX = {
    "gpt_neox.final_layer_norm": "output_norm",
    "gpt_neox.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
    "gpt_neox.layers.{i}.attention.query_key_value": "blk.{i}.attn_qkv",
    "gpt_neox.layers.{i}.attention.dense": "blk.{i}.attn_output",
    "gpt_neox.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
    "gpt_neox.layers.{i}.mlp.dense_h_to_4h": "blk.{i}.ffn_up",
    "gpt_neox.layers.{i}.mlp.dense_4h_to_h": "blk.{i}.ffn_down",
}
GPT_NEOX = {"gpt_neox.embed_in.weight": "token_embd.weight", "embed_out.weight": "output.weight"} | {
    f"{old}.{part}": f"{new}.{part}" for old, new in _NEOX.items() for part in ("weight", "bias")
}

NAMES: Mapping[str, Mapping[str, str]] = {"llama": LLAMA, "gpt2": GPT2, "gpt_neox": GPT_NEOX}
"""By GGML's family. gptj is not among them: llama.cpp does not run it."""
ARCHITECTURES = {"llama": "llama", "gpt2": "gpt2", "gpt_neox": "gptneox"}
"""llama.cpp's name of each family."""


def to_gguf(family: str, name: str) -> str | None:
    """GGUF's name of a GGML tensor; None if it has none."""
    return _renamed(name, NAMES[family])


def to_ggml(family: str, name: str) -> str | None:
    """GGML's name of a GGUF tensor; None if it has none."""
    return _renamed(name, {new: old for old, new in NAMES[family].items()})


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    # The first number of a name is that of its layer.
    number = re.search(r"\d+", name)
    found = table.get(name.replace(number[0], "{i}", 1) if number else name)
    return found.replace("{i}", number[0]) if found and number else found
