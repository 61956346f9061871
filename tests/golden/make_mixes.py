"""The types that llama-quantize itself gives to the tensors of small made-up files, for every preset: `mixes.json.gz`.

usage: make_mixes.py LLAMA_QUANTIZE OUT.json.gz        needs the gguf package
The files hold zeros, and `--dry-run` encodes nothing, so architectures and sizes can be covered that no test could convert:
falcon, 80 layers with grouped heads, eight and other numbers of experts, MLA, fused QKV, rows that no block divides.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1])]
from gguf_mixes import MODELS, OPTIONS, PRESETS, metadata, source_dtype, tensors  # noqa: E402


def write(path: Path, model: dict[str, Any]) -> None:
    from gguf import GGUFWriter

    keys = metadata(model)
    writer = GGUFWriter(path, arch=model["arch"])
    for key, value in keys.items():
        if key == "general.architecture":
            continue
        if isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)
    for name, shape in tensors(model).items():
        writer.add_tensor(name, np.zeros(shape, np.float32 if source_dtype(name, shape) == "F32" else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def imatrix(path: Path, model: dict[str, Any]) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, arch="imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["made-up"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, shape in tensors(model).items():
        if len(shape) > 1:
            experts = shape[0] if len(shape) > 2 else 1
            writer.add_tensor(name + ".in_sum2", np.ones((experts, shape[-1]), np.float32))
            writer.add_tensor(name + ".counts", np.ones((experts, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def types(quantize: str, arguments: list[str], names: list[str]) -> list[str]:
    ran = subprocess.run([quantize, "--dry-run", *arguments], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{arguments}: {ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    found: dict[str, str] = {}
    name, before = "", ""
    for line in (ran.stdout + ran.stderr).splitlines():
        if row := re.match(r"\[ *\d+/ *\d+\] +(\S+) +- \[.*\], type = +(\w+), ", line):
            name, before = row[1], row[2]
        if size := re.search(r"size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\w+)\))?$", line):
            found[name] = (size[1] or before).upper()
    if sorted(found) != sorted(names):
        raise SystemExit(f"{arguments}: {sorted(set(names) ^ set(found))}")
    return [found[n] for n in names]


def main(quantize: str, out: str) -> None:
    record: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, model in MODELS.items():
            source, matrix = Path(folder) / f"{kind}.gguf", Path(folder) / f"{kind}.imatrix"
            write(source, model)
            imatrix(matrix, model)
            names = list(tensors(model))
            record[kind] = {}
            for preset in PRESETS:
                for suffix, more in (("", []), (".imatrix", ["--imatrix", str(matrix)])):
                    record[kind][preset + suffix] = types(quantize, [*more, str(source), preset], names)
            for label, (arguments, preset) in OPTIONS.items():
                record[kind][label] = types(quantize, [*arguments, str(source), preset], names)
            print(kind, len(names), "tensors", len(record[kind]), "records")
    text = json.dumps(record, separators=(",", ":")).encode()
    Path(out).write_bytes(gzip.compress(text, mtime=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
