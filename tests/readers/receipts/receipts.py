"""Takes receipts: other people's readers open artifacts, and what came of it is kept in gptq.json and compressed.json.

    tests/readers/receipts/environment.sh gptqmodel .envs && tests/readers/receipts/environment.sh vllm .envs
    python tests/readers/receipts/receipts.py --environments .envs [--of compressed] [--calibrated] [--again] [--only TEXT]
        [--readers gptqmodel,vllm]

Artifacts rounded to nearest have the same bytes on any machine: test_gptq.py and test_compressed_tensors.py make them anew and
fail where one has no receipt. Calibrated ones are made by `--calibrated`, and their receipts name the machine. What has a
receipt of every reader is not asked again unless `--again` is said. A receipt holds, of each reader, its release and either its
own words of refusal or how far its logits on a fixed text are from transformers' in float32 with the weights that are stored,
as code finds them that shares nothing with qconvd (tests/reader_logits.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "demo"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
from measure import machine  # noqa: E402

import compressed_artifacts  # noqa: E402
import gptq_artifacts  # noqa: E402
import reader_models  # noqa: E402
from models import cached, make_glass  # noqa: E402
from reader_artifacts import digest, tokens  # noqa: E402
from reader_logits import agreement, expected  # noqa: E402

Case: TypeAlias = gptq_artifacts.Case | compressed_artifacts.Case
ENVIRONMENT = {"gptqmodel": "gptqmodel", "transformers": "gptqmodel", "vllm": "vllm"}
READERS = {"gptq": tuple(ENVIRONMENT), "compressed": ("vllm",)}
"""Who is asked. transformers opens what compressed-tensors names in the ordinary tests (test_compressed.py)."""
BATCH = 40
"""Artifacts that lie on disk at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=Path(".envs"))
    parser.add_argument("--of", choices=READERS, default="gptq")
    parser.add_argument("--calibrated", action="store_true", help="of gptq: what was solved instead of what was rounded")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--only", default="", help="part of the artifacts' names")
    parser.add_argument("--readers", help="left out: all")
    a = parser.parse_args()
    readers = a.readers.split(",") if a.readers else READERS[a.of]
    file = HERE / f"{a.of}.json"
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        glass = cached("glass_en", make_glass)
        models = {kind: reader_models.make(kind, glass, work / kind) for kind in reader_models.KINDS}
        chosen = iter([c for c in cases(a.of, a.calibrated) if a.only in c.name])
        while batch := list(itertools.islice(chosen, BATCH)):
            folders = calibrate(batch, models, work) if a.calibrated else rounded(batch, models, work)
            made = {str(i): about(c, folders[i], models[c.model], a.calibrated, known(file)) for i, c in enumerate(batch)}
            for reader in readers:
                wanted = {key: x for key, x in made.items() if a.again or reader not in x["receipt"]["readers"]}
                for key, answer in ask(reader, a.environments / ENVIRONMENT[reader], wanted, work):
                    made[key]["receipt"]["readers"][reader] = answer
                    print(f"{reader:13}", made[key]["receipt"]["artifact"], answer, flush=True)
            keep(file, {x["digest"]: x["receipt"] for x in made.values()})
            for folder in folders:
                shutil.rmtree(folder)


def cases(of: str, calibrated: bool) -> Iterator[Case]:
    if of == "compressed":
        return compressed_artifacts.rounded()
    return gptq_artifacts.calibrated() if calibrated else gptq_artifacts.rounded()


def rounded(cases: Sequence[Case], models: dict[str, Path], work: Path) -> list[Path]:
    """Artifacts made in this process, one after the other."""
    return [case.make(models[case.model], work / str(i)).folder for i, case in enumerate(cases)]


def calibrate(cases: Sequence[gptq_artifacts.Case], models: dict[str, Path], work: Path) -> list[Path]:
    """Artifacts of one model, made by one command with one calibration for all."""
    (kind,) = {case.model for case in cases}
    calibration = cases[0].options["calibration"]
    variants = [{k: v for k, v in case.options.items() if k != "calibration"} for case in cases]
    named = [{**variant, "name": f"{{model}}-{i}"} for i, variant in enumerate(variants)]
    target = "gptq: " + json.dumps({"variants": named, "calibration": calibration})
    qconvd = str(Path(sys.executable).with_name("qconvd"))
    command = [qconvd, "convert", str(models[kind]), "--to", target, "--out", str(work / "made")]
    shutil.rmtree(work / "made", ignore_errors=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [work / "made" / f"{kind}-{i}" for i in range(len(cases))]


def about(case: Case, folder: Path, model: Path, calibrated: bool, known: dict[str, Any]) -> dict[str, Any]:
    """An artifact with what is known of it, and its receipt so far."""
    fingerprint = digest(folder)
    receipt = known.get(fingerprint) or {"artifact": case.name, "readers": {}}
    if calibrated:
        receipt["machine"] = f"{machine()}, {platform.libc_ver()[0]}"
    return {"folder": folder, "tokens": tokens(model), "digest": fingerprint, "receipt": receipt}


def ask(reader: str, environment: Path, artifacts: dict[str, Any], work: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a reader makes of artifacts, in a process of its own environment."""
    if not artifacts:
        return
    job = {key: {"folder": str(x["folder"]), "tokens": x["tokens"]} for key, x in artifacts.items()}
    (work / "job.json").write_text(json.dumps({"artifacts": job, "out": str(work)}))
    command = [str(environment / "bin" / "python"), str(HERE / "read.py"), reader, str(work / "job.json")]
    with (work / "log").open("w") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
    if done.returncode:
        sys.exit(f"{reader} ended with {done.returncode}:\n{(work / 'log').read_text()[-3000:]}")
    for line in done.stdout.splitlines():
        answer = json.loads(line)
        key, _ = answer.pop("artifact"), answer.pop("seconds")
        if "refused" in answer:
            answer["refused"] = answer["refused"].replace(str(artifacts[key]["folder"]), "FOLDER")
        else:
            logits = work / f"{key}.npy"
            answer |= figures(np.load(logits), artifacts[key]["folder"], artifacts[key]["tokens"])
            logits.unlink()
        yield key, answer


def figures(logits: np.ndarray, folder: Path, ids: Sequence[int]) -> dict[str, float]:
    found = agreement(logits, expected(folder, ids))
    return {
        "difference": float(f"{found.difference:.2e}"),
        "divergence": float(f"{found.divergence:.2e}"),
        "top1": round(found.top1, 3),
    }


def known(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text())) if file.exists() else {}


def keep(file: Path, receipts: dict[str, Any]) -> None:
    """One artifact per line, by name; an older receipt of the same name and machine goes: its artifact is not made any more."""
    new = {(r["artifact"], r.get("machine")) for r in receipts.values()}
    old = {k: r for k, r in known(file).items() if (r["artifact"], r.get("machine")) not in new}
    rows = sorted((old | receipts).items(), key=lambda item: (item[1]["artifact"], item[1].get("machine", "")))
    file.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(r)}" for k, r in rows) + "\n}\n")


if __name__ == "__main__":
    main()
