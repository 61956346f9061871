"""Which model families the gguf format can map; a plugin adds its own through the `qconvd_gguf_families` hook."""

from __future__ import annotations

from collections.abc import Sequence

from qconvd.api import ModelInfo, Unsupported, gguf_families
from qconvd_gguf.families import (
    bert,
    bloom,
    deepseek2,
    falcon,
    gpt2,
    gptneox,
    llama,
    mixtral,
    modern_bert,
    mpt,
    nomic_bert,
    phi2,
    qwen3moe,
    starcoder2,
    t5,
)
from qconvd_gguf.families.base import Family

BUILT_IN: Sequence[Family] = (
    *bert.FAMILIES,
    bloom.FAMILY,
    deepseek2.FAMILY,
    falcon.FAMILY,
    gptneox.FAMILY,
    modern_bert.FAMILY,
    mpt.FAMILY,
    *nomic_bert.FAMILIES,
    phi2.FAMILY,
    starcoder2.FAMILY,
    *t5.FAMILIES,
    gpt2.FAMILY,
    llama.FAMILY,
    mixtral.FAMILY,
    qwen3moe.FAMILY,
)


def family_of(model: ModelInfo) -> Family:
    """The family of a model. Raises `Unsupported` that lists what there is and says how to add one."""
    families: list[Family] = [*gguf_families(), *BUILT_IN]
    fits = (f for f in families if model.architecture in f.architectures)
    found = next((f for f in fits if f.applies is None or f.applies(model.config)), None)
    if found is not None:
        return found
    known = ", ".join(sorted({a for f in families for a in f.architectures}))
    what = f"gguf does not know the architecture {model.architecture}"
    raise Unsupported(what, where=str(model.path), fix=f"known: {known}; docs/how-to/add-a-gguf-family.md shows how to add one")
