"""BERT and its like: encoders that make embeddings. Sentence embedders, MiniLM, E5, BGE, RoBERTa, XLM-RoBERTa, DistilBERT.

Sources: transformers' modeling_bert, modeling_roberta, modeling_distilbert; the tensor and key names of llama.cpp's `bert`.
llama.cpp gives what comes out of the last layer, and pools it; heads for masked words and BERT's own pooler are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qconvd_gguf.families.base import FILE_TYPE, Config, Family, Fixed, FromFiles, Key, Limit, Metadata, Number, Numbers, Tensor
from qconvd_gguf.families.decoder import linear
from qconvd_gguf.families.pooling import pooling
from qconvd_gguf.families.steps import RowsFrom

BLOCK, LAYER = "blk.{i}.", "{p}encoder.layer.{i}."
HIDDEN, FFN = "hidden", "ffn"
GELU = "llama.cpp's graph for this family has the GELU built in"


def _norm(name: str, source: str) -> tuple[Tensor, Tensor]:
    """A layer norm, whose weight and bias the oldest checkpoints call gamma and beta."""
    return (
        Tensor(f"{name}.weight", f"{source}.weight", (HIDDEN,), also=(f"{source}.gamma",)),
        Tensor(f"{name}.bias", f"{source}.bias", (HIDDEN,), also=(f"{source}.beta",)),
    )


def _names(config: Config) -> list[str]:
    """The classes of a model that has a classifier; transformers invents two where nobody names any."""
    labels = config.get("id2label")
    if not isinstance(labels, Mapping) or not labels:
        count = config.get("num_labels", 2)
        labels = {str(i): f"LABEL_{i}" for i in range(count if isinstance(count, int) else 2)}
    return [str(labels[key]) for key in sorted(labels, key=lambda key: int(key) if str(key).isdecimal() else 0)]


def _labels(config: Config, numbers: Numbers) -> Metadata:  # noqa: ARG001
    """llama.cpp takes the number of classes from this list."""
    return [("classifier.output_labels", "arr[str]", _names(config))]


def _classes(config: Config, numbers: Numbers) -> int:  # noqa: ARG001
    return len(_names(config))


BERT = Family(
    name="bert",
    architectures=("BertModel", "BertForMaskedLM", "BertForPreTraining", "CamembertModel"),
    prefixes=("", "bert.", "roberta."),
    numbers={
        "layers": Number(("num_hidden_layers",)),
        "positions": Number(("max_position_embeddings",)),
        "context": Number((), "positions"),
        "hidden": Number(("hidden_size",)),
        "ffn": Number(("intermediate_size",)),
        "heads": Number(("num_attention_heads",)),
        "head_dim": Number((), "hidden/heads"),
        "eps": Number(("layer_norm_eps",), 1e-12),
        "kinds": Number(("type_vocab_size",), 1),
        "vocab": Number(("vocab_size",)),
    },
    metadata=(
        Key("block_count", "layers"),
        Key("context_length", "context"),
        Key("embedding_length", "hidden"),
        Key("feed_forward_length", "ffn"),
        Key("attention.head_count", "heads"),
        Key("attention.layer_norm_epsilon", "eps", "f32"),
        FILE_TYPE,
        Fixed("attention.causal", "bool", False),
        FromFiles(pooling),
    ),
    vocabulary=(Key("tokenizer.ggml.token_type_count", "kinds"),),
    tensors=(
        Tensor("token_embd.weight", "{p}embeddings.word_embeddings.weight", ("vocab", HIDDEN)),
        Tensor("position_embd.weight", "{p}embeddings.position_embeddings.weight", ("positions", HIDDEN)),
        Tensor("token_types.weight", "{p}embeddings.token_type_embeddings.weight", ("kinds", HIDDEN)),
        *_norm("token_embd_norm", "{p}embeddings.LayerNorm"),
        *linear(BLOCK + "attn_q", LAYER + "attention.self.query", HIDDEN, HIDDEN, True),
        *linear(BLOCK + "attn_k", LAYER + "attention.self.key", HIDDEN, HIDDEN, True),
        *linear(BLOCK + "attn_v", LAYER + "attention.self.value", HIDDEN, HIDDEN, True),
        *linear(BLOCK + "attn_output", LAYER + "attention.output.dense", HIDDEN, HIDDEN, True),
        *_norm(BLOCK + "attn_output_norm", LAYER + "attention.output.LayerNorm"),
        *linear(BLOCK + "ffn_up", LAYER + "intermediate.dense", FFN, HIDDEN, True),
        *linear(BLOCK + "ffn_down", LAYER + "output.dense", HIDDEN, FFN, True),
        *_norm(BLOCK + "layer_output_norm", LAYER + "output.LayerNorm"),
    ),
    ignored={
        r"(^|\.)embeddings\.position_ids$": "readers count positions themselves",
        r"(^|\.)pooler\.dense\.": "llama.cpp pools the last layer itself",
        r"^(cls|lm_head)\.": "the head that guesses masked words is no part of an embedding",
    },
    limits=(
        Limit("hidden_act", ("gelu", "gelu_new", "gelu_pytorch_tanh"), GELU),
        Limit("position_embedding_type", ("absolute",), "llama.cpp has absolute positions only in this family"),
        Limit("is_decoder", (False,), "llama.cpp's encoders look at the whole text"),
    ),
)
"""BERT itself, whose positions begin with the first row."""


def _offset(config: Config, numbers: Numbers) -> int:  # noqa: ARG001
    """RoBERTa's positions begin behind the padding token's id."""
    pad = config.get("pad_token_id", 1)
    return pad + 1 if isinstance(pad, int) else 0


def _some_positions(config: Config, numbers: Numbers) -> str | None:  # noqa: ARG001
    if numbers["context"] > 0:
        return None
    return f"max_position_embeddings is {numbers['positions']}, but positions begin at {numbers['offset']}"


def _usable(config: Config, numbers: Numbers) -> int:  # noqa: ARG001
    return int(numbers["positions"]) - int(numbers["offset"])


ROBERTA = replace(
    BERT,
    architectures=("RobertaModel", "XLMRobertaModel", "RobertaForMaskedLM", "XLMRobertaForMaskedLM"),
    prefixes=("", "roberta."),
    numbers={"positions": BERT.numbers["positions"], "offset": Number((), _offset, least=0)}
    | {name: number for name, number in BERT.numbers.items() if name != "context"}
    | {"context": Number((), _usable), "eps": Number(("layer_norm_eps",), 1e-12)},
    checks=(_some_positions,),
    tensors=tuple(replace(t, steps=(RowsFrom("offset"),)) if t.name == "position_embd.weight" else t for t in BERT.tensors),
)

CLASSIFIER = replace(
    BERT,
    architectures=("BertForSequenceClassification",),
    numbers={**BERT.numbers, "classes": Number((), _classes)},
    metadata=(*BERT.metadata, _labels),
    tensors=(
        *BERT.tensors,
        *linear("cls", "{p}pooler.dense", HIDDEN, HIDDEN, True),
        *linear("cls.output", "classifier", "classes", HIDDEN, True),
    ),
)
"""Cross-encoders. BERT's pooler is what llama.cpp calls a classifier's first layer."""

RERANKER = replace(
    ROBERTA,
    architectures=("RobertaForSequenceClassification", "XLMRobertaForSequenceClassification"),
    numbers={**ROBERTA.numbers, "classes": Number((), _classes)},
    metadata=(*ROBERTA.metadata, _labels),
    tensors=(
        *ROBERTA.tensors,
        *linear("cls", "classifier.dense", HIDDEN, HIDDEN, True),
        *linear("cls.output", "classifier.out_proj", "classes", HIDDEN, True),
    ),
)

DISTIL = "{p}transformer.layer.{i}."
DISTILBERT = Family(
    name="bert",
    architectures=("DistilBertModel", "DistilBertForMaskedLM"),
    prefixes=("", "distilbert."),
    numbers={
        "layers": Number(("n_layers", "num_hidden_layers")),
        "context": Number(("max_position_embeddings",)),
        "hidden": Number(("dim", "hidden_size")),
        "ffn": Number(("hidden_dim",)),
        "heads": Number(("n_heads", "num_attention_heads")),
        "head_dim": Number((), "hidden/heads"),
        "vocab": Number(("vocab_size",)),
    },
    metadata=(
        Fixed("attention.layer_norm_epsilon", "f32", 1e-12),
        Key("block_count", "layers"),
        Key("context_length", "context"),
        Key("embedding_length", "hidden"),
        Key("feed_forward_length", "ffn"),
        Key("attention.head_count", "heads"),
        FILE_TYPE,
        Fixed("attention.causal", "bool", False),
        FromFiles(pooling),
    ),
    vocabulary=(Fixed("tokenizer.ggml.token_type_count", "u32", 1),),
    tensors=(
        Tensor("token_embd.weight", "{p}embeddings.word_embeddings.weight", ("vocab", HIDDEN)),
        Tensor("position_embd.weight", "{p}embeddings.position_embeddings.weight", ("context", HIDDEN)),
        *_norm("token_embd_norm", "{p}embeddings.LayerNorm"),
        *linear(BLOCK + "attn_q", DISTIL + "attention.q_lin", HIDDEN, HIDDEN, True),
        *linear(BLOCK + "attn_k", DISTIL + "attention.k_lin", HIDDEN, HIDDEN, True),
        *linear(BLOCK + "attn_v", DISTIL + "attention.v_lin", HIDDEN, HIDDEN, True),
        *linear(BLOCK + "attn_output", DISTIL + "attention.out_lin", HIDDEN, HIDDEN, True),
        *_norm(BLOCK + "attn_output_norm", DISTIL + "sa_layer_norm"),
        *linear(BLOCK + "ffn_up", DISTIL + "ffn.lin1", FFN, HIDDEN, True),
        *linear(BLOCK + "ffn_down", DISTIL + "ffn.lin2", HIDDEN, FFN, True),
        *_norm(BLOCK + "layer_output_norm", DISTIL + "output_layer_norm"),
    ),
    ignored={r"^vocab_": "the head that guesses masked words is no part of an embedding"},
    limits=(Limit("activation", ("gelu",), GELU),),
)

FAMILIES = (BERT, ROBERTA, CLASSIFIER, RERANKER, DISTILBERT)
