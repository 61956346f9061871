"""What the API answers with: the models behind its OpenAPI document. Times are seconds since 1970 (UTC), sizes bytes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qconvd.ledger.records import JobState, SourceState, TargetState, TaskKind, TaskState


class Data(BaseModel):
    """JSON data of ours."""

    model_config = ConfigDict(extra="forbid")


class Failure(Data):
    """Why a request was not met."""

    status: int
    message: str
    where: str = ""
    fix: str = Field("", description="What to do about it.")


class Said(Data):
    """The daemon's answer to a request, in sentences."""

    request: int = Field(description="Its number; `/api/v1/requests/{request}` tells what became of it.")
    state: Literal["open", "done", "refused"] = Field(description="`open`: not answered yet; it stays in the ledger.")
    answer: str


class Progress(Data):
    """How far a conversion is: bytes of the artifact."""

    done: int
    total: int
    seconds: float
    told: str = Field(description="The same in words.")


class RunningTarget(Data):
    """An artifact that a worker is at."""

    id: str
    label: str
    progress: Progress | None


class Running(Data):
    """A task that a worker is at."""

    task: int
    kind: TaskKind
    model: str
    targets: list[RunningTarget]
    attempt: int
    device: str
    since: float


class Pause(Data):
    """Why no task is started."""

    cause: Literal["by hand", "quiet hours", "disk"]
    reason: str
    told: str = Field(description="Both in words.")
    since: float


class Unreached(Data):
    """Somebody who is to be notified and could not be, the last time."""

    notifier: str
    reason: str
    told: str = Field(description="All of it in words.")
    since: float = Field(description="Of when the first notification is that was not taken.")
    waiting: int


class Refused(Data):
    """What lies where models are expected and is none, or none that can be read."""

    path: str
    name: str
    reason: str
    fix: str


class Seen(Data):
    """A path of which nothing is made, and why."""

    kind: Literal["arriving", "incomplete", "refused", "unwanted", "unreadable"]
    path: str
    name: str
    reason: str
    fix: str
    recipes: list[str]


class Status(Data):
    """The daemon at a glance."""

    version: str
    pid: int
    config: str = Field(description="The file that it was started with.")
    ready: bool
    trouble: str = Field(description="What keeps it from working; empty if nothing does.")
    pauses: list[Pause]
    jobs: dict[JobState, int] = Field(description="How many jobs are in each state.")
    targets: dict[TargetState, int]
    tasks: dict[TaskState, int] = Field(description="Only those that are queued or running.")
    running: list[Running]
    bytes_per_second: float = Field(description="What is written now, of all conversions together.")
    notifications: list[Unreached]
    refused: list[Refused]
    seen: list[Seen]


class Watched(Data):
    """A folder that is watched, or models on the Hub."""

    kind: Literal["folder", "hub"]
    place: str
    recipes: list[str]
    after: str
    trouble: str = ""
    fix: str = ""


class Model(Data):
    """A model that was seen."""

    id: int
    name: str
    source: str
    version: int
    state: SourceState
    reason: str
    fix: str
    jobs: list[int]
    created_at: float
    changed_at: float


class Models(Data):
    """What is watched, which models are known, and what else was seen there."""

    watched: list[Watched]
    models: list[Model]
    seen: list[Seen]
    next: int | None = Field(description="Give it as `before` for more models; none if these were the last.")


class Target(Data):
    """One artifact of a job."""

    id: str
    label: str
    format: str
    options: dict[str, Any]
    state: TargetState
    reason: str
    told: str = Field(description="The reason, with the place that it speaks of.")
    error: dict[str, Any]
    failures: int
    folder: str
    manifest: str
    planned_bytes: int | None
    notes: list[str]
    artifact: dict[str, Any]
    progress: Progress | None


class Job(Data):
    """One model times one recipe."""

    job: int
    model: str
    source: str
    version: int
    recipe: str
    priority: int
    state: JobState
    reason: str
    told: str = Field(description="The reason, with the place that it speaks of.")
    created_at: float
    changed_at: float
    targets: list[Target]


class Jobs(Data):
    """Jobs, the newest first."""

    jobs: list[Job]
    next: int | None = Field(description="Give it as `before` for more; none if these were the last.")


class Change(Data):
    """A change of a target's state."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    at: float
    target: str | None
    from_: str = Field(alias="from")
    to: str
    reason: str


class Publication(Data):
    """A place that an artifact is published to."""

    target: str
    place: str = Field(description="Destination and revision, for people.")
    destination: str
    revision: str
    state: str
    reason: str
    commit: str
    error: dict[str, Any]


class JobDetails(Job):
    """A job with everything that happened to it."""

    publications: list[Publication]
    history: list[Change]


class LedgerEvent(Data):
    """A row of the ledger's history: a change of a source, a target or a task."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    id: int
    at: float
    source: int | None
    target: str | None
    task: int | None
    from_: str = Field(alias="from")
    to: str
    reason: str


class History(Data):
    """What happened, the oldest first."""

    events: list[LedgerEvent]
    next: int = Field(description="Give it as `since` for what happens afterwards.")


class Log(Data):
    """The end of what a job's workers wrote."""

    lines: list[str]
    cut: bool = Field(description="Whether there was more before.")


class Outcome(Data):
    """What an artifact is at, for where its log is read."""

    label: str
    state: TargetState
    reason: str


class LogPiece(Data):
    """A job's history with what its workers wrote between, from one place on."""

    lines: list[str]
    next: str = Field(description="Give it as `after` for what comes then.")
    more: bool = Field(description="Whether there is more already.")
    over: bool = Field(description="Whether nothing will come any more by itself.")
    tasks: int = Field(description="How many tasks were mentioned so far, here and before.")
    targets: list[Outcome]


class File(Data):
    """A file of an artifact: path below the artifact's folder, SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


class Errors(Data):
    """How far an artifact is from its source, over all its weights."""

    relative_rms: float | None = Field(description="RMS of the differences over the RMS of the weights.")
    max_error: float | None


class Artifact(Data):
    """A finished artifact, from its manifest."""

    target: str
    label: str
    format: str
    folder: str
    bytes: int
    errors: Errors
    files: list[File]
    loads_with: list[dict[str, str]]


class Artifacts(Data):
    """What a job has made."""

    artifacts: list[Artifact]
    unreadable: dict[str, str] = Field(description="Manifests that cannot be read, by target, and why.")


class Gpu(Data):
    """A GPU. Memory in bytes."""

    uuid: str
    name: str
    total: int
    free: int


class Disk(Data):
    """The disk that a folder lies on."""

    place: Literal["output", "state"]
    path: str
    total: int
    free: int


class Devices(Data):
    """What this machine has, and what is free of it."""

    cpus: int
    memory_total: int
    memory_available: int
    gpus: list[Gpu]
    no_gpu: str = Field(description="Why there is no GPU, if there is none.")
    disks: list[Disk]


class Recipe(Data):
    """What a recipe makes."""

    targets: list[str]
    match: dict[str, Any]
    publishes: list[str]
    confirm: bool
    dry_run: bool


class ConfigSummary(Data):
    """The configuration that the daemon works with. Secrets are no part of it, nor where they lie."""

    path: str
    output: str
    state: str
    watched: list[Watched]
    recipes: dict[str, Recipe]
    limits: dict[str, Any]
    names: str


class Planned(Data):
    """One artifact that would be made, or why it cannot be."""

    model_config = ConfigDict(extra="allow")

    target: str
    artifact: str
    bytes: int | None = None
    bits_per_weight: float | None = None
    memory: int | None = None
    error: dict[str, Any] | None = None


class Plan(Data):
    """What would be made of a model: what `qconvd plan --json` prints."""

    model_config = ConfigDict(extra="allow")

    model: str
    path: str
    parameters: int
    source_bytes: int
    bytes_to_fetch: int = 0
    memory: int
    seconds: dict[str, float | None]
    artifacts: list[Planned]
    not_matched: dict[str, str]
