"""Make the records of this folder: `python tests/golden/families/encoders/make.py LLAMA_CPP [NAME …]`, as ../make.py does.

Here the tokenizers' keys are recorded as well, and the converter reads config.json itself: transformers 5 would change it.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[3]
sys.path.insert(0, str(TESTS))

import encoder_models  # noqa: E402
import gguf_files  # noqa: E402

SMALL: dict[str, Any] = dict(
    vocab_size=encoder_models.VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4
)
BERT = SMALL | dict(max_position_embeddings=128, type_vocab_size=2, layer_norm_eps=1e-6, pad_token_id=0)
ROBERTA = SMALL | dict(
    max_position_embeddings=130, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2
)
T5 = dict(
    vocab_size=encoder_models.VOCAB, d_model=64, d_ff=96, d_kv=24, num_heads=4, num_layers=3, num_decoder_layers=2,
    relative_attention_num_buckets=16, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, n_positions=256,
)  # fmt: skip
NOMIC = SMALL | dict(max_position_embeddings=2048, rope_parameters=dict(rope_type="default", rope_theta=1000.0))
NOMIC_SAYS = dict(
    architectures=["NomicBertModel"], model_type="nomic_bert", n_embd=64, n_inner=96, n_layer=3, n_head=4, n_positions=8192,
    max_trained_positions=2048, rotary_emb_base=1000, rotary_emb_fraction=1.0, rotary_emb_interleaved=False,
    rotary_emb_scale_base=None, activation_function="swiglu", causal=False, prenorm=False, qkv_proj_bias=False,
    mlp_fc1_bias=False, mlp_fc2_bias=False, layer_norm_epsilon=1e-12, type_vocab_size=2, vocab_size=encoder_models.VOCAB,
)  # fmt: skip
NOMIC_MOE = NOMIC_SAYS | dict(
    activation_function="gelu", qkv_proj_bias=True, mlp_fc1_bias=True, mlp_fc2_bias=True, num_experts=5, moe_top_k=2,
    moe_every_n_layers=2, n_positions=2048, type_vocab_size=1, rotary_emb_base=10000, layer_norm_epsilon=1e-5,
)  # fmt: skip
MODERN = SMALL | dict(
    num_hidden_layers=5, max_position_embeddings=256, local_attention=16, norm_eps=1e-6, pad_token_id=1, bos_token_id=0,
    eos_token_id=2, cls_token_id=0, sep_token_id=2,
    rope_parameters=dict(
        full_attention=dict(rope_type="default", rope_theta=80000.0),
        sliding_attention=dict(rope_type="default", rope_theta=5000.0),
    ),
)  # fmt: skip
MODERN_SAYS = dict(global_rope_theta=80000.0, local_rope_theta=5000.0, layer_norm_eps=1e-6, global_attn_every_n_layers=3)
LABELS = dict(id2label={0: "no", 1: "maybe", 2: "yes"}, label2id={"no": 0, "maybe": 1, "yes": 2})
VARIANTS: Mapping[str, tuple[str, str, dict[str, Any], str, dict[str, Any]]] = {
    # class, config's class, its fields, tokenizer, what the published config says besides; `pooling` is none of config.json's.
    "bert": ("BertModel", "bert", BERT, "wordpiece", dict(pooling="mean")),
    "bert-masked": ("BertForMaskedLM", "bert", BERT, "wordpiece", {}),
    "bert-classifier": ("BertForSequenceClassification", "bert", BERT | LABELS, "wordpiece", {}),
    "roberta": ("RobertaModel", "roberta", ROBERTA, "byte_bpe", dict(pooling="cls")),
    "xlm-roberta": ("XLMRobertaModel", "xlm-roberta", ROBERTA, "unigram", dict(pooling="mean")),
    "xlm-roberta-reranker": (
        "XLMRobertaForSequenceClassification", "xlm-roberta",
        ROBERTA | dict(id2label={0: "LABEL_0"}, label2id={"LABEL_0": 0}), "unigram", {},
    ),
    "distilbert": (
        "DistilBertModel", "distilbert",
        dict(vocab_size=encoder_models.VOCAB, dim=64, hidden_dim=96, n_layers=3, n_heads=4, max_position_embeddings=128),
        "wordpiece", {},
    ),
    "nomic-bert": ("NomicBertModel", "nomic_bert", NOMIC, "wordpiece", dict(pooling="mean")),
    "nomic-bert-moe": ("NomicBertModel", "", {}, "unigram", dict(pooling="mean")),
    "modern-bert": ("ModernBertModel", "modernbert", MODERN, "byte_bpe", dict(pooling="cls")),
    "t5": ("T5ForConditionalGeneration", "t5", T5, "spiece", {}),
    "flan-t5": (
        "T5ForConditionalGeneration", "t5", T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False), "spiece", {},
    ),
    "umt5": ("UMT5ForConditionalGeneration", "umt5", T5 | dict(feed_forward_proj="gated-gelu"), "spiece", {}),
    "t5-encoder": ("T5EncoderModel", "t5", T5, "spiece", dict(pooling="mean")),
}  # fmt: skip
ADDED_BY_5 = {("nomic-bert", "head_dim")}
SAYS = {
    "nomic-bert": NOMIC_SAYS,
    "modern-bert": MODERN_SAYS,
    "flan-t5": dict(tie_word_embeddings=False),
    "t5": dict(tie_word_embeddings=True),
}


def checkpoint(class_name: str, model_type: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """config.json and the tensors of a checkpoint of this class, as transformers saves them."""
    import torch
    import transformers
    from safetensors import safe_open

    config = transformers.AutoConfig.for_model(model_type, **fields)
    with tempfile.TemporaryDirectory() as folder:
        model = getattr(transformers, class_name)(config).to(torch.float32)
        model.save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
        saved = json.loads((Path(folder) / "config.json").read_text())
    return {k: v for k, v in saved.items() if k != "transformers_version"}, shapes


def nomic_moe() -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Its code is not in transformers; names and shapes are the published checkpoint's, with experts in every other layer."""
    shapes = {
        "embeddings.word_embeddings.weight": [encoder_models.VOCAB, 64],
        "embeddings.token_type_embeddings.weight": [1, 64],
    }
    norms = ["emb_ln"]
    for i in range(3):
        layer = f"encoder.layers.{i}."
        linears = {"attn.Wqkv": [192, 64], "attn.out_proj": [64, 64]}
        if i % 2:
            shapes |= {f"{layer}mlp.router.layer.weight": [5, 64], f"{layer}mlp.experts.bias": [64]}
            shapes |= {f"{layer}mlp.experts.mlp.{w}": [480, 64] for w in ("w1", "w2")}
        else:
            linears |= {"mlp.fc1": [96, 64], "mlp.fc2": [64, 96]}
        for name, shape in linears.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        norms += [f"{layer}norm1", f"{layer}norm2"]
    shapes |= {f"{name}.{part}": [64] for name in norms for part in ("weight", "bias")}
    return dict(NOMIC_MOE), shapes


def converted(llama_cpp: Path, folder: Path, architecture: str) -> Path:
    """llama.cpp's F16 file of the model in `folder`."""
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import gguf
    from conversion import get_model_class
    from conversion.base import ModelBase, TextModel

    TextModel.get_vocab_base_pre = lambda *_: encoder_models.PRE
    config = json.loads((folder / "config.json").read_text())
    ModelBase.load_hparams = staticmethod(lambda *_, **__: dict(config))
    out = folder / "model.gguf"
    get_model_class(architecture)(folder, gguf.LlamaFileType.MOSTLY_F16, out, eager=True).write()
    return out


def main(llama_cpp: Path, names: list[str]) -> None:
    for name in names or VARIANTS:
        class_name, model_type, fields, tokenizer, more = VARIANTS[name]
        config, shapes = nomic_moe() if name == "nomic-bert-moe" else checkpoint(class_name, model_type, fields)
        config = {k: v for k, v in config.items() if (name, k) not in ADDED_BY_5}
        if name == "flan-t5":  # transformers 5 saves none, but the published checkpoints have one
            shapes["lm_head.weight"] = [encoder_models.VOCAB, 64]
        record: dict[str, Any] = {"config": config | SAYS.get(name, {}), "checkpoint": shapes, "tokenizer": tokenizer} | more
        with tempfile.TemporaryDirectory() as folder:
            model = encoder_models.make(Path(folder) / "model", record)
            path = converted(llama_cpp, model, class_name)
            tensors = {k: [*v[:2], v[2][:24]] for k, v in gguf_files.tensors(path).items()}
            record |= {"made_with": "llama-cpp-python 0.3.36, F16", "metadata": gguf_files.metadata(path), "tensors": tensors}
        text = json.dumps(record, separators=(",", ":"))
        (Path(__file__).parent / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        print(name, len(shapes), "tensors", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
