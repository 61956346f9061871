"""Tiny models, plans and encoders for tests of the engine: raw tensors in one or more files, and formats without a plugin."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qconvd.api import (
    ContainerSpec,
    Encoded,
    Expr,
    FileInfo,
    FileSpec,
    ModelInfo,
    NameParts,
    OutputTensor,
    Placed,
    Plan,
    Read,
    RowSplit,
    SideFile,
    TensorInfo,
    Unit,
    UnitReport,
)
from qconvd.dtypes import row_bytes
from qconvd.engine.expr import rows_columns
from qconvd.engine.run import Limits, convert
from qconvd.engine.target import ConvertTarget

HEADER = b"tiny container\n\0"
ALIGN = 32


def raw_model(folder: Path, files: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]], seed: int = 7) -> ModelInfo:
    """Random tensors, {file: {tensor: (dtype, shape)}}, written one after the other behind a 16-byte header."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors: dict[str, TensorInfo] = {}
    for name, content in files.items():
        data = b"\1" * 16
        for tensor, (dtype, shape) in content.items():
            bytes_ = random_bytes(random, dtype, shape)
            tensors[tensor] = TensorInfo(tensor, dtype, shape, name, len(data), len(bytes_))
            data += bytes_
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text('{"architectures": ["TinyModel"]}')
    listed = [FileInfo(p.name, p.stat().st_size, "weights" if p.name in files else "side") for p in sorted(folder.iterdir())]
    return ModelInfo(folder, folder.name, "raw", tensors, listed)


def random_bytes(random: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> bytes:
    """Finite values about as large as weights are; any bits for types that are no floats."""
    rows, columns = rows_columns(shape)
    if dtype in ("F64", "F32", "F16"):
        return random.standard_normal(shape).astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
    if dtype == "BF16":
        return (random.standard_normal(shape).astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return random.bytes(rows * row_bytes(dtype, columns))


def llama(layers: int = 2, width: int = 64, hidden: int = 96, vocab: int = 128) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of a Llama in BF16, in the order of a checkpoint."""
    result: dict[str, tuple[str, tuple[int, ...]]] = {"model.embed_tokens.weight": ("BF16", (vocab, width))}
    for i in range(layers):
        for name, shape in (
            ("self_attn.q_proj", (width, width)),
            ("mlp.up_proj", (hidden, width)),
            ("mlp.down_proj", (width, hidden)),
        ):
            result[f"model.layers.{i}.{name}.weight"] = ("BF16", shape)
        result[f"model.layers.{i}.input_layernorm.weight"] = ("BF16", (width,))
    return result | {"model.norm.weight": ("BF16", (width,)), "lm_head.weight": ("BF16", (vocab, width))}


def unit(name: str, *inputs: Expr, dtype: str = "F32", multiple: int = 1, layer: int | None = None, **more: Any) -> Unit:
    """A unit with one output of the first input's shape."""
    shape = inputs[0].shape
    rows, columns = rows_columns(shape)
    output = OutputTensor(name, dtype, shape, rows * row_bytes(dtype, columns))
    return Unit(name, layer, inputs, (output,), more.pop("rows", RowSplit(multiple)), **more)


def plan(units: Sequence[Unit], *, shards: int = 1, shared: bool = False, stem: str = "model", config: bool = True) -> Plan:
    """A plan that puts the units' tensors, aligned to 32 bytes, into `shards` files behind a fixed header."""
    tensors = [t for u in units for t in u.outputs]
    files = []
    for shard in range(shards):
        placed, at = [], len(HEADER)
        for tensor in tensors[shard::shards]:
            at = -(-at // ALIGN) * ALIGN
            placed.append(Placed(tensor.name, at, tensor.nbytes))
            at += tensor.nbytes
        path = f"{stem}.tiny" if shards == 1 else f"{stem}-{shard + 1}.tiny"
        files.append(FileSpec(path, -(-at // ALIGN) * ALIGN, tuple(placed), 0, base64.b64encode(HEADER).decode()))
    side = (SideFile("config.json", 32, source="config.json"), SideFile("note.txt", 5, text="héé")) if config else ()
    return Plan(ContainerSpec("tiny"), tuple(files), tuple(units), NameParts("tiny", stem, shared), side)


def layer_of(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[2]) if "layers" in parts else None


def copies(model: ModelInfo, dtype: str = "BF16", **more: Any) -> Plan:
    """Every tensor of the model as it is, or widened to F32."""
    units = [unit(t.name, Read.of(t), dtype=dtype, layer=layer_of(t.name)) for t in model.tensors.values()]
    return plan(units, **more)


@dataclass
class TinyEncoder:
    """BF16 bits as they are, or as float32; counts its calls, and fails where it is told to."""

    fail_on: str = ""
    calls: list[tuple[str, tuple[int, int]]] = field(default_factory=list)

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Any], stats: Mapping[str, Any]) -> Encoded:
        assert not stats
        assert all(not a.flags.writeable and a.flags.c_contiguous for a in x)
        self.calls.append((unit.id, rows))
        if unit.id == self.fail_on:
            raise ValueError(f"cannot encode {unit.id}")
        array = x[0]
        if unit.outputs[0].dtype == "F32" and array.dtype == np.uint16:
            array = (array.astype(np.uint32) << 16).view(np.float32)
        sum_ = float(np.sum(x[0].astype(np.float64)))
        report = UnitReport(weights=array.size, square_error=1e-3 * sum_ / 7, square=sum_, max_error=rows[0] + 0.1)
        return Encoded([array], report)


def target(name: str, plan: Plan, output: Path, encoder: Any = None, **about: Any) -> ConvertTarget:
    """A target whose work folder is where the daemon would put it."""
    work = output / ".qconvd" / "work" / name
    return ConvertTarget(name, plan, encoder or TinyEncoder(), work, {"artifact": name, **about})


def go(model: ModelInfo, *targets: ConvertTarget) -> dict[str, Any]:
    """One pass for all targets: each one's manifest, or why there is none."""
    return convert(model, targets, Limits(1 << 20, 2), operations={}, on_event=lambda _: None, cancelled=lambda: False)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
