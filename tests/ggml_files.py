"""GGML files written byte by byte, in every form that there was, so that a test can write them wrong."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

GGML, GGMF, GGJT, GGLA = 0x67676D6C, 0x67676D66, 0x67676A74, 0x67676C61
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24),
         "Q8_0": (8, 32, 34), "Q6_K": (14, 256, 210)}  # fmt: skip
"""ggml's number of a type, weights of a block, its bytes."""
VOCAB, WIDTH, HEADS, LAYERS = 300, 64, 4, 2
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


def llama_tokens() -> list[tuple[bytes, float]]:
    """As LLaMA's vocabulary begins: unknown, BOS, EOS, 256 bytes, then pieces."""
    first: list[tuple[bytes, float]] = [(" \u2047 ".encode(), 0.0), (b"", 0.0), (b"", 0.0)]
    first += [(bytes([byte]), 0.0) for byte in range(256)]
    return first + [(f" t{n}".encode(), -float(n)) for n in range(VOCAB - len(first))]


def llama_tensors(matrix: str = "F16", kv: int = WIDTH) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names, types and row-major shapes."""
    square, wide = (WIDTH, WIDTH), (192, WIDTH)
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        "tok_embeddings.weight": (matrix, (VOCAB, WIDTH)),
        "norm.weight": ("F32", (WIDTH,)),
        "output.weight": (matrix, (VOCAB, WIDTH)),
    }
    for i in range(LAYERS):
        shapes = {"attention.wq": square, "attention.wk": (kv, WIDTH), "attention.wv": (kv, WIDTH), "attention.wo": square,
                  "feed_forward.w1": wide, "feed_forward.w2": wide[::-1], "feed_forward.w3": wide}  # fmt: skip
        found |= {f"layers.{i}.{name}.weight": (matrix, shape) for name, shape in shapes.items()}
        found |= {f"layers.{i}.{name}.weight": ("F32", (WIDTH,)) for name in ("attention_norm", "ffn_norm")}
    return found


def llama(
    magic: int = GGJT,
    version: int = 3,
    matrix: str = "F16",
    tensors: Tensors | None = None,
    tokens: Sequence[tuple[bytes, float]] | None = None,
    numbers: Sequence[int] | None = None,
) -> bytes:
    """A LLaMA file; every number of its tensors is what `data` gives."""
    tokens = llama_tokens() if tokens is None else tokens
    held = (len(tokens), WIDTH, 192, HEADS, LAYERS, WIDTH // HEADS, 1) if numbers is None else numbers
    head = struct.pack("<I", magic) + (b"" if magic == GGML else struct.pack("<I", version))
    head += struct.pack(f"<{len(held)}I", *held)
    for token, score in tokens:
        head += struct.pack("<I", len(token)) + token + (b"" if magic == GGML else struct.pack("<f", score))
    return records(head, llama_tensors(matrix) if tensors is None else tensors, 32 if magic == GGJT else 1)


def records(head: bytes, tensors: Tensors, alignment: int = 1) -> bytes:
    out = bytearray(head)
    for seed, (name, (kind, shape)) in enumerate(tensors.items()):
        number, block, size = TYPES[kind]
        out += struct.pack(f"<{3 + len(shape)}I", len(shape), len(name.encode()), number, *reversed(shape)) + name.encode()
        out += bytes(-len(out) % alignment)
        out += data(kind, int(np.prod(shape)) // block * size, seed)
    return bytes(out)


def data(kind: str, nbytes: int, seed: int) -> bytes:
    """Small finite weights: floats as they are, blocks of which every half is one."""
    random = np.random.default_rng(seed)
    if kind in ("F32", "F16"):
        dtype = np.float32 if kind == "F32" else np.float16
        return bytes((random.standard_normal(nbytes // np.dtype(dtype).itemsize) * 0.1).astype(dtype).tobytes())
    return bytes(random.integers(0, 60, nbytes, np.uint8).tobytes())


def gpt2(tokens: Sequence[bytes], ftype: int = 1, matrix: str = "F16", tensors: Tensors | None = None) -> bytes:
    """A gpt2 file."""
    head = struct.pack("<7I", GGML, len(tokens), 32, WIDTH, HEADS, LAYERS, ftype) + struct.pack("<I", len(tokens))
    for token in tokens:
        head += struct.pack("<I", len(token)) + token
    return records(head, gpt2_tensors(len(tokens), matrix) if tensors is None else tensors)


def gpt2_tensors(vocabulary: int, matrix: str = "F16") -> dict[str, tuple[str, tuple[int, ...]]]:
    vector = ("F32", (WIDTH,))
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        "model/wte": (matrix, (vocabulary, WIDTH)),
        "model/wpe": ("F32", (32, WIDTH)),
        "model/ln_f/g": vector,
        "model/ln_f/b": vector,
    }
    shapes = {"attn/c_attn": (3 * WIDTH, WIDTH), "attn/c_proj": (WIDTH, WIDTH), "mlp/c_fc": (4 * WIDTH, WIDTH),
              "mlp/c_proj": (WIDTH, 4 * WIDTH)}  # fmt: skip
    for i in range(LAYERS):
        found |= {f"model/h{i}/{name}/{part}": vector for name in ("ln_1", "ln_2") for part in "gb"}
        found |= {f"model/h{i}/{name}/w": (matrix, shape) for name, shape in shapes.items()}
        found |= {f"model/h{i}/{name}/b": ("F32", shape[:1]) for name, shape in shapes.items()}
    return found


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
