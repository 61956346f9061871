"""A synthetic Llama checkpoint in bf16 for measurements: Llama-3.2-1B's shape by default, random weights, sharded.

    python benchmarks/make_llama.py OUT [--layers 16] [--hidden 2048] [--intermediate 8192] [--vocabulary 128256]

The weights are normal with standard deviation 0.02, as fresh checkpoints are; the tokenizer files are copied from SmolLM2 and
its vocabulary is padded, so the result converts but does not speak.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, default in (
        ("layers", 16),
        ("hidden", 2048),
        ("intermediate", 8192),
        ("vocabulary", 128256),
        ("heads", 32),
        ("groups", 8),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shard", type=int, default=1 << 30, help="bytes of a shard")
    parser.add_argument("--tokenizer", type=Path, help="a folder to take tokenizer files from")
    a = parser.parse_args()
    make(a.out, a.layers, a.hidden, a.intermediate, a.vocabulary, a.heads, a.groups, a.shard, a.tokenizer)
    print(a.out)


def make(
    out: Path,
    layers: int,
    hidden: int,
    intermediate: int,
    vocabulary: int,
    heads: int,
    groups: int,
    shard: int,
    tokenizer: Path | None,
) -> None:
    """Write the checkpoint, one shard in memory at a time."""
    out.mkdir(parents=True, exist_ok=True)
    head = hidden // heads
    shapes = list(tensors(layers, hidden, intermediate, vocabulary, heads * head, groups * head))
    shards = group(shapes, shard)
    index = {}
    for number, members in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write(out / name, members)
        index |= {tensor: name for tensor, _ in members}
    describe(out, index, shapes, layers, hidden, intermediate, vocabulary, heads, groups)
    if tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer / name, out / name)


def describe(
    out: Path,
    index: dict[str, str],
    shapes: list[tuple[str, tuple[int, ...]]],
    layers: int,
    hidden: int,
    intermediate: int,
    vocabulary: int,
    heads: int,
    groups: int,
) -> None:
    """Write the index of the shards and the config."""
    total = sum(2 * int(np.prod(shape)) for _, shape in shapes)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", attention_bias=False, mlp_bias=False,
        hidden_size=hidden, head_dim=hidden // heads, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, max_position_embeddings=8192, rms_norm_eps=1e-5,
        rope_theta=500000.0, vocab_size=vocabulary, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        torch_dtype="bfloat16",
    )  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=1))


def tensors(
    layers: int, hidden: int, intermediate: int, vocabulary: int, q: int, kv: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        for name, shape in (("q", (q, hidden)), ("k", (kv, hidden)), ("v", (kv, hidden)), ("o", (hidden, q))):
            yield f"{prefix}self_attn.{name}_proj.weight", shape
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        for name, shape in (("gate", (intermediate, hidden)), ("up", (intermediate, hidden)), ("down", (hidden, intermediate))):
            yield f"{prefix}mlp.{name}_proj.weight", shape
    yield "model.norm.weight", (hidden,)


def group(shapes: list[tuple[str, tuple[int, ...]]], limit: int) -> list[list[tuple[str, tuple[int, ...]]]]:
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in shapes:
        nbytes = 2 * int(np.prod(shape))
        if size + nbytes > limit and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += nbytes
    return shards


def write(path: Path, members: list[tuple[str, tuple[int, ...]]], block: bytes = b"") -> None:
    """A shard. With a `block` the matrices are that again and again, which costs no more than writing it."""
    header, offset = {}, 0
    for name, shape in members:
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(len(members))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in members:
            if block and len(shape) > 1:
                for left in range(2 * int(np.prod(shape)), 0, -len(block)):
                    file.write(block[:left])
            else:
                file.write(normal(rng, name, shape))


def normal(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> bytes:
    """Weights in bf16; those of norms lie around one."""
    weights = rng.standard_normal(int(np.prod(shape)), dtype=np.float32)
    weights *= np.float32(0.02)
    if "norm" in name:
        weights += 1
    return ((weights.view(np.uint32) + 0x8000) >> 16).astype(np.uint16).tobytes()


if __name__ == "__main__":
    main()
