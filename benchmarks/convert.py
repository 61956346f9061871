"""safetensors to GGUF, measured: ours against the `gguf` package's numpy path, several types at once against one by one.

    python benchmarks/convert.py --work /tmp/bench [--types Q8_0,Q4_0,Q5_1] [--rounds 3] [--layers 16]

Needs about 12 GB in the work folder for the default 1.24e9 weights. Every figure is a whole command: start-up, reading,
quantizing, writing, hashing, and (ours only) verifying the result against the source. The sides run in turn, the medians of
each side are compared, and a ratio comes last. The page cache is warm for both: each model is read once before the first round.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import make_llama
from measure import Cost, cost, machine, middle

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--types", default="Q8_0,Q4_0,Q5_1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        required=True,
        help="a folder with SmolLM2's tokenizer files (make demo leaves one in .cache/models)",
    )
    a = parser.parse_args()
    types = a.types.split(",")
    model = a.work / f"synthetic-llama-{a.layers}"
    if not model.exists():
        make_llama.make(model, a.layers, 2048, 8192, 128256, 32, 8, 1 << 30, a.tokenizer)
    size = sum(p.stat().st_size for p in model.glob("*.safetensors"))
    for path in model.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    print(f"{machine()}; {size / 2:.3e} weights, {size / 1e9:.2f} GB bf16; medians of {a.rounds} rounds in turn\n")
    names = [f"ours {t}" for t in types] + [f"gguf package {t}" for t in types] + [f"ours, all {len(types)} in one pass"]
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for _ in range(a.rounds):
        for kind in types:
            costs[f"ours {kind}"].append(ours(model, [kind], a.work))
            costs[f"gguf package {kind}"].append(peer(model, kind, a.work))
        costs[names[-1]].append(ours(model, types, a.work))
    medians = {name: middle(found) for name, found in costs.items()}
    for name in names:
        print(f"{name:28} {medians[name]}")
    print()
    for kind in types:
        ratio(f"{kind}: gguf package / ours", medians[f"gguf package {kind}"], medians[f"ours {kind}"])
    together = medians[names[-1]]
    apart = [medians[f"ours {t}"] for t in types]
    ratio(
        "one by one / one pass, ours",
        Cost(sum(c.wall for c in apart), sum(c.cpu for c in apart), max(c.rss for c in apart)),
        together,
    )
    theirs = [medians[f"gguf package {t}"] for t in types]
    ratio(
        "gguf package one by one / our one pass",
        Cost(sum(c.wall for c in theirs), sum(c.cpu for c in theirs), max(c.rss for c in theirs)),
        together,
    )


def ours(model: Path, types: list[str], work: Path) -> Cost:
    out = fresh(work / "ours")
    qconvd = str(Path(sys.executable).with_name("qconvd"))
    return cost(
        [qconvd, "convert", str(model), "--to", ",".join(t.lower() for t in types), "--out", str(out)], work / "ours.log"
    )


def peer(model: Path, kind: str, work: Path) -> Cost:
    out = fresh(work / "peer")
    # -P: a file in this folder is called gguf, too.
    return cost([sys.executable, "-P", str(HERE / "peer_gguf.py"), str(model), str(out / "out.gguf"), kind], work / "peer.log")


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def ratio(name: str, a: Cost, b: Cost) -> None:
    print(f"{name:40} {a.cpu / b.cpu:5.1f} x CPU  {a.wall / b.wall:5.1f} x wall  {a.rss / b.rss:5.1f} x RSS")


if __name__ == "__main__":
    main()
