"""What GPTQ costs in quality: perplexity of every kind of checkpoint, and the output error of every linear against rounding.

    apt-get download r-cran-janeaustenr
    python benchmarks/gptq_quality.py --work /tmp/bench --model .cache/models/SmolLM2-135M-Instruct
        --novels r-cran-janeaustenr*.deb [--parts perplexity,errors] [--bits 2,3,4,8]
        [--groups 32,64,128,1024,-1] [--methods rtn,none,static,desc_act,mse] [--windows 4] [--samples 64] [--length 256]

Perplexity (benchmarks/gptq_measure.py) on Pride and Prejudice, calibrated on Emma. All variants of one number of bits are
made by one job. Where a group size does not divide SmolLM2's widths, last groups are short, so that all rows of the table have
quantized the same linears; bits per weight are those of the linears of layers, scales and zero points included.

Errors are tr((W - Q) H (W - Q)^T) per linear with the Hessian that calibration gathers: of `--model`, of glassllm's model, and
of a random one whose widths divide by 1024. Printed is GPTQ's error as a share of rounding's: the best, the middle and the
worst linear; and how many linears are worse than rounded ones, which must be none at 2 to 4 bits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from gptq_measure import bits_per_weight, calibration_text, perplexity, windows

from qconvd.checkpoints import inspect

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tests", "demo")]
import reader_models  # noqa: E402
from models import cached, make_glass  # noqa: E402

METHODS: Mapping[str, Mapping[str, Any]] = {
    "rtn": {"method": "rtn"},
    "none": {"act_order": "none"},
    "static": {"act_order": "static"},
    "desc_act": {"act_order": "desc_act"},
    "mse": {"act_order": "static", "mse": True},
}
"""Columns of the first table; the orders among them are rows of the second."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--novels", type=Path, required=True)
    parser.add_argument("--parts", default="perplexity,errors")
    parser.add_argument("--bits", default="2,3,4,8")
    parser.add_argument("--groups", default="32,64,128,1024,-1")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    text = calibration_text(a.novels, a.work / "calibration.txt")
    calibration = {"text": str(text), "samples": a.samples, "length": a.length, "chat": False}
    bits, groups = [int(b) for b in a.bits.split(",")], [int(g) for g in a.groups.split(",")]
    methods = {name: METHODS[name] for name in a.methods.split(",")}
    if "perplexity" in a.parts:
        test = windows(a.model, a.novels, a.windows)
        print(f"{a.model.name}: perplexity {perplexity(a.model, test):.2f} unquantized, {a.samples} x {a.length} tokens\n")
        print("| bits | group | bits per weight |" + "".join(f" {name} |" for name in methods))
        print("|---|---|---|" + "---|" * len(methods), flush=True)
        for row in table(a.model, bits, groups, methods.values(), calibration, test, a.work):
            print(row, flush=True)
    if "errors" in a.parts:
        print("\n| model | bits | group | order | best | middle | worst | linears | worse than rounded |\n|" + "---|" * 9)
        with TemporaryDirectory(dir=a.work) as scratch:
            glass = cached("glass_en", make_glass)
            random = reader_models.make("wide", glass, Path(scratch) / "wide")
            for model in (a.model, glass, random):
                orders = [o for o in ("none", "static", "desc_act") if o in methods]
                for row in errors(model, [b for b in bits if b < 8], groups, orders, calibration, Path(scratch)):
                    print(row, flush=True)


def table(
    model: Path, bits: Sequence[int], groups: Sequence[int], methods: Collection[Mapping[str, Any]],
    calibration: Mapping[str, Any], test: np.ndarray, work: Path,
) -> Iterator[str]:  # fmt: skip
    """A row for each number of bits and group size; one job makes all of a number of bits."""
    for b in bits:
        with TemporaryDirectory(dir=work) as out:
            variants = [{"bits": b, "group_size": g, **method} for g in groups for method in methods]
            made = convert(model, variants, calibration, Path(out))
            for g, first in zip(groups, range(0, len(variants), len(methods)), strict=True):
                folders = made[first : first + len(methods)]
                share, _ = bits_per_weight(folders[0], model)
                yield f"| {b} | {g} | {share:.3f} |" + "".join(f" {perplexity(f, test):.2f} |" for f in folders)


def convert(model: Path, variants: Sequence[Mapping[str, Any]], calibration: Mapping[str, Any], out: Path) -> list[Path]:
    """The folders of the variants, in their order, made by one command."""
    named = [{**v, "name": f"{{model}}-{i}"} for i, v in enumerate(variants)]
    target = "gptq: " + json.dumps({"variants": named, "partial_groups": True, "calibration": calibration})
    qconvd = str(Path(sys.executable).with_name("qconvd"))
    subprocess.run([qconvd, "convert", str(model), "--to", target, "--out", str(out)], check=True, stdout=sys.stderr)
    return [out / f"{model.name}-{i}" for i in range(len(variants))]


def errors(
    model: Path, bits: Sequence[int], groups: Sequence[int], orders: Sequence[str],
    calibration: Mapping[str, Any], scratch: Path,
) -> Iterator[str]:  # fmt: skip
    """Rows of the second table. Hessians are gathered once; each linear is solved in every way while its own is there."""
    from qconvd.api import as_float32
    from qconvd_gptq.solve import Grid, Weights, nearest, solve

    info = inspect(model)
    shares: dict[tuple[int, int, str], list[float]] = {}
    for name, hessian in hessians(model, calibration, scratch):
        tensor = info.tensors[name]
        stored = np.memmap(info.path / tensor.file, np.uint8, "r", tensor.offset, tensor.nbytes)
        w = np.asarray(stored).view({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[tensor.dtype]).reshape(tensor.shape)
        given, single = Weights(w, tensor.dtype), as_float32(w, tensor.dtype)
        for b in bits:
            for g in (g for g in groups if g < w.shape[1]):
                grid = Grid(b, g)
                rounded = output_error(single, nearest(given, grid).dequantized(), hessian.array)
                for order in orders:
                    solved = solve(given, hessian, grid, order=order).dequantized()
                    shares.setdefault((b, g, order), []).append(output_error(single, solved, hessian.array) / rounded)
    for (b, g, order), found in shares.items():
        worse = sum(share >= 1 for share in found)
        figures = f"{min(found):.3f} | {median(found):.3f} | {max(found):.3f} | {len(found)} | {worse}"
        yield f"| {info.name} | {b} | {g} | {order} | {figures} |"


def hessians(model: Path, calibration: Mapping[str, Any], scratch: Path) -> Iterator[tuple[str, Any]]:
    """Names of the linears' tensors, each with its Hessian, which is there until the next is asked for."""
    from qconvd.api import CalibrationOptions, Device, calibration_spec
    from qconvd.calibration.run import Calibration
    from qconvd.engine.run import Limits
    from qconvd.plugins import plugins

    info, fmt = inspect(model), plugins().formats["gptq"]
    length = min(calibration["length"], int(info.config["max_position_embeddings"]))
    spec = calibration_spec(CalibrationOptions(**{**calibration, "length": length}), info)
    plan = fmt.plan(info, fmt.Options(group_size=-1, calibration={**calibration, "length": length}))
    requests = {request for unit in plan.units for request in unit.statistics}
    run = Calibration(
        info, spec, requests, scratch / f"states-{info.name}", Limits(memory=2 << 30, threads=2), Device(),
        on_event=lambda _: None, cancelled=lambda: False,
    )  # fmt: skip
    for layer in range(run.layers):
        for wave in run.waves(layer):
            for request in requests:
                if request.key in wave:
                    yield request.linear, wave[request.key]
        run.finish(layer)
    run.close()


def output_error(w: np.ndarray, q: np.ndarray, h: np.ndarray) -> float:
    error = w - q.astype(np.float32)
    return float(((error @ h) * error).sum(dtype=np.float64))


if __name__ == "__main__":
    main()
