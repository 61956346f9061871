"""The block kernels on a GPU against those on the CPU: speed, and how far the bytes are apart.

    python benchmarks/cuda.py [--types Q4_K,Q6_K] [--rows 16384] [--rounds 5]

Needs a GPU, a torch built for CUDA and triton (`pip install 'qconvd[cuda]'`). The same rows of BF16 weights go in turn through

    cpu      qconvd_ggml.kernels.encode on all cores, a thread each: what `device: cpu` does
    staged   qconvd_ggml.cuda.staging.encode: numpy to numpy through pinned buffers, as many threads as slots: `device: cuda`
    kernel   qconvd_ggml.cuda.encode.encode with weights that lie on the GPU already: what the bus costs is the difference

Medians of `--rounds` wall seconds after one round that compiles, in million weights per second, error figures included. Half
of the rows are normal, half heavy-tailed (Student's t, 5 degrees of freedom). Then the bytes are compared as contract.py says.
For types that kept the contract and were faster than the CPU, rows for qconvd_ggml.cuda.MEASURED come last; put the whole
table into docs/reference/measurements.md with them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from measure import machine
from numpy.typing import NDArray

from qconvd.api import Unsupported
from qconvd_ggml import cuda, kernels

COLUMNS = 4096
PART = 2 << 20
"""Weights of a call: a chunk of the engine, whose chunks are 4 MiB of the source."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default=",".join(cuda.TYPES))
    parser.add_argument("--rows", type=int, default=16384, help=f"rows of {COLUMNS} weights")
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    import torch
    import triton

    from qconvd.api import cuda_device

    try:
        device = cuda_device()
    except Unsupported as error:
        sys.exit(str(error))
    name = nvml_name(str(torch.cuda.get_device_properties(device).uuid)) or torch.cuda.get_device_name(device)
    print(f"{machine()}; {name}, torch {torch.__version__}, triton {triton.__version__}", end="; ")
    print(f"{a.rows * COLUMNS / 1e6:.0f} million weights, medians of {a.rounds}\n")
    x = weights(a.rows)
    print("| type | cpu | staged | kernel | staged / cpu | blocks differing | worst row | all rows |")
    print("|---|---|---|---|---|---|---|---|")
    good = [dtype for dtype in a.types.split(",") if measured(dtype, x, device, a.rounds)]
    print("\nMEASURED: " + (", ".join(f'"{dtype}": ("{name}",)' for dtype in good) or "nothing"))


def measured(dtype: str, x: NDArray[np.uint16], device: Any, rounds: int) -> bool:
    """Print a type's row of the table; whether it kept the contract and was faster than the CPU."""
    import torch

    from qconvd_ggml.cuda.contract import compare
    from qconvd_ggml.cuda.encode import encode
    from qconvd_ggml.cuda.staging import Staging

    staging = Staging(device)
    there = torch.from_numpy(x).view(torch.bfloat16).to(device)
    parts = [slice(first, first + max(1, PART // COLUMNS)) for first in range(0, len(x), max(1, PART // COLUMNS))]

    def kernel() -> None:
        for part in parts:
            encode(dtype, there[part])
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    sides = {
        "cpu": Side(len(os.sched_getaffinity(0)), lambda part: kernels.encode(dtype, x[part], "BF16")[0]),
        "staged": Side(cuda.SLOTS, lambda part: staging.encode(dtype, x[part], "BF16")[0]),
    }
    made = {name: np.concatenate(side.run(parts)) for name, side in sides.items()}
    kernel()
    seconds: dict[str, list[float]] = {name: [] for name in (*sides, "kernel")}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(timed(lambda side=side: side.run(parts)))
        seconds["kernel"].append(timed(kernel))
    speed = {name: x.size / median(s) / 1e6 for name, s in seconds.items()}
    single = (x.astype(np.uint32) << 16).view(np.float32)
    found = compare(dtype, single, made["staged"], made["cpu"])
    faster = speed["staged"] / speed["cpu"]
    print(
        f"| {dtype} | {speed['cpu']:.0f} | {speed['staged']:.0f} | {speed['kernel']:.0f} | {faster:.2f}"
        f" | {found.differing:.2e} | {found.worst_row:.6f} | {found.whole:.6f} |",
        flush=True,
    )
    return found.kept and faster > 1


@dataclass
class Side:
    """A way to encode, and how many threads take part."""

    threads: int
    encode: Callable[[slice], NDArray[np.uint8]]

    def run(self, parts: list[slice]) -> list[NDArray[np.uint8]]:
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(self.encode, parts))


def timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def weights(rows: int) -> NDArray[np.uint16]:
    """BF16 bit patterns, of the size that the weights of a model have."""
    rng = np.random.default_rng(0)
    x = np.empty((rows, COLUMNS), np.float32)
    x[::2] = rng.standard_normal(x[::2].shape, np.float32) * np.float32(0.02)
    x[1::2] = rng.standard_t(5, x[1::2].shape) * 0.02
    return np.ascontiguousarray((x.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)


def nvml_name(uuid: str) -> str:
    """The name by which the scheduler will know this GPU; torch gives the UUID without NVML's prefix."""
    from qconvd.devices import Devices

    return next((gpu.name for gpu in Devices().snapshot().gpus if gpu.uuid.removeprefix("GPU-").endswith(uuid)), "")


if __name__ == "__main__":
    main()
