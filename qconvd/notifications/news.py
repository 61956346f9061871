"""What is told, as data and in words: short enough for a telephone, with what somebody needs to act."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qconvd.ledger import Pause, Source, Target
from qconvd.notifications.jobs import JobEnd
from qconvd.quantities import show_size

Kind: TypeAlias = Literal["done", "failed", "cancelled", "confirm", "refused", "paused", "resumed", "test"]
News: TypeAlias = Mapping[str, Any]
"""Always all of: `event`, `title`, `text`, `at`, `host`, `job`, `model`, `recipe`, `seconds`, `artifacts`, `reason`, `fix`."""

MOST_LISTED = 12
LONGEST_TITLE = 160
LONGEST_NAME = 96
"""So that the title has room for what became of it."""
LONGEST_REASON = 400


def of_job(end: JobEnd) -> dict[str, Any]:
    """A job that is over."""
    job, source = end.job, end.job.source
    total, made, failed = len(end.targets), len(end.made), len(end.failed)
    took = _seconds(end.seconds)
    last = [f"`qconvd job {job.id}` shows it all."]
    match end.ending:
        case "done":
            title, last = f"{count(total, 'artifact')} in {took}", []
        case "failed":
            title = "failed" if failed == total == 1 else f"{failed} of {count(total, 'artifact')} failed"
            if told := str(end.failed[0].error.get("fix", "")):
                last = [cut(one_line(told)), *last]
        case "cancelled":
            title = "cancelled" if not made else f"cancelled, {made} of {count(total, 'artifact')} made"
        case "confirm":
            title = f"{count(made, 'artifact')} {'waits' if made == 1 else 'wait'} for your word to be published"
            last = [f"`qconvd publish {job.id}` publishes {'it' if made == 1 else 'them'}."]
    text = _lines([_artifact(t, source) for t in (*end.failed, *end.made)], last)
    reason = end.failed[0].told(source) if end.failed else ""
    fix = str(end.failed[0].error.get("fix", "")) if end.failed else ""
    artifacts = [_as_data(t, source) for t in end.targets]
    return _news(
        end.ending, f"{_called(source)}: {title}", text, end.at, job=job.id, model=source.name, recipe=job.recipe,
        seconds=round(end.seconds, 3), artifacts=artifacts, reason=reason, fix=fix,
    )  # fmt: skip


def of_refused(source: Source) -> dict[str, Any]:
    """A model that will not be converted."""
    fix = source.error.get("fix", "")
    text = _lines([cut(one_line(source.reason)), cut(one_line(fix)) if fix else "", cut(one_line(source.locator))], [])
    return _news(
        "refused",
        f"{_called(source)} is not converted",
        text,
        source.changed_at,
        model=source.name,
        reason=source.reason,
        fix=fix,
    )


def of_pause(pause: Pause) -> dict[str, Any]:
    """The daemon holds back by itself."""
    title = f"qconvd on {socket.gethostname()} is paused: a disk is nearly full"
    return _news("paused", title, cut(one_line(pause.reason)), pause.since, reason=pause.reason)


def of_resume(at: float) -> dict[str, Any]:
    """The disk has room again."""
    return _news("resumed", f"qconvd on {socket.gethostname()} goes on", "The disk has room again.", at)


def of_test(at: float) -> dict[str, Any]:
    """What `qconvd notify test` sends."""
    host = socket.gethostname()
    return _news("test", f"A test from qconvd on {host}", "If you read this, notifications arrive.", at)


def _called(source: Source) -> str:
    return cut(one_line(source.name), LONGEST_NAME)


def one_line(text: str) -> str:
    """Text from a model's files, fit for a header: no line breaks, nothing that steers a terminal or a mail program."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text).split())


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _news(event: Kind, title: str, text: str, at: float, **more: Any) -> dict[str, Any]:
    empty: dict[str, Any] = dict(job=None, model="", recipe="", seconds=None, artifacts=[], reason="", fix="")
    said = {"event": event, "title": cut(one_line(title), LONGEST_TITLE), "text": text, "at": at, "host": socket.gethostname()}
    return {**said, **empty, **more}


def _lines(artifacts: Sequence[str], last: Sequence[str]) -> str:
    shown = [line for line in artifacts if line]
    left = len(shown) - MOST_LISTED
    if left > 0:
        shown = [*shown[:MOST_LISTED], f"and {left} more"]
    return "\n".join([*shown, *last])


def _artifact(target: Target, source: Source) -> str:
    if target.state == "failed":
        return f"{one_line(target.label)} failed: {cut(one_line(target.told(source)))}"
    size = int(target.artifact.get("nbytes", 0))
    # Of what is done the state says enough, unless it is known from elsewhere or is at a place of its own.
    told = "" if target.reason in ("done", "") or target.reason.startswith("verified") else f", {one_line(target.reason)}"
    return cut(f"{one_line(target.label)}, {show_size(size)}{told}" if size else f"{one_line(target.label)}{told}")


def _as_data(target: Target, source: Source) -> dict[str, Any]:
    files = [str(path) for path in target.artifact.get("files", ())]
    folder = str(target.artifact.get("folder", ""))
    made = target.state in ("done", "ready")
    return {
        "target": target.id, "label": target.label, "format": target.format, "state": target.state,
        "bytes": int(target.artifact.get("nbytes", 0)) if made else 0,
        "place": (str(Path(folder, files[0])) if len(files) == 1 else folder) if made else "",
        "reason": target.told(source),
    }  # fmt: skip


def _seconds(seconds: float) -> str:
    """`42 s`, `7 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def cut(text: str, most: int = LONGEST_REASON) -> str:
    """A text of at most so many characters; an ellipsis says that there was more."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
