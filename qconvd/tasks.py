"""What passes between the control side and a worker: a spec on the way in, a result on the way out, both JSON on disk.

Nothing heavy is imported here; what a worker does with a spec is in worker.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qconvd.errors import HubBusy, OutOfSpace, QconvdError, TakenAway
from qconvd.executors.base import Status
from qconvd.executors.runner import record
from qconvd.hub.client import TIMEOUT, Access
from qconvd.ledger import Ledger, Outcome, Publication, Snapshot, Source, Target, Task, backoff

SPEC = "spec.json"
RESULT = "result.json"
EXIT_ERROR = 3
"""A `QconvdError`, told in the result."""
EXIT_CANCELLED = 4
"""Stopped on request; the journal is kept."""
EXIT_BUSY = 5
"""Another worker has the lock of a work folder."""
BUSY_DELAY = 10.0
HUB_WAITS = "the Hub has to be waited for: "
"""How the reason of a task begins that the Hub could not serve."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSpec(_Data):
    """The model to read. An empty digest is not checked.

    Of a model on the Hub `path` is where it was fetched to, or its headers, and `digest` what lies there; `identity`, `locator`
    and `revision` are what manifests say of it.
    """

    path: Path
    name: str
    digest: str = ""
    identity: str = ""
    locator: str = ""
    revision: str = ""

    @property
    def known_as(self) -> str:
        """The identity of the version, as the ledger has it."""
        return self.identity or self.digest


class TargetSpec(_Data):
    """One artifact to make. `folder` is its final place, `work` a folder of its own on the same filesystem."""

    id: str
    format: str
    options: dict[str, Any] = Field(default_factory=dict)
    plan_path: Path | None = None
    work: Path
    folder: Path
    stem: str
    manifest_name: str = "qconvd.json"
    recipe: str = ""
    label: str = ""
    """What the log calls it; without one, its id."""
    laid: tuple[str, ...] | None = None
    """Files of ours that lie in its place, as the ledger knows; None: it knows of none."""


class HubSpec(_Data):
    """How the Hub is reached. The token is in a file or the environment, never here."""

    endpoint: str
    token_file: Path | None = None
    timeout: float = TIMEOUT


class PublishSpec(_Data):
    """Where the artifacts of a publish task go. Options are those of `qconvd.destinations.Place`."""

    destination: str
    revision: str = ""
    options: dict[str, Any] = Field(default_factory=dict)


class FileSpec(_Data):
    """A file of a commit."""

    path: str
    size: int
    sha256: str = ""
    oid: str = ""


class FetchSpec(HubSpec):
    """What a fetch task brings: these files of one commit, into the Hub cache, and links to them into `folder`."""

    repo: str
    commit: str
    files: tuple[FileSpec, ...]
    folder: Path
    cache: Path | None = None

    @property
    def nbytes(self) -> int:
        return sum(f.size for f in self.files)


class LimitsSpec(_Data):
    """Bytes of memory for the whole process, and threads."""

    memory: int = Field(gt=0)
    threads: int = Field(ge=1)


class DeviceSpec(_Data):
    """Where to convert; `id` is a GPU's UUID."""

    kind: Literal["cpu", "cuda"] = "cpu"
    id: str = ""


class TaskSpec(_Data):
    """One run of a worker."""

    task: int
    kind: Literal["plan", "fetch", "convert", "verify", "publish"]
    attempt: int
    fence: int
    source: SourceSpec
    targets: tuple[TargetSpec, ...]
    limits: LimitsSpec
    device: DeviceSpec = DeviceSpec()
    state: Path
    fetch: FetchSpec | None = None
    publish: PublishSpec | None = None
    hub: HubSpec | None = None
    """Of a publish task; a fetch task has it in `fetch`."""

    @property
    def folder(self) -> Path:
        """Where the attempt's files are, this spec among them."""
        return self.state / "tasks" / f"{self.task}.{self.attempt}"


class TargetResult(_Data):
    """What became of one target. `retry`: it may go better another time."""

    ok: bool
    error: dict[str, str] = Field(default_factory=dict)
    retry: bool = False
    data: dict[str, Any] = Field(default_factory=dict)
    """plan: `plan_path`, `files`, `nbytes`, `memory`, `calibration`, `left_out`, `notes`, `loads_with`, `variant`, `devices`,
    `version`.
    convert: `nbytes`, `errors`. verify: `folder`, `manifest`, `files`, `nbytes`, `report`.
    fetch: `folder`, `identity`, `nbytes`, `fetched`. publish: `commit`, `told`, `dry_run`; where it failed and may go better,
    `wait`: seconds that the server asks for."""


class TaskResult(_Data):
    """What a worker leaves in `result.json`. `error` is about the whole task, e.g. a model that cannot be read."""

    ok: bool
    error: dict[str, str] = Field(default_factory=dict)
    targets: dict[str, TargetResult] = Field(default_factory=dict)


def spec_of(
    task: Task,
    source: Source,
    targets: Sequence[Target],
    *,
    output: Path,
    state: Path,
    limits: LimitsSpec,
    device: DeviceSpec,
    laid: Callable[[Path], tuple[str, ...] | None],
    snapshot: Snapshot | None = None,
    hub: Access | None = None,
    cache: Path | None = None,
    publications: Sequence[Publication] = (),
) -> TaskSpec:
    """The spec of a claimed task. `targets` are those of the task, as are `publications`; `laid` is `Ledger.laid`.

    Of a model on the Hub, `snapshot` is what the ledger knows of it, `hub` how it is reached, `cache` where it goes.
    """
    return TaskSpec(
        task=task.id,
        kind=task.kind,
        attempt=task.attempt,
        fence=task.fence,
        source=_source(source, snapshot),
        targets=tuple(
            TargetSpec(
                id=t.id,
                format=t.format,
                options=dict(t.options),
                plan_path=Path(t.plan["plan_path"]) if t.plan.get("plan_path") else None,
                work=output / ".qconvd" / "work" / t.id,
                folder=output / t.folder,
                stem=t.stem,
                manifest_name=t.manifest_name,
                recipe=t.recipes[0] if t.recipes else "",
                label=t.label,
                laid=laid(output / t.folder / t.manifest_name),
            )
            for t in targets
        ),
        limits=limits,
        device=device,
        state=state,
        fetch=_fetch(snapshot, hub, cache) if task.kind == "fetch" else None,
        publish=publish_spec(publications),
        hub=_access(hub) if task.kind == "publish" and hub is not None else None,
    )


def publish_spec(publications: Sequence[Publication]) -> PublishSpec | None:
    """The place of a publish task, of whose publications there is one for each of its targets; None for other tasks."""
    for first in publications:
        return PublishSpec(destination=first.destination, revision=first.revision, options=first.options)
    return None


def _access(hub: Access) -> HubSpec:
    return HubSpec(endpoint=hub.endpoint, token_file=hub.token_file, timeout=hub.timeout)


def _source(source: Source, snapshot: Snapshot | None) -> SourceSpec:
    if snapshot is None:
        return SourceSpec(path=Path(source.locator), name=source.name, digest=source.digest)
    here = snapshot.identity if snapshot.state == "here" else ""
    return SourceSpec(
        path=snapshot.place, name=source.name, digest=here, identity=source.digest, locator=source.locator,
        revision=snapshot.commit_id,
    )  # fmt: skip


def _fetch(snapshot: Snapshot | None, hub: Access | None, cache: Path | None) -> FetchSpec:
    assert snapshot is not None and hub is not None, "only models on the Hub are fetched"
    return FetchSpec(
        endpoint=hub.endpoint, token_file=hub.token_file, timeout=hub.timeout, repo=snapshot.repo, commit=snapshot.commit_id,
        files=tuple(FileSpec.model_validate(f) for f in snapshot.files), folder=Path(snapshot.heads).parent, cache=cache,
    )  # fmt: skip


def write_spec(spec: TaskSpec) -> Path:
    """Put the spec where the executor wants it; returns its path."""
    try:
        spec.folder.mkdir(parents=True, exist_ok=True)
        record(spec.folder / SPEC, spec.model_dump(mode="json"))
    except OSError as error:
        raise QconvdError(
            f"cannot be written: {error.strerror}", where=str(spec.folder), fix="look at the state folder"
        ) from error
    return spec.folder / SPEC


def read_spec(path: Path) -> TaskSpec:
    """The spec in a file. Raises `QconvdError`."""
    try:
        return TaskSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise QconvdError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except ValidationError as error:
        raise QconvdError(f"is no task: {error.errors()[0]['msg']}", where=str(path)) from error


def write_result(spec: TaskSpec, result: TaskResult) -> None:
    record(spec.folder / RESULT, result.model_dump(mode="json"))


def read_result(folder: Path) -> TaskResult | None:
    """What a worker left in the folder of its attempt; None if it left nothing of use."""
    try:
        return TaskResult.model_validate_json((folder / RESULT).read_bytes())
    except (OSError, ValidationError):
        return None


def settle(ledger: Ledger, task: Task, status: Status, result: TaskResult | None, now: float) -> None:
    """Tell the ledger how an attempt ended. Raises `StaleFence` if the attempt does not count any more.

    A refusal is for good, a crash or a full disk is tried again, a stop is neither.
    """
    if status.state in ("cancelled", "pending", "running") or status.exit_code == EXIT_CANCELLED:
        ledger.release(task.id, task.fence, "was interrupted and goes on later")
    elif status.exit_code == EXIT_BUSY:
        ledger.release(task.id, task.fence, "another worker still has the work folder", at=now + BUSY_DELAY)
    elif status.exit_code in (0, EXIT_ERROR) and result is not None and (result.targets or not result.error):
        ledger.finish(task.id, task.fence, {id: _outcome(r) for id, r in result.targets.items()})
    elif status.exit_code == EXIT_ERROR and result is not None:
        again = result.error.get("error") in (OutOfSpace.__name__, TakenAway.__name__)
        if result.error.get("error") == HubBusy.__name__:
            ledger.release(
                task.id, task.fence, HUB_WAITS + result.error.get("what", ""), at=now + _patience(ledger, task, result)
            )
            return
        ledger.fail(task.id, task.fence, result.error.get("what", "failed"), retry=again, error=result.error)
    else:
        ledger.fail(task.id, task.fence, _crash(status, result), retry=True)


def _patience(ledger: Ledger, task: Task, result: TaskResult) -> float:
    """Seconds until the Hub is asked again: as long as it asks for, and longer each time that it could not answer.

    That the Hub is away is no failure, however long it is: a night without a network fails no target.
    """
    before = sum(e.reason.startswith(HUB_WAITS) for e in ledger.history(task=task.id))
    try:
        asked = float(result.error.get("seconds", 0) or 0)
    except ValueError:
        asked = 0.0
    return max(asked, backoff(before + 1))


def _outcome(result: TargetResult) -> Outcome:
    return Outcome(result.ok, result.error.get("what", ""), result.error, result.retry, result.data)


def _crash(status: Status, result: TaskResult | None) -> str:
    if result is not None and result.error and status.exit_code is not None and status.exit_code >= 0:
        return f"{result.error['error']}: {result.error['what']} (a defect of qconvd or of a plugin; the log has the traceback)"
    return status.reason or "the worker ended without a result"


def result_error(error: BaseException) -> Mapping[str, str]:
    """Any exception as the data that results and the ledger hold."""
    if isinstance(error, QconvdError):
        return error.as_dict()
    return {"error": type(error).__name__, "what": str(error) or "no further words", "where": "", "fix": ""}
