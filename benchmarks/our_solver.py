"""Our GPTQ solver on linears with the same inputs, in a process with a worker's environment. benchmarks/gptq.py runs it.

    python benchmarks/our_solver.py LINEAR.npz BITS GROUP ORDER OUT.npy

Prints JSON: seconds of wall and processor time of the second of two solves.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from qconvd.api import Hessian
from qconvd.memory_limit import keep_freed_arrays
from qconvd_gptq.solve import Grid, Weights, nearest, solve


def main() -> None:
    path, bits, group, order, out = sys.argv[1:]
    given = np.load(path)
    h, tokens = given["h"], int(given["tokens"])
    linears = [Weights(w) for w in np.split(given["w"], given["rows"].cumsum()[:-1])]
    grid = Grid(int(bits), int(group))
    if order == "nearest":
        np.save(out, np.concatenate([nearest(w, grid).dequantized() for w in linears]))
        print(json.dumps({"wall": 0, "cpu": 0}))
        return
    keep_freed_arrays()
    for _ in range(2):
        hessian = Hessian(h.copy(), tokens)
        wall, cpu = time.perf_counter(), time.process_time()
        solved = [solve(w, hessian, grid, order=order) for w in linears]  # type: ignore[arg-type]
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    np.save(out, np.concatenate([one.dequantized() for one in solved]))
    print(json.dumps(took))


if __name__ == "__main__":
    main()
