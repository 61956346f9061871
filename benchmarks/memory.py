"""What a conversion needs at most: peak memory over models of more and more layers, over budgets and over threads.

    python benchmarks/memory.py --work /tmp/bench --tokenizer .cache/models/SmolLM2-135M-Instruct [--types Q4_0,Q4_K_M]

Synthetic Llamas of 8B and 70B widths, bf16, each grown in place from 4 to 8 to 16 layers; every type is a conversion of its
own, whose artifact is deleted before the next. The figure is the peak RSS of the largest process of the whole command: control,
worker (which converts) or its verification. Of the largest model 30 GB lie in the work folder, and its artifact beside it. A
small conversion comes first, so that the kernels are compiled, which takes more memory than any conversion here.

The matrices repeat one random block of 16 MiB: what weights say costs no memory, and random ones of this size take minutes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import make_llama
import numpy as np
from measure import Cost, cost, machine

VOCABULARY = 128256
WIDTHS = {"8B": (4096, 14336, 32, 8), "70B": (8192, 28672, 64, 8)}
"""Hidden, intermediate, heads, key-value heads: those of Llama 3."""
SMALL = (256, 512, 4, 1)
BUDGETS = ("384MiB", "1GiB", "4GiB")
THREADS = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with SmolLM2's tokenizer files")
    parser.add_argument("--types", default="Q4_0,Q4_K_M")
    parser.add_argument("--widths", default="8B,70B")
    parser.add_argument("--layers", default="4,8,16")
    a = parser.parse_args()
    types, layers = a.types.split(","), [int(n) for n in a.layers.split(",")]
    a.work.mkdir(parents=True, exist_ok=True)
    print(f"{machine()}\n")
    with TemporaryDirectory(dir=a.work) as folder:
        Growing(Path(folder), SMALL, a.tokenizer).grow(1)
        for kind in types:
            converted(Path(folder), kind, a.work)
    print("| widths | layers | GB bf16 | largest tensor MB |" + "".join(f" {t}, peak RSS MB |" for t in types))
    print("|---|---|---|---|" + "---|" * len(types), flush=True)
    for widths in a.widths.split(","):
        with TemporaryDirectory(dir=a.work) as folder:
            model = Growing(Path(folder), WIDTHS[widths], a.tokenizer)
            for count in layers:
                model.grow(count)
                peaks = "".join(f" {converted(Path(folder), t, a.work).rss / 1e6:.0f} |" for t in types)
                sizes = f"{model.nbytes / 1e9:.1f} | {model.largest / 1e6:.0f}"
                print(f"| {widths} | {count} | {sizes} |{peaks}", flush=True)
    # On a few layers: what is in flight does not depend on how much comes after it.
    widths, count = a.widths.split(",")[0], layers[0]
    print(f"\n| {widths}, {count} layers, {types[0]} | peak RSS MB |\n|---|---|", flush=True)
    with TemporaryDirectory(dir=a.work) as folder:
        Growing(Path(folder), WIDTHS[widths], a.tokenizer).grow(count)
        for more in [["--memory", b] for b in BUDGETS] + [["--threads", str(n)] for n in THREADS]:
            print(f"| `{' '.join(more)}` | {converted(Path(folder), types[0], a.work, more).rss / 1e6:.0f} |", flush=True)


class Growing:
    """A checkpoint with one shard per layer, to which layers can be added."""

    def __init__(self, out: Path, widths: tuple[int, int, int, int], tokenizer: Path) -> None:
        self._out = out
        self._hidden, self._intermediate, self._heads, self._groups = widths
        self._block = make_llama.normal(np.random.default_rng(1), "block", (1 << 23,))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer / name, out / name)

    def grow(self, layers: int) -> None:
        """Make it a whole model of so many layers."""
        sizes = self._hidden, self._intermediate, VOCABULARY
        shapes = list(make_llama.tensors(layers, *sizes, self._hidden, self._groups * (self._hidden // self._heads)))
        shards: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        for name, shape in shapes:
            layer = name.split(".")[2] if ".layers." in name else "ends"
            shards.setdefault(f"model-{layer}.safetensors", []).append((name, shape))
        for file, members in shards.items():
            if not (self._out / file).exists():
                make_llama.write(self._out / file, members, self._block)
        index = {name: file for file, members in shards.items() for name, _ in members}
        make_llama.describe(self._out, index, shapes, layers, *sizes, self._heads, self._groups)
        nbytes = [2 * int(np.prod(shape)) for _, shape in shapes]
        self.nbytes, self.largest = sum(nbytes), max(nbytes)


def converted(model: Path, kind: str, work: Path, more: Sequence[str] = ()) -> Cost:
    """One conversion as a user runs it; nothing of it is left."""
    qconvd = str(Path(sys.executable).with_name("qconvd"))
    with TemporaryDirectory(dir=work) as out:
        command = [qconvd, "convert", str(model), "--to", kind.lower(), "--out", out, *more]
        return cost(command, work / "memory.log")


if __name__ == "__main__":
    main()
