"""The casts of fp16, bf16 and f32: million weights per CPU second of one thread, beside torch's `Tensor.to`.

    python benchmarks/casts.py

Ours add up errors, squares and what is lost on the way and put the result into new memory; torch does not add up anything, and
its memory was used before. 16 million weights of a normal distribution (0.02 wide), more than the cache holds; the best of
--rounds of each, one after the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measure import machine, thread_seconds

from qconvd_fp16.casts import cast
from qconvd_fp16.kernels import ready
from qconvd_fp16.kernels.tiles import PAIRS

COUNT = 1 << 24
TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SIGNED = {2: np.int16, 4: np.int32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    ready()
    weights = (np.random.default_rng(0).standard_normal(COUNT) * 0.02).astype(np.float32)
    print(f"{machine()}, torch {torch.__version__}\n\n| cast | numpy | compiled | torch |\n|---|---|---|---|", flush=True)
    for source, target in PAIRS:
        if source == target:
            continue
        x = cast(weights, "F32", source)[0]
        given = torch.from_numpy(x.view(SIGNED[x.itemsize])).view(TORCH[source])
        into = torch.empty(COUNT, dtype=TORCH[target])
        ways: list[Callable[[], Any]] = [
            lambda x=x, s=source, t=target: cast(x, s, t),  # type: ignore[misc]
            lambda x=x, s=source, t=target: cast(x, s, t, compiled=True),  # type: ignore[misc]
            lambda given=given, into=into: into.copy_(given),  # type: ignore[misc]
        ]
        best = [min(thread_seconds(way) for _ in range(rounds)) for way in ways]
        print(f"| {source} to {target} | {' | '.join(f'{COUNT / s / 1e6:.0f}' for s in best)} |", flush=True)


if __name__ == "__main__":
    main()
