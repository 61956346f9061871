"""GPTQ against GPTQModel and llm-compressor: whole commands on one model, the solver alone, and three variants in one job.

    tests/readers/receipts/environment.sh gptqmodel .envs && tests/readers/receipts/environment.sh llmcompressor .envs
    apt-get download r-cran-janeaustenr
    python benchmarks/gptq.py --work /tmp/bench --model .cache/models/SmolLM2-135M-Instruct --novels r-cran-janeaustenr*.deb
        --environments .envs [--rounds 1] [--parts commands,variants,solver] [--groups 128,64] [--shapes 2048x2048,4096x11008]

Commands: ours is `qconvd convert` (start-up, plan, calibration, solving, writing, SHA-256, verification). Theirs is
benchmarks/peer_gptq.py: load, quantize, save. All sides get the same samples, 64 of 256 tokens of Emma: ours draws them, and
what it draws is handed to the others. All quantize every linear of every layer; with 128 columns a group SmolLM2's last groups
are short, which llm-compressor refuses, so there it is ours against GPTQModel, and with 64 all three. Linears are counted and
bits per weight printed, so that it can be seen. Perplexity is measured by benchmarks/gptq_measure.py, and for llm-compressor's
format by its own decoder in float32.

The solver alone: weights and a Hessian are given; seconds of the second of two solves in a process, and the output error
tr((W - Q) H (W - Q)^T) of what came of it. The others take columns as they stand; ours is run so and by activation. Linears
with the same inputs, as q, k and v have them, are written 576+192+192x576; --layers is for all linears of a model's layer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from gptq_measure import bits_per_weight, calibration_text, of_logits, perplexity, windows
from measure import Cost, cost, machine, middle

from qconvd.checkpoints import inspect
from qconvd.executors.base import environment

Took: TypeAlias = tuple[float, float]
"""CPU seconds, output error."""
HERE = Path(__file__).parent
SAMPLES, LENGTH = 64, 256
LAYERS = {
    "smollm2-135m": ("576+192+192x576", "576x576", "1536+1536x576", "576x1536"),
    "llama-7b": ("4096+4096+4096x4096", "4096x4096", "11008+11008x4096", "4096x11008"),
}
VARIANTS = ("4bit-128g", "4bit-32g", "8bit-128g")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--novels", type=Path, required=True)
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--parts", default="commands,variants,solver")
    parser.add_argument("--groups", default="128,64", help="columns in a group, for the whole commands")
    parser.add_argument("--shapes", default="2048x2048,4096x11008", help="rows x columns for the solver alone")
    parser.add_argument("--layers", default="", help=f"layers for the solver alone: {', '.join(LAYERS)}")
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    print(f"{machine()}; {SAMPLES} x {LENGTH} tokens; medians of {a.rounds} in turn\n")
    bench = Bench(*(path.resolve() for path in (a.work, a.model, a.novels, a.environments)), a.windows)
    # GPTQModel writes its logs where it is started.
    os.chdir(a.work)
    parts = a.parts.split(",")
    if "commands" in parts:
        for group in (int(g) for g in a.groups.split(",")):
            # llm-compressor refuses short last groups.
            bench.commands(group, ("ours", "gptqmodel", *([] if group > 64 else ["llmcompressor"])), a.rounds)
    if "variants" in parts:
        bench.variants(a.rounds)
    if "solver" in parts:
        for shape in filter(None, a.shapes.split(",")):
            bench.solvers(shape)
        for name in filter(None, a.layers.split(",")):
            bench.layer(name)


class Bench:
    """The model, the text, all sides, and the work folder between them."""

    def __init__(self, work: Path, model: Path, package: Path, environments: Path, count: int) -> None:
        self.work, self.model, self.environments = work, model, environments
        self.text = calibration_text(package, work / "calibration.txt")
        self.test = windows(model, package, count)
        np.save(work / "windows.npy", self.test)
        np.save(work / "samples.npy", self._samples())

    def _samples(self) -> np.ndarray:
        """What our side will draw: int64 (SAMPLES, LENGTH)."""
        from qconvd.api import CalibrationOptions, calibration_spec
        from qconvd.calibration.samples import tokens

        model = inspect(self.model)
        options = CalibrationOptions(text=str(self.text), samples=SAMPLES, length=LENGTH, chat=False)
        return np.asarray(tokens(model, calibration_spec(options, model)))

    def commands(self, group: int, sides: Sequence[str], rounds: int) -> None:
        """Every side's whole command, in turn; then what its result is worth."""
        found: dict[str, list[Cost]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side in sides:
                found[side].append(self.ours([f"4bit-{group}g"]) if side == "ours" else self.theirs(side, group))
        plain = perplexity(self.model, self.test)
        print(f"4 bits, groups of {group}; the model itself has perplexity {plain:.2f}")
        print("| side | wall s | CPU s | peak RSS MB | linears | bits per weight | perplexity |\n|---|---|---|---|---|---|---|")
        for side in sides:
            took, folder = middle(found[side]), self.made(side)
            bits, linears = bits_per_weight(folder, self.model)
            said = self._by_its_decoder(folder) if side == "llmcompressor" else perplexity(folder, self.test)
            figures = f"{took.wall:.1f} | {took.cpu:.1f} | {took.rss / 1e6:.0f} | {linears} | {bits:.3f} | {said:.2f}"
            print(f"| {side} | {figures} |", flush=True)
        print()

    def variants(self, rounds: int) -> None:
        """Three variants in one job against one; all have one order of columns, one damping and one calibration."""
        one, all_ = [], []
        for _ in range(rounds):
            one.append(self.ours(VARIANTS[:1]))
            all_.append(self.ours(VARIANTS))
        first, together = middle(one), middle(all_)
        print(f"{VARIANTS[0]:34} {first}\n{', '.join(VARIANTS):34} {together}")
        print(
            f"{'together / one':34} {together.cpu / first.cpu:.2f} x CPU {together.wall / first.wall:.2f} x wall\n", flush=True
        )

    def ours(self, variants: Sequence[str]) -> Cost:
        out = fresh(self.work / "ours")
        calibration = f"{{text: {self.text}, samples: {SAMPLES}, length: {LENGTH}, chat: false}}"
        target = f"gptq: {{variants: [{', '.join(variants)}], partial_groups: true, calibration: {calibration}}}"
        qconvd = str(Path(sys.executable).with_name("qconvd"))
        return cost([qconvd, "convert", str(self.model), "--to", target, "--out", str(out)], self.work / "ours.log")

    def theirs(self, side: str, group: int) -> Cost:
        out = fresh(self.work / side)
        samples = str(self.work / "samples.npy")
        return cost(
            [*self._peer(side), "quantize", str(self.model), str(out), samples, "4", str(group)], self.work / f"{side}.log"
        )

    def made(self, side: str) -> Path:
        """The checkpoint of a side's last command."""
        return next((self.work / "ours").glob(f"{self.model.name}*")) if side == "ours" else self.work / side

    def _by_its_decoder(self, folder: Path) -> float:
        out = self.work / "logits.npy"
        command = [*self._peer("llmcompressor"), "logits", str(folder), str(self.work / "windows.npy"), str(out)]
        cost(command, self.work / "logits.log")
        return of_logits(np.load(out), self.test)

    def _peer(self, side: str) -> list[str]:
        return [str(self.environments / side / "bin" / "python"), "-P", str(HERE / "peer_gptq.py"), side]

    def layer(self, name: str) -> None:
        """All linears of a layer: what each side takes in all, and what comes of it."""
        spent: dict[str, list[Took]] = {}
        for shape in LAYERS[name]:
            for side, took in self.solvers(shape).items():
                spent.setdefault(side, []).append(took)
        print(f"a layer of {name}\n| solver | CPU s | output error |\n|---|---|---|")
        for side, all_ in spent.items():
            if len(all_) == len(LAYERS[name]):
                print(f"| {side} | {sum(cpu for cpu, _ in all_):.3f} | {sum(error for _, error in all_):.2f} |")
        print()

    def solvers(self, shape: str, bits: int = 4, group: int = 128) -> dict[str, Took]:
        """All solvers on the same linears."""
        rows, columns = [int(n) for n in shape.split("x")[0].split("+")], int(shape.split("x")[1])
        given = linear(rows, columns)
        np.savez(self.work / "linear.npz", **given)
        print(f"{shape}, {bits} bits, groups of {group}\n| solver | wall s | CPU s | output error |\n|---|---|---|---|")
        found = {}
        sides = {side: [*self._peer(side), "solve"] for side in ("gptqmodel", "llmcompressor")}
        for side, command in sides.items():
            if columns % group and side == "llmcompressor":
                print(f"| {side} | refuses short groups | | |")
            else:
                found[side] = self._solver(side, [*command, str(self.work / "linear.npz"), str(bits), str(group)], given)
        for order in ("nearest", "none", "static"):
            ours = [sys.executable, str(HERE / "our_solver.py"), str(self.work / "linear.npz"), str(bits), str(group), order]
            found[f"ours, {order}"] = self._solver(f"ours, {order}", ours, given)
        print()
        return found

    def _solver(self, name: str, command: Sequence[str], given: Mapping[str, Any]) -> Took:
        """One line of the table. Ours runs in a worker's environment, the others in what they come with."""
        out = self.work / "solved.npy"
        mine = environment("cpu", "", len(os.sched_getaffinity(0))) if name.startswith("ours") else None
        done = subprocess.run(
            [*command, str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True, env=mine
        )
        took = json.loads(done.stdout.splitlines()[-1])
        error = output_error(given, np.load(out))
        print(f"| {name} | {took['wall']:.3f} | {took['cpu']:.3f} | {error:.2f} |", flush=True)
        return took["cpu"], error


def linear(rows: Sequence[int], columns: int, tokens: int = 8192) -> dict[str, Any]:
    """Weights of linears, one below the other; X^T X of activations whose columns are correlated and of very different size."""
    rng = np.random.default_rng(0)
    inside = rng.standard_normal((tokens, columns // 8), np.float32) @ rng.standard_normal((columns // 8, columns), np.float32)
    x = inside / np.float32((columns / 8) ** 0.5) + np.float32(0.5) * rng.standard_normal((tokens, columns), np.float32)
    x *= np.exp(np.float32(0.8) * rng.standard_normal(columns, np.float32))
    w = rng.standard_normal((sum(rows), columns), np.float32) * np.float32(0.02)
    return {"w": w, "rows": np.array(rows), "h": x.T @ x, "tokens": tokens}


def output_error(given: Mapping[str, Any], q: np.ndarray) -> float:
    """tr((W - Q) H (W - Q)^T) per token."""
    error = given["w"] - q.astype(np.float32)
    return float(((error @ given["h"]) * error).sum(dtype=np.float64)) / given["tokens"]


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
