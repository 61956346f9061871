"""What a line of the log is about, as fields for `extra`. docs/reference/logging.md lists them."""

from __future__ import annotations

from typing import Any

from qconvd.ledger import Ledger, Notification, Source, Target, Task


def about_source(source: Source) -> dict[str, Any]:
    """A model and where it lies."""
    return {"model": source.name, "source": source.locator}


def about_target(ledger: Ledger, target: Target) -> dict[str, Any]:
    """An artifact to be, its model, and the jobs that want it."""
    jobs = ledger.job_numbers([target.id])
    return {**about_source(ledger.source(target.source)), "jobs": jobs, "target": target.id, "artifact": target.label}


def about_task(ledger: Ledger, task: Task) -> dict[str, Any]:
    """A task, what it works on, and where."""
    return {
        **about_source(ledger.source(task.source)), "jobs": ledger.job_numbers(task.targets), "targets": task.targets,
        "task": task.id, "kind": task.kind, "attempt": task.attempt,
        "device": task.placed.get("id") or task.placed.get("kind") or task.device,
    }  # fmt: skip


def about_notification(notification: Notification) -> dict[str, Any]:
    """Who is told, and of what."""
    told = notification.news
    jobs = [told["job"]] if told.get("job") is not None else []
    return {"notifier": notification.notifier, "model": told.get("model", ""), "jobs": jobs}
