"""The real daemon as a process, and what people do to a watched folder while it runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from qconvd.ledger import Ledger, Request, Source, Target

PATIENCE = 90.0
TESTS = Path(__file__).parent
T = TypeVar("T")

CONFIG = """\
watch:
  - folder: ./inbox
    recipes: [everyday]
    settle: {settle}
    interval: {interval}
    {watch}
output: ./models
state: ./state
recipes:
  everyday:
    {match}
    targets: {targets}
    {publish}
limits: {{stop_grace: 10s, disk_reserve: 0, jobs: 1, threads: 1}}
devices: {{cuda: none}}
web: {web}
"""


class Home:
    """A folder with a config, a watched folder and an output, and at most one daemon on it."""

    def __init__(self, root: Path, *, configure: bool = True) -> None:
        self.root = root
        self.inbox = root / "inbox"
        self.output = root / "models"
        self.state = root / "state"
        self.log_path = root / "daemon.log"
        self.env: dict[str, str] = {}
        self.web = "{listen: off}"
        self.process: subprocess.Popen[bytes] | None = None
        self.inbox.mkdir(parents=True, exist_ok=True)
        if configure:
            self.configure()

    def configure(
        self,
        targets: str = "[fp16]",
        *,
        match: str = "match: {}",
        watch: str = "after: keep",
        settle: str = "0.3s",
        interval: str = "1s",
        publish: str = "",
        more: str = "",
    ) -> None:
        text = (
            CONFIG.format(
                targets=targets,
                match=match,
                watch=watch,
                settle=settle,
                interval=interval,
                web=self.web,
                publish=publish.replace("\n", "\n    "),
            )
            + more
        )
        draft = self.root / "config.new"
        draft.write_text(text)
        draft.replace(self.config)

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    def start(self, *arguments: str) -> Home:
        assert self.process is None or self.process.poll() is not None, "a daemon runs already"
        command = [sys.executable, "-m", "qconvd", "run", "--config", str(self.config), *arguments]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, **self.env}, cwd=self.root
            )
        return self

    def once(self) -> int:
        """Run the daemon until the queue is empty; its exit code."""
        self.start("--once")
        return self.join()

    def join(self) -> int:
        assert self.process is not None
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the daemon does not end\n{self.log()}") from None

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.join()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """The daemon is stopped (SIGSTOP): what happens meanwhile it finds all at once."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL the daemon and whatever works for it, as a power failure would."""
        if self.process is not None and self.process.poll() is None:
            self.kill_daemon()
        self.process = None
        self.kill_workers()
        self.wait(lambda: not self.workers(), "killed workers to be gone")

    def kill_daemon(self) -> None:
        """SIGKILL the daemon alone: what works for it lives on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def kill_workers(self) -> None:
        """SIGKILL runners and workers; some end because others did."""
        for pid in self.workers():
            with_no_fuss(lambda pid=pid: os.kill(pid, signal.SIGKILL))

    def workers(self) -> list[int]:
        """Processes that work on this home's tasks: runners and workers, found by their command lines."""
        found = []
        needle = f"{self.state}/tasks/".encode()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if needle in (folder / "cmdline").read_bytes():
                        found.append(int(folder.name))
                except OSError:
                    continue
        return found

    def work_left(self) -> list[str]:
        """Targets that have a work folder."""
        folder = self.output / ".qconvd" / "work"
        return sorted(p.name for p in folder.iterdir()) if folder.exists() else []

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def wait(self, what: Callable[[], T], for_what: str) -> T:
        """Wait until `what` gives something true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if found := what():
                return found
            if self.process is not None and self.process.poll() not in (None, 0, 1):
                break
            time.sleep(0.03)
        raise AssertionError(f"waited in vain for {for_what}\n{self.log()}")

    def freeze(self, kind: str, *, reading: str = "") -> list[int]:
        """Stop (SIGSTOP) the next worker of a kind as soon as it runs, or as soon as it has opened a file; its processes."""

        def caught() -> list[int]:
            with self.ledger() as ledger:
                handles = [t.handle for t in ledger.tasks("running") if t.kind == kind]
            for pid in self.workers() if handles else []:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"qconvd.worker" in command and b"runner.py" not in command and handles[0].encode() in command:
                    opened = {f.readlink().name for f in Path(f"/proc/{pid}/fd").iterdir()} if reading else set()
                    if not reading or reading in opened:
                        os.kill(pid, signal.SIGSTOP)
                        return [pid]
            return []

        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if found := caught():
                    return found
            except (OSError, StopIteration):
                continue
        raise AssertionError(f"no {kind} worker was seen\n{self.log()}")

    def said(self, words: str, times: int = 1) -> None:
        """Wait until the log says something."""
        self.wait(lambda: self.log().count(words) >= times, f"the log to say {words!r}")

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        ledger = Ledger(self.state / "ledger.sqlite")
        try:
            yield ledger
        finally:
            ledger.close()

    def targets(self, *states: str) -> list[Target]:
        with self.ledger() as ledger:
            return ledger.targets(*states)

    def sources(self) -> list[Source]:
        with self.ledger() as ledger:
            return ledger.sources()

    def done(self, count: int) -> list[Target]:
        """Wait until so many targets are done."""
        self.wait(lambda: (self.state / "ledger.sqlite").exists(), "the ledger")
        return self.wait(lambda: (t := self.targets("done")) if len(self.targets("done")) >= count else [], f"{count} done")

    def ask(self, kind: str, **arguments: object) -> Request:
        """A request as the command line makes it; returns it with its answer."""
        with self.ledger() as ledger:
            number = ledger.request(kind, **arguments)
        (self.state / "wake").touch()

        def answered() -> Request | None:
            with self.ledger() as ledger:
                request = ledger.asked(number)
            return None if request.state == "open" else request

        return self.wait(answered, f"an answer to {kind}")  # type: ignore[return-value]

    def status(self, name: str) -> str:
        path = self.output / f"{name}.status.txt"
        return path.read_text() if path.exists() else ""

    def says(self, name: str, words: str) -> str:
        """Wait until a model's status file says something; the whole text."""
        self.wait(lambda: words in self.status(name), f"{name}.status.txt to say {words!r}")
        return self.status(name)

    def files(self) -> dict[str, str]:
        """Every file of the artifacts, with the digest of its content; what is beside them comes and goes."""
        places = [p for p in self.output.iterdir() if p.is_dir() and p.name != ".qconvd"] if self.output.exists() else []
        return {
            str(p.relative_to(self.output)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(p for place in places for p in place.rglob("*"))
            if p.is_file()
        }


def with_no_fuss(call: Callable[[], object]) -> None:
    try:
        call()
    except ProcessLookupError:
        return


def tiny_model(
    folder: Path, *, layers: int = 1, seed: int = 1, width: int = 16, architecture: str = "LlamaForCausalLM"
) -> Path:
    """A Llama of a few kilobytes in BF16; another `seed` gives other weights."""
    shapes = {"model.embed_tokens.weight": (32, width), "model.norm.weight": (width,)}
    for i in range(layers):
        block = f"model.layers.{i}."
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
            shapes[f"{block}{name}.weight"] = (width, width)
        for name in ("mlp.gate_proj", "mlp.up_proj"):
            shapes[f"{block}{name}.weight"] = (2 * width, width)
        shapes[f"{block}mlp.down_proj.weight"] = (width, 2 * width)
        shapes[f"{block}input_layernorm.weight"] = (width,)
        shapes[f"{block}post_attention_layernorm.weight"] = (width,)
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", shapes, seed)
    config = dict(
        architectures=[architecture], model_type="llama", hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, vocab_size=32,
        rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True, hidden_act="silu", torch_dtype="bfloat16",
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], seed: int = 1) -> None:
    """BF16 tensors between 0.5 and 2, so that every cast is exact."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for number, (name, shape) in enumerate(shapes.items()):
        count = 1
        for axis in shape:
            count *= axis
        block = hashlib.shake_128(f"{seed} {number}".encode()).digest(min(count, 4096))
        low_and_high = bytearray(b"\x3f" * (2 * count))
        low_and_high[0::2] = (block * (count // len(block) + 1))[:count]
        start = len(data)
        data += low_and_high
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def trickle(source: Path, destination: Path, pieces: int = 20, pause: float = 0.05) -> None:
    """Copy a folder as slowly as a network would: file by file, piece by piece."""
    destination.mkdir()
    for file in sorted(source.iterdir()):
        data = file.read_bytes()
        step = max(1, len(data) // pieces)
        with (destination / file.name).open("wb", buffering=0) as out:
            for at in range(0, len(data), step):
                out.write(data[at : at + step])
                time.sleep(pause if len(data) > 4096 else 0)


def move_in(home: Home, model: Path) -> Path:
    """Move a finished model into the watched folder by one rename."""
    place = home.inbox / model.name
    model.rename(place)
    return place


def copy_in(home: Home, model: Path, name: str = "") -> Path:
    place = home.inbox / (name or model.name)
    shutil.copytree(model, place)
    return place


def end(home: Home) -> None:
    assert home.stop() == 0, home.log()
    assert "Traceback" not in home.log(), home.log()
    assert home.workers() == []
