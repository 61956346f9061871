"""`qconvd jobs` and `qconvd job`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qconvd.cli.options import AsJson, ConfigFile

if TYPE_CHECKING:
    from qconvd.config import Config
    from qconvd.ledger import Job, Ledger, Target
    from qconvd.progress import Progress


def jobs(
    config: ConfigFile = None,
    json: AsJson = False,
    every: Annotated[bool, typer.Option("--all", "-a", help="Also those that something newer has replaced.")] = False,
) -> None:
    """List jobs: one model times one recipe, newest last."""
    from qconvd.cli import output
    from qconvd.progress import read_progress

    with opened(config) as (loaded, ledger):
        found = [j for j in ledger.jobs() if every or j.state != "superseded"]
        progress = read_progress(loaded.state)
    if json:
        output.as_json([_job(j, progress) for j in found])
    elif not found:
        print("There are no jobs yet.")
    else:
        rows = [(j.id, j.source.name, j.recipe, j.state, _count(j), _percent(j, progress), j.reason) for j in found]
        output.table(("JOB", "MODEL", "RECIPE", "STATE", "DONE", "", "REASON"), rows, right=(0, 4, 5), whole=(2, 3))


def job(
    id: Annotated[str, typer.Argument(metavar="JOB", help="The job's number.")],
    config: ConfigFile = None,
    json: AsJson = False,
) -> None:
    """Show one job and its history.

    Its artifacts with their states and reasons, and what happened when.
    """
    from qconvd.cli import output
    from qconvd.progress import read_progress

    with opened(config) as (loaded, ledger):
        found = ledger.job(id)
        progress = read_progress(loaded.state)
        history = sorted((e for t in found.targets for e in ledger.history(target=t.id)), key=lambda e: e.id)
    labels = {t.id: t.label for t in found.targets}
    if json:
        events = [{"at": e.at, "target": e.target, "from": e.from_state, "to": e.to_state, "reason": e.reason} for e in history]
        output.as_json({**_job(found, progress), "history": events})
        return
    output.pairs([
        ("job", found.id), ("model", found.source.name), ("source", found.source.locator), ("recipe", found.recipe),
        ("state", found.state), ("reason", found.reason),
    ])  # fmt: skip
    print()
    rows = [(t.id, t.label, _state(t, progress.get(t.id)), t.artifact.get("folder", t.folder), t.reason) for t in found.targets]
    output.table(("TARGET", "", "STATE", "FOLDER", "REASON"), rows, whole=(0, 1, 2))
    for target in found.targets:
        if target.error.get("fix"):
            print(f"\n{target.label}: {output.safe(target.error['fix'])}")
    print()
    output.table(
        ("WHEN", "TARGET", "STATE", ""),
        [(when(e.at), labels.get(e.target or "", ""), e.to_state, e.reason) for e in history],
        whole=(0, 1),
    )


def when(seconds: float) -> str:
    """A time as people here write it."""
    from datetime import datetime

    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


@contextmanager
def opened(file: Any) -> Iterator[tuple[Config, Ledger]]:
    """The config and its ledger, to read from. Raises `QconvdError` if no daemon ever ran."""
    from qconvd.cli.options import load_config
    from qconvd.cli.requests import check_ledger, ledger_path
    from qconvd.ledger import Ledger
    from qconvd.ledger.database import in_words

    config = load_config(file)
    check_ledger(config)
    ledger = Ledger(ledger_path(config))
    try:
        with in_words(ledger.path):
            yield config, ledger
    finally:
        ledger.close()


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
                "planned_bytes": t.plan.get("nbytes"), "artifact": dict(t.artifact),
                "progress": {"done": p.done, "total": p.total, "seconds": p.seconds} if (p := progress.get(t.id)) else None,
            }
            for t in job.targets
        ],
    }  # fmt: skip


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
