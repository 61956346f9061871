"""int8, int4 and fp8: what each costs in perplexity, and in processor time beside copying the model.

    apt-get download r-cran-janeaustenr
    python benchmarks/int8.py --work /tmp/bench --model .cache/models/SmolLM2-135M-Instruct --novels r-cran-janeaustenr*.deb
    python benchmarks/int8.py --work /tmp/bench --cost /tmp/bench/synthetic-llama-16 --small .cache/models/glass_en

Perplexity: of Pride and Prejudice, as in benchmarks/perplexity.py: windows of 512 tokens; what comes after 64 is scored.
transformers loads every artifact with compressed-tensors or bitsandbytes and computes on the CPU in float32. Where the scheme
rounds activations (w8a8, LLM.int8(), fp8), so do they. Zero points load dequantized only, which makes no difference there.

Cost: whole commands, verification included, in CPU seconds and peak RSS; beside them `cp` of the same model: medians of
--rounds, in which one follows the other, some seconds after it: a virtual machine gives back to its host what was freed, and
who takes memory again pays for that, so that it would matter who comes first. What of the seconds is arithmetic is measured in
a run of its own, where each call of it is timed in its thread: encoding; SHA-256 and checksums; comparing the artifact with the
model and looking for NaN. `beside` is what a command takes besides, for starting, reading and writing above all; it should not
exceed twice `cp`. `start` is a part of it: the command on a model of a million weights.
benchmarks/make_llama.py makes models.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from measure import Cost, cost, machine, middle
from novels import novels

TEST, SKIPPED = "PRIDE AND PREJUDICE", 20_000
WINDOW, CONTEXT = 512, 64
TARGETS = (
    "bf16", "int8", "int8: w8a8", "bnb-8bit", "fp8", "fp8: block", "int4", "int4: 32g", "int4: {group_size: 32, mse: true}",
    "int4: 32g-asym", "int4: 64g", "int4: {group_size: 64, mse: true}", "int4: 64g-asym",
    "int4: {group_size: 64, sym: false, mse: true}", "int4: channel", "int4: {group_size: -1, mse: true}", "int4: channel-asym",
    "bnb-4bit", "int4: {container: bitsandbytes, double_quant: false}", "int4: fp4",
)  # fmt: skip
COSTS = ("fp16", "int8", "int8: w8a8", "bnb-8bit", "int4", "int4: asym", "int4: {mse: true}", "bnb-4bit", "fp8", "fp8: block")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--novels", type=Path)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--cost", type=Path)
    parser.add_argument("--small", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts-of", help=argparse.SUPPRESS)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    if a.model:
        perplexities(a.model, novels(a.novels)[TEST][SKIPPED:], a.windows, a.work)
    if a.parts_of:
        print(json.dumps(parts_of(a.cost, a.parts_of, a.work)))
    elif a.cost:
        costs(a.cost, a.small, a.rounds, a.work)


def perplexities(model: Path, text: str, count: int, work: Path) -> None:
    """A row per target, as it is measured."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(model)(text[: 8 * WINDOW * count], add_special_tokens=False)["input_ids"]
    windows = [tokens[WINDOW * i : WINDOW * (i + 1)] for i in range(count)]
    print(
        f"{count * (WINDOW - CONTEXT)} tokens scored\n\n| target | linears | MB | perplexity |\n|---|---|---|---|", flush=True
    )
    for target in TARGETS:
        with TemporaryDirectory(dir=work) as out:
            cost(command(model, target, Path(out)), work / "int8.log")
            (folder,) = (p.parent for p in Path(out).glob("*/qconvd.json"))
            size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
            print(f"| `{target}` | {quantized(folder)} | {size / 1e6:.0f} | {perplexity(folder, windows):.2f} |", flush=True)


def perplexity(folder: Path, windows: Sequence[Sequence[int]]) -> float:
    """Of what comes after CONTEXT tokens, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    more: dict[str, Any] = {}
    if any(name.endswith(".weight_zero_point") for name in tensors(folder)):
        more["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32, **more)
    # Models of bitsandbytes come in bfloat16, whatever was asked for.
    for module in loaded.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32
        # bitsandbytes' kernel for processors with AVX-512 BF16, which computes in that.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    for parameter in loaded.parameters():
        if parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()
    losses = []
    with torch.inference_mode():
        for window in windows:
            ids = torch.tensor([window])
            logits = loaded(ids).logits[0, CONTEXT - 1 : -1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, CONTEXT:]).item())
    return exp(sum(losses) / len(losses))


def quantized(folder: Path) -> int:
    """How many linears are quantized: those of the others whose widths the layout does not divide are in 16 bits."""
    return sum(name.endswith((".weight_scale", ".SCB", ".weight.absmax")) for name in tensors(folder))


def tensors(folder: Path) -> list[str]:
    """Names of what an artifact holds."""
    found: list[str] = []
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            found += json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return found


def costs(model: Path, small: Path, rounds: int, work: Path) -> None:
    """A row per target: what the command takes, and what of that is arithmetic."""
    head = ("target", "CPU s", *PARTS, "beside", "of it start", "2 cp", "cp from, to", "peak RSS MB")
    print(f"{machine()}\n\n| {' | '.join(head)} |\n{'|---' * len(head)}|", flush=True)
    log = work / "int8.log"
    for target in COSTS:
        itself = [sys.executable, __file__, "--work", str(work), "--cost", str(model), "--parts-of", target]
        parts = json.loads(subprocess.run(itself, check=True, capture_output=True, text=True).stdout)
        copies, starts, conversions = [], [], []
        for _ in range(rounds):
            copies.append(settled(["cp", "-r", str(model)], work, log))
            starts.append(settled(command(small, target), work, log))
            conversions.append(settled(command(model, target), work, log))
        made, copied = middle(conversions), middle(copies)
        spread = f"{min(c.cpu for c in copies):.1f}, {max(c.cpu for c in copies):.1f}"
        beside = made.cpu - sum(parts.values())
        figures = (made.cpu, *(parts[p] for p in PARTS), beside, middle(starts).cpu, 2 * copied.cpu)
        print(f"| `{target}` | {' | '.join(f'{x:.1f}' for x in figures)} | {spread} | {made.rss / 1e6:.0f} |", flush=True)


PARTS = ("encoding", "SHA-256", "comparing")
SETTLED = 5
"""Seconds."""


def parts_of(model: Path, target: str, work: Path) -> dict[str, float]:
    """What of the CPU seconds of a conversion and its verification is arithmetic.

    Every call that only computes is timed where the engine makes it: expressions and encoders, SHA-256 and checksums, decoders,
    bounds and comparisons, counts of NaN.
    """
    from qconvd.api import Device
    from qconvd.engine import run, writer
    from qconvd.engine.plan import Prepares
    from qconvd.engine.run import Limits
    from qconvd.engine.target import ConvertTarget
    from qconvd.engine.written import written
    from qconvd.plugins import plugins
    from qconvd.quality import rows, scan
    from qconvd.quality.verify import verify

    spent: Counter[str] = Counter()
    fmt, found, plan = planning(model, target)
    encoder = fmt.encoder(plan, Device())
    if isinstance(encoder, Prepares):
        list(encoder.prepare(plan))

    def timed(what: str, call: Any) -> Any:
        def measured(*arguments: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                spent[what] += time.thread_time() - began

        return measured

    class Hash:
        def __init__(self) -> None:
            self._hash = hashlib.sha256()
            self.update = timed("SHA-256", self._hash.update)
            self.hexdigest, self.copy = self._hash.hexdigest, self._hash.copy

    run.evaluate = timed("encoding", run.evaluate)
    run.checksum = timed("SHA-256", run.checksum)
    writer.hashlib = SimpleNamespace(sha256=Hash)
    encoder.encode = timed("encoding", encoder.encode)
    rows.to_float32 = timed("comparing", rows.to_float32)
    rows.Comparison._hold = timed("comparing", rows.Comparison._hold)
    counter = scan._counter

    def timed_counter(dtype: str) -> tuple[int, Any]:
        size, count = counter(dtype)
        return size, count and timed("comparing", count)

    scan._counter = timed_counter
    for name in ("decode", "bound", "held"):
        if call := getattr(type(fmt), name, None):
            setattr(type(fmt), name, timed("comparing", call))
    with TemporaryDirectory(dir=work) as out:
        plan = replace(plan, files=tuple(replace(f, path=f.path.replace("{stem}", found.name)) for f in plan.files))
        made = ConvertTarget("t", plan, encoder, Path(out), {"artifact": found.name, "format": fmt.name, "options": {}})
        result = run.convert(found, [made], Limits(MEMORY, os.cpu_count() or 1), operations=plugins().operations,
                             cancelled=lambda: False, on_event=lambda _: None)["t"]  # fmt: skip
        if isinstance(result, Exception):
            raise result
        verify(Path(out) / "files", result, plan=plan, model=found, formats=plugins().formats, pieces=written(Path(out), plan))
        return {part: spent[part] for part in PARTS}


MEMORY = 1 << 30


def planning(model: Path, target: str) -> tuple[Any, Any, Any]:
    """A target's format, the model as it is read, and the plan."""
    from qconvd.checkpoints import inspect
    from qconvd.formats import planned
    from qconvd.plugins import plugins
    from qconvd.targets import resolve_list

    (wanted,) = resolve_list(target)
    fmt, found = plugins().formats[wanted.format], inspect(model)
    return fmt, found, planned(fmt, found, wanted.options)


def command(model: Path, target: str) -> list[str]:
    """It lacks where the artifact goes."""
    return [str(Path(sys.executable).with_name("qconvd")), "convert", str(model), "--to", target, "--out"]


def settled(command: Sequence[str], work: Path, log: Path) -> Cost:
    """What a command costs that makes files in a folder, which is its last argument, when nothing was freed just before."""
    time.sleep(SETTLED)
    with TemporaryDirectory(dir=work) as out:
        return cost([*command, out], log)


if __name__ == "__main__":
    main()
