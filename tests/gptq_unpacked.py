"""GPTQ checkpoints unpacked as the format is described, bit by bit and without qconvd: what the packer is held against.

A linear of K inputs and N outputs, G groups: qweight (K / 32 * bits, N) and qzeros (G, N / 32 * bits) are streams of `bits`
bits per value in int32 words, low bits first, along K and along N; scales (G, N) float16; g_idx (K,) names the group of each. A
weight is (q - zero) * scale. `gptq` stores zero - 1, `gptq_v2` the zero itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

PARTS = ("qweight", "qzeros", "scales", "g_idx")


def linears(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names of weights and what they are worth: float32 (N, K), exact."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118
                if name.endswith(".qweight"):
                    linear = name.removesuffix(".qweight")
                    tensors = {part: file.get_tensor(f"{linear}.{part}") for part in PARTS}
                    yield f"{linear}.weight", weights(tensors, bits(config, linear), config["checkpoint_format"])


def bits(config: Mapping[str, Any], linear: str) -> int:
    """Of one linear: the first pattern of `dynamic` that its name begins with decides, else the config."""
    for pattern, changes in (config.get("dynamic") or {}).items():
        if not pattern.startswith("-:") and re.match(pattern.removeprefix("+:"), linear):
            return int(changes.get("bits", config["bits"]))
    return int(config["bits"])


def weights(tensors: Mapping[str, np.ndarray], bits: int, checkpoint_format: str) -> np.ndarray:
    """float32 (N, K). A product of a float16 and nine bits fits float32, so nothing is rounded here."""
    q, zeros = codes(tensors["qweight"].T, bits), codes(tensors["qzeros"], bits)  # (N, K), (G, N)
    if checkpoint_format == "gptq":
        zeros = (zeros + 1) % (1 << bits)
    groups = tensors["g_idx"]
    return (q - zeros.T[:, groups]).astype(np.float32) * tensors["scales"].T[:, groups].astype(np.float32)


def codes(words: np.ndarray, bits: int) -> np.ndarray:
    """int32 (rows, words * 32 / bits) of int32 (rows, words): value i is at bit i * bits of its row's stream."""
    stream = (words[:, :, None] >> np.arange(32, dtype=np.int32)) & 1
    values = stream.reshape(len(words), -1, bits)
    return (values << np.arange(bits, dtype=np.int32)).sum(axis=2, dtype=np.int32)
