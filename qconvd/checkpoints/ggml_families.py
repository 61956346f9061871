"""The model families of GGML files: the numbers in their headers, the tensors they must hold, and both as config.json says it.

Sources: llama.cpp of June 2023 (convert.py, llama.cpp), and ggml's examples gpt-2, gpt-j and gpt-neox.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Numbers = Mapping[str, int]
Shapes = Mapping[str, tuple[int, ...]]

MOST = {
    "n_vocab": 4_000_000, "n_ctx": 1 << 24, "n_embd": 1 << 17, "n_mult": 1 << 17, "n_head": 1 << 14, "n_layer": 4096,
    "n_rot": 1 << 16, "par_res": 1, "ftype": 9999,
}  # fmt: skip
"""Above these a number is no number of a model."""
LEAST = {"n_mult": 0, "n_rot": 0, "par_res": 0, "ftype": 0}
"""Below these likewise; 1 for all others."""


@dataclass(frozen=True)
class GgmlFamily:
    """`numbers` as they stand in the header; `tensors` that every file has; `layer` those of every layer, below `prefix`.

    Tensors come with their axes, row-major, a letter or digit each: v, c and d are n_vocab, n_ctx and n_embd, 3 is three times
    n_embd; k and f, the widths of the keys and of the MLP, stand in no header and are those of the first tensor that has them.
    """

    name: str
    numbers: tuple[str, ...]
    tensors: Mapping[str, str]
    prefix: str
    layer: Mapping[str, str]
    config: Callable[[Numbers, Shapes], dict[str, Any]]
    optional: Mapping[str, str] = field(default_factory=dict)
    counted: bool = False
    """Whether the number of tokens stands before the vocabulary as well."""

    def wanted(self, layers: int) -> list[str]:
        """The tensors without which a file is not whole."""
        return [*self.tensors, *(self.prefix.format(i) + name for i in range(layers) for name in self.layer)]

    def axes(self, layers: int) -> dict[str, str]:
        """Every tensor that a file of so many layers may hold, with its axes."""
        inside = {self.prefix.format(i) + name: axes for i in range(layers) for name, axes in self.layer.items()}
        return {**self.tensors, **self.optional, **inside}

    def knows(self, name: str) -> bool:
        """Whether a tensor of this name tells that a file is of the family."""
        return name in self.tensors or name.startswith(self.prefix.partition("{")[0])


def _both(name: str, axes: str) -> dict[str, str]:
    """A linear layer or a norm: the bias is as long as the weight has rows."""
    return {f"{name}.weight": axes, f"{name}.bias": axes[0]}


def _llama(n: Numbers, shapes: Shapes) -> dict[str, Any]:
    width = n["n_embd"] // n["n_head"]
    keys, gate = shapes.get("layers.0.attention.wk.weight", ()), shapes.get("layers.0.feed_forward.w1.weight", ())
    found = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": n["n_vocab"], "hidden_size": n["n_embd"],
        "num_attention_heads": n["n_head"], "num_hidden_layers": n["n_layer"], "head_dim": width, "hidden_act": "silu",
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if len(keys) == 2:
        found["num_key_value_heads"] = keys[0] // width
    if len(gate) == 2:
        found["intermediate_size"] = gate[0]
    return found


def _gpt2(n: Numbers, shapes: Shapes) -> dict[str, Any]:
    inner = shapes.get("model/h0/mlp/c_fc/w", ())
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": n["n_vocab"], "n_positions": n["n_ctx"],
        "n_ctx": n["n_ctx"], "n_embd": n["n_embd"], "n_head": n["n_head"], "n_layer": n["n_layer"],
        "n_inner": inner[0] if len(inner) == 2 else None, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
        "tie_word_embeddings": "model/lm_head" not in shapes,
    }  # fmt: skip


def _gptj(n: Numbers, shapes: Shapes) -> dict[str, Any]:
    inner = shapes.get("transformer.h.0.mlp.fc_in.weight", ())
    return {
        "architectures": ["GPTJForCausalLM"], "model_type": "gptj", "vocab_size": n["n_vocab"], "n_positions": n["n_ctx"],
        "n_embd": n["n_embd"], "n_head": n["n_head"], "n_layer": n["n_layer"], "rotary_dim": n["n_rot"],
        "n_inner": inner[0] if len(inner) == 2 else None, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
        "tie_word_embeddings": False,
    }  # fmt: skip


def _gpt_neox(n: Numbers, shapes: Shapes) -> dict[str, Any]:
    inner = shapes.get("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", ())
    width = n["n_embd"] // n["n_head"]
    return {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": n["n_vocab"],
        "max_position_embeddings": n["n_ctx"], "hidden_size": n["n_embd"], "num_attention_heads": n["n_head"],
        "num_hidden_layers": n["n_layer"], "intermediate_size": inner[0] if len(inner) == 2 else 4 * n["n_embd"],
        "rotary_pct": n["n_rot"] / width, "use_parallel_residual": bool(n["par_res"]), "layer_norm_eps": 1e-5,
        "rotary_emb_base": 10000, "hidden_act": "gelu", "attention_bias": True, "tie_word_embeddings": False,
    }  # fmt: skip


LLAMA = GgmlFamily(
    "llama",
    ("n_vocab", "n_embd", "n_mult", "n_head", "n_layer", "n_rot", "ftype"),
    {"tok_embeddings.weight": "vd", "norm.weight": "d", "output.weight": "vd"},
    "layers.{}.",
    {
        "attention.wq.weight": "dd", "attention.wk.weight": "kd", "attention.wv.weight": "kd", "attention.wo.weight": "dd",
        "feed_forward.w1.weight": "fd", "feed_forward.w2.weight": "df", "feed_forward.w3.weight": "fd",
        "attention_norm.weight": "d", "ffn_norm.weight": "d",
    },
    _llama,
)  # fmt: skip
GPT2 = GgmlFamily(
    "gpt2",
    ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer", "ftype"),
    {"model/wte": "vd", "model/wpe": "cd", "model/ln_f/g": "d", "model/ln_f/b": "d"},
    "model/h{}/",
    {
        "ln_1/g": "d", "ln_1/b": "d", "ln_2/g": "d", "ln_2/b": "d", "attn/c_attn/w": "3d", "attn/c_attn/b": "3",
        "attn/c_proj/w": "dd", "attn/c_proj/b": "d", "mlp/c_fc/w": "fd", "mlp/c_fc/b": "f", "mlp/c_proj/w": "df",
        "mlp/c_proj/b": "d",
    },
    _gpt2,
    optional={"model/lm_head": "vd"},
    counted=True,
)  # fmt: skip
GPTJ = GgmlFamily(
    "gptj",
    ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer", "n_rot", "ftype"),
    {"transformer.wte.weight": "vd", **_both("transformer.ln_f", "d"), **_both("lm_head", "vd")},
    "transformer.h.{}.",
    {
        **_both("ln_1", "d"), **_both("mlp.fc_in", "fd"), **_both("mlp.fc_out", "df"),
        **{f"attn.{name}_proj.weight": "dd" for name in ("q", "k", "v", "out")},
    },
    _gptj,
    counted=True,
)  # fmt: skip
GPT_NEOX = GgmlFamily(
    "gpt_neox",
    ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer", "n_rot", "par_res", "ftype"),
    {"gpt_neox.embed_in.weight": "vd", **_both("gpt_neox.final_layer_norm", "d"), "embed_out.weight": "vd"},
    "gpt_neox.layers.{}.",
    {
        **_both("input_layernorm", "d"), **_both("post_attention_layernorm", "d"),
        **_both("attention.query_key_value", "3d"), **_both("attention.dense", "dd"),
        **_both("mlp.dense_h_to_4h", "fd"), **_both("mlp.dense_4h_to_h", "df"),
    },
    _gpt_neox,
)  # fmt: skip
