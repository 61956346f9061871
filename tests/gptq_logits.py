"""What a GPTQ checkpoint should compute: transformers' model in float32 with the weights that gptq_unpacked.py finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gptq_unpacked
from gguf_readers import log_softmax


def expected(artifact: Path, tokens: Sequence[int]) -> np.ndarray:
    """float32 (tokens, vocabulary)."""
    import torch

    with torch.inference_mode():
        return np.asarray(loaded(artifact)(torch.tensor([list(tokens)])).logits[0].numpy())


def loaded(checkpoint: Path) -> Any:
    """The model of a checkpoint, quantized or not, in float32."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint)
    plain = {k: v for p in sorted(checkpoint.glob("*.safetensors")) for k, v in load_file(p).items()}
    state = {name: value for name, value in plain.items() if name.rpartition(".")[2] not in gptq_unpacked.PARTS}
    if hasattr(config, "quantization_config"):
        del config.quantization_config
        state |= {name: torch.from_numpy(weight) for name, weight in gptq_unpacked.linears(checkpoint)}
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    model.tie_weights()
    return model


@dataclass(frozen=True)
class Agreement:
    """Of a reader's predictions with those expected: the largest difference of a centred logit, the mean Kullback-Leibler
    divergence in nats, and the share of positions whose first choice is the same."""

    difference: float
    divergence: float
    top1: float


def agreement(theirs: np.ndarray, wanted: np.ndarray) -> Agreement:
    """`theirs` may be logits or logarithms of probabilities: both are brought to the latter."""
    p, q = log_softmax(wanted), log_softmax(theirs)
    divergence = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    return Agreement(float(np.abs(p - q).max()), divergence, float((p.argmax(1) == q.argmax(1)).mean()))
