"""`qconvd jobs` and `qconvd job`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qconvd.cli.options import AsJson, ConfigFile
from qconvd.cli.place import opened

if TYPE_CHECKING:
    from qconvd.ledger import Job, Target
    from qconvd.progress import Progress


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
    from qconvd.job_data import job_data, sighting_data
    from qconvd.progress import read_progress
    from qconvd.sightings import read_sightings

    with opened(config) as (place, ledger):
        known = ledger.jobs()
        progress = read_progress(place.state)
    found = [j for j in known if every or j.state != "superseded"]
    awaited = [s for s in read_sightings(place.state) if s.awaited]
    if json:
        output.as_json([*(job_data(j, progress) for j in found), *map(sighting_data, awaited)])
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
    from qconvd.job_data import event_data, job_data, notes_of, publication_data
    from qconvd.progress import read_progress
    from qconvd.quantities import show_size

    with opened(config) as (place, ledger):
        found = ledger.job(id)
        published = [p for t in found.targets for p in ledger.publications(target=t.id) if p.state != "unwanted"]
        progress = read_progress(place.state)
        history = sorted((e for t in found.targets for e in ledger.history(target=t.id)), key=lambda e: e.id)
    labels = {t.id: t.label for t in found.targets}
    if json:
        places = [publication_data(p) for p in published]
        output.as_json({**job_data(found, progress), "publications": places, "history": [event_data(e) for e in history]})
        return
    made = {Path(t.artifact["folder"]).parent for t in found.targets if "folder" in t.artifact}
    inside = made.pop() if len(made) == 1 else None
    output.pairs([
        ("job", found.id), ("model", found.source.name), ("source", found.source.locator), ("recipe", found.recipe),
        ("output", inside or ""), ("state", found.state),
        ("priority", found.priority or ""),
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


def when(seconds: float) -> str:
    """A time as people here write it."""
    from datetime import datetime

    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


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
