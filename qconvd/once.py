"""One conversion without the daemon: the same ledger, scheduler, executor and workers, driven by one loop until all is done.

The ledger lives in a temporary folder and is forgotten; what makes a second run of the same command resume is the work folder,
whose name follows from the model's identity and the target. It lies in `<output>/.qconvd/convert`, where no daemon tidies up.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from qconvd import checkpoints, intake
from qconvd.config import Devices as DeviceSettings
from qconvd.config import Hub as HubSettings
from qconvd.config import Limits
from qconvd.devices import Devices
from qconvd.engine.manifest import OWN_NAME, Manifest, read_manifest
from qconvd.errors import QconvdError, from_dict
from qconvd.executors.base import environment
from qconvd.executors.local import LocalExecutor
from qconvd.hub.address import parse
from qconvd.hub.cache import cache_folder
from qconvd.hub.client import Hub
from qconvd.hub.heads import Found, look
from qconvd.ledger import RETRIES, Ledger, Task
from qconvd.ledger import Target as LedgerTarget
from qconvd.ledger.records import TaskKind, options_of
from qconvd.named_files import identified
from qconvd.progress import Progress
from qconvd.scheduler import Start, next_tasks
from qconvd.scratch import scratch
from qconvd.targets import Target
from qconvd.tasks import DeviceSpec, LimitsSpec, read_result, settle, spec_of, write_spec

RECIPE = "convert"
PAUSE = 0.05
"""Seconds between two looks at what workers say."""
IDLE = 0.2
"""Seconds between two tries to start something while nothing runs."""
LOOK = 1.0
"""Seconds between two looks at what else could be started, while no worker ends: that asks much of the ledger."""
Stage = TaskKind


@dataclass(frozen=True)
class Made:
    """What became of one target. `error` is empty where it is there now; `new` is False where it was there before."""

    target: Target
    folder: Path
    manifest: Manifest | None = None
    error: QconvdError | None = None
    new: bool = True
    log: Path | None = None
    """Where the worker's words are, if it crashed."""


class Listener(Protocol):
    """Who is told while it goes on. Every call comes from the one thread that runs the conversion."""

    def stage(self, stage: Stage, labels: Sequence[str]) -> None:
        """A worker was started for these targets."""
        ...

    def planned(self, label: str, plan: Mapping[str, Any]) -> None:
        """What the plan of a target says: `nbytes`, `notes`, `left_out`, …"""
        ...

    def progress(self, label: str, progress: Progress) -> None: ...

    def waiting(self, reason: str) -> None:
        """Nothing can be done at the moment, and why."""
        ...

    def done(self, label: str) -> None:
        """A target is verified and in its place."""
        ...

    def failed(self, label: str, error: QconvdError) -> None: ...


@dataclass
class Conversion:
    """A model, what to make of it, and where. `profile` and `name` say how the artifacts are called."""

    path: Path
    targets: Sequence[Target]
    output: Path
    name: str | None = None
    profile: str = "default"
    limits: Limits = field(default_factory=lambda: Limits.model_validate({"disk_reserve": 0}))
    devices: DeviceSettings = field(default_factory=lambda: DeviceSettings.model_validate({}))
    force: bool = False
    forks: bool = False
    """Whether this process may be forked for its workers: it does nothing else, and has one thread."""
    hub: HubSettings | None = None
    """How the Hub is reached, for a `path` that is `hub:owner/name`."""
    identity: str = field(default="", init=False)
    called: str = field(default="", init=False)
    """The name that the artifacts get."""

    def run(self, listener: Listener) -> list[Made]:
        """Plan, convert, verify and commit everything; one result per target, in their order.

        Raises `QconvdError` if the model cannot be read at all. On KeyboardInterrupt the worker is stopped first; what it has
        done is in its journal.
        """
        if self.hub is None:
            model = self._look()
        try:
            # Not with the artifacts: SQLite wants a local disk, and nobody needs this ledger afterwards.
            with scratch() as state:
                found_there = self._look_at_hub(state.path) if self.hub is not None else None
                if found_there is not None:
                    model = found_there.model
                self._prepare()
                self.identity = found_there.digest if found_there is not None else checkpoints.identity(model)
                self.called = self.name or model.name
                made = {t.digest: found for t in self.targets if (found := self._there(t)) is not None}
                todo = [t for t in self.targets if t.digest not in made]
                if todo:
                    made |= _Run(self, state.path, todo, listener, found_there).run()
                state.keep = any(m.log for m in made.values())
            return [made[t.digest] for t in self.targets]
        finally:
            self._tidy()

    def work(self, target: Target) -> Path:
        """Where a target is worked on: the same place each time the same thing is asked for."""
        words = "\n".join((self.identity, target.digest, self.called, self.profile))
        return self._own() / "work" / hashlib.sha256(words.encode()).hexdigest()[:16]

    def _look(self) -> Any:
        try:
            look = intake.look(self.path.absolute(), artifacts=True)
        except OSError as error:
            raise QconvdError(f"cannot be read: {error.strerror}", where=str(self.path)) from error
        if look.state != "complete" or look.model is None:
            checkpoints.inspect(self.path)
            raise QconvdError(look.reason or "there is no model here", where=str(self.path), fix=look.fix)
        return look.model

    def _look_at_hub(self, state: Path) -> Found:
        """The model's headers. A model that qconvd published is taken, too: somebody asks for it by name."""
        assert self.hub is not None
        return look(Hub.of(self.hub), parse(str(self.path)), state / "hub", ours=True)

    def _prepare(self) -> None:
        """Raise `QconvdError` now if the output cannot be written, and not from the middle of a worker."""
        folder = self._own() / "work"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise QconvdError(
                f"cannot be written: {os.strerror(error.errno or 0)}",
                where=str(self.output),
                fix="choose another --out, or mend its permissions",
            ) from error

    def _there(self, target: Target) -> Made | None:
        """What lies where the artifact would go: the same artifact, something that must not be lost, or nothing."""
        names = target.names(self.called, self.profile)
        folder = self.output / names.folder
        path = folder / names.manifest
        if not path.exists():
            # Beside others' files in a shared folder there is room; files of the same name are found when it is planned.
            ours = names.shared or (folder / OWN_NAME).exists()
            if folder.exists() and (not folder.is_dir() or (not ours and any(folder.iterdir()))):
                error = QconvdError(
                    "is there already and was not made by qconvd; it is left as it is",
                    where=str(folder), fix="move it away, or choose another --out or --name",
                )  # fmt: skip
                return Made(target, folder, error=error)
            return None
        if self.force:
            return None
        manifest = read_manifest(path)
        if not all(_is_there(folder / f.path, f.bytes) for f in manifest.files):
            return None
        same = manifest.format == target.format and _wanted(manifest.options) == _wanted(options_of(target))
        if same and manifest.source.get("identity", self.identity) == self.identity:
            return Made(target, folder, manifest, new=False)
        other = "with other options" if not same else "from another model, or from another version of this one"
        error = QconvdError(
            f"is there already, made {other}", where=str(folder), fix="give --force to replace it, or another --name"
        )
        return Made(target, folder, error=error)

    def _own(self) -> Path:
        return self.output / ".qconvd" / "convert"

    def _tidy(self) -> None:
        """Remove the folders that are empty again; a journal that is worth something keeps them."""
        for folder in (self._own() / "work", self._own(), self._own().parent):
            try:
                folder.rmdir()
            except OSError:
                return


class _Run:
    def __init__(
        self, wanted: Conversion, state: Path, todo: Sequence[Target], listener: Listener, remote: Found | None = None
    ) -> None:
        self.wanted, self.state, self.listener = wanted, state, listener
        # Killed in whatever way, this process must not leave a worker that goes on alone.
        self.executor = LocalExecutor(state, tied=True, forks=True)
        if wanted.forks and not remote:
            # Now, as a ledger must not be open. Plans are made first, on the CPU.
            self.executor.fork_this(environment("cpu", "", 1))
        self.ledger = Ledger(state / "ledger.sqlite")
        locator = remote.address.locator if remote else str(wanted.path.absolute())
        found = self.ledger.source_seen(locator, wanted.identity, wanted.called, "")
        if remote:
            self.ledger.snapshot_listed(found.id, remote.remote.repo, remote.remote.commit, remote.model.path, remote.listing)
        self.ledger.want(found.id, RECIPE, todo, wanted.profile)
        # The ledger keeps the order in which they were wanted.
        self.targets = {row.id: target for row, target in zip(self.ledger.targets(source=found.id), todo, strict=True)}
        self.devices = Devices(wanted.devices.cuda)
        self.running: dict[int, tuple[Task, int]] = {}
        self.errors: dict[str, QconvdError] = {}
        """Targets that are given up, and why."""
        self.logs: dict[str, Path] = {}
        """Of a crash the log has the traceback; a refusal is told in full."""
        self.waited = ""

    def run(self) -> dict[str, Made]:
        due = 0.0
        try:
            while True:
                if not self.running or time.monotonic() >= due:
                    if not any(t.pending for t in self._rows()):
                        break
                    self._start_what_can_be()
                    due = time.monotonic() + LOOK
                if self._watch():
                    due = 0.0
                else:
                    time.sleep(PAUSE if self.running else IDLE)
            return {self.targets[row.id].digest: self._made(row) for row in self._rows()}
        finally:
            self._stop()
            self.executor.close()
            self.ledger.close()

    def _rows(self) -> list[LedgerTarget]:
        return [row for row in self.ledger.targets() if row.id in self.targets]

    def _start_what_can_be(self) -> None:
        starts = next_tasks(
            self.ledger, self.devices, self.wanted.limits, self.wanted.devices, self.wanted.output,
            cache=cache_folder(self.wanted.hub.cache) if self.wanted.hub else None,
        )  # fmt: skip
        for start in starts:
            self._start(start)
        if not self.running:
            self._give_up()

    def _start(self, start: Start) -> None:
        task = self.ledger.claim(start.task.id, start.placed)
        rows = [self.ledger.target(id) for id in task.targets]
        spec = spec_of(
            task,
            self.ledger.source(task.source),
            rows,
            output=self.wanted.output,
            state=self.state,
            limits=LimitsSpec(memory=start.memory, threads=start.threads),
            device=DeviceSpec(kind=start.kind, id=start.device),
            laid=self.ledger.laid,
            snapshot=self.ledger.snapshot_of(task.source),
            hub=self.wanted.hub,
            cache=self.wanted.hub.cache if self.wanted.hub else None,
        )
        placed = tuple(t.model_copy(update={"work": self.wanted.work(self.targets[t.id]), "recipe": ""}) for t in spec.targets)
        path = write_spec(spec.model_copy(update={"targets": placed}))
        env = environment(start.kind, start.device, start.threads, online=task.kind == "fetch")
        self.executor.submit(path, task.attempt, env)
        self.running[task.id] = (task, 0)
        self.listener.stage(task.kind, [self.targets[id].label for id in task.targets])

    def _watch(self) -> bool:
        """Pass on what the workers say, and take what those that ended leave; whether any did."""
        running = len(self.running)
        for id, (task, cursor) in list(self.running.items()):
            # Asked before the events are read, so that the last words are not missed.
            status = self.executor.poll(task.handle)
            events, cursor = self.executor.events(task.handle, cursor)
            self.running[id] = (task, cursor)
            for event in events:
                self._hear(event)
            if not status.ended:
                continue
            del self.running[id]
            settle(self.ledger, task, status, read_result(self.state / "tasks" / task.handle), time.time())
            rows = [self.ledger.target(id) for id in task.targets]
            if len(rows) > 1 and all(row.pending and row.failures and not row.error for row in rows):
                # The worker crashed over one of them: each is tried alone, and now, for somebody is waiting.
                self.ledger.retry(task.targets, "tried alone after a crash")
                continue
            for row in rows:
                self._note(row, task)
        return len(self.running) < running

    def _note(self, row: LedgerTarget, task: Task) -> None:
        """Tell what a task did to a target. Who was alone in a crash is not tried again here: somebody is waiting."""
        label = self.targets[row.id].label
        if row.state == "failed" or (row.pending and row.failures):
            # What is told with a place or a remedy (a full disk) is no crash, though the daemon would try it again.
            if row.pending and not (row.error.get("where") or row.error.get("fix")):
                self.logs[row.id] = self.executor.log_path(task.handle)
            reason = row.reason.removeprefix(f"attempt {row.failures} of {RETRIES} failed: ")
            self.errors[row.id] = from_dict(dict(row.error)) if row.error.get("what") else QconvdError(reason)
            self.listener.failed(label, self.errors[row.id])
            self.ledger.cancel([row.id], row.reason)
        elif task.kind == "plan" and row.state == "planned":
            self.listener.planned(label, row.plan)
        elif row.state == "done":
            self.listener.done(label)

    def _hear(self, event: Mapping[str, Any]) -> None:
        if event.get("event") in ("progress", "preparing") and event.get("target") in self.targets:
            self.listener.progress(self.targets[event["target"]].label, Progress.of(event))

    def _give_up(self) -> None:
        """Nobody waits for what this machine does not have; only another run at the same target is waited for."""
        waiting = [row for row in self._rows() if row.pending]
        queued = self.ledger.tasks("queued")
        reason = queued[0].reason if queued else "nothing can be done"
        if any(task.not_before > time.time() for task in queued):
            if reason != self.waited:
                self.listener.waiting(reason)
            self.waited = reason
            return
        for row in waiting:
            fix = "give a larger --memory, or leave it out" if "limits.memory allows" in row.reason else ""
            self.errors[row.id] = QconvdError(_as_options(row.reason), fix=fix)
            self.listener.failed(self.targets[row.id].label, self.errors[row.id])
        self.ledger.cancel([row.id for row in waiting], reason)

    def _made(self, row: LedgerTarget) -> Made:
        target = self.targets[row.id]
        folder = self.wanted.output / row.folder
        if row.state == "done":
            return Made(target, folder, read_manifest(folder / row.manifest_name))
        return Made(target, folder, error=self.errors.get(row.id) or QconvdError(row.reason), log=self.logs.get(row.id))

    def _stop(self) -> None:
        """Stop what runs and wait for its end: the next command may need the work folder."""
        grace = self.wanted.limits.stop_grace
        for task, _ in self.running.values():
            self.executor.cancel(task.handle, grace)
        while any(not self.executor.poll(task.handle).ended for task, _ in self.running.values()):
            time.sleep(PAUSE / 2)


def _is_there(path: Path, nbytes: int) -> bool:
    try:
        return path.stat().st_size == nbytes
    except OSError:
        return False


def _as_options(reason: str) -> str:
    """A reason to wait in the words of a command, which knows neither recipes nor a config."""
    return reason.replace("limits.memory", "--memory").replace(f"recipe {RECIPE} asks", "this asks")


def _wanted(options: Mapping[str, Any]) -> dict[str, Any]:
    """What decides over what is made, of options as they are or as a manifest has them."""
    return {k: v for k, v in identified(options).items() if k != "device"}
