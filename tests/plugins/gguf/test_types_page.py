"""docs/reference/gguf-types.md: every type has a row, and its bits per weight are those of the real mix."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

from qconvd.dtypes import storage
from qconvd_gguf.file_types import ALIASES, FILE_TYPES
from qconvd_gguf.mixes import Tensor, Wish, choose, file_order, traits_of

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "gguf-types.md"
METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
}


def llama_8b() -> list[Tensor]:
    """The tensors of Llama 3.1 8B."""
    shapes = {"token_embd.weight": (128256, 4096), "output.weight": (128256, 4096), "output_norm.weight": (4096,)}
    for i in range(32):
        layer = {
            "attn_q": (4096, 4096), "attn_k": (1024, 4096), "attn_v": (1024, 4096), "attn_output": (4096, 4096),
            "ffn_gate": (14336, 4096), "ffn_up": (14336, 4096), "ffn_down": (4096, 14336), "attn_norm": (4096,),
            "ffn_norm": (4096,),
        }  # fmt: skip
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return [Tensor(name, shapes[name], "F32" if len(shapes[name]) < 2 else "BF16") for name in file_order(list(shapes))]


def bits(preset: str, imatrix: bool) -> float:
    tensors = llama_8b()
    chosen = choose(tensors, Wish(preset, imatrix=imatrix), traits_of(METADATA))
    total = 0
    for tensor in tensors:
        block, size = storage(chosen[tensor.name].dtype)
        total += prod(tensor.shape) // block * size
    return 8 * total / sum(prod(t.shape) for t in tensors)


def test_every_type_has_its_row_with_its_bits() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", PAGE.read_text(), re.MULTILINE)
    said = {name.upper(): value for name, value in rows}
    assert len(said) == len(rows)
    assert said == {name: f"{bits(name, imatrix=True):.2f}" for name in FILE_TYPES}


def test_the_aliases_are_named() -> None:
    text = PAGE.read_text()
    assert all(f"`{alias.lower()}`" in text for alias in ALIASES)
