"""The daemon itself: what it takes when idle, how soon it is ready, how fast it scans, and what its page costs a job.

    python benchmarks/daemon.py [--model FOLDER] [--parts idle,start,scan,load] [--models 1000] [--targets 10000] [--seconds 60]

Wall times are worth something on a quiet machine only; CPU seconds come from the kernel's accounts of each process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import re
import selectors
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from measure import cost

from daemon_kit import tiny_model
from qconvd.ledger import Ledger

CONFIG = """\
watch: [{{folder: ./inbox, recipes: [r], settle: 0.5s}}]
output: ./models
state: ./state
recipes: {{r: {{targets: {targets}}}}}
limits: {{disk_reserve: 0, jobs: 1}}
devices: {{cuda: none}}
web: {{listen: '127.0.0.1:0'}}
"""
TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 1800.0
READERS = 300


@dataclass(frozen=True)
class Daemon:
    """A daemon that runs, where it listens, and how long it took to be ready."""

    process: subprocess.Popen[bytes]
    root: Path
    port: int
    ready: float

    @property
    def rss(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024

    def cpu(self) -> tuple[float, float]:
        """CPU seconds of the daemon, and of the workers that have ended."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        own, children = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
        return own / TICKS, children / TICKS

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        body = connection.getresponse().read()
        connection.close()
        return body


@contextmanager
def daemon(root: Path, targets: str = "[fp16]") -> Iterator[Daemon]:
    """A daemon on a folder, ready."""
    (root / "inbox").mkdir(exist_ok=True)
    (root / "config.yaml").write_text(CONFIG.format(targets=targets))
    log = root / "daemon.log"
    log.unlink(missing_ok=True)
    began = time.monotonic()
    with log.open("wb") as out:
        command = [sys.executable, "-m", "qconvd", "run", "--config", str(root / "config.yaml")]
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        until(lambda: "qconvd runs" in log.read_text(), 0.002)
        ready = time.monotonic() - began
        port = int(re.findall(r"listens on http://127.0.0.1:(\d+)", log.read_text())[0])
        yield Daemon(process, root, port, ready)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def until(done: Callable[[], object], pause: float = 0.05) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(pause)


def old_ledger(root: Path, models: int, targets: int) -> None:
    """A ledger in which so many models have so many finished artifacts between them."""
    ledger = Ledger(root / "state" / "ledger.sqlite")
    now, each = time.time(), max(1, targets // models)
    with ledger.transaction() as db:
        for number in range(models):
            source = db.execute(
                "INSERT INTO source (locator, version, name, digest, fingerprint, state, reason, created_at, changed_at)"
                " VALUES (?, 1, ?, ?, '', 'present', '', ?, ?)",
                (f"/added/m{number}", f"m{number}", f"{number:064x}", now, now),
            ).lastrowid  # fmt: skip
            for one in range(each):
                id = f"{number:05d}{one:05d}"
                plan = {"nbytes": 1 << 30, "notes": [f"{one} of 300 tensors are F16 because rows are no multiple of 256"] * 2}
                place = {"folder": f"/models/m{number}", "manifest": f"/models/m{number}/{id}.json", "nbytes": 1 << 30}
                db.execute(
                    "INSERT INTO target (id, source, format, options, spec_digest, device, state, reason, version, label, plan,"
                    " folder, stem, manifest_name, artifact, created_at, changed_at)"
                    " VALUES (?, ?, 'gguf', '{}', ?, 'auto', 'done', 'done', '1', ?, ?, ?, ?, ?, ?, ?, ?)",
                    (id, source, id, f"gguf {one}", json.dumps(plan), f"m{number}", f"m{number}-{one}", f"{id}.json",
                     json.dumps(place), now, now),
                )  # fmt: skip
                db.execute("INSERT INTO wanted (target, recipe) VALUES (?, 'r')", (id,))
    ledger.close()


def idle(root: Path, models: int, targets: int, seconds: float) -> None:
    """Memory and CPU of a daemon that has nothing to do, with its page served: watched by nobody, and by one."""
    old_ledger(root, models, targets)
    with daemon(root) as one:
        time.sleep(5)
        for path in ("/", "/jobs/1", "/metrics", "/api/v1/jobs", "/api/v1/openapi.json"):
            began = time.monotonic()
            size = len(one.get(path))
            print(f"GET {path}: {size} bytes in {1000 * (time.monotonic() - began):.0f} ms")
        for what, reader in (("nobody looks", None), ("one page is open", "/events")):
            client = _reader(one.port, reader) if reader else None
            time.sleep(2)
            before = one.cpu()[0]
            time.sleep(seconds)
            share = (one.cpu()[0] - before) / seconds
            print(f"idle, {what}: {one.rss / 1e6:.1f} MB RSS, {100 * share:.2f} % of a core over {seconds:.0f} s")
            if client:
                client.close()


def start(root: Path, models: int, targets: int, runs: int = 5) -> None:
    """From exec to ready, with an old ledger."""
    old_ledger(root, models, targets)
    found = []
    for _ in range(runs):
        with daemon(root) as one:
            found.append(one.ready)
    print(f"start to READY, {models} models and {targets} targets in the ledger: {', '.join(f'{s:.2f}' for s in found)} s")


def scan(root: Path, models: int) -> None:
    """A folder full of models is dropped before the daemon starts: until all of them are queued, and what asking costs then."""
    (root / "inbox").mkdir()
    model = tiny_model(root / "model")
    for number in range(models):
        shutil.copytree(model, root / "inbox" / f"m{number}")
        # Each is another model: its weights' last bytes differ.
        with (root / "inbox" / f"m{number}" / "model.safetensors").open("r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write((0x3F00 + number).to_bytes(2, "big"))
    ledger = Ledger(root / "state" / "ledger.sqlite")
    ledger.pause("by hand", "only queueing is measured")
    ledger.close()
    with daemon(root) as one:
        began, before = time.monotonic(), one.cpu()[0]
        until(lambda: _count(root, "SELECT count(DISTINCT source) FROM task WHERE state = 'queued'") >= models)
        seconds, cpu = time.monotonic() - began, one.cpu()[0] - before
        print(f"scan: {models} models queued {seconds:.1f} s after READY, {cpu:.1f} s CPU, {one.rss / 1e6:.1f} MB RSS")
        time.sleep(2)
        for path in ("/", "/api/v1/status", "/api/v1/jobs", "/api/v1/jobs?limit=500"):
            began, before = time.monotonic(), one.cpu()[0]
            size = len(one.get(path))
            print(f"GET {path}: {size} bytes in {1000 * (time.monotonic() - began):.0f} ms, {one.cpu()[0] - before:.2f} s CPU")
        for command in ("status", "jobs"):
            asked = [sys.executable, "-m", "qconvd", command, "--config", str(root / "config.yaml")]
            print(f"qconvd {command}: {cost(asked, root / 'asked.log')}")


def load(root: Path, model: Path, requests: int) -> None:
    """The same job twice: alone, and while hundreds read events and others ask for pages as fast as they get them."""
    for name, asked in (("warm", 0), ("alone", 0), ("loaded", requests)):
        home = root / name
        home.mkdir()
        with daemon(home, "[fp16, gguf: {types: [q8_0, q4_k_m, q4_0]}]") as one:
            hammer = multiprocessing.Process(target=_hammer, args=(one.port, asked))
            if asked:
                hammer.start()
            began = time.monotonic()
            shutil.copytree(model, home / "arriving")
            (home / "arriving").rename(home / "inbox" / "m")
            until(lambda home=home: _count(home, "SELECT count(*) FROM target WHERE state = 'done'") == 4)
            wall, (own, workers) = time.monotonic() - began, one.cpu()
            if asked:
                hammer.terminate()
                hammer.join()
            if name != "warm":
                print(f"job, {name}: {workers:.2f} s CPU in workers, {own:.2f} s in the daemon, {wall:.1f} s wall,"
                      f" {one.rss / 1e6:.1f} MB RSS")  # fmt: skip


def _hammer(port: int, requests: int) -> None:
    readers = [_reader(port, "/events" if number % 2 else "/api/v1/events") for number in range(READERS)]
    selector = selectors.DefaultSelector()
    for one in readers:
        selector.register(one, selectors.EVENT_READ)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for number in range(requests):
        connection.request("GET", ("/", "/api/v1/jobs", "/metrics", "/jobs/1")[number % 4])
        connection.getresponse().read()
        for key, _ in selector.select(0):
            key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
    while True:
        for key, _ in selector.select(1):
            key.fileobj.recv(1 << 16)  # type: ignore[union-attr]


def _reader(port: int, path: str) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", port))
    one.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return one


def _count(root: Path, query: str) -> int:
    with sqlite3.connect(root / "state" / "ledger.sqlite") as db:
        return int(db.execute(query).fetchone()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="idle,start,scan,load")
    parser.add_argument("--model", type=Path, help="for `load`: a model that takes some seconds")
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--targets", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--requests", type=int, default=4000)
    asked = parser.parse_args()
    parts: dict[str, Callable[[Path], None]] = {
        "idle": lambda root: idle(root, asked.models, asked.targets, asked.seconds),
        "start": lambda root: start(root, asked.models, asked.targets),
        "scan": lambda root: scan(root, asked.models),
        "load": lambda root: load(root, asked.model, asked.requests),
    }
    for name in asked.parts.split(","):
        with tempfile.TemporaryDirectory() as folder:
            parts[name](Path(folder))


if __name__ == "__main__":
    main()
