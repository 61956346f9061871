"""What `qconvd convert` shows while it works: bars on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from qconvd.once import Made, Stage
from qconvd.plan_words import told, told_once
from qconvd.progress import Progress
from qconvd.quantities import show_duration, show_size

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from qconvd.errors import QconvdError

WORDS: Mapping[Stage, str] = {
    "plan": "planning", "fetch": "fetching", "convert": "converting", "verify": "verifying", "publish": "publishing"
}  # fmt: skip
LINE_EVERY = 5.0
"""Seconds between two plain lines about one target."""
WEIGHTS = (".gguf", ".safetensors", ".bin")
LARGE = 1 << 20


class Shown:
    """A `Listener` that prints. Use as a context manager; `seconds` is how long it took so far."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.began = False
        self._start = time.monotonic()
        self._quiet = quiet
        self._bars: Bars | None = None
        self._rows: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._passes: dict[str, tuple[str, ...]] = {}
        self._doing: dict[tuple[str, ...], dict[str, tuple[str, float]]] = {}
        self._plans: dict[str, Mapping[str, Any]] = {}

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not self._quiet:
            self._bars = _bars()
        return self

    def __exit__(self, *exc: object) -> None:
        self._tell_plans()
        if self._bars is not None:
            self._bars.stop()

    def stage(self, stage: Stage, labels: Sequence[str]) -> None:
        self.began = self.began or stage != "plan"
        self._tell_plans()
        if self._bars is not None:
            # Not before: it has a thread, and whoever starts workers may fork.
            self._bars.start()
        self._passes.update(dict.fromkeys(labels, tuple(labels)))
        self._doing.pop(tuple(labels), None)
        for label in labels:
            if self._bars is None:
                continue
            if label not in self._rows:
                self._rows[label] = self._bars.add_task(label, total=None, stage="", rate="", left="", amount="")
            total = 1 if stage == "verify" else None
            self._bars.update(
                self._rows[label], stage=WORDS[stage], total=total, completed=total or 0, rate="", left="", refresh=True
            )
        self._line(f"{WORDS[stage]} {', '.join(labels)}")

    def planned(self, label: str, plan: Mapping[str, Any]) -> None:
        if self._bars is not None:
            self._bars.update(self._rows[label], amount=show_size(plan["nbytes"]), stage="planned")
        self._line(f"{label}: {show_size(plan['nbytes'])} ({plan['nbytes']:,} bytes)")
        self._plans[label] = plan

    def progress(self, label: str, progress: Progress) -> None:
        if progress.doing:
            if self._bars is not None:
                self._bars.update(self._rows[label], left=progress.doing)
            self._tell(label, progress.doing)
            return
        done, total, rate, left = progress.done, progress.total, f"{show_size(progress.rate)}/s", progress.left
        shown_left = f"{show_duration(max(1, round(left)))} left" if left and done < total else ""
        if self._bars is not None:
            self._bars.update(self._rows[label], completed=done, total=total, rate=rate, left=shown_left)
        # Small models are over before anybody could read this.
        elif done and time.monotonic() - self._said.get(label, self._start) >= LINE_EVERY:
            self._said[label] = time.monotonic()
            percent = 100 * done // max(1, total)
            pace = f", {rate}, {shown_left}" if shown_left else ""
            self._line(f"{label}: {percent} %, {show_size(done)} of {show_size(total)}{pace}")

    def waiting(self, reason: str) -> None:
        self._tell_plans()
        self._aloud(f"waiting: {reason}")

    def done(self, label: str) -> None:
        if self._bars is not None:
            self._bars.update(self._rows[label], stage="done")
        self._line(f"{label} is done")

    def failed(self, label: str, error: QconvdError) -> None:
        if self._bars is not None and label in self._rows:
            self._bars.update(self._rows[label], stage="failed", rate="", left="")
        self._line(f"{label} failed: {error.what}")

    def _tell(self, label: str, doing: str) -> None:
        """What a pass is at, in one line for all its targets. A part that is told of again and again is a line now and then."""
        targets = self._passes.get(label, (label,))
        told = self._doing.setdefault(targets, {})
        now, part = time.monotonic(), doing.partition(",")[0]
        text, at = told.get(part, ("", 0.0))
        if not text or (text != doing and now - at >= LINE_EVERY):
            told[part] = doing, now
            self._line(doing if len(targets) > 1 else f"{label}: {doing}")

    def _tell_plans(self) -> None:
        """What the plans say, once all of them are there: each sentence once, with the targets that it is true of."""
        plans, self._plans = self._plans, {}
        said = {label: told(plan) for label, plan in plans.items()}
        for labels, sentences in told_once(said).items():
            for sentence in sentences:
                self._aloud(f"{', '.join(labels)}: {sentence}")

    def _line(self, text: str) -> None:
        if self._bars is None and not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def _aloud(self, text: str) -> None:
        """What is worth a line on a terminal, too."""
        if self._bars is not None:
            self._bars.console.print(text)
        self._line(text)


def bits_of(made: Made) -> str:
    """Bits per weight of an artifact's weight files; empty where they are not known."""
    if made.manifest is None or not made.manifest.errors.get("weights"):
        return ""
    stored = sum(f.bytes for f in made.manifest.files if f.path.endswith(WEIGHTS))
    return f"{8 * stored / made.manifest.errors['weights']:.2f}"


def relative(made: Made) -> float | None:
    """Root mean square of the error over that of the weights; None where it was not measured."""
    value = made.manifest.errors.get("relative_rms") if made.manifest else None
    return None if value is None else float(value)


def _bars() -> Bars:
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    from qconvd.cli.output import console

    return Bars(
        TextColumn("{task.description}"),
        TextColumn("{task.fields[stage]}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[amount]}", justify="right"),
        TextColumn("{task.fields[rate]}", justify="right"),
        TextColumn("{task.fields[left]}", justify="right"),
        console=console(stderr=True),
    )
