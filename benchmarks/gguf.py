"""safetensors to GGUF against llama.cpp itself: its converter and then llama-quantize, on the same input in turn.

    python benchmarks/gguf.py --work /tmp/bench --llama-cpp ~/llama.cpp --tokenizer .cache/models/SmolLM2-135M-Instruct

`--llama-cpp` is a checkout with `convert_hf_to_gguf.py`, and its binaries below `build/bin` (or `--binaries`). The reference is
the copy that llama-cpp-python 0.3.36 ships, built as that package builds it.

A side's figure is all that a user runs: ours is `qconvd convert` (start-up, plan, conversion, SHA-256 and verification against
the source); theirs is the converter to BF16 once, and llama-quantize per type. Each type's cost there is the converter's plus
its own; `all` is the converter once and one run per type. Ours runs once before, so that its kernels are in the cache. Types
with `+imatrix` use a made-up matrix that covers every layer. Needs about 12 GB in the work folder for the default 1.24e9
weights. Medians of `--rounds`, sides in turn, a ratio last.
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import make_llama
import numpy as np
from measure import Cost, cost, machine, middle

TYPES = "Q4_0,Q8_0,Q4_K_M,Q6_K,IQ4_XS"
PRESETS = "Q2_K,Q3_K_S,Q3_K_M,Q3_K_L,Q4_K_S,Q4_K_M,Q5_K_S,Q5_K_M,Q6_K,Q8_0"
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--binaries", type=Path)
    parser.add_argument("--types", default=TYPES, help="each on its own; `Q4_K_M+imatrix` with an importance matrix")
    parser.add_argument("--together", default=PRESETS, help="types to make in one pass; empty for none")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with SmolLM2's tokenizer files")
    a = parser.parse_args()
    bench = Bench(a.work, a.llama_cpp, a.binaries or a.llama_cpp / "build" / "bin", a.layers, a.tokenizer)
    types = [t for t in a.types.split(",") if t]
    together = [t for t in a.together.split(",") if t]
    print(f"{machine()}; {bench.weights:.3e} weights, {bench.weights * 2 / 1e9:.2f} GB bf16; medians of {a.rounds} in turn\n")
    found: dict[str, list[Cost]] = {}
    for name in types + together:
        bench.ours([name])  # compiles what the cache does not have; that happens once on a machine, and is not counted
    for _ in range(a.rounds):
        found.setdefault("their converter", []).append(bench.convert())
        for name in types:
            found.setdefault(f"their llama-quantize {name}", []).append(bench.quantize(name))
            found.setdefault(f"ours {name}", []).append(bench.ours([name]))
        if together:
            found.setdefault("ours, all in one pass", []).append(bench.ours(together))
            found.setdefault("their llama-quantize, all", []).append(added([bench.quantize(name) for name in together]))
    middles = {name: middle(costs) for name, costs in found.items()}
    for name, figure in middles.items():
        print(f"{name:34} {figure}")
    print()
    converter = middles["their converter"]
    for name in types:
        ratio(name, added([converter, middles[f"their llama-quantize {name}"]]), middles[f"ours {name}"])
    if together:
        theirs = added([converter, middles["their llama-quantize, all"]])
        ratio(f"{len(together)} types", theirs, middles["ours, all in one pass"])


class Bench:
    """The model, both sides, and the work folder between them."""

    def __init__(self, work: Path, llama_cpp: Path, binaries: Path, layers: int, tokenizer: Path) -> None:
        self.work, self.llama_cpp, self.binaries = work, llama_cpp, binaries
        self.model = work / f"synthetic-llama-{layers}"
        if not self.model.exists():
            make_llama.make(self.model, layers, 2048, 8192, 128256, 32, 8, 1 << 30, tokenizer)
        self.weights = sum(p.stat().st_size for p in self.model.glob("*.safetensors")) // 2
        self.middle = work / "theirs-bf16.gguf"
        self.importance = work / "imatrix.dat"
        write_importance(self.importance, layers, 2048, 8192)
        for path in self.model.glob("*.safetensors"):  # a warm page cache for both sides
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass

    def convert(self) -> Cost:
        """Their converter to BF16, the lossless file that llama-quantize starts from."""
        script = self.llama_cpp / "convert_hf_to_gguf.py"
        command = [sys.executable, str(script), str(self.model), "--outtype", "bf16", "--outfile", str(self.middle)]
        os.environ["PYTHONPATH"] = str(self.llama_cpp / "gguf-py")
        try:
            return cost(command, self.work / "theirs.log")
        finally:
            del os.environ["PYTHONPATH"]

    def quantize(self, name: str) -> Cost:
        """Their llama-quantize from that file, on as many threads as there are cores."""
        kind, _, weighted = name.partition("+")
        more = ["--imatrix", str(self.importance)] if weighted else []
        threads = str(len(os.sched_getaffinity(0)))
        out = self.work / "theirs.gguf"
        command = [str(self.binaries / "llama-quantize"), *more, str(self.middle), str(out), kind, threads]
        try:
            return cost(command, self.work / "theirs.log")
        finally:
            out.unlink(missing_ok=True)

    def ours(self, names: Sequence[str]) -> Cost:
        """`qconvd convert`, one pass for all types."""
        out = self.work / "ours"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        plain = [n for n in names if "+" not in n]
        weighted = [n.partition("+")[0] for n in names if "+" in n]
        targets = [f"gguf: {{types: [{', '.join(plain)}]}}"] if plain else []
        targets += [f"gguf: {{types: [{', '.join(weighted)}], imatrix: {self.importance}}}"] if weighted else []
        qconvd = str(Path(sys.executable).with_name("qconvd"))
        command = [qconvd, "convert", str(self.model), "--to", ", ".join(targets), "--out", str(out)]
        try:
            return cost(command, self.work / "ours.log")
        finally:
            shutil.rmtree(out)


def write_importance(path: Path, layers: int, hidden: int, intermediate: int) -> None:
    """A made-up importance matrix in llama.cpp's older format; values depend on nothing but the tensor's name.

    Not with the `gguf` package: this file has its name.
    """
    entries = []
    for layer in range(layers):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            name = f"blk.{layer}.{part}.weight".encode()
            columns = intermediate if part == "ffn_down" else hidden
            values = (np.random.default_rng(zlib.crc32(name)).uniform(0.01, 3, columns) ** 2).astype("<f4")
            entries.append(struct.pack("<i", len(name)) + name + struct.pack("<ii", 1, columns) + values.tobytes())
    dataset = b"made-up"
    end = struct.pack("<ii", 1, len(dataset)) + dataset
    path.write_bytes(struct.pack("<i", len(entries)) + b"".join(entries) + end)


def added(costs: Sequence[Cost]) -> Cost:
    return Cost(sum(c.wall for c in costs), sum(c.cpu for c in costs), max(c.rss for c in costs))


def ratio(name: str, theirs: Cost, ours: Cost) -> None:
    cpu, wall, rss = theirs.cpu / ours.cpu, theirs.wall / ours.wall, theirs.rss / ours.rss
    print(f"llama.cpp / ours, {name:16} {cpu:5.1f} x CPU  {wall:5.1f} x wall  {rss:5.1f} x RSS")


if __name__ == "__main__":
    main()
