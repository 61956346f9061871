"""`qconvd status`."""

from __future__ import annotations

from pathlib import Path

from qconvd.cli.options import AsJson, ConfigFile
from qconvd.cli.reached import Url, elsewhere, reached


def status(config: ConfigFile = None, json: AsJson = False, url: Url = None) -> None:
    """Show what the daemon does now, and what it waits for."""
    from qconvd.cli import output
    from qconvd.service.files import start_of

    address = elsewhere(config, url)
    with reached(config, url) as daemon:
        found = daemon.status()
    if json:
        output.as_json(found)
        return
    pid = found["pid"]
    where = f" at {address}" if address else ""
    start = "" if pid else start_of(Path(found["config"]))
    print(f"The daemon{where} runs (process {pid})." if pid else f"No daemon runs; `{start}` starts one.")
    if found["trouble"]:
        print(output.filled(f"It cannot go on: {found['trouble']}"))
    why = " `qconvd jobs` says why." if "failed" in found["jobs"] else ""
    print(f"Jobs: {output.safe(', '.join(f'{n} {state}' for state, n in found['jobs'].items())) or 'none yet'}.{why}")
    # What the clock and the disk say, only a daemon finds out.
    for pause in (p for p in found["pauses"] if pid or p["cause"] == "by hand"):
        print(output.filled(f"P{pause['told'][1:]}."))
    for one in found["notifications"]:
        print(output.filled(f"Cannot be told: {one['told']}."))
    for task in found["running"]:
        print(f"\n{output.safe(task['kind'])} of {output.safe(task['model'])} (task {task['task']}, attempt {task['attempt']})")
        for target in task["targets"]:
            shown = task["kind"] in ("convert", "fetch") and target["progress"]
            print(output.safe(f"  {target['label']}: {target['progress']['told']}" if shown else f"  {target['label']}"))
    waits = "waits" if pid else "waited when the daemon ended"
    words = {
        "arriving": waits, "incomplete": waits, "refused": f"{waits} for you", "unwanted": "is not converted",
        "unreadable": "cannot be read" if pid else "could not be read when the daemon ended",
    }  # fmt: skip
    for sighting in found["seen"]:
        _tell(f"{sighting['path']} {words[sighting['kind']]}: {sighting['reason']}", sighting["fix"])
    for source in found["refused"]:
        _tell(f"{source['path']} is not converted: {source['reason']}", source["fix"])


def _tell(sentence: str, fix: str) -> None:
    from qconvd.cli import output

    print(f"\n{output.filled(sentence)}")
    if fix:
        print(output.filled(fix, "  "))
