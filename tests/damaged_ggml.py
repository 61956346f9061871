"""Damaged GGML files, planned one after the other in a process that may not use much memory.

    python tests/damaged_ggml.py FOLDER

prints as JSON how many were planned and refused, and by how many bytes the process grew. What is neither ends it with a
traceback; the file is left in the folder.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from damage import aimed, scattered, spliced
from damaged_gguf import ADDRESSES, hash_of, peak, read_back, survive
from ggml_files import GGJT, GGMF, gpt2, llama, write
from qconvd.checkpoints import inspect
from qconvd.checkpoints.ggml import read_file
from qconvd.engine.layout import Layout
from qconvd.plugins import plugins

TARGETS = (("gguf", "Q8_0"), ("ggml", "q4_0"), ("fp16", "fp16"), ("gguf", "F16"), ("ggml", "f32"))
"""Formats and types in turn."""


def main(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    tokens = [bytes([byte]) for byte in range(256)] + [b"ab", b"abc", b"<|endoftext|>"]
    sources = {
        "ggjt": llama(GGJT, 3, "Q4_0"), "ggmf": llama(GGMF, 1, "F16"), "gpt2": gpt2(tokens, 2002, "Q8_0"),
    }  # fmt: skip
    for name, content in sources.items():
        write(folder / f"{name}.bin", content)
        for number in range(len(TARGETS)):
            plan_again(folder / f"{name}.bin", number)
    before = peak()
    found: dict[str, Any] = {}
    for name, content in sources.items():
        other = sources["gpt2" if name != "gpt2" else "ggjt"]
        places = fields(folder, f"{name}.bin", content)
        found[name] = survive(folder / "victim.bin", damaged(content, other, places, hash_of(name)), plan_again)
    print(json.dumps({"found": found, "grown": peak() - before}))


def damaged(whole: bytes, other: bytes, places: list[tuple[int, int]], seed: int, batches: int = 20) -> Iterator[bytes]:
    """1,200 copies of a file: numbers that say something else, bytes anywhere, cuts and splices; few are held at a time."""
    head = places[len(places) // 2][0] + 64
    for batch in range(seed, seed + batches):
        yield from aimed(whole, places, 20, batch)
        yield from scattered(whole, head, 20, batch)
        yield from spliced(whole, other, places, 20, batch)


def fields(folder: Path, name: str, content: bytes) -> list[tuple[int, int]]:
    """Where numbers stand: the header's, some tokens' lengths, and every record's."""
    found = read_file(folder, name)
    start = found.kind.start
    places = [(start + 4 * n, 4) for n in range(len(found.numbers))] + [(0, 4)]
    places += [(found.vocabulary, 4), (found.vocabulary + 8 + len(content[found.vocabulary : found.vocabulary + 1]), 4)]
    for first, _ in found.records:
        axes = struct.unpack_from("<I", content, first)[0]
        places += [(first + 4 * n, 4) for n in range(3 + axes)]
    return sorted(places)


def plan_again(path: Path, number: int) -> None:
    """Inspect and plan a file; a plan that comes out adds up, and its header is one that is read as planned."""
    form, kind = TARGETS[number % len(TARGETS)]
    fmt = plugins().formats[form]
    options = {"dtype": kind} if form == "fp16" else {"types": [kind], "allow_requantize": True}
    plan = fmt.plan(inspect(path), fmt.Options.model_validate(options))
    Layout(plan)
    if form == "gguf":
        read_back(plan, path.with_name("planned.gguf"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
