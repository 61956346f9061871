"""Which model families the gguf format can map; a plugin adds its own through the `qconvd_gguf_families` hook."""

from __future__ import annotations

from collections.abc import Sequence

from qconvd.api import Detail, ModelInfo, Unsupported, gguf_families, given_by
from qconvd_gguf.families import (
    bert,
    bloom,
    cohere2,
    command_r,
    deepseek2,
    falcon,
    gemma,
    gemma2,
    gemma3,
    glm4,
    gpt2,
    gptneox,
    granite,
    granitemoe,
    internlm2,
    llama,
    mistral3,
    mixtral,
    modern_bert,
    mpt,
    nomic_bert,
    olmo,
    olmo2,
    phi2,
    phi3,
    qwen2,
    qwen2moe,
    qwen3,
    qwen3moe,
    smollm3,
    stablelm,
    starcoder2,
    t5,
)
from qconvd_gguf.families.base import Family

BUILT_IN: Sequence[Family] = (
    *bert.FAMILIES,
    bloom.FAMILY,
    cohere2.FAMILY,
    command_r.FAMILY,
    deepseek2.FAMILY,
    falcon.FAMILY,
    gemma.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    glm4.FAMILY,
    gpt2.FAMILY,
    gptneox.FAMILY,
    granite.FAMILY,
    granitemoe.FAMILY,
    internlm2.FAMILY,
    llama.FAMILY,
    mistral3.FAMILY,
    mixtral.FAMILY,
    modern_bert.FAMILY,
    mpt.FAMILY,
    *nomic_bert.FAMILIES,
    olmo.FAMILY,
    olmo2.FAMILY,
    phi2.FAMILY,
    phi3.FAMILY,
    qwen2.FAMILY,
    qwen2moe.FAMILY,
    qwen3.FAMILY,
    qwen3moe.FAMILY,
    smollm3.FAMILY,
    stablelm.FAMILY,
    starcoder2.FAMILY,
    *t5.FAMILIES,
)


def known() -> list[Family]:
    """Every family, those of other plugins first: they come before a built-in one."""
    return [*gguf_families(), *BUILT_IN]


def details() -> Detail:
    """The families as a table: which models `gguf` can be made from, and who says so."""
    added = gguf_families()
    rows = [(f.name, ", ".join(f.architectures), given_by(f) if any(f is a for a in added) else "") for f in known()]
    return Detail("Model families", ("FAMILY", "ARCHITECTURES", "ADDED BY"), sorted(rows))


def family_of(model: ModelInfo) -> Family:
    """The family of a model. Raises `Unsupported` that lists what there is and says how to add one."""
    families = known()
    fits = (f for f in families if model.architecture in f.architectures)
    found = next((f for f in fits if f.applies is None or f.applies(model.config)), None)
    if found is not None:
        return found
    names = ", ".join(sorted({a for f in families for a in f.architectures}))
    what = f"gguf does not know the architecture {model.architecture}"
    raise Unsupported(what, where=str(model.path), fix=f"known: {names}; docs/how-to/add-a-gguf-family.md shows how to add one")
