"""Small quantized models, packed value by value as GPTQ, AWQ and compressed-tensors do it, with what they stand for.

Slow and plain on purpose: every value is put at its bit by itself, so that nothing is shared with how qconvd reads them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import gguf_models

Array = NDArray[Any]
Quantizer = Callable[[str, Array, np.random.Generator], tuple[dict[str, Array], Array]]
"""(module, weights [N, K], dice) to the tensors that are stored and the weights that they stand for."""


SIZES: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32
)


def write_quantized(
    out: Path, quantizer: Quantizer, config: Mapping[str, Any], file: str = "", tokenizer: Path | None = None
) -> dict[str, Array]:
    """A small Llama with every linear quantized, in `out`; returns what its tensors stand for, by name.

    `config` is its quantization_config, or the content of `file` beside config.json. `tokenizer` is a folder that has one.
    """
    vocab = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]) if tokenizer else 64
    gguf_models.tiny(out, vocab, **SIZES)
    dice = np.random.default_rng(5)
    said = json.loads((out / "config.json").read_text())
    stored: dict[str, Array] = {}
    meant: dict[str, Array] = {}
    for name, bits in gguf_models.checkpoint(said).items():
        tensor = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float16)
        if name.endswith("_proj.weight"):
            parts, meant[name] = quantizer(name.removesuffix(".weight"), tensor.astype(np.float32), dice)
            stored |= parts
        else:
            stored[name] = meant[name] = tensor
    save_file(stored, out / "model.safetensors", {"format": "pt"})
    _as_float8(out / "model.safetensors")
    if file:
        (out / file).write_text(json.dumps(config))
    else:
        (out / "config.json").write_text(json.dumps(said | {"quantization_config": dict(config)}))
    for name in gguf_models.TOKENIZER if tokenizer else ():
        shutil.copy(tokenizer / name, out)
    return meant


def gptq(bits: int, group: int, *, version: int = 1, act_order: bool = False, index: bool = True) -> Quantizer:
    """GPTQ with random zero points; `act_order` puts the columns into groups at random."""

    def quantize(module: str, w: Array, dice: np.random.Generator) -> tuple[dict[str, Array], Array]:
        n, k = w.shape
        size = k if group < 0 else group
        groups = -(-k // size)
        g_idx = np.arange(k, dtype=np.int32) // size
        if act_order:
            dice.shuffle(g_idx)
        q, z, s = _random(bits, (k, n), (groups, n), dice, w)
        parts = {
            f"{module}.qweight": _words(q.T, bits).T.copy(),
            f"{module}.qzeros": _words(z - (1 if version == 1 else 0), bits),
            f"{module}.scales": s,
        }
        if index:
            parts[f"{module}.g_idx"] = g_idx
        return parts, ((q.astype(np.float64) - z[g_idx]) * s[g_idx]).T.copy()

    return quantize


def awq(group: int) -> Quantizer:
    def quantize(module: str, w: Array, dice: np.random.Generator) -> tuple[dict[str, Array], Array]:
        n, k = w.shape
        q, z, s = _random(4, (k, n), (k // group, n), dice, w)
        order = np.array([0, 2, 4, 6, 1, 3, 5, 7])

        def words(x: Array) -> Array:
            return _words(x.reshape(len(x), -1, 8)[:, :, order].reshape(x.shape), 4)

        parts = {f"{module}.qweight": words(q), f"{module}.qzeros": words(z), f"{module}.scales": s}
        at = np.arange(k) // group
        return parts, ((q.astype(np.float64) - z[at]) * s[at]).T.copy()

    return quantize


def compressed(bits: int, group: int, *, asymmetric: bool = False, act_order: bool = False, kind: str = "packed") -> Quantizer:
    """compressed-tensors: `packed` words, or plain `int8` or `float8` weights. A group of 0 is a row, -1 the whole tensor,
    -2 a block of 48 by 40."""

    def quantize(module: str, w: Array, dice: np.random.Generator) -> tuple[dict[str, Array], Array]:
        n, k = w.shape
        size = group if group > 0 else k
        groups = (n, k // size) if group >= 0 else (1, 1) if group == -1 else (-(-n // 48), -(-k // 40))
        half = 1 << (bits - 1)
        g_idx = np.arange(k, dtype=np.int32) // size
        if act_order:
            dice.shuffle(g_idx)
        s = (dice.random(groups) * np.abs(w).max() / half).astype(np.float16)
        z = dice.integers(-half, half, groups) if asymmetric else np.zeros(groups, np.int64)
        q = dice.integers(-half, half, (n, k))
        values = q.astype(np.float64)
        if kind == "packed":
            parts = {"weight_packed": _words(q + half, bits), "weight_shape": np.array([n, k], np.int64)}
            zeros = _words((z + half).T, bits).T.copy()
        else:
            parts, zeros = {"weight": q.astype(np.int8)}, z.astype(np.int8)
        if kind == "float8":
            codes = dice.integers(0, 0x7F, (n, k)) | (dice.integers(0, 2, (n, k)) << 7)
            exponent, mantissa = (codes >> 3) & 15, codes & 7
            values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
            values = np.where(codes & 128, -values, values)
            parts = {"weight": codes.astype(np.uint8)}
        parts["weight_scale"] = s.reshape(1) if group == -1 else s
        if asymmetric:
            parts["weight_zero_point"] = zeros
        if act_order:
            parts["weight_g_idx"] = g_idx
        if group < 0:
            s = np.kron(s, np.ones((48, 40) if group == -2 else (n, k)))[:n, :k]
            return {f"{module}.{name}": part for name, part in parts.items()}, values * s
        return {f"{module}.{name}": part for name, part in parts.items()}, (values - z[:, g_idx]) * s[:, g_idx]

    return quantize


def fp8(height: int, width: int) -> Quantizer:
    """DeepSeek's: 8-bit floats with a scale for each block, the last of which may be smaller."""

    def quantize(module: str, w: Array, dice: np.random.Generator) -> tuple[dict[str, Array], Array]:
        n, k = w.shape
        codes = dice.integers(0, 0x7F, (n, k)) | (dice.integers(0, 2, (n, k)) << 7)
        exponent, mantissa = (codes >> 3) & 15, codes & 7
        values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
        # Scales of so few digits that the product is exact in float32.
        s = (dice.random((-(-n // height), -(-k // width))) * np.abs(w).max() / 448).astype(np.float16).astype(np.float32)
        parts = {f"{module}.weight": codes.astype(np.uint8), f"{module}.weight_scale_inv": s}
        spread = np.repeat(np.repeat(s, height, axis=0)[:n], width, axis=1)[:, :k]
        return parts, np.where(codes & 128, -values, values) * spread

    return quantize


def config_of(format: str, bits: int, group: int, **more: Any) -> dict[str, Any]:
    """The quantization_config of a compressed-tensors model, as llm-compressor writes it."""
    strategy = "group" if group > 0 else "channel" if group == 0 else "tensor"
    weights = {"num_bits": bits, "type": "float" if format.startswith("float") else "int", "strategy": strategy} | more
    weights["group_size"] = group if group > 0 else None
    groups = {"group_0": {"format": format, "targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {
        "quant_method": "compressed-tensors", "format": format, "config_groups": groups, "ignore": ["lm_head"],
        "quantization_status": "compressed", "version": "0.14.0",
    }  # fmt: skip


def _as_float8(path: Path) -> None:
    """What is stored as uint8 is float8, which numpy does not know."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    text = whole[8 : 8 + length].replace(b'"U8"', b'"F8_E4M3"')
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


def _random(bits: int, shape: tuple[int, int], groups: tuple[int, int], dice: np.random.Generator, w: Array) -> Any:
    q = dice.integers(0, 1 << bits, shape)
    z = dice.integers(1, 1 << bits, groups)
    s = (dice.random(groups) * np.abs(w).max() / (1 << bits)).astype(np.float16)
    return q, z, s


def _words(values: Array, bits: int) -> Array:
    """Each row as one stream of bits in words of int32, low bits first."""
    rows, count = values.shape
    found = np.zeros((rows, -(-count * bits // 32)), np.uint32)
    for i in range(count):
        for bit in range(bits):
            at = i * bits + bit
            found[:, at // 32] |= ((values[:, i].astype(np.uint32) >> bit) & 1) << np.uint32(at % 32)
    return found.view(np.int32)
