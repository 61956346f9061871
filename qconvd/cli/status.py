"""`qconvd status`."""

from __future__ import annotations

from qconvd.cli.options import AsJson, ConfigFile
from qconvd.cli.place import opened


def status(config: ConfigFile = None, json: AsJson = False) -> None:
    """Show what the daemon does now, and what it waits for."""
    from qconvd.cli import output
    from qconvd.progress import read_progress
    from qconvd.sightings import read_sightings

    with opened(config) as (place, ledger):
        pid = place.daemon
        jobs = ledger.jobs()
        pauses = ledger.pauses()
        tasks = ledger.tasks("running") if pid else []
        unreached = ledger.notifiers_in_trouble()
        refused = [s for s in ledger.sources() if s.state == "refused"]
        labels = {t.id: t.label for j in jobs for t in j.targets}
        names = {j.source.id: j.source.name for j in jobs}
        progress = read_progress(place.state) if pid else {}
        seen = read_sightings(place.state)
    states: dict[str, int] = {}
    for job in jobs:
        states[job.state] = states.get(job.state, 0) + 1
    states.pop("superseded", None)
    if json:
        output.as_json({
            "config": place.config, "config_mistakes": place.mistakes, "daemon": pid, "jobs": states,
            "paused": [{"cause": p.cause, "reason": p.reason, "since": p.since} for p in pauses],
            "running": [{"task": t.id, "kind": t.kind, "targets": t.targets, "attempt": t.attempt} for t in tasks],
            "notifications": [
                {"notifier": n.notifier, "reason": n.reason, "since": n.since, "waiting": n.waiting} for n in unreached
            ],
            "refused": [{"path": s.locator, "reason": s.reason, **s.error} for s in refused],
            "seen": [{"kind": s.kind, "path": s.path, "reason": s.reason, "fix": s.fix} for s in seen],
        })  # fmt: skip
        return
    print(f"The daemon runs (process {pid})." if pid else "No daemon runs; `qconvd run` starts one.")
    print(f"Jobs: {', '.join(f'{n} {state}' for state, n in states.items()) or 'none yet'}.")
    # What the clock and the disk say, only a daemon finds out.
    for pause in (p for p in pauses if pid or p.cause == "by hand"):
        print(output.filled(f"P{pause.told[1:]}."))
    for one in unreached:
        print(output.filled(f"Cannot be told: {one.told}."))
    for task in tasks:
        print(f"\n{task.kind} of {output.safe(names.get(task.source, 'a model'))} (task {task.id}, attempt {task.attempt})")
        for target in task.targets:
            now = progress.get(target)
            if now is None or task.kind not in ("convert", "fetch"):
                print(f"  {labels.get(target, target)}")
                continue
            print(f"  {labels.get(target, target)}: {now.told}")
    waits = "waits" if pid else "waited when the daemon ended"
    words = {
        "arriving": waits, "incomplete": waits, "refused": f"{waits} for you", "unwanted": "is not converted",
        "unreadable": "cannot be read" if pid else "could not be read when the daemon ended",
    }  # fmt: skip
    for sighting in seen:
        _tell(f"{sighting.path} {words[sighting.kind]}: {sighting.reason}", sighting.fix)
    for source in refused:
        _tell(f"{source.locator} is not converted: {source.reason}", source.error.get("fix", ""))


def _tell(sentence: str, fix: str) -> None:
    from qconvd.cli import output

    print(f"\n{output.filled(sentence)}")
    if fix:
        print(output.filled(fix, "  "))
