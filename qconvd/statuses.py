"""The status files of all models: made from the ledger and from what is still arriving, written when something changed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from qconvd import intake, status_file
from qconvd.ledger import Ledger, Source, Target
from qconvd.plan_words import told
from qconvd.status_file import ArtifactStatus, ModelStatus
from qconvd.watch.settle import Candidate
from qconvd.wishes import REMEDY

log = logging.getLogger(__name__)
SHARE = 0.1
"""Of the daemon's time, what writing may take: with a thousand models it takes a while, and each task is a reason."""
STATES = {"planned": "waiting"}
"""A state that only the ledger tells apart."""


class Statuses:
    """Keeps `<output>/<model>.status.txt` true."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._not_before = 0.0
        self._seen: tuple[object, ...] = ()
        self._complained = ""

    def tick(
        self, output: Path, candidates: Iterable[Candidate], refusals: Mapping[int, str], *, at_once: bool = False
    ) -> None:
        """Write what changed since the last call, and take away what speaks of models that are no more.

        Unless it is wanted `at_once`, what changed just after something was written waits for a later call.
        """
        began = self._clock()
        if began < self._not_before and not at_once:
            return
        arriving = [c for c in candidates if c.verdict in ("settling", "waiting")]
        seen = (output, self._ledger.mark(), tuple((c.path, c.reason) for c in arriving), tuple(sorted(refusals.items())))
        if seen == self._seen:
            return
        try:
            self._write(output, arriving, refusals)
        except OSError as error:
            self._complain(output, error)
        else:
            self._seen, self._complained = seen, ""
        ended = self._clock()
        self._not_before = ended + (ended - began) * (1 / SHARE - 1)

    def _write(self, output: Path, arriving: list[Candidate], refusals: Mapping[int, str]) -> None:
        files: dict[Path, list[ModelStatus]] = {}

        def say(status: ModelStatus) -> None:
            files.setdefault(status_file.path_of(output, status.name), []).append(status)

        waiting = {str(c.path): c for c in arriving}
        with self._ledger.snapshot():
            sources = self._ledger.sources()
            live: dict[int, list[Target]] = {}
            for target in self._ledger.targets():
                if target.state != "superseded":
                    live.setdefault(target.source, []).append(target)
        for source in sources:
            candidate = waiting.pop(source.locator, None)
            targets = live.get(source.id, [])
            if candidate is not None:
                say(_arriving(candidate, source.name, [_artifact(t, source) for t in targets]))
            elif source.state != "gone" or any(t.state != "cancelled" for t in targets):
                say(_of_source(source, targets, refusals.get(source.id, "")))
        for candidate in waiting.values():
            say(_arriving(candidate, intake.name_of(candidate.path), []))
        failed: OSError | None = None
        for path, statuses in files.items():
            try:
                status_file.write(path, statuses)
            except OSError as error:
                failed = error  # somebody's folder may have the name; that is no reason to tell nothing of the others
        for path in status_file.written(output) - set(files):
            status_file.remove(path)
        if failed is not None:
            raise failed

    def _complain(self, output: Path, error: OSError) -> None:
        place, reason = error.filename2 or error.filename or output, os.strerror(error.errno or 0)
        if self._complained != (said := f"{place}: {reason}"):
            self._complained = said
            log.error("no status can be written to %s", said, extra={"action": "status.unwritable", "folder": output})


def _arriving(candidate: Candidate, name: str, artifacts: Iterable[ArtifactStatus]) -> ModelStatus:
    remedy = candidate.look.fix if candidate.verdict == "waiting" else ""
    return ModelStatus(name, candidate.path, "waiting", f"{candidate.reason}.", remedy, tuple(artifacts))


def _of_source(source: Source, targets: list[Target], refusal: str) -> ModelStatus:
    state, reason, remedy = _verdict(source, targets, refusal)
    return ModelStatus(source.name, Path(source.locator), state, reason, remedy, tuple(_artifact(t, source) for t in targets))


def _verdict(source: Source, targets: list[Target], refusal: str) -> tuple[str, str, str]:
    """State, reason and remedy of a model: what can still be mended comes first."""
    if source.state == "refused":
        return "refused", f"{source.reason}.", source.error.get("fix", "")
    if not targets:
        why = refusal or "no recipe wants it"
        return (
            "not converted",
            f"{why[0].upper()}{why[1:]}.",
            REMEDY,
        )
    made = sum(map(_in_place, targets))
    count = f"Artifacts made: {made} of {len(targets)}"
    failed = [t for t in targets if t.state == "failed"]
    pending = [t for t in targets if t.pending]
    if pending:
        states = {STATES.get(t.state, t.state) for t in pending}
        state = next(s for s in ("converting", "verifying", "publishing", "waiting", "ready") if s in states)
        worst = failed[0].error.get("fix", "") if failed else ""
        return state, f"{count}.", worst
    if failed:
        fixes = dict.fromkeys(t.error.get("fix", "") for t in failed)
        remedy = "\n".join(filter(None, fixes)) or "look at the log with `qconvd logs JOB`, then `qconvd retry JOB`"
        return "failed", f"{count}.", remedy
    if made < len(targets):
        return "cancelled", f"{count}. The rest was cancelled.", "`qconvd retry JOB` begins again"
    where = f" The source: {source.reason}." if source.state == "gone" else ""
    return "done", f"All that the recipes ask for is made and verified.{where}", ""


def _in_place(target: Target) -> bool:
    """Whether the artifact is made and verified, whatever becomes of publishing it."""
    return target.state in ("ready", "publishing", "done") or (target.state == "failed" and bool(target.artifact))


def _artifact(target: Target, source: Source) -> ArtifactStatus:
    done = target.state == "done"
    state = STATES.get(target.state, target.state)
    size = int((target.artifact if done else target.plan).get("nbytes", 0))
    # Of what is on its way or done the state says enough, unless there is something to wait for or another place to look at.
    plain = target.reason == target.state or (done and not target.reason.startswith("published to"))
    reason = "" if plain else target.told(source)
    place = f"{target.folder}/" if _in_place(target) else ""
    notes = () if target.state in ("failed", "cancelled") else tuple(told(target.plan))
    return ArtifactStatus(target.label, state, reason, size, place, notes)
