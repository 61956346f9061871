"""Whether text can be run through a model at all, as far as its config and files say."""

from __future__ import annotations

from qconvd.checkpoints.base import ModelInfo
from qconvd.errors import Unsupported

TOKENIZERS = ("tokenizer.json", "tokenizer.model")
CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How transformers calls its language models; the last also stands for encoder-decoders."""


def check_suitable(model: ModelInfo) -> None:
    """Raise `Unsupported` for a model without a tokenizer, or that is no causal language model."""
    if model.kind not in ("safetensors", "torch"):
        raise Unsupported(
            f"calibration runs the model through transformers, which needs a Hugging Face checkpoint, not {model.kind}",
            where=str(model.path),
            fix="give qconvd the checkpoint that it was made from",
        )
    if not model.architecture.endswith(CAUSAL) or model.config.get("is_encoder_decoder"):
        kind = model.architecture or "a model without `architectures` in its config.json"
        raise Unsupported(
            f"calibration needs a causal language model; this is {kind}",
            where=str(model.path),
            fix="choose a format that needs no calibration",
        )
    if not any(model.has(name) for name in TOKENIZERS):
        raise Unsupported(
            "calibration needs the model's tokenizer, and there is none",
            where=str(model.path),
            fix=f"add {' or '.join(TOKENIZERS)} of the model to the folder",
        )
