"""What most decoders have in common: the keys that llama.cpp's converter writes for all of them, and the usual tensors.

Families take what fits from here and name the rest themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qconvd_gguf.families.base import FILE_TYPE, Config, Key, KeyMaker, Limit, Number, Numbers, Step, Tensor
from qconvd_gguf.families.rope import THETA, rope_scaling

BLOCK, LAYER = "blk.{i}.", "{p}layers.{i}."
Q, KV, HIDDEN, FFN, VOCAB = "heads*head_dim", "kv_heads*head_dim", "hidden", "ffn", "vocab"

NUMBERS: Mapping[str, Number] = {
    "layers": Number(("num_hidden_layers",)),
    "context": Number(("max_position_embeddings",), 2048),
    "hidden": Number(("hidden_size",)),
    "ffn": Number(("intermediate_size",)),
    "heads": Number(("num_attention_heads",)),
    "kv_heads": Number(("num_key_value_heads",), "heads"),
    "head_dim": Number(("head_dim",), "hidden/heads"),
    "rope_theta": THETA,
    "eps": Number(("rms_norm_eps",), 1e-6),
    "vocab": Number(("vocab_size",)),
}
EXPERTS: Mapping[str, Number] = {
    "experts": Number(("num_local_experts", "num_experts")),
    "experts_used": Number(("num_experts_per_tok",)),
}
SAID_HEAD_DIM = Number(("head_dim",), optional=True)
UNSAID_HEAD_DIM = Number((), optional=True)
"""A family with a number `said_head_dim` writes a head's width where config.json says it, or never, as its converter does."""

KEYS = (
    Key("block_count", "layers"),
    Key("context_length", "context"),
    Key("embedding_length", "hidden"),
    Key("feed_forward_length", "ffn"),
    Key("attention.head_count", "heads"),
    Key("attention.head_count_kv", "kv_heads"),
    rope_scaling,
    Key("rope.freq_base", "rope_theta", "f32"),
    Key("rope.freq_base_swa", "local_rope_theta", "f32"),
    Key("attention.layer_norm_rms_epsilon", "eps", "f32"),
    Key("attention.layer_norm_epsilon", "layer_norm_eps", "f32"),
    Key("expert_count", "experts"),
    Key("expert_used_count", "experts_used"),
)


def common_keys(numbers: Mapping[str, Number], scaling: KeyMaker = rope_scaling) -> tuple[Key | KeyMaker, ...]:
    """The converter's keys for all decoders in its order, up to the file's type: those whose number a family has."""
    wanted = [key if isinstance(key, Key) else scaling for key in KEYS if not isinstance(key, Key) or key.value in numbers]
    width = "said_head_dim" if "said_head_dim" in numbers else "head_dim"
    return (*wanted, Key("attention.key_length", width), Key("attention.value_length", width), FILE_TYPE)


def linear(
    name: str, source: str, rows: str, columns: str, bias: bool | str | None = None, steps: tuple[Step, ...] = ()
) -> tuple[Tensor, ...]:
    """A weight `[rows, columns]` and, unless `bias` is None, its bias, which is there as `Tensor.present` says."""
    weight = Tensor(f"{name}.weight", f"{source}.weight", (rows, columns), steps)
    return (weight,) if bias is None else (weight, Tensor(f"{name}.bias", f"{source}.bias", (rows,), steps, present=bias))


EMBEDDINGS = Tensor("token_embd.weight", "{p}embed_tokens.weight", (VOCAB, HIDDEN))
HEAD = Tensor("output.weight", "lm_head.weight", (VOCAB, HIDDEN), untied=True)


def norm(
    name: str, source: str, size: str = HIDDEN, bias: bool | str | None = None, steps: tuple[Step, ...] = ()
) -> tuple[Tensor, ...]:
    """A norm's weight and, unless `bias` is None, its bias."""
    weight = Tensor(f"{name}.weight", f"{source}.weight", (size,), steps)
    return (weight,) if bias is None else (weight, Tensor(f"{name}.bias", f"{source}.bias", (size,), present=bias))


def attention(
    bias: bool | str | None = None,
    output_bias: bool | str | None = None,
    query: tuple[Step, ...] = (),
    key: tuple[Step, ...] = (),
) -> tuple[Tensor, ...]:
    """Query, key, value and output projections of every layer; `query` and `key` are what is done to those two."""
    source = LAYER + "self_attn."
    return (
        *linear(BLOCK + "attn_q", source + "q_proj", Q, HIDDEN, bias, query),
        *linear(BLOCK + "attn_k", source + "k_proj", KV, HIDDEN, bias, key),
        *linear(BLOCK + "attn_v", source + "v_proj", KV, HIDDEN, bias),
        *linear(BLOCK + "attn_output", source + "o_proj", HIDDEN, Q, output_bias),
    )


def head_norms(steps: tuple[Step, ...] = ()) -> tuple[Tensor, ...]:
    """Norms of single query and key heads."""
    source = LAYER + "self_attn."
    return (
        *norm(BLOCK + "attn_q_norm", source + "q_norm", "head_dim", steps=steps),
        *norm(BLOCK + "attn_k_norm", source + "k_norm", "head_dim", steps=steps),
    )


def gated_mlp(bias: bool | str | None = None) -> tuple[Tensor, ...]:
    """Gate, up and down projections of every layer."""
    return (
        *linear(BLOCK + "ffn_gate", LAYER + "mlp.gate_proj", FFN, HIDDEN, bias),
        *linear(BLOCK + "ffn_up", LAYER + "mlp.up_proj", FFN, HIDDEN, bias),
        *linear(BLOCK + "ffn_down", LAYER + "mlp.down_proj", HIDDEN, FFN, bias),
    )


def experts(source: str, gate: str, up: str, down: str, width: str) -> tuple[Tensor, ...]:
    """The experts' projections, each stacked to one tensor `[experts, rows, columns]`."""
    one = LAYER + source + ".{e}."
    return (
        Tensor(BLOCK + "ffn_gate_exps.weight", f"{one}{gate}.weight", (width, HIDDEN), stack="experts"),
        Tensor(BLOCK + "ffn_up_exps.weight", f"{one}{up}.weight", (width, HIDDEN), stack="experts"),
        Tensor(BLOCK + "ffn_down_exps.weight", f"{one}{down}.weight", (HIDDEN, width), stack="experts"),
    )


FREQUENCIES = {r"\.rotary_emb\.inv_freq$": "readers compute the rotation's frequencies themselves"}
SILU = Limit("hidden_act", ("silu", "swish"), "llama.cpp's graph for this family has SiLU built in")


def sliding_window_note(config: Config, numbers: Numbers) -> str | None:
    """For graphs that attend to everything: a window shorter than the context is ignored."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or config.get("use_sliding_window") is False or window >= numbers["context"]:
        return None
    return f"llama.cpp attends to the whole context where this model looks back {window} tokens only: longer prompts differ"


def towers(*names: str) -> dict[str, str]:
    """The parts of a multimodal model that are left out, as `Family.ignored` has them."""
    reason = "no part of the language model: llama.cpp reads it from a file of its own (mmproj)"
    return {rf"^(model\.)?({'|'.join(names)})\.": reason}


def text_only(config: Config, numbers: Numbers) -> str | None:  # noqa: ARG001
    """What becomes of a model that sees."""
    return "only the text part is converted: the vision tower is left out" if "vision_config" in config else None


def usual_head_width(config: Config, numbers: Numbers) -> str | None:  # noqa: ARG001
    """For graphs in which the heads share the hidden width among them."""
    if numbers["heads"] * numbers["head_dim"] == numbers["hidden"]:
        return None
    return f"head_dim is {numbers['head_dim']}: llama.cpp divides hidden_size by the number of heads in this family"


def window_every(period: int) -> Callable[[Config, Numbers], str | None]:
    """For graphs in which all layers but every `period`-th look back through a window: whether the config's do.

    transformers 5 lists the layers in `layer_types`, older configs have a period under one of several names.
    """

    def check(config: Config, numbers: Numbers) -> str | None:
        wanted = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(numbers["layers"])]
        said = config.get("layer_types") or wanted
        names = ("sliding_window_pattern", "_sliding_window_pattern", "layer_switch")
        if said == wanted and all(config.get(name) in (None, period) for name in names):
            return None
        return f"llama.cpp's graph for this family has full attention in every layer of {period}, config.json says otherwise"

    return check
