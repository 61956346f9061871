"""What a quantized checkpoint should compute: transformers' model in float32 with the weights that are stored.

They are found by gptq_unpacked.py and compressed_files.py; what a reader does to activations, as config.json tells it to, is
done here as well.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import compressed_files
import gptq_unpacked
from gguf_readers import log_softmax


def expected(artifact: Path, tokens: Sequence[int]) -> np.ndarray:
    """float32 (tokens, vocabulary)."""
    import torch

    model = loaded(artifact)
    about = json.loads((artifact / "config.json").read_text()).get("quantization_config", {})
    group = about.get("config_groups", {}).get("group_0", {})
    if group.get("input_activations"):
        linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        round_activations(model, set(linears) - set(about["ignore"]), group["input_activations"])
    with torch.inference_mode():
        return np.asarray(model(torch.tensor([list(tokens)])).logits[0].numpy())


def loaded(checkpoint: Path) -> Any:
    """The model of a checkpoint, quantized or not, in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    missing, unexpected = model.load_state_dict(weights(checkpoint), strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    model.tie_weights()
    return model


def weights(checkpoint: Path) -> dict[str, Any]:
    """All tensors of the model, quantized ones as float32 of what is stored."""
    import torch
    from safetensors.torch import load_file

    method = json.loads((checkpoint / "config.json").read_text()).get("quantization_config", {}).get("quant_method")
    if method in ("compressed-tensors", "bitsandbytes"):
        return compressed_files.weights(checkpoint)
    stored = {k: v for p in sorted(checkpoint.glob("*.safetensors")) for k, v in load_file(p).items()}
    if method == "gptq":
        stored = {name: value for name, value in stored.items() if name.rpartition(".")[2] not in gptq_unpacked.PARTS}
        stored |= {name: torch.from_numpy(weight) for name, weight in gptq_unpacked.linears(checkpoint)}
    return stored


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


def round_activations(model: Any, modules: Collection[str], about: Mapping[str, Any]) -> None:
    """As config.json says of `input_activations`: by token, or by groups of inputs, to 8-bit integers or E4M3."""

    import torch

    def rounded(_: Any, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (x,) = arguments
        groups = x.unflatten(-1, (-1, about["group_size"] or x.shape[-1]))
        largest = groups.abs().amax(-1, keepdim=True)
        if about["type"] == "int":
            scale = largest / 127.5
            codes = (groups / scale).round().clamp(-128, 127)
        else:
            scale = largest / 448
            codes = (groups / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float()
        return ((codes * scale).flatten(-2),)

    for name in modules:
        model.get_submodule(name).register_forward_pre_hook(rounded)
