"""`qconvd jobs` and `qconvd job`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qconvd.cli.options import AsJson, ConfigFile
from qconvd.cli.reached import Url, reached

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qconvd.client import Document


def jobs(
    config: ConfigFile = None,
    json: AsJson = False,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="Also those that were replaced, or whose models are gone.")
    ] = False,
    url: Url = None,
) -> None:
    """List jobs: one model times one recipe, newest last.

    Models that are not complete, or cannot be converted, have no number; they come last, with what is missing or wrong.
    """
    from qconvd.cli import output
    from qconvd.sightings import AWAITED

    with reached(config, url) as daemon:
        known, status = daemon.jobs(), daemon.status()
    found = [j for j in known if every or j["state"] != "superseded"]
    awaited = [_no_job(s, s["kind"], s["recipes"]) for s in status["seen"] if s["kind"] in AWAITED]
    awaited += [_no_job(r, "refused", ()) for r in status["refused"]]
    if json:
        output.as_json([*found, *awaited])
        return
    if found or awaited:
        rows: list[tuple[object, ...]] = [
            (j["job"], j["model"], j["recipe"], j["state"], _count(j), _percent(j)) for j in found
        ]
        rows += [("-", j["model"], j["recipe"], j["state"], "", "") for j in awaited]
        reasons = [[_said(j["state"], j["told"])] for j in found]
        reasons += [[j["told"], j["fix"]] for j in awaited]
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
    url: Url = None,
) -> None:
    """Show one job and its history.

    Its artifacts with their states and reasons, what the plans say of them, and what happened when.
    """
    from qconvd.cli import output
    from qconvd.quantities import show_size

    with reached(config, url) as daemon:
        found = daemon.job(id)
    if json:
        output.as_json(found)
        return
    targets = found["targets"]
    labels = {t["id"]: t["label"] for t in targets}
    made = {Path(t["artifact"]["folder"]).parent for t in targets if "folder" in t["artifact"]}
    inside = made.pop() if len(made) == 1 else None
    output.pairs([
        ("job", found["job"]), ("model", found["model"]), ("source", found["source"]), ("recipe", found["recipe"]),
        ("output", inside or ""), ("state", found["state"]), ("priority", found["priority"] or ""),
    ])  # fmt: skip
    print()
    rows, sentences = [], []
    for target in targets:
        size = int(target["artifact"].get("nbytes") or target["planned_bytes"] or 0)
        place = Path(target["artifact"].get("folder", target["folder"]))
        place = place.relative_to(inside) if inside and place.is_relative_to(inside) else place
        rows.append((target["id"], target["label"], _state(target), show_size(size) if size else "", f"{place}/"))
        sentences.append([_said(target["state"], target["told"]), target["error"].get("fix", ""), *target["notes"]])
    output.table(("TARGET", "", "STATE", "SIZE", "FOLDER"), rows, right=(3,), sentences=sentences)
    print()
    if published := found["publications"]:
        output.table(
            ("PUBLISHED TO", "TARGET", "STATE", "COMMIT"),
            [(p["place"], labels[p["target"]], _PUBLISHED.get(p["state"], p["state"]), p["commit"][:8]) for p in published],
            sentences=[[] if p["state"] == "done" else [p["reason"]] for p in published],
        )
        print()
    output.table(
        ("WHEN", "TARGET", "STATE"),
        [(when(e["at"]), labels.get(e["target"] or "", ""), e["to"]) for e in found["history"]],
        sentences=[[_said(e["to"], e["reason"])] for e in found["history"]],
    )


_PUBLISHED = {"open": "waiting", "awaiting": "waits for `qconvd publish JOB`", "rehearsed": "dry run"}


def when(seconds: float) -> str:
    """A time as people here write it."""
    from datetime import datetime

    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _said(state: str, reason: str) -> str:
    """A reason that says more than the state does."""
    return "" if reason == state else reason


def _no_job(seen: Document, state: str, recipes: Sequence[str]) -> Document:
    """A model that is not complete or was refused, with the keys of a job."""
    return {
        "job": None, "model": seen["name"], "source": seen["path"], "recipe": ", ".join(recipes),
        "state": state, "reason": seen["reason"], "told": seen["reason"], "fix": seen["fix"], "targets": [],
    }  # fmt: skip


def _state(target: Document) -> str:
    progress = target["progress"]
    if target["state"] != "converting" or progress is None or not progress["total"]:
        return str(target["state"])
    return f"converting {100 * progress['done'] // progress['total']} %"


def _count(job: Document) -> str:
    live = [t for t in job["targets"] if t["state"] != "superseded"]
    return f"{sum(t['state'] == 'done' for t in live)}/{len(live)}"


def _percent(job: Document) -> str:
    running = [t["progress"] for t in job["targets"] if t["progress"]]
    total = sum(p["total"] for p in running)
    return f"{100 * sum(p['done'] for p in running) // total} %" if job["state"] == "converting" and total else ""
