"""Tasks on their way: started when the scheduler says so, followed while they run, and written into the ledger when they end.

Every attempt's handle stands in the ledger before its worker is started. So a daemon that was killed finds its workers again
and follows them as if nothing had happened; of those that are gone it knows what they were at.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

from qconvd.bell import Bell
from qconvd.config import Config
from qconvd.devices import Devices
from qconvd.errors import QconvdError
from qconvd.executors.base import Status, environment
from qconvd.executors.local import LocalExecutor
from qconvd.hub.cache import cache_folder
from qconvd.ledger import Ledger, StaleFence, Task, backoff
from qconvd.logs.about import about_task
from qconvd.progress import ProgressBoard
from qconvd.recovery import second_chance, sweep, withdraw
from qconvd.scheduler import Start, next_tasks
from qconvd.tasks import (
    EXIT_BUSY,
    EXIT_CANCELLED,
    DeviceSpec,
    LimitsSpec,
    TaskResult,
    read_result,
    settle,
    spec_of,
    write_spec,
)

log = logging.getLogger(__name__)
POLL_SECONDS = 0.25
LEASE_SECONDS = 60.0
PLAN_SECONDS = 600.0
"""A plan reads headers and a tokenizer; one that takes longer hangs."""
LONGEST_WAIT = 3600.0
RETHINK_SECONDS = 10.0
"""How often what waits (for a disk, for a GPU that others hold) is thought about again though the ledger has not changed."""
KILLED_SECONDS = 5.0
"""How long after its last grace a killed worker may take to be gone."""
ONLINE = ("fetch", "publish")
"""Kinds of tasks that ask the Hub."""
KILLED_TOGETHER = "the worker was killed together with the daemon"
KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that come from outside; all others are the worker's own doing."""


class Work:
    """The tasks of one ledger on this machine."""

    def __init__(self, ledger: Ledger, config: Config, executor: LocalExecutor | None = None) -> None:
        self._ledger = ledger
        self._executor = executor or LocalExecutor(config.state)
        self._board = ProgressBoard(config.state)
        self._cursors: dict[str, int] = {}
        self._mine: set[str] = set()
        """Attempts that this daemon has started or seen alive; how the others ended, nobody saw."""
        self._open: list[Task] = []
        """Tasks that were queued or running when `tick` last looked."""
        self._thought: tuple[object, ...] = ()
        self._thought_when = 0.0
        self._think_at = 0.0
        self.configure(config)

    def configure(self, config: Config) -> None:
        self._config = config
        self._devices = Devices(config.devices.cuda)
        self._thought = ()

    def recover(self) -> None:
        """Clear away what a daemon before this one had no time to: attempts that have ended and drafts of files."""
        live = {task.handle for task in self._ledger.tasks("running")}
        for folder in (self._config.state / "tasks").glob("*.*"):
            if folder.name not in live:
                self._executor.forget(folder.name)
        for draft in (self._config.state).glob(".*.new"):
            draft.unlink()
        sweep(self._ledger, self._config.output)

    def tick(self) -> None:
        """Stop what nobody wants any more, follow what runs, start what may run. Nothing is asked while nothing happens."""
        if not self._running and not self._changed() and not self._later():
            return
        for task in self._ledger.unwanted():
            self._executor.cancel(task.handle, self._config.limits.stop_grace)
        for task in self._ledger.tasks("running"):
            self._follow(task)
        if self._changed() or self._later():
            self._start()
        self._open = self._ledger.tasks("queued", "running")
        self._board.keep({id for task in self._running for id in task.targets})
        self._board.tick()

    def more(self) -> bool:
        """Whether anything runs, or will run by itself. What waits for something that nobody here holds will not."""
        now = time.time()
        return any(t.state == "running" or t.not_before > now for t in self._open)

    def next_due(self) -> float:
        """Seconds until `tick` has something to do, if nobody rings before."""
        waits = [self._think_at - time.monotonic()] if self._open else []
        waits += [t.not_before - time.time() for t in self._open if t.not_before > time.time()]
        return min([*waits, POLL_SECONDS if self._running else LONGEST_WAIT])

    @property
    def _running(self) -> list[Task]:
        return [t for t in self._open if t.state == "running"]

    def _changed(self) -> bool:
        return self._thought != self._ledger.mark()

    def _later(self) -> bool:
        """Whether it is time to think again about what waits: its delay is over, or it may have become possible."""
        now = time.time()
        over = any(t.state == "queued" and self._thought_when < t.not_before <= now for t in self._open)
        return bool(self._open) and (over or time.monotonic() >= self._think_at)

    def stop(self, at_once: Callable[[], bool], bell: Bell) -> None:
        """Interrupt the workers and wait until they are gone: within the grace, or killed as soon as `at_once` says so.

        What they have done is in their journals; the ledger queues them again.
        """
        grace = self._config.limits.stop_grace
        end = time.monotonic() + grace + KILLED_SECONDS
        hurried = False
        for task in self._ledger.tasks("running"):
            self._executor.cancel(task.handle, grace)
        while (running := self._ledger.tasks("running")) and time.monotonic() < end:
            if at_once() and not hurried:
                hurried = True
                for task in running:
                    self._executor.cancel(task.handle, 0)
            for task in running:
                self._follow(task)
            bell.wait(POLL_SECONDS / 5)
        for task in running:
            log.error("task %d does not stop; the next daemon will find it", task.id,
                      extra={"action": "task.left", **about_task(self._ledger, task)})  # fmt: skip

    def _follow(self, task: Task) -> None:
        """Hear what a running task says, and take note if it has ended."""
        status = self._executor.poll(task.handle)
        events, self._cursors[task.handle] = self._executor.events(task.handle, self._cursors.get(task.handle, 0))
        self._board.hear(events)
        try:
            if status.ended:
                self._end(task, status)
                return
            self._mine.add(task.handle)
            if task.lease_until - time.time() < LEASE_SECONDS / 2:
                self._ledger.renew(task.id, task.fence, LEASE_SECONDS)
        except StaleFence as error:
            log.warning("%s", error, extra={"action": "task.stale", **about_task(self._ledger, task)})

    def _end(self, task: Task, status: Status) -> None:
        folder = self._executor.folder(task.handle)
        result = read_result(folder)
        if status.state == "lost" and not (folder / "start.json").exists():
            self._ledger.release(task.id, task.fence, "the daemon was stopped before the worker was started")
        elif task.handle not in self._mine and _killed(status):
            self._ledger.release(task.id, task.fence, KILLED_TOGETHER, at=self._after_a_kill(task))
        else:
            settle(self._ledger, task, status, result, time.time())
            self._doubt(task)
            source = self._ledger.source(task.source)
            if source.state == "present" and source.changed_at >= task.changed_at:
                # Somebody touched it while it was read, and it came to rest before the task gave up.
                second_chance(self._ledger, source.id)
            withdraw(self._ledger, source.id)
        log.info("task %d (%s) %s", task.id, task.kind, how_it_ended(status, result),
                 extra={"action": "task.ended", **about_task(self._ledger, task)})  # fmt: skip
        self._mine.discard(task.handle)
        self._cursors.pop(task.handle, None)
        self._executor.forget(task.handle)
        sweep(self._ledger, self._config.output)

    def _doubt(self, task: Task) -> None:
        """Fetch again what somebody has removed from the Hub cache while it was read; of the targets, what failed for that."""
        snapshot = self._ledger.snapshot_of(task.source)
        if snapshot is None or snapshot.state != "here" or task.kind == "fetch" or snapshot.intact():
            return
        with self._ledger.transaction():
            self._ledger.snapshot_doubted(task.source)
            second_chance(self._ledger, task.source)
        log.warning("%s: what was fetched is gone from the Hub cache; it is fetched again", snapshot.repo,
                    extra={"action": "snapshot.doubted", **about_task(self._ledger, task)})  # fmt: skip

    def _after_a_kill(self, task: Task) -> float:
        """When to try again what went down with the daemon: at once, and later each time that it happens again.

        It is no failure, however often: three power cuts say nothing of a model. But if it is this task that brings the
        machine down, there must be time between for a person to cancel it.
        """
        before = sum(e.reason == KILLED_TOGETHER for e in self._ledger.history(task=task.id))
        return time.time() + backoff(before) if before else 0.0

    def _start(self) -> None:
        """Start what the scheduler lets start."""
        config, self._thought_when = self._config, time.time()
        for start in next_tasks(
            self._ledger, self._devices, config.limits, config.devices, config.output, self._thought_when,
            cache=cache_folder(config.hub.cache), fetches=config.hub.fetches,
            paused="; ".join(pause.told for pause in self._ledger.pauses()),
        ):  # fmt: skip
            self._submit(start)
        self._thought, self._think_at = self._ledger.mark(), time.monotonic() + RETHINK_SECONDS

    def _submit(self, start: Start) -> None:
        """Claim, write the spec, start the worker: in this order a crash in between leaves nothing that is not found again."""
        config = self._config
        task = self._ledger.claim(start.task.id, start.placed)
        try:
            spec = spec_of(
                task,
                self._ledger.source(task.source),
                [self._ledger.target(id) for id in task.targets],
                output=config.output,
                state=config.state,
                limits=LimitsSpec(memory=start.memory, threads=start.threads),
                device=DeviceSpec(kind=start.kind, id=start.device),
                laid=self._ledger.laid,
                snapshot=self._ledger.snapshot_of(task.source),
                hub=config.hub,
                cache=config.hub.cache,
                publications=self._ledger.publications(task=task.id),
            )
            env = environment(start.kind, start.device, start.threads, online=task.kind in ONLINE)
            timeout = PLAN_SECONDS if task.kind == "plan" else None
            self._mine.add(self._executor.submit(write_spec(spec), task.attempt, env, timeout=timeout))
        except QconvdError as error:
            self._ledger.fail(task.id, task.fence, str(error), retry=True, error=error.as_dict())
            log.error("task %d cannot be started: %s", task.id, error,
                      extra={"action": "task.not_started", **about_task(self._ledger, task)})  # fmt: skip
        else:
            log.info("task %d (%s) started", task.id, task.kind,
                     extra={"action": "task.started", **about_task(self._ledger, task)})  # fmt: skip


def how_it_ended(status: Status, result: TaskResult | None) -> str:
    """The end of an attempt in words; an exit code says too little where some targets went well and others did not."""
    if status.exit_code == EXIT_BUSY:
        return "found another worker at its targets"
    if status.state == "cancelled" or status.exit_code == EXIT_CANCELLED:
        return "was stopped"
    if status.state == "lost":
        return f"is lost: {status.reason}"
    if result is not None and result.targets and (bad := sum(not r.ok for r in result.targets.values())):
        good = len(result.targets) - bad
        return f"did {good} of {len(result.targets)} targets; {bad} failed" if good else "failed"
    if status.state == "succeeded":
        return "is done"
    return f"failed: {(result and result.error.get('what')) or status.reason}"


def _killed(status: Status) -> bool:
    """Whether an attempt was ended from outside, and not by what it did."""
    return status.state == "lost" or (status.exit_code is not None and -status.exit_code in KILLS)
