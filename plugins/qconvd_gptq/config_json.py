"""What a checkpoint's config says of its quantization, in the keys that its readers know."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from qconvd.api import JOINED, Kept, inside_layer
from qconvd_gptq.linears import Chosen
from qconvd_gptq.options import GptqOptions

QUANTIZER = "qconvd"


def quantization_config(options: GptqOptions, linears: Sequence[Chosen], kept: Sequence[Kept], version: str) -> dict[str, Any]:
    """`quantization_config` of config.json, and all of quantize_config.json."""
    order = options.order
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": options.bits[0],
        "group_size": options.group_size[0],
        "damp_percent": options.damp_percent,
        "desc_act": order == "desc_act",
        "static_groups": order == "static",
        "sym": options.sym,
        "true_sequential": options.calibration.activations == "quantized",
        "lm_head": False,
        "checkpoint_format": options.stored_as,
        "pack_dtype": "int32",
    }
    if dynamic := _dynamic(options, linears, kept):
        config["dynamic"] = dynamic
    if kept and (names := in_every_layer(linears, kept)):
        config["modules_in_block_to_quantize"] = [names]
    config["meta"] = {"quantizer": [f"{QUANTIZER}:{version}"], "method": options.method, "act_order": order, "mse": options.mse}
    return config


def in_every_layer(linears: Sequence[Chosen], kept: Sequence[Kept]) -> list[str]:
    """Names within a layer of what is quantized, if that tells it from what is kept; else nothing."""
    inside = {inside_layer(x.module) for x in linears}
    outside = {inside_layer(x.module) for x in kept}
    return [] if inside & outside else sorted(inside)


def _dynamic(options: GptqOptions, linears: Sequence[Chosen], kept: Sequence[Kept]) -> dict[str, Any]:
    """Regular expressions from the start of a module's name, the first that fits decides: what is left out comes first."""
    found: dict[str, Any] = {}
    quantized = _joined(x.module for x in linears)
    for module in dict.fromkeys(_pattern(m, quantized) for m in _with_fused([k.module for k in kept], quantized)):
        found[f"-:{module}"] = {}
    usual = (options.bits[0], options.group_size[0], options.sym)
    for x in linears:
        if (x.bits, x.group_size, x.sym) != usual:
            changed = {"bits": x.bits, "group_size": x.group_size, "sym": x.sym}
            base = {"bits": usual[0], "group_size": usual[1], "sym": usual[2]}
            others = _joined(y.module for y in linears if (y.bits, y.group_size, y.sym) != (x.bits, x.group_size, x.sym))
            for module in sorted(_joined([x.module]) - others):
                found.setdefault(f"+:{_pattern(module, others)}", {k: v for k, v in changed.items() if v != base[k]})
    return found


def _pattern(module: str, others: set[str]) -> str:
    """An expression for a module, for all layers at once unless that would take in one of the others."""
    inside = inside_layer(module)
    if any(inside_layer(o) == inside for o in others):
        # Some checkpoints leave out what their model puts in front: `h.0.` is `transformer.h.0.`.
        return rf"(?:.*\.)?{re.escape(module)}$"
    return rf".*\.{re.escape(inside)}$"


def _joined(modules: Iterable[str]) -> set[str]:
    """The modules, and what vLLM joins them into."""
    found = set(modules)
    for module in tuple(found):
        before, _, last = module.rpartition(".")
        found |= {f"{before}.{joined}" for members, joined in JOINED if last in members}
    return found


def _with_fused(modules: Sequence[str], quantized: set[str]) -> list[str]:
    """The modules, and the joined ones that none of their members are quantized in."""
    more = list(modules)
    for module in modules:
        before, _, last = module.rpartition(".")
        for members, joined in JOINED:
            if last in members and not any(f"{before}.{m}" in quantized for m in members):
                more.append(f"{before}.{joined}")
    return more
