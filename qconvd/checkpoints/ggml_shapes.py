"""Whether the tensors of a GGML file are those that its header announces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qconvd.checkpoints.files import quoted
from qconvd.checkpoints.ggml_families import GPT2, GPT_NEOX, GPTJ, LLAMA, GgmlFamily, Numbers, Shapes
from qconvd.errors import BadCheckpoint, Unsupported

FIX = "copy or download the file again; if that is no use, the program that made it did it wrong"
MOST_PARTS = 16


def check_ggml(family: str, numbers: Sequence[int], shapes: Shapes, where: str) -> None:
    """Hold what is to be written against what readers take from the header. `numbers` are the header's without the last, the
    type of the file. Raises `Unsupported` for heads that do not divide the width, and as `check_shapes` does.
    """
    known = next(f for f in (LLAMA, GPT2, GPTJ, GPT_NEOX) if f.name == family)
    named = dict(zip(known.numbers, numbers, strict=False))
    if named["n_embd"] % named["n_head"]:
        what = f"{named['n_head']} heads do not divide the model's width of {named['n_embd']}, as readers of GGML need it"
        raise Unsupported(what, where=where, fix="take config.json from the model's repository")
    check_shapes(known, named, shapes, where, "take config.json and weights from one revision of the model")


def check_shapes(family: GgmlFamily, numbers: Numbers, shapes: Shapes, where: str, fix: str = FIX) -> None:
    """Raise `Unsupported` for a tensor that the family has not, and for one part of a model of several; `BadCheckpoint` for a
    shape that contradicts the header. All tensors that a file needs are there already.
    """
    width = numbers["n_embd"]
    sizes = {"v": numbers["n_vocab"], "c": numbers.get("n_ctx", 0), "d": width, "3": 3 * width}
    known = family.axes(numbers["n_layer"])
    for name, shape in shapes.items():
        axes = known.get(name)
        if axes is None:
            what = f"{family.name} has no tensor {quoted(name)} in a file of {numbers['n_layer']} layers"
            raise Unsupported(what, where=where, fix="take the original model")
        if len(shape) != len(axes):
            raise BadCheckpoint(f"tensor {quoted(name)} has {len(shape)} axes, not {len(axes)}", where=where, fix=fix)
        if name == "tok_embeddings.weight":
            _check_parts(shape, sizes, where)
        wanted = tuple(sizes.setdefault(axis, size) for axis, size in zip(axes, shape, strict=True))
        if shape != wanted:
            what = f"tensor {quoted(name)} has the shape {_text(shape)}, and the rest of the model makes it {_text(wanted)}"
            raise BadCheckpoint(what, where=where, fix=fix)
    _check_heads(sizes, numbers, where, fix)


def _check_parts(embeddings: tuple[int, ...], sizes: Mapping[str, int], where: str) -> None:
    """In the spring of 2023 the larger LLaMA models came as x.bin, x.bin.1 and so on, each with a share of every matrix."""
    rows, columns = embeddings
    parts, rest = divmod(sizes["d"], columns)
    if rows == sizes["v"] and not rest and 1 < parts <= MOST_PARTS:
        what = f"is one of {parts} files that make up a model: its embeddings have {columns} of {sizes['d']} columns"
        fix = "take the model in one file, GGUF or GGJT, or the original model"
        raise Unsupported(what, where=where, fix=fix)


def _check_heads(sizes: Mapping[str, int], numbers: Numbers, where: str, fix: str) -> None:
    """Query heads share key heads in groups of one size."""
    if "k" not in sizes:
        return
    heads, rest = divmod(sizes["k"], sizes["d"] // numbers["n_head"])
    if rest or not heads or numbers["n_head"] % heads:
        what = f"its keys have {sizes['k']} rows, which {numbers['n_head']} heads of a model {sizes['d']} wide cannot share"
        raise BadCheckpoint(what, where=where, fix=fix)


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
