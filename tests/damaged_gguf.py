"""Damaged GGUF files and importance matrices, planned one after the other in a process that may not use much memory.

    python tests/damaged_gguf.py FOLDER

prints as JSON how many of each kind were planned and refused, and by how many bytes the process grew. What is neither ends it
with a traceback; the file is left in the folder.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import imatrix_files
from damage import aimed, dat_fields, gguf_fields, scattered, spliced
from qconvd.checkpoints import inspect
from qconvd.engine.plan import OutputTensor, Plan
from qconvd.errors import QconvdError
from qconvd.plugins import container, plugins

TYPES = ("Q8_0", "Q4_0", "Q4_K_M", "F16", "IQ4_NL", "Q3_K_L")
COLUMNS, VOCABULARY, EXPERTS = 256, 300, 2
LINEARS = {"attn_q": (8, 256), "attn_k": (4, 256), "attn_v": (4, 256), "attn_output": (8, 256), "ffn_down": (8, 256)}
STACKS = dict.fromkeys(("ffn_gate_exps", "ffn_up_exps"), (EXPERTS, 4, 256))
ADDRESSES = 8 << 30
"""Bytes of addresses that the process may have: an absurd allocation fails at once, and not the machine."""


def main(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    plain = write_model(folder / "plain.gguf", "F16")
    sources = {
        "F16": plain,
        "Q8_0": write_model(folder / "q8_0.gguf", "Q8_0", alignment=64, counts="add_uint64"),
        "Q4_0": write_model(folder / "q4_0.gguf", "Q4_0", counts="add_float32"),
    }
    matrices = {name: maker(folder / name) for name, maker in (("imatrix.gguf", write_gguf), ("imatrix.dat", write_dat))}
    # What is not damaged is planned: it loads all that planning needs, and so is where the memory is counted from.
    for source in sources.values():
        plan_again(source, *TYPES)
    for matrix in matrices.values():
        plan_with(plain, matrix)
    before = peak()
    found: dict[str, Any] = {}
    for name, source in sources.items():
        other = sources["Q4_0" if name == "F16" else "F16"].read_bytes()
        victims = damaged(source.read_bytes(), other, gguf_fields, hash_of(name))
        found[name] = survive(folder / "Victim-00001.gguf", victims, lambda path, i: plan_again(path, TYPES[i % len(TYPES)]))
    for name, matrix in matrices.items():
        fields = dat_fields if name.endswith("dat") else gguf_fields
        other = matrices["imatrix.gguf"].read_bytes() if name.endswith("dat") else plain.read_bytes()
        victims = damaged(matrix.read_bytes(), other, fields, hash_of(name))
        found[name] = survive(folder / "victim.imatrix", victims, lambda path, _: plan_with(plain, path))
    print(json.dumps({"found": found, "grown": peak() - before}))


def damaged(
    whole: bytes, other: bytes, fields: Callable[[bytes], list[tuple[int, int]]], seed: int, count: int = 400
) -> Iterator[bytes]:
    """Three times `count` copies of a file."""
    places = fields(whole)
    head = places[-1][0] + 8
    yield from aimed(whole, places, count, seed)
    yield from scattered(whole, head, count, seed)
    yield from spliced(whole, other, places, count, seed)


def survive(path: Path, victims: Iterator[bytes], use: Callable[[Path, int], None]) -> dict[str, int]:
    """How many were planned and refused, and how many different messages there were, but for names and numbers."""
    counts = {"planned": 0, "refused": 0}
    messages = set()
    for number, victim in enumerate(victims):
        path.write_bytes(victim)
        try:
            use(path, number)
        except QconvdError as error:
            assert error.what and len(str(error)) < 2000, error
            messages.add(re.sub(r"'.*?'|[\d.]+", "", error.what))
            counts["refused"] += 1
        else:
            counts["planned"] += 1
    return counts | {"messages": len(messages)}


def plan_again(path: Path, *types: str) -> None:
    """Inspect and plan a GGUF; the header of what is planned is one that is read as planned."""
    gguf = plugins().formats["gguf"]
    model = inspect(path)
    for type_ in types:
        options = gguf.Options.model_validate({"types": [type_], "allow_requantize": True})
        plan = gguf.plan(model, options)
        read_back(plan, path.with_name("planned.gguf"))


def plan_with(model: Path, matrix: Path) -> None:
    """Plan a GGUF with an importance matrix, whose values are read."""
    gguf = plugins().formats["gguf"]
    gguf.plan(inspect(model), gguf.Options.model_validate({"types": ["Q4_K_M"], "imatrix": str(matrix)}))


def read_back(plan: Plan, path: Path) -> None:
    """The first file of a plan, its header with nothing behind it, read by the container's reader."""
    outputs: dict[str, OutputTensor] = {o.name: o for unit in plan.units for o in unit.outputs}
    kind = container(plan.container.kind)
    with path.open("wb") as file:
        file.write(kind.header(plan.container, plan.files[0], list(outputs.values())))
        file.truncate(plan.files[0].nbytes)
    read = {t.name: (t.dtype, t.shape, t.nbytes) for t in kind.read(path)}
    assert read == {name: (o.dtype, o.shape, o.nbytes) for name, o in outputs.items()}


def write_model(path: Path, type_: str, alignment: int = 32, counts: str = "add_uint32") -> Path:
    """A small mixture of two layers of no sensible sizes, with a vocabulary, per-layer numbers and an alignment.

    `counts` is the writer's method for the numbers that should be whole.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    writer = GGUFWriter(path, "llama")
    for name, value in {"block_count": 2, "expert_count": EXPERTS, "attention.head_count": 8}.items():
        getattr(writer, counts)(f"llama.{name}", value)
    writer.add_head_count_kv([4, 2])
    writer.add_token_list([f"token {i}" for i in range(VOCABULARY)])
    writer.add_token_scores([0.5] * VOCABULARY)
    writer.add_file_type(1)
    writer.add_float64("llama.pitch", 0.1)
    writer.add_custom_alignment(alignment)
    random = np.random.default_rng(1)
    layers = {f"blk.{i}.{name}.weight": shape for i in range(2) for name, shape in (LINEARS | STACKS).items()}
    for name, shape in {"token_embd.weight": (16, COLUMNS), **layers}.items():
        kind = GGMLQuantizationType[type_]
        writer.add_tensor(name, quants.quantize(random.standard_normal(shape, np.float32), kind), raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.ones(COLUMNS, np.float32))
    writer.add_tensor("lookup", np.arange(12, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_gguf(path: Path) -> Path:
    """An importance matrix of that model."""
    parts = [(f"blk.{i}.{name}.weight", 1) for i in range(2) for name in LINEARS]
    parts += [(f"blk.{i}.{name}.weight", EXPERTS) for i in range(2) for name in STACKS]
    return imatrix_files.write_gguf(path, {name: (np.ones((n, COLUMNS)), [7] * n) for name, n in parts})


def write_dat(path: Path) -> Path:
    """The same in the older format."""
    parts = [(f"blk.{i}.{name}.weight", 1) for i in range(2) for name in LINEARS]
    parts += [(f"blk.{i}.{name}.weight", EXPERTS) for i in range(2) for name in STACKS]
    entries = {name: (7, [1.0] * COLUMNS * n) for name, n in parts}
    return imatrix_files.write_dat(path, entries, imatrix_files.chunks(3, "made-up"))


def peak() -> int:
    """Bytes that were resident at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode()[:6], "little")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
