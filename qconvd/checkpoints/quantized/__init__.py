"""Quantized checkpoints as sources: their packed tensors seen as the floats that the model means by them.

A checkpoint of GPTQ (gptq.py), AWQ (awq.py), compressed-tensors (compressed.py) or FP8 in blocks (fp8.py) keeps several tensors
for each linear. Here they become one, `….weight`, whose `made` says how its numbers are computed; the arithmetic is in
operations.py and runs when rows are read. So a format sees the model that was quantized, with the weights that are left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvd.checkpoints.base import TensorInfo
from qconvd.checkpoints.files import CONFIG_LIMIT, read_json
from qconvd.checkpoints.quantized import awq, compressed, fp8, gptq
from qconvd.checkpoints.quantized.parts import Parts
from qconvd.checkpoints.refusals import QUANTIZER_FILES, quantization, refuse_quantized
from qconvd.errors import BadCheckpoint

KEYS = ("quantization_config", "compression_config")


@dataclass(frozen=True, slots=True)
class Packing:
    """How a checkpoint is packed, as its config says."""

    label: str
    """`GPTQ, 4 bits, group size 128`."""
    config: Mapping[str, Any]
    """The model's config.json without a word of quantization."""
    _plan: Callable[[Parts], None]

    @property
    def note(self) -> str:
        return f"the model was quantized before ({self.label}): its weights are what that left of them"

    def unpacked(self, folder: Path, stored: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """The tensors that the model means, floats in F32 where they were packed; all others as they are.

        Raises `BadCheckpoint` where the parts of a tensor do not fit each other.
        """
        parts = Parts(folder, stored)
        self._plan(parts)
        if not parts.found_any:
            what = f"is said to be quantized ({self.label}), but none of its tensors is packed"
            fix = "copy the folder again, or take the config of quantization out of it if the model is not quantized"
            raise BadCheckpoint(what, where=str(folder), fix=fix)
        return parts.meant()


def packing(folder: Path, config: Mapping[str, Any], names: Collection[str]) -> Packing | None:
    """How the model in `folder` was quantized; None if it was not. `names` are the folder's visible entries.

    Raises `Unsupported` for a method, or a variant of one, that is not read.
    """
    label = quantization(config)
    where = folder / "config.json"
    if label:
        found = _said(config)
    else:
        beside = next((n for n in QUANTIZER_FILES if n in names), None)
        if beside is None:
            return None
        where = folder / beside
        found = {"quant_method": QUANTIZER_FILES[beside], **read_json(where, CONFIG_LIMIT)}
        label = quantization({KEYS[0]: found})
    method = str(found.get("quant_method") or ("compressed-tensors" if "compression_config" in config else ""))
    readers = {"gptq": gptq.reader, "awq": awq.reader, "compressed-tensors": compressed.reader, "fp8": fp8.reader}
    reader = readers.get(method.lower())
    if reader is None:
        raise refuse_quantized(label, str(where))
    return Packing(label, _without(config), reader(found, label, str(where)))


def _said(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, Mapping) else {}):
        for key in KEYS:
            found = place.get(key)
            if isinstance(found, Mapping):
                return found
    return {}


def _without(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in config.items() if key not in KEYS}
    if isinstance(plain.get("text_config"), Mapping):
        plain["text_config"] = {key: value for key, value in plain["text_config"].items() if key not in KEYS}
    return plain
