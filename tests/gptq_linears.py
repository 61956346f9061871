"""Linears with activations whose columns are correlated and of very different size, as a model's are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvd.api import Hessian


def weights(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    """About as large as a model's."""
    return (np.random.default_rng(seed).standard_normal((rows, columns)) * 0.03).astype(np.float32)


def hessian(columns: int, tokens: int = 0, seed: int = 1) -> Hessian:
    """X^T X of activations that lie near a space of a quarter of the columns."""
    random = np.random.default_rng(seed)
    tokens = tokens or 4 * columns
    inside = random.standard_normal((tokens, columns // 4)) @ random.standard_normal((columns // 4, columns)) / columns**0.5
    x = ((inside + 0.5 * random.standard_normal((tokens, columns))) * np.exp(0.6 * random.standard_normal(columns))).astype(
        "f4"
    )
    return Hessian(x.T @ x, tokens)


def output_error(w: NDArray[Any], q: NDArray[Any], h: Hessian) -> float:
    """tr((W - Q) H (W - Q)^T): the squared error of the outputs."""
    e = w.astype(np.float64) - q.astype(np.float64)
    return float(((e @ h.array.astype(np.float64)) * e).sum())


def unpack(words: NDArray[np.int32], bits: int) -> NDArray[np.int64]:
    """(k * bits / 32, n) words to (k, n) values, one value at a time, from the words' description in FORMATS."""
    columns = []
    for n in range(words.shape[1]):
        stream = sum(int(w) << 32 * i for i, w in enumerate(words[:, n].view(np.uint32)))
        columns.append([stream >> bits * k & (2**bits - 1) for k in range(len(words) * 32 // bits)])
    return np.array(columns, np.int64).T


def read(tensors: Any, bits: int, checkpoint_format: str) -> NDArray[np.float16]:
    """(rows, columns) as float16, from qweight, qzeros, scales and g_idx."""
    qweight, qzeros, scales, g_idx = tensors
    q = unpack(qweight, bits)
    z = unpack(np.ascontiguousarray(qzeros.T), bits).T + (1 if checkpoint_format == "gptq" else 0)
    return ((q - z[g_idx]).astype(np.float32) * scales.astype(np.float32)[g_idx]).astype(np.float16).T
