"""`qconvd inspect`."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Annotated

import typer

from qconvd.cli.options import AsJson, ConfigFile, Model

CONFIG_KEYS = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")


def inspect(
    model: Model,
    json: AsJson = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor, too.")] = False,
    config: ConfigFile = None,
) -> None:
    """Show what a model is, from its headers alone.

    Architecture, parameters, types of the weights, files. No weight is read.
    """
    from qconvd.cli import output
    from qconvd.cli.models import named
    from qconvd.engine.expr import Read, dequantized
    from qconvd.quantities import show_count, show_size

    with named(model, config) as (found, remote):
        pass
    path = remote.address.locator if remote else found.path
    weights: Counter[str] = Counter()
    for tensor in found.tensors.values():
        weights["quantized" if dequantized(Read.of(tensor)) else tensor.dtype] += prod(tensor.shape)
    if json:
        output.as_json({
            "name": found.name, "path": path, **({"commit": remote.remote.commit} if remote else {}), "kind": found.kind,
            "architecture": found.architecture, "quantization": found.quantization, "notes": found.notes,
            "parameters": found.parameters, "weight_bytes": found.weight_bytes, "weights_by_type": weights,
            "files": [{"path": f.path, "bytes": f.size, "role": f.role} for f in found.files],
            "tensors": [
                {"name": t.name, "dtype": t.dtype, "shape": t.shape, "file": t.file, "bytes": t.nbytes}
                for t in found.tensors.values()
            ] if tensors else len(found.tensors),
        })  # fmt: skip
        return
    output.pairs([
        ("model", found.name),
        ("path", path),
        *([("commit", remote.remote.commit)] if remote else []),
        ("kind", found.kind),
        ("architecture", found.architecture or "none is named"),
        *([("quantization", found.quantization)] if found.quantization else []),
        ("parameters", f"{show_count(found.parameters)} in {len(found.tensors)} tensors"),
        ("weights", f"{show_size(found.weight_bytes)} ({_shares(weights)})"),
        *((key.replace("_", " "), found.config.get(key, "")) for key in CONFIG_KEYS),
    ])  # fmt: skip
    for note in found.notes:
        print(f"\n{output.filled(note)}")
    print()
    output.table(("FILE", "SIZE", "ROLE"), [(f.path, show_size(f.size), f.role) for f in found.files], right=(1,))
    if tensors:
        print()
        rows = [(t.name, t.dtype, "×".join(map(str, t.shape)), show_size(t.nbytes)) for t in found.tensors.values()]
        output.table(("TENSOR", "TYPE", "SHAPE", "SIZE"), rows, right=(3,), whole=(1, 2))


def _shares(weights: Counter[str]) -> str:
    whole = sum(weights.values()) or 1
    return ", ".join(
        dtype if count == whole else f"{dtype} {100 * count / whole:.3g} %" for dtype, count in weights.most_common()
    )
