"""T5, mT5, UMT5, Flan-T5: encoder and decoder, and the encoder alone.

Source: transformers' modeling_t5 and modeling_umt5; the tensor and key names of llama.cpp's `t5` and `t5encoder`.
"""

from __future__ import annotations

from qconvd_gguf.families.base import FILE_TYPE, Config, Family, Key, Limit, Number, Numbers, Tensor
from qconvd_gguf.families.steps import Times

HIDDEN, FFN, INNER = "hidden", "ffn", "heads*head_dim"


def _output_scale(config: Config, numbers: Numbers) -> float:
    """Where embeddings are tied, the original T5 divides what goes to the output layer; llama.cpp does not."""
    return float(numbers["hidden"]) ** -0.5 if config.get("tie_word_embeddings", True) is not False else 1.0


def _gated(config: Config) -> bool:
    return str(config.get("feed_forward_proj", "relu")).startswith("gated")


def _plain(config: Config) -> bool:
    return not _gated(config)


def _attention(name: str, source: str, kind: str, over: str) -> tuple[Tensor, ...]:
    """One attention and the norm before it; `kind` is what llama.cpp calls it."""
    inner = source.rpartition(".")[0]
    return (
        Tensor(f"{name}{kind}_norm.weight", f"{inner}.layer_norm.weight", (HIDDEN,), over=over),
        *(Tensor(f"{name}{kind}_{x}.weight", f"{source}.{x}.weight", (INNER, HIDDEN), over=over) for x in "qkv"),
        Tensor(f"{name}{kind}_o.weight", f"{source}.o.weight", (HIDDEN, INNER), over=over),
        Tensor(
            f"{name}{kind}_rel_b.weight",
            f"{source}.relative_attention_bias.weight",
            ("buckets", "heads"),
            present=False,
            over=over,
        ),
    )


def _mlp(name: str, layer: str, over: str) -> tuple[Tensor, ...]:
    """Two linears with a ReLU between, or three with a GELU gate."""
    dense = f"{layer}.DenseReluDense."
    return (
        Tensor(f"{name}ffn_norm.weight", f"{layer}.layer_norm.weight", (HIDDEN,), over=over),
        Tensor(f"{name}ffn_gate.weight", f"{dense}wi_0.weight", (FFN, HIDDEN), present=_gated, over=over),
        Tensor(f"{name}ffn_up.weight", f"{dense}wi_1.weight", (FFN, HIDDEN), present=_gated, over=over),
        Tensor(f"{name}ffn_up.weight", f"{dense}wi.weight", (FFN, HIDDEN), present=_plain, over=over),
        Tensor(f"{name}ffn_down.weight", f"{dense}wo.weight", (HIDDEN, FFN), over=over),
    )


SHARED = (
    Tensor(
        "token_embd.weight",
        "{p}shared.weight",
        ("vocab", HIDDEN),
        also=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    ),
    Tensor("enc.output_norm.weight", "encoder.final_layer_norm.weight", (HIDDEN,)),
    *_attention("enc.blk.{i}.", "encoder.block.{i}.layer.0.SelfAttention", "attn", ""),
    *_mlp("enc.blk.{i}.", "encoder.block.{i}.layer.1", ""),
)
LIMITS = (
    Limit("feed_forward_proj", ("relu", "gated-gelu"), "llama.cpp's t5 has the ReLU, or the GELU as a gate"),
    Limit("relative_attention_max_distance", (128,), "llama.cpp's t5 tells distances up to 128 apart"),
)
NUMBERS = {
    "context": Number(("n_positions",), 512),
    "hidden": Number(("d_model",)),
    "ffn": Number(("d_ff",)),
    "layers": Number(("num_layers", "num_hidden_layers")),
    "heads": Number(("num_heads",)),
    "head_dim": Number(("d_kv",)),
    "eps": Number(("layer_norm_epsilon",), 1e-6),
    "buckets": Number(("relative_attention_num_buckets",), 32),
    "vocab": Number(("vocab_size",)),
}
SIZES = (
    Key("context_length", "context"),
    Key("embedding_length", "hidden"),
    Key("feed_forward_length", "ffn"),
    Key("block_count", "layers"),
)
ATTENTION = (
    Key("attention.head_count", "heads"),
    Key("attention.key_length", "head_dim"),
    Key("attention.value_length", "head_dim"),
    Key("attention.layer_norm_epsilon", "eps", "f32"),
    Key("attention.relative_buckets_count", "buckets"),
    Key("attention.layer_norm_rms_epsilon", "eps", "f32"),
)

T5 = Family(
    name="t5",
    architectures=(
        "T5ForConditionalGeneration",
        "T5WithLMHeadModel",
        "MT5ForConditionalGeneration",
        "UMT5ForConditionalGeneration",
    ),
    numbers={
        **NUMBERS,
        "decoder_layers": Number(("num_decoder_layers",), "layers"),
        "start": Number(("decoder_start_token_id",), 0, least=0),
        "output_scale": Number((), _output_scale),
    },
    metadata=(
        *SIZES,
        Key("decoder_block_count", "decoder_layers"),
        *ATTENTION,
        Key("decoder_start_token_id", "start"),
        FILE_TYPE,
    ),
    tensors=(
        *SHARED,
        Tensor("output.weight", "lm_head.weight", ("vocab", HIDDEN), untied=True),
        Tensor("dec.output_norm.weight", "decoder.final_layer_norm.weight", (HIDDEN,), (Times("output_scale"),)),
        *_attention("dec.blk.{i}.", "decoder.block.{i}.layer.0.SelfAttention", "attn", "decoder_layers"),
        *_attention("dec.blk.{i}.", "decoder.block.{i}.layer.1.EncDecAttention", "cross_attn", "decoder_layers"),
        *_mlp("dec.blk.{i}.", "decoder.block.{i}.layer.2", "decoder_layers"),
    ),
    ties=True,
    limits=LIMITS,
)

ENCODER = Family(
    name="t5encoder",
    architectures=("T5EncoderModel", "MT5EncoderModel", "UMT5EncoderModel"),
    numbers=NUMBERS,
    metadata=(*SIZES, *ATTENTION, FILE_TYPE),
    tensors=SHARED,
    limits=LIMITS,
)

FAMILIES = (T5, ENCODER)
