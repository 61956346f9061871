"""GGUF's metadata as config.json: a family's keys and numbers read from right to left.

What GGUF does not say is what its family's graph computes with: llama.cpp's activation, the defaults of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from qconvd.api import Unsupported
from qconvd_gguf.backwards.values import short_float
from qconvd_gguf.families.base import Family, Key

MODEL_TYPES = {
    "GPT2LMHeadModel": "gpt2", "GPTNeoXForCausalLM": "gpt_neox", "GPTJForCausalLM": "gptj", "BloomForCausalLM": "bloom",
    "FalconForCausalLM": "falcon", "GemmaForCausalLM": "gemma", "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text", "Glm4ForCausalLM": "glm4", "GraniteForCausalLM": "granite",
    "GraniteMoeForCausalLM": "granitemoe",
    "InternLM2ForCausalLM": "internlm2", "LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral", "MPTForCausalLM": "mpt", "OlmoForCausalLM": "olmo", "Olmo2ForCausalLM": "olmo2",
    "PhiForCausalLM": "phi", "Phi3ForCausalLM": "phi3", "Qwen2ForCausalLM": "qwen2", "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3_moe", "SmolLM3ForCausalLM": "smollm3",
    "StableLmForCausalLM": "stablelm", "Starcoder2ForCausalLM": "starcoder2", "CohereForCausalLM": "cohere",
    "Cohere2ForCausalLM": "cohere2", "DeepseekV2ForCausalLM": "deepseek_v2", "DeepseekV3ForCausalLM": "deepseek_v3",
    "BertModel": "bert", "RobertaModel": "roberta", "T5ForConditionalGeneration": "t5",
}  # fmt: skip
"""transformers' `model_type` of each class that a rebuilt config.json may name."""
TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}


def config_of(family: Family, found: Mapping[str, Any], tensors: Collection[str], vocabulary: int) -> dict[str, Any]:
    """config.json for metadata `found` of a file with these tensors. Raises `Unsupported` for a key that differs by layer."""
    name = family.architectures[0]
    if name.endswith("ForConditionalGeneration") and name not in MODEL_TYPES:
        raise Unsupported(f"{name} is multimodal, and the other parts of the model are not in the file")
    config: dict[str, Any] = {"architectures": [name]}
    if name in MODEL_TYPES:
        config["model_type"] = MODEL_TYPES[name]
    for entry in family.metadata:
        if not isinstance(entry, Key) or entry.value not in family.numbers:
            continue
        value = found.get(f"{family.name}.{entry.name}")
        keys = family.numbers[entry.value].keys
        if isinstance(value, list):
            what = f"{family.name}.{entry.name} differs by layer, which config.json cannot say"
            if len(set(value)) > 1:
                raise Unsupported(what)
            value = value[0] if value else None
        if value == 0 and entry.name == "attention.sliding_window":
            continue  # no window, which transformers' configs say by saying nothing
        if value is not None and keys:
            # Readers differ in which of several spellings they know.
            for key in keys[:1] + tuple(key for key in keys[1:] if "." not in key):
                _put(config, key, short_float(value) if isinstance(value, float) else value)
    _put(config, family.numbers["vocab"].keys[0], vocabulary)
    heads = any(t.untied and t.name in tensors for t in family.tensors)
    if any(t.untied for t in family.tensors):
        config["tie_word_embeddings"] = not heads
    numbers = {key for number in family.numbers.values() for key in number.keys}
    for tensor in family.tensors:
        if isinstance(tensor.present, str) and tensor.present not in numbers:
            there = tensor.name.replace("{i}", "0") in tensors
            config[tensor.present] = bool(config.get(tensor.present)) or there
    for limit in family.limits:
        if "." not in limit.key and limit.key not in config and limit.values[:1] not in ((), (None,)):
            config[limit.key] = limit.values[0]
    config |= {ours: found[f"tokenizer.ggml.{key}"] for key, ours in TOKENS.items() if f"tokenizer.ggml.{key}" in found}
    own = {key.removeprefix(f"{family.name}."): value for key, value in found.items()}
    for recover in (_theta, *family.recover):
        config |= recover(own, tensors)
    return config | _rope(family, found)


def _theta(found: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:  # noqa: ARG001
    """The rotation's base, also where the family writes it only if it is uncommon."""
    value = found.get("rope.freq_base")
    return {"rope_theta": short_float(value)} if isinstance(value, float) else {}


def _rope(family: Family, found: Mapping[str, Any]) -> dict[str, Any]:
    """Linear and yarn scaling; llama 3's stands in a tensor."""
    kind = found.get(f"{family.name}.rope.scaling.type")
    if kind not in ("linear", "yarn"):
        return {}
    names = {"factor": "factor", "original_context_length": "original_max_position_embeddings",
             "yarn_ext_factor": "extrapolation_factor", "yarn_attn_factor": "attention_factor",
             "attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}  # fmt: skip
    scaling: dict[str, Any] = {"rope_type": kind}
    for key, ours in names.items():
        value = found.get(f"{family.name}.rope.scaling.{key}")
        if value is not None:
            scaling[ours] = short_float(value) if isinstance(value, float) else value
    return {"rope_scaling": scaling}


def _put(config: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = re.split(r"\.", dotted)
    for part in path:
        config = config.setdefault(part, {})
    config.setdefault(last, value)
