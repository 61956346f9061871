"""int8, int4 and fp8: what each costs in perplexity, and in processor time beside copying the model.

    apt-get download r-cran-janeaustenr
    python benchmarks/int8.py --work /tmp/bench --model .cache/models/SmolLM2-135M-Instruct --novels r-cran-janeaustenr*.deb
    python benchmarks/int8.py --work /tmp/bench --cost /tmp/bench/synthetic-llama-16 --small .cache/models/glass_en

Perplexity: of Pride and Prejudice, as in benchmarks/perplexity.py: windows of 512 tokens; what comes after 64 is scored.
transformers loads every artifact with compressed-tensors or bitsandbytes and computes on the CPU in float32. Where the scheme
rounds activations (w8a8, LLM.int8(), fp8), so do they. Zero points load dequantized only, which makes no difference there.

Cost: whole commands, verification included, in CPU seconds and peak RSS; beside them `cp` of the same model, and what of the
command is arithmetic: encoding as the kernels do it by themselves, SHA-256 of what was made, and comparing it with the model
(what `verify` takes, less another SHA-256). The first two are measured on all cores at once, as the command runs: hardware
threads that share a core take longer each. `start` is the same command on a model of a million weights. `rest` is what remains;
it should not exceed twice `cp`.
benchmarks/make_llama.py makes models.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import exp, prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import cost, machine
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
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    if a.model:
        perplexities(a.model, novels(a.novels)[TEST][SKIPPED:], a.windows, a.work)
    if a.cost:
        costs(a.cost, a.small, a.work)


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


def costs(model: Path, small: Path, work: Path) -> None:
    """A row per target: what the command takes, and what of that is arithmetic."""
    head = ("target", "CPU s", "encoding", "SHA-256", "comparing", "start", "rest", "2 cp", "peak RSS MB")
    print(f"{machine()}\n\n| {' | '.join(head)} |\n{'|---' * len(head)}|", flush=True)
    log = work / "int8.log"
    for target in COSTS:
        with TemporaryDirectory(dir=work) as out:
            copied = cost(["cp", "-r", str(model), out], log)
            shutil.rmtree(Path(out) / model.name)
            own = kernels(model, target)
            made = cost(command(model, target, Path(out)), log)
            hashed = hashing(Path(out))
            compared = comparing(model, target, Path(out)) - hashed
            start = cost(command(small, target, Path(out) / "small"), log).cpu
            rest = made.cpu - own - hashed - compared - start
            figures = (made.cpu, own, hashed, compared, start, rest, 2 * copied.cpu)
            print(f"| `{target}` | {' | '.join(f'{x:.1f}' for x in figures)} | {made.rss / 1e6:.0f} |", flush=True)


def hashing(folder: Path) -> float:
    """CPU seconds that SHA-256 of all files takes, reading left out."""
    piece = bytes(1 << 24)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    return on_all_cores(lambda: hashlib.sha256(piece)) * size / len(piece)


def on_all_cores(run: Callable[[], object]) -> float:
    """CPU seconds of a call that releases the GIL, when every core makes it: the least of some."""

    def timed() -> float:
        began = time.thread_time()
        run()
        return time.thread_time() - began

    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        rounds = [[f.result() for f in [pool.submit(timed) for _ in range(cores)]] for _ in range(4)]
    return min(sum(seconds) / cores for seconds in rounds[1:])


def comparing(model: Path, target: str, out: Path) -> float:
    """CPU seconds that verifying an artifact against its model takes, SHA-256 included."""
    from qconvd.engine.manifest import manifest_paths, read_manifest
    from qconvd.quality.verify import verify

    _, found, plan = planning(model, target)
    (place,) = (p for folder in out.iterdir() for p in manifest_paths(folder))
    began = time.process_time()
    verify(place.parent, read_manifest(place), plan=plan, model=found)
    return time.process_time() - began


def kernels(model: Path, target: str) -> float:
    """CPU seconds that the encoder alone takes for all that it encodes: those of the largest tensor, by the number of weights.

    The weights are random, which is no matter to kernels that do the same for all. They are compiled by this.
    """
    import numpy as np

    from qconvd.api import Device

    fmt, _, plan = planning(model, target)
    units = [u for u in plan.units if "scheme" in u.options] or plan.units
    unit = max(units, key=lambda u: prod(u.shape))
    x = np.random.default_rng(1).standard_normal(unit.shape, np.float32)
    x = x.astype(np.float16) if unit.inputs[0].dtype == "F16" else (x.view(np.uint32) >> 16).astype(np.uint16)
    encoder = fmt.encoder(plan, Device())
    seconds = on_all_cores(lambda: encoder.encode(unit, (0, len(x)), [x], {}))
    return seconds * sum(prod(u.shape) for u in units) / prod(unit.shape)


def planning(model: Path, target: str) -> tuple[Any, Any, Any]:
    """A target's format, the model as it is read, and the plan."""
    from qconvd.checkpoints import inspect
    from qconvd.formats import planned
    from qconvd.plugins import plugins
    from qconvd.targets import resolve_list

    (wanted,) = resolve_list(target)
    fmt, found = plugins().formats[wanted.format], inspect(model)
    return fmt, found, planned(fmt, found, wanted.options)


def command(model: Path, target: str, out: Path) -> list[str]:
    return [str(Path(sys.executable).with_name("qconvd")), "convert", str(model), "--to", target, "--out", str(out)]


if __name__ == "__main__":
    main()
