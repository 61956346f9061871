"""What the ledger's rows are to the rest of the control side: plain, frozen, read once."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from qconvd.named_files import identified

TargetState: TypeAlias = Literal[
    "waiting", "planned", "converting", "verifying", "ready", "publishing", "done", "failed", "superseded", "cancelled"
]
TaskKind: TypeAlias = Literal["plan", "fetch", "convert", "verify", "publish"]
TaskState: TypeAlias = Literal["queued", "running", "done", "failed", "cancelled"]
SourceState: TypeAlias = Literal["present", "refused", "gone", "replaced"]
JobState: TypeAlias = Literal[
    "converting", "verifying", "publishing", "waiting", "ready", "failed", "done", "cancelled", "superseded"
]

PENDING: tuple[TargetState, ...] = ("waiting", "planned", "converting", "verifying", "ready", "publishing")
"""States from which qconvd goes on by itself."""


class Named(Protocol):
    """Where an artifact goes, below the output folder: what `qconvd.naming` returns."""

    @property
    def folder(self) -> str: ...
    @property
    def stem(self) -> str: ...
    @property
    def manifest(self) -> str: ...


class WantedTarget(Protocol):
    """What `Ledger.want` takes: a target of a recipe as the configuration expands it, one per artifact."""

    @property
    def format(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def options(self) -> Any:
        """A mapping, or the pydantic model of the format's options."""

    def names(self, model_name: str, profile: str = "default") -> Named: ...


@dataclass(frozen=True, slots=True)
class Source:
    """One version of a model at one place. `version` counts the changes of what lies at `locator`, from 1."""

    id: int
    locator: str
    version: int
    name: str
    digest: str
    """The identity of its content; empty for a refused source."""
    fingerprint: str
    state: SourceState
    reason: str
    error: Mapping[str, str]
    created_at: float
    changed_at: float


@dataclass(frozen=True, slots=True)
class Target:
    """One artifact to be: a source, a format and its options."""

    id: str
    source: int
    format: str
    options: Mapping[str, Any]
    spec_digest: str
    device: Literal["auto", "cpu", "cuda"]
    state: TargetState
    reason: str
    error: Mapping[str, str]
    failures: int
    not_before: float
    version: str
    """The version of the format when it was last wanted or planned; not part of the digest."""
    label: str
    """What a person calls it: `gguf Q4_0`."""
    plan: Mapping[str, Any]
    """The plan task's `TargetResult.data`: plan_path, nbytes, files, memory, notes, …"""
    folder: str
    stem: str
    manifest_name: str
    artifact: Mapping[str, Any]
    """The verify task's `TargetResult.data`: folder, manifest, files, nbytes."""
    created_at: float
    changed_at: float
    recipes: tuple[str, ...] = ()
    waits_for: str = ""
    """The target whose artifact this one takes over when it is done: the same one, of a copy of the model."""

    @property
    def pending(self) -> bool:
        return self.state in PENDING

    def told(self, source: Source) -> str:
        """The reason, with the place that it speaks of: as short as whoever knows the model and the output needs it."""
        what, where = self.error.get("what", ""), self.error.get("where", "")
        if not what or what not in self.reason or where in self.reason:
            return self.reason
        place = _short(where, source.locator, self.folder)
        known = ("", source.name, self.stem, self.label, self.id)
        return self.reason if place in known else self.reason.replace(what, f"{place}: {what}", 1)


@dataclass(frozen=True, slots=True)
class Task:
    """One run of a worker, with what it needs and who may finish it."""

    id: int
    kind: TaskKind
    source: int
    device: Literal["auto", "cpu", "cuda"]
    state: TaskState
    reason: str
    attempt: int
    fence: int
    handle: str
    placed: Mapping[str, Any]
    """Where the attempt runs: {"kind": "cuda", "id": uuid}."""
    lease_until: float
    not_before: float
    need: Mapping[str, int]
    """Bytes: `memory`, `disk`, `gpu_memory`."""
    created_at: float
    changed_at: float
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A person's view: one source times one recipe."""

    id: int
    source: Source
    recipe: str
    targets: tuple[Target, ...]
    created_at: float
    changed_at: float
    priority: int = 0

    @property
    def state(self) -> JobState:
        """The state that matters most: what is being done, then what waits, then what failed."""
        return self.state_of({t.state for t in self.targets})

    @staticmethod
    def state_of(states: Collection[str]) -> JobState:
        """The state of a job whose targets are in these."""
        found = set(states)
        if found & {"waiting", "planned"} and not found & {"converting", "verifying", "publishing"}:
            return "waiting"
        return next((state for state in _IN_ORDER if state in found), "superseded")

    @property
    def reason(self) -> str:
        """The reason of the first target that is in the job's state."""
        return self._first.reason if self._first else ""

    @property
    def told(self) -> str:
        """As `reason`, with the place that it speaks of."""
        return self._first.told(self.source) if self._first else ""

    @property
    def _first(self) -> Target | None:
        wanted = ("waiting", "planned") if self.state == "waiting" else (self.state,)
        return next((t for t in self.targets if t.state in wanted), None)


_IN_ORDER: tuple[JobState, ...] = (
    "converting", "verifying", "publishing", "ready", "failed", "done", "cancelled", "superseded"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a target's, task's or source's state."""

    id: int
    at: float
    source: int | None
    target: str | None
    task: int | None
    from_state: str
    to_state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody at the command line asks of the daemon, and its answer."""

    id: int
    kind: str
    arguments: Mapping[str, Any]
    state: Literal["open", "done", "refused"]
    answer: str
    created_at: float
    answered_at: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task says of one of its targets. `retry` tells a crash or a passing trouble from a lasting refusal."""

    ok: bool
    reason: str = ""
    error: Mapping[str, str] = field(default_factory=dict)
    retry: bool = False
    data: Mapping[str, Any] = field(default_factory=dict)


def options_of(target: WantedTarget) -> dict[str, Any]:
    """The options as a recipe would have to write them: defaults are left out, so a new option with a default (a plugin's
    upgrade) does not change the digest of what is there."""
    options = target.options
    if isinstance(options, Mapping):
        return dict(options)
    return dict(options.model_dump(mode="json", exclude_defaults=True, by_alias=True))


def spec_digest(format_name: str, options: Mapping[str, Any]) -> str:
    """sha256 over format and resolved options. Where it is made is not what is made: `device` does not count.

    Of a file that an option names its content counts, not its path.
    """
    spec = {"format": format_name, "options": identified({k: v for k, v in options.items() if k != "device"})}
    return hashlib.sha256(as_json(spec).encode()).hexdigest()


def _short(where: str, locator: str, folder: str) -> str:
    """A place without what is known: within the model's folder or the artifact's; empty for the model itself."""
    if where == locator or where.startswith(f"{locator}/"):
        return where[len(locator) + 1 :]
    before, found, below = f"{where}/".rpartition(f"/{folder}/") if folder else ("", "", "")
    return f"{folder}/{below}".rstrip("/") if found and ".qconvd" not in before else where


def as_json(data: Any) -> str:
    """Canonical JSON."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def source_of(row: sqlite3.Row) -> Source:
    return Source(**{**dict(row), "error": json.loads(row["error"])})


def target_of(row: sqlite3.Row, recipes: Sequence[str]) -> Target:
    parsed = {name: json.loads(row[name]) for name in ("options", "error", "plan", "artifact")}
    return Target(**{**dict(row), **parsed, "recipes": tuple(recipes)})


def task_of(row: sqlite3.Row, targets: Sequence[str]) -> Task:
    parsed = {name: json.loads(row[name]) for name in ("placed", "need")}
    return Task(**{**dict(row), **parsed, "targets": tuple(targets)})


def event_of(row: sqlite3.Row) -> Event:
    return Event(**dict(row))


def request_of(row: sqlite3.Row) -> Request:
    return Request(**{**dict(row), "arguments": json.loads(row["arguments"])})
