"""Perplexity of a model in every GGUF type, with bits per weight and the divergence from the BF16 file: a table and a plot.

    apt-get download r-cran-janeaustenr
    python benchmarks/perplexity.py --work /tmp/bench --model .cache/models/SmolLM2-135M-Instruct
        --novels r-cran-janeaustenr*.deb [--llama-imatrix PATH] [--plot docs/reference/perplexity.svg] [--windows 4]

The text is from Pride and Prejudice: windows of 512 tokens in a row from its 20,000th character on. In each, what comes after
64 tokens is scored, by llama.cpp (through cyllama). With `--llama-imatrix` an importance matrix is made from the BF16 file with
another novel, Emma (20 chunks of 512 tokens), and the types that look at one are measured with it, too. Files with the same
tensors are measured once. What is in the work folder is not made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from math import exp, prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import perplexity_plot
from novels import novels

from qconvd.checkpoints import inspect
from qconvd_gguf.file_types import FILE_TYPES, PLAIN

TEST, SKIPPED = "PRIDE AND PREJUDICE", 20_000
OTHER, CHUNKS = "EMMA", 20
WINDOW, CONTEXT = 512, 64
WITHOUT = ("Q8_0", "MXFP4_MOE", "TQ2_0", "TQ1_0")
"""Types that look at no importance matrix."""


class Figures(NamedTuple):
    """Of one file. `divergence` is the mean Kullback-Leibler divergence from the BF16 file in nats."""

    type: str
    imatrix: bool
    bits: float
    nbytes: int
    perplexity: float
    divergence: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--novels", type=Path, required=True)
    parser.add_argument("--llama-imatrix", type=Path)
    parser.add_argument("--types", default=",".join(FILE_TYPES))
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--plot", type=Path)
    a = parser.parse_args()
    types = [t for t in a.types.split(",") if t != "BF16"]
    plain, weighted = a.work / "plain", a.work / "imatrix"
    (base,) = convert(a.model, ["BF16"], plain).values()
    texts = novels(a.novels)
    files = [(t, False, path) for t, path in {"BF16": base, **convert(a.model, types, plain)}.items()]
    if a.llama_imatrix:
        matrix = importance(a.llama_imatrix, base, texts[OTHER], a.work)
        able = [t for t in types if t not in (*PLAIN, *WITHOUT)]
        files += [(t, True, path) for t, path in convert(a.model, able, weighted, matrix).items()]

    tokens = Llama(base).tokens(texts[TEST][SKIPPED : SKIPPED + 8 * WINDOW * a.windows])
    windows = [tokens[WINDOW * i : WINDOW * (i + 1)] for i in range(a.windows)]
    wanted = [log_softmax(logits) for logits in Llama(base).logits(windows)]
    known: dict[str, tuple[float, float]] = {}
    found = []
    for kind, with_matrix, path in files:
        content = digest(path)
        if content not in known:
            known[content] = measure(path, windows, wanted)
        model = inspect(path)
        weights = sum(t.nbytes for t in model.tensors.values())
        bits = 8 * weights / sum(prod(t.shape) for t in model.tensors.values())
        found.append(Figures(kind, with_matrix, bits, path.stat().st_size, *known[content]))
        print(f"{kind:10} {'imatrix' if with_matrix else '':8} {known[content]}", file=sys.stderr, flush=True)
    found.sort(key=lambda f: (-f.bits, f.type))
    (a.work / "figures.json").write_text(json.dumps(found))
    print(table(found))
    if a.plot:
        a.plot.write_text(perplexity_plot.svg([(f.type, f.imatrix, f.bits, f.perplexity) for f in found]))


def convert(model: Path, types: Sequence[str], out: Path, matrix: Path | None = None) -> dict[str, Path]:
    """The files by type. What needs an importance matrix is not there without one."""
    out.mkdir(parents=True, exist_ok=True)
    options = f"types: [{', '.join(types)}]" + (f", imatrix: {matrix}" if matrix else "")
    qconvd = str(Path(sys.executable).with_name("qconvd"))
    command = [qconvd, "convert", str(model), "--to", f"gguf: {{{options}}}", "--out", str(out), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    made = {}
    for kind in types:
        path = out / f"{model.name}-GGUF" / f"{model.name}-{kind}.gguf"
        if path.exists():
            made[kind] = path
        elif "importance matrix" not in done.stdout:
            raise RuntimeError(f"{kind} was not made:\n{done.stdout}")
    return made


def importance(program: Path, base: Path, text: str, work: Path) -> Path:
    """An importance matrix of the BF16 file, made by llama-imatrix from a text."""
    out, source = work / "imatrix.gguf", work / "imatrix.txt"
    if not out.exists():
        source.write_text(text)
        command = [str(program), "-m", str(base), "-f", str(source), "-o", str(out), "--chunks", str(CHUNKS), "--no-ppl"]
        subprocess.run([*command, "-t", str(threads())], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return out


class Llama:
    """A file opened by llama.cpp."""

    def __init__(self, path: Path) -> None:
        from cyllama.llama import llama_cpp

        class Model(llama_cpp.LlamaModel):  # type: ignore[misc]
            n_vocab = property(lambda self: self.get_vocab().n_vocab)

        self._lib: Any = llama_cpp
        self._model = Model(str(path), llama_cpp.LlamaModelParams())

    def tokens(self, text: str) -> list[int]:
        return list(self._model.get_vocab().tokenize(text, False, False))

    def logits(self, windows: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        """Of each window what is predicted after CONTEXT tokens and more: float32 [WINDOW - CONTEXT, vocabulary]."""
        parameters = self._lib.LlamaContextParams()
        parameters.n_ctx = parameters.n_batch = WINDOW
        parameters.n_threads = parameters.n_threads_batch = threads()
        for window in windows:
            state = self._lib.LlamaContext(self._model, parameters)
            batch = self._lib.LlamaBatch(n_tokens=WINDOW, embd=0, n_seq_max=1)
            batch.set_batch(list(window), n_past=0, logits_all=True)
            state.decode(batch)
            yield np.stack([np.asarray(state.get_logits_ith(i), np.float32) for i in range(CONTEXT - 1, WINDOW - 1)])


def measure(path: Path, windows: Sequence[Sequence[int]], wanted: Sequence[np.ndarray]) -> tuple[float, float]:
    """Perplexity, and the mean divergence of the predictions from those that are wanted."""
    surprise, divergence = [], []
    for window, base, logits in zip(windows, wanted, Llama(path).logits(windows), strict=True):
        said = log_softmax(logits)
        surprise.append(-said[np.arange(len(said)), window[CONTEXT:]].mean(dtype=np.float64))
        divergence.append((np.exp(base) * (base - said)).sum(axis=1).mean(dtype=np.float64))
    return exp(np.mean(surprise)), float(np.mean(divergence))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32))


def digest(path: Path) -> str:
    """Of everything that decides what is computed: names, types and bytes of the tensors."""
    made = hashlib.sha256()
    with path.open("rb") as file:
        for tensor in inspect(path).tensors.values():
            made.update(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode())
            file.seek(tensor.offset)
            made.update(file.read(tensor.nbytes))
    return made.hexdigest()


def table(found: Sequence[Figures]) -> str:
    """Markdown: a row per type, without and with importance matrix."""
    rows = {f.type: {g.imatrix: g for g in found if g.type == f.type} for f in found}
    lines = [
        "| type | bits per weight | MB | perplexity | KL | with imatrix: perplexity | KL |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, both in rows.items():
        first = next(iter(both.values()))
        cells = [f"{both[m].perplexity:.2f} | {both[m].divergence:.2g}" if m in both else " | " for m in (False, True)]
        lines.append(f"| `{kind.lower()}` | {first.bits:.2f} | {first.nbytes / 1e6:.0f} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def threads() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
