"""What benchmarks/gptq.py and benchmarks/gptq_quality.py share: text, perplexity in float32, bits per weight.

Perplexity is of transformers' own model in float32, with weights that tests/gptq_unpacked.py finds in a checkpoint, whoever
wrote it: no reader's kernels are compared here. Windows of 512 tokens from Pride and Prejudice; what comes after 64 is scored.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import exp
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

from novels import novels  # noqa: E402
from safetensors import safe_open  # noqa: E402

from gguf_readers import log_softmax  # noqa: E402
from reader_logits import loaded  # noqa: E402

TEST, SKIPPED, OTHER = "PRIDE AND PREJUDICE", 20_000, "EMMA"
WINDOW, CONTEXT = 512, 64


def windows(model: Path, package: Path, count: int, length: int = WINDOW) -> np.ndarray:
    """int64 (count, length): held-out text."""
    from tokenizers import Tokenizer

    text = novels(package)[TEST][SKIPPED : SKIPPED + 8 * length * count]
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return np.array(ids[: count * length], np.int64).reshape(count, length)


def calibration_text(package: Path, out: Path) -> Path:
    """Another novel, as a file."""
    out.write_text(novels(package)[OTHER])
    return out


def perplexity(checkpoint: Path, text: np.ndarray) -> float:
    """Of a GPTQ checkpoint, or of one that is not quantized."""
    import torch

    model = loaded(checkpoint)
    with torch.inference_mode():
        return of_logits([model(torch.from_numpy(ids)[None]).logits[0].numpy() for ids in text], text)


def of_logits(logits: Any, text: np.ndarray) -> float:
    """`logits`: float32 (length, vocabulary) of every window."""
    context = min(CONTEXT, text.shape[1] // 2)
    surprise = []
    for ids, said in zip(text, logits, strict=True):
        row = log_softmax(said[context - 1 : -1])
        surprise.append(-row[np.arange(len(row)), ids[context:]].mean(dtype=np.float64))
    return exp(float(np.mean(surprise)))


def bits_per_weight(checkpoint: Path, source: Path) -> tuple[float, int]:
    """Bits per weight of the linears of layers, scales and zeros included, and how many of them are quantized.

    What was left in 16 bits counts with 16: so two checkpoints are told apart that quantized other linears. `g_idx` is not
    counted: it says nothing unless groups are shuffled, and compressed-tensors has none.
    """
    weights = {name: int(np.prod(shape)) for name, shape in shapes(source).items() if linear(name, shape)}
    bits, quantized = 0, 0
    for name, (nbytes, _) in tensors(checkpoint).items():
        module, _, part = name.rpartition(".")
        if f"{module}.weight" in weights and part not in ("g_idx", "weight_shape", "bias"):
            bits += 8 * nbytes
            quantized += part in ("qweight", "weight_packed")
    return bits / sum(weights.values()), quantized


def linear(name: str, shape: tuple[int, ...]) -> bool:
    return ".layers." in name and len(shape) == 2


def shapes(checkpoint: Path) -> Mapping[str, tuple[int, ...]]:
    return {name: shape for name, (_, shape) in tensors(checkpoint).items()}


def tensors(checkpoint: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Bytes and shape by name, from headers."""
    sizes = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I64": 8, "I8": 1, "U8": 1}
    found = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                found[name] = (int(np.prod(shape)) * sizes[part.get_dtype()], shape)
    return found
