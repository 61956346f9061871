"""`qconvd status`."""

from __future__ import annotations

from qconvd.cli.jobs import opened
from qconvd.cli.options import AsJson, ConfigFile


def status(config: ConfigFile = None, json: AsJson = False) -> None:
    """Show whether the daemon runs, and what it does now."""
    from qconvd.cli import output
    from qconvd.cli.requests import running
    from qconvd.progress import read_progress
    from qconvd.quantities import show_duration, show_size

    with opened(config) as (loaded, ledger):
        pid = running(loaded)
        jobs = ledger.jobs()
        tasks = ledger.tasks("running")
        refused = [s for s in ledger.sources() if s.state == "refused"]
        labels = {t.id: t.label for j in jobs for t in j.targets}
        names = {j.source.id: j.source.name for j in jobs}
        progress = read_progress(loaded.state) if pid else {}
    states: dict[str, int] = {}
    for job in jobs:
        states[job.state] = states.get(job.state, 0) + 1
    states.pop("superseded", None)
    if json:
        running_tasks = (
            [{"task": t.id, "kind": t.kind, "targets": t.targets, "attempt": t.attempt} for t in tasks] if pid else []
        )
        refusals = [{"path": s.locator, "reason": s.reason, **s.error} for s in refused]
        output.as_json({"config": loaded.path, "daemon": pid, "jobs": states, "running": running_tasks, "refused": refusals})
        return
    print(f"The daemon runs (process {pid})." if pid else "No daemon runs; `qconvd run` starts one.")
    print(f"Jobs: {', '.join(f'{n} {state}' for state, n in states.items()) or 'none yet'}.")
    for task in tasks if pid else ():
        print(f"\n{task.kind} of {output.safe(names.get(task.source, 'a model'))} (task {task.id}, attempt {task.attempt})")
        for target in task.targets:
            now = progress.get(target)
            if now is None or task.kind != "convert":
                print(f"  {labels.get(target, target)}")
                continue
            left = f", {show_duration(now.left)} left" if now.left is not None else ""
            percent = 100 * now.done // max(1, now.total)
            print(f"  {labels.get(target, target)}: {percent} % of {show_size(now.total)}, {show_size(now.rate)}/s{left}")
    for source in refused:
        print(f"\n{output.safe(source.locator)} is not converted: {output.safe(source.reason)}")
        if source.error.get("fix"):
            print(f"  {output.safe(source.error['fix'])}")
