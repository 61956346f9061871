"""Jobs and what belongs to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qconvd.ledger import Event, Job, Ledger, Publication, Source, Target
from qconvd.plan_words import told
from qconvd.progress import Progress, read_progress


def job_data(job: Job, progress: Mapping[str, Progress]) -> dict[str, Any]:
    """A job with its targets. Times are seconds since 1970, sizes are bytes."""
    return {
        "job": job.id, "model": job.source.name, "source": job.source.locator,
        "version": job.source.version, "recipe": job.recipe, "priority": job.priority,
        "state": job.state, "reason": job.reason, "told": job.told, "created_at": job.created_at, "changed_at": job.changed_at,
        "targets": [target_data(t, job.source, progress.get(t.id)) for t in job.targets],
    }  # fmt: skip


def job_details(ledger: Ledger, state: Path, id: int | str) -> dict[str, Any]:
    """A job with everything that happened to it, the oldest first. Raises `QconvdError` if there is none."""
    with ledger.snapshot():
        job = ledger.job(id)
        published = [p for t in job.targets for p in ledger.publications(target=t.id) if p.state != "unwanted"]
        history = sorted((e for t in job.targets for e in ledger.history(target=t.id)), key=lambda e: e.id)
    return {
        **job_data(job, read_progress(state)), "publications": [publication_data(p) for p in published],
        "history": [event_data(e) for e in history],
    }  # fmt: skip


def target_data(target: Target, source: Source, progress: Progress | None = None) -> dict[str, Any]:
    """One artifact to be. `told`: its reason, with the place that it speaks of."""
    return {
        "id": target.id, "label": target.label, "format": target.format, "options": dict(target.options),
        "state": target.state, "reason": target.reason, "told": target.told(source),
        "error": dict(target.error), "failures": target.failures,
        "folder": target.folder, "manifest": target.manifest_name, "planned_bytes": target.plan.get("nbytes"),
        "notes": notes_of(target), "artifact": dict(target.artifact),
        "progress": progress_data(progress) if progress else None,
    }  # fmt: skip


def progress_data(progress: Progress) -> dict[str, Any]:
    """How far a conversion is: bytes of the artifact, and the same in words."""
    return {"done": progress.done, "total": progress.total, "seconds": progress.seconds, "told": progress.told}


def notes_of(target: Target) -> list[str]:
    """What a target's plan has to say: tensors that fall back to another type and why, what the format cannot hold."""
    return told(target.plan)


def event_data(event: Event) -> dict[str, Any]:
    """A change of a target's state."""
    return {"at": event.at, "target": event.target, "from": event.from_state, "to": event.to_state, "reason": event.reason}


def publication_data(publication: Publication) -> dict[str, Any]:
    """A place that an artifact is published to."""
    return {
        "target": publication.target, "place": publication.place, "destination": publication.destination,
        "revision": publication.revision, "state": publication.state, "reason": publication.reason,
        "commit": publication.commit_id, "error": publication.error,
    }  # fmt: skip
