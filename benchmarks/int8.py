"""int8, int4 and fp8: what each costs in perplexity, and in processor time beside copying the model.

    apt-get download r-cran-janeaustenr
    python benchmarks/int8.py --work /tmp/bench --model .cache/models/SmolLM2-135M-Instruct --novels r-cran-janeaustenr*.deb
    python benchmarks/int8.py --work /tmp/bench --cost /tmp/bench/synthetic-llama-16

Perplexity: of Pride and Prejudice, as in benchmarks/perplexity.py: windows of 512 tokens; what comes after 64 is scored.
transformers computes it on the CPU in bfloat16, with compressed-tensors and bitsandbytes, as anybody would load the artifact.
The former dequantizes weights when it loads them so, so rounded activations (w8a8, fp8) are not part of the figures.

Cost: whole commands, CPU seconds and peak RSS; the ratio is to `cp` of the same model. A small conversion comes first, so that
the kernels are compiled.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import cost, machine
from novels import novels

TEST, SKIPPED = "PRIDE AND PREJUDICE", 20_000
WINDOW, CONTEXT = 512, 64
TARGETS = (
    "bf16", "int8", "int8: {container: bitsandbytes}", "fp8", "fp8: block", "int4: 32g", "int4: 64g",
    "int4: {group_size: 64, mse: true}", "int4: 32g-asym", "int4: 64g-asym", "int4: {group_size: 64, sym: false, mse: true}",
    "int4: channel", "bnb-4bit", "int4: {container: bitsandbytes, double_quant: false}", "int4: fp4",
)  # fmt: skip
COSTS = ("fp16", "int8", "int8: w8a8", "bnb-8bit", "int4", "int4: asym", "int4: {mse: true}", "bnb-4bit", "fp8", "fp8: block")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--novels", type=Path)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--cost", type=Path)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    if a.model:
        perplexities(a.model, novels(a.novels)[TEST][SKIPPED:], a.windows, a.work)
    if a.cost:
        costs(a.cost, a.work)


def perplexities(model: Path, text: str, count: int, work: Path) -> None:
    """A row per target, as it is measured."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(model)(text[: 8 * WINDOW * count], add_special_tokens=False)["input_ids"]
    windows = [tokens[WINDOW * i : WINDOW * (i + 1)] for i in range(count)]
    print("| target | MB | perplexity |\n|---|---|---|", flush=True)
    for target in TARGETS:
        with TemporaryDirectory(dir=work) as out:
            cost(command(model, target, Path(out)), work / "int8.log")
            (folder,) = (p.parent for p in Path(out).glob("*/qconvd.json"))
            size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
            print(f"| `{target}` | {size / 1e6:.0f} | {perplexity(folder, windows):.2f} |", flush=True)


def perplexity(folder: Path, windows: Sequence[Sequence[int]]) -> float:
    """Of what comes after CONTEXT tokens, by transformers."""
    import json

    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    method = json.loads((folder / "config.json").read_text()).get("quantization_config", {}).get("quant_method")
    more: dict[str, Any] = {}
    if method == "compressed-tensors":
        more["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", **more)
    losses = []
    with torch.inference_mode():
        for window in windows:
            ids = torch.tensor([window])
            logits = loaded(ids).logits[0, CONTEXT - 1 : -1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, CONTEXT:]).item())
    return exp(sum(losses) / len(losses))


def costs(model: Path, work: Path) -> None:
    """A row per target, after one for copying."""
    print(f"{machine()}\n\n| target | CPU s | peak RSS MB | CPU s of cp |\n|---|---|---|---|", flush=True)
    log = work / "int8.log"
    for target in COSTS:
        with TemporaryDirectory(dir=work) as out:
            copied = cost(["cp", "-r", str(model), out], log)
            shutil.rmtree(Path(out) / model.name)
            made = cost(command(model, target, Path(out)), log)
            print(f"| `{target}` | {made.cpu:.1f} | {made.rss / 1e6:.0f} | {made.cpu / copied.cpu:.1f} |", flush=True)


def command(model: Path, target: str, out: Path) -> list[str]:
    return [str(Path(sys.executable).with_name("qconvd")), "convert", str(model), "--to", target, "--out", str(out)]


if __name__ == "__main__":
    main()
