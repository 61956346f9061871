"""A publish task: some artifacts of a model, all to one place. May be run again after a crash at any point.

Nothing leaves this machine before every file was hashed again; an artifact that is not what was verified is left out, and the
others go on.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qconvd.destinations import FOLDER, HUB, shown
from qconvd.engine.manifest import Manifest
from qconvd.engine.run import Cancelled
from qconvd.errors import HubBusy, HubRefused, OutOfSpace, QconvdError
from qconvd.hub.client import Hub
from qconvd.publish import folder as folders
from qconvd.publish import hub as repositories
from qconvd.publish.artifact import Artifact, held
from qconvd.publish.folder import Away
from qconvd.publish.modelcard import NAME as CARD
from qconvd.publish.modelcard import card, compose, render
from qconvd.publish.upstream import Upstream, upstream
from qconvd.quantities import show_size
from qconvd.tasks import PublishSpec, TargetResult, TaskResult, TaskSpec

Emit = Callable[[Mapping[str, Any]], None]


def publish_task(spec: TaskSpec, on_event: Emit, cancelled: Callable[[], bool]) -> TaskResult:
    """Publish the targets of a task. Raises `Cancelled`; every error is told of each target that it concerns."""
    place = spec.publish
    assert place is not None, "the daemon gives every publish task a place"
    results: dict[str, TargetResult] = {}
    artifacts: list[Artifact] = []
    hub: Hub | None = None
    if place.destination.startswith(HUB):
        assert spec.hub is not None, "the daemon says how the Hub is reached"
        try:
            hub = Hub.of(spec.hub)
            repositories.reach(hub, place)
        except QconvdError as error:
            print(error, flush=True)
            return TaskResult(ok=False, targets={target.id: _refused(error, hub) for target in spec.targets})
    for target in spec.targets:
        try:
            artifacts.append(held(target.id, target.folder, target.manifest_name, cancelled))
        except QconvdError as error:
            print(f"{target.label or target.id}: {error}", flush=True)
            results[target.id] = TargetResult(ok=False, error=error.as_dict())
    if artifacts:
        try:
            done = _to(place, hub, spec, artifacts, cancelled)
        except QconvdError as error:
            print(error, flush=True)
            return TaskResult(ok=False, targets=results | {a.target: _refused(error, hub) for a in artifacts})
        on_event({"event": "published", "place": shown(place.destination, place.revision), **done})
        results |= {a.target: TargetResult(ok=True, data=done) for a in artifacts}
    return TaskResult(ok=all(r.ok for r in results.values()), targets=results)


def _refused(error: QconvdError, hub: Hub | None) -> TargetResult:
    """A refusal lasts; what is away is tried again, no sooner than it asks for. The Hub may refuse one token only."""
    again = isinstance(error, HubBusy | OutOfSpace | Away)
    wait = {"wait": error.seconds} if isinstance(error, HubBusy) else {}
    asked = {"token": hub.token.fingerprint if hub.token else ""} if hub is not None and isinstance(error, HubRefused) else {}
    # Whoever reads the reason knows the output folder: a place in it that is written short would be looked for there.
    named = {} if hub is not None or not error.where else {"what": f"{error.where}: {error.what}"}
    return TargetResult(ok=False, error={**error.as_dict(), **asked, **named}, retry=again, data=wait)


def _to(
    place: PublishSpec, hub: Hub | None, spec: TaskSpec, artifacts: list[Artifact], cancelled: Callable[[], bool]
) -> dict[str, Any]:
    """Publish to one place; returns what the ledger is to know of it."""
    model = _model(spec, place, artifacts)

    def described(there: list[Manifest], existing: str, where: str) -> str:
        """The card of the place when these artifacts are there beside those that are there already."""
        ours = {a.manifest.artifact: a.manifest for a in artifacts}
        manifests = [*(m for m in there if m.artifact not in ours), *ours.values()]
        repo = place.destination.removeprefix(HUB) if place.destination.startswith(HUB) else ""
        title = Path(place.destination).name
        found = card(model, manifests, title=title, repo=repo, revision=place.revision or "main", by=repo.partition("/")[0])
        template = Path(place.options["card"]) if place.options.get("card") else None
        return compose(*render(found, template), existing, where)

    if hub is None:
        return _to_folder(Path(place.destination.removeprefix(FOLDER)), place, artifacts, described, cancelled)
    return repositories.publish(hub, place, artifacts, described, lambda: still_ours(spec), cancelled)


def _to_folder(
    folder: Path,
    place: PublishSpec,
    artifacts: list[Artifact],
    described: repositories.Described,
    cancelled: Callable[[], bool],
) -> dict[str, Any]:
    told = f"published to {folder}"
    for artifact in artifacts:
        if place.options.get("dry_run"):
            todo = folders.missing(folder, artifact, cancelled)
            told = f"dry run: would copy {_files(len(todo))}, {show_size(sum(f.bytes for f in todo))}, to {folder}"
            print(told, flush=True)
            continue
        existing = folders.existing_card(folder)
        text = described(folders.published(folder), existing, str(folder / CARD))
        changed = folders.publish(folder, artifact, text, cancelled)
        print(f"{artifact.manifest.artifact}: {told}{'' if changed else ', where it was already'}", flush=True)
    return {"told": told, "commit": "", "dry_run": bool(place.options.get("dry_run"))}


def still_ours(spec: TaskSpec) -> None:
    """Ask the ledger whether this attempt may still publish. Raises `Cancelled` if it is somebody else's now."""
    path = spec.state / "ledger.sqlite"
    ledger = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
    try:
        row = ledger.execute("SELECT fence, state FROM task WHERE id = ?", (spec.task,)).fetchone()
    finally:
        ledger.close()
    if row != (spec.fence, "running"):
        raise Cancelled


def _model(spec: TaskSpec, place: PublishSpec, artifacts: list[Artifact]) -> Upstream:
    """What is known of the model: of its origin from the manifest, of itself from its files.

    Of one that is gone from this machine, what its artifacts still tell.
    """
    origin = {key: str(artifacts[0].manifest.source.get(key) or "") for key in ("locator", "revision")}
    found = upstream(spec.source.path, spec.source.name, **origin)
    for artifact in artifacts if not spec.source.path.exists() else ():
        ggufs = [artifact.path(f) for f in artifact.files if f.path.endswith(".gguf")]
        found = upstream(ggufs[0] if ggufs else artifact.folder, spec.source.name, **origin)
    base = str(place.options.get("base_model") or "")
    return dataclasses.replace(found, repo=base) if base and not found.repo else found


def _files(count: int) -> str:
    return f"{count} {'file' if count == 1 else 'files'}"
