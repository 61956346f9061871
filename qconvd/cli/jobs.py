"""`qconvd jobs` and `qconvd job`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qconvd.cli.options import AsJson, ConfigFile
from qconvd.cli.place import opened

if TYPE_CHECKING:
    from qconvd.ledger import Job, Target
    from qconvd.progress import Progress
    from qconvd.sightings import Sighting


def jobs(
    config: ConfigFile = None,
    json: AsJson = False,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="Also those that were replaced, or whose models are gone.")
    ] = False,
) -> None:
    """List jobs: one model times one recipe, newest last.

    Models that are not complete have no number yet; they come last, with what is missing.
    """
    from qconvd.cli import output
    from qconvd.hub.address import is_address
    from qconvd.progress import read_progress
    from qconvd.sightings import read_sightings

    with opened(config) as (place, ledger):
        known = ledger.jobs()
        progress = read_progress(place.state)
    found = [j for j in known if every or j.state != "superseded"]
    awaited = [s for s in read_sightings(place.state) if s.awaited]
    if json:
        output.as_json([*(_job(j, progress) for j in found), *map(_awaited, awaited)])
        return
    if found or awaited:
        rows: list[tuple[object, ...]] = [
            (j.id, j.source.name, j.recipe, j.state, _count(j), _percent(j, progress)) for j in found
        ]
        rows += [("-", s.name, ", ".join(s.recipes), s.kind, "", "") for s in awaited]
        reasons = [[_said(j.state, j.told)] for j in found] + [[s.reason, s.fix if is_address(s.path) else ""] for s in awaited]
        output.table(("JOB", "MODEL", "RECIPE", "STATE", "DONE", ""), rows, right=(0, 4, 5), sentences=reasons)
    else:
        print("There are no jobs yet.")
    if hidden := len(known) - len(found):
        text = (
            "1 job that was replaced, or whose model is gone, is"
            if hidden == 1
            else f"{hidden} jobs that were replaced, or whose models are gone, are"
        )
        output.note(f"{text} not shown; --all shows {'it' if hidden == 1 else 'them'}.")


def job(
    id: Annotated[str, typer.Argument(metavar="JOB", help="The job's number.")],
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Show one job and its history.

    Its artifacts with their states and reasons, what the plans say of them, and what happened when.
    """
    from qconvd.cli import output
    from qconvd.progress import read_progress
    from qconvd.quantities import show_size

    with opened(config) as (place, ledger):
        found = ledger.job(id)
        published = [p for t in found.targets for p in ledger.publications(target=t.id) if p.state != "unwanted"]
        progress = read_progress(place.state)
        history = sorted((e for t in found.targets for e in ledger.history(target=t.id)), key=lambda e: e.id)
    labels = {t.id: t.label for t in found.targets}
    if json:
        events = [{"at": e.at, "target": e.target, "from": e.from_state, "to": e.to_state, "reason": e.reason} for e in history]
        places = [
            {"target": p.target, "destination": p.destination, "revision": p.revision, "state": p.state, "reason": p.reason,
             "commit": p.commit_id, "error": p.error}
            for p in published
        ]  # fmt: skip
        output.as_json({**_job(found, progress), "publications": places, "history": events})
        return
    made = {Path(t.artifact["folder"]).parent for t in found.targets if "folder" in t.artifact}
    inside = made.pop() if len(made) == 1 else None
    output.pairs([
        ("job", found.id), ("model", found.source.name), ("source", found.source.locator), ("recipe", found.recipe),
        ("output", inside or ""), ("state", found.state),
    ])  # fmt: skip
    print()
    rows, sentences = [], []
    for target in found.targets:
        size = int((target.artifact or target.plan).get("nbytes", 0))
        place_of = Path(target.artifact.get("folder", target.folder))
        place_of = place_of.relative_to(inside) if inside and place_of.is_relative_to(inside) else place_of
        rows.append(
            (target.id, target.label, _state(target, progress.get(target.id)), show_size(size) if size else "", f"{place_of}/")
        )
        sentences.append([_said(target.state, target.told(found.source)), target.error.get("fix", ""), *notes_of(target)])
    output.table(("TARGET", "", "STATE", "SIZE", "FOLDER"), rows, right=(3,), sentences=sentences)
    print()
    if published:
        output.table(
            ("PUBLISHED TO", "TARGET", "STATE", "COMMIT"),
            [(p.place, labels[p.target], _PUBLISHED.get(p.state, p.state), p.commit_id[:8]) for p in published],
            sentences=[[] if p.state == "done" else [p.reason] for p in published],
        )
        print()
    output.table(
        ("WHEN", "TARGET", "STATE"),
        [(when(e.at), labels.get(e.target or "", ""), e.to_state) for e in history],
        sentences=[[_said(e.to_state, e.reason)] for e in history],
    )


_PUBLISHED = {"open": "waiting", "awaiting": "waits for `qconvd publish JOB`", "rehearsed": "dry run"}


def notes_of(target: Target) -> list[str]:
    """What a target's plan has to say: tensors that fall back to another type and why, what the format cannot hold."""
    from qconvd.plan_words import told

    return told(target.plan)


def when(seconds: float) -> str:
    """A time as people here write it."""
    from datetime import datetime

    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _job(job: Job, progress: dict[str, Progress]) -> dict[str, Any]:
    return {
        "job": job.id, "model": job.source.name, "source": job.source.locator,
        "version": job.source.version, "recipe": job.recipe,
        "state": job.state, "reason": job.reason, "created_at": job.created_at, "changed_at": job.changed_at,
        "targets": [
            {
                "id": t.id, "label": t.label, "format": t.format, "options": dict(t.options), "state": t.state,
                "reason": t.reason,
                "error": dict(t.error), "failures": t.failures, "folder": t.folder, "manifest": t.manifest_name,
                "planned_bytes": t.plan.get("nbytes"), "notes": notes_of(t), "artifact": dict(t.artifact),
                "progress": {"done": p.done, "total": p.total, "seconds": p.seconds} if (p := progress.get(t.id)) else None,
            }
            for t in job.targets
        ],
    }  # fmt: skip


def _awaited(sighting: Sighting) -> dict[str, Any]:
    """A model that is not complete, with the keys of a job."""
    return {
        "job": None, "model": sighting.name, "source": sighting.path, "recipe": ", ".join(sighting.recipes),
        "state": sighting.kind, "reason": sighting.reason, "fix": sighting.fix, "targets": [],
    }  # fmt: skip


def _said(state: str, reason: str) -> str:
    """A reason that says more than the state does."""
    return "" if reason == state else reason


def _state(target: Target, progress: Progress | None) -> str:
    if target.state != "converting" or progress is None or not progress.total:
        return target.state
    return f"converting {100 * progress.done // progress.total} %"


def _count(job: Job) -> str:
    live = [t for t in job.targets if t.state != "superseded"]
    return f"{sum(t.state == 'done' for t in live)}/{len(live)}"


def _percent(job: Job, progress: dict[str, Progress]) -> str:
    running = [progress[t.id] for t in job.targets if t.id in progress]
    total = sum(p.total for p in running)
    return f"{100 * sum(p.done for p in running) // total} %" if job.state == "converting" and total else ""
