"""Jobs and what belongs to them as JSON data: what `--json` prints and what the API answers with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qconvd.ledger import Event, Job, Publication, Target
from qconvd.plan_words import told
from qconvd.progress import Progress
from qconvd.sightings import Sighting


def job_data(job: Job, progress: Mapping[str, Progress]) -> dict[str, Any]:
    """A job with its targets. Times are seconds since 1970, sizes are bytes."""
    return {
        "job": job.id, "model": job.source.name, "source": job.source.locator,
        "version": job.source.version, "recipe": job.recipe, "priority": job.priority,
        "state": job.state, "reason": job.reason, "created_at": job.created_at, "changed_at": job.changed_at,
        "targets": [target_data(t, progress.get(t.id)) for t in job.targets],
    }  # fmt: skip


def target_data(target: Target, progress: Progress | None = None) -> dict[str, Any]:
    """One artifact to be."""
    return {
        "id": target.id, "label": target.label, "format": target.format, "options": dict(target.options),
        "state": target.state, "reason": target.reason, "error": dict(target.error), "failures": target.failures,
        "folder": target.folder, "manifest": target.manifest_name, "planned_bytes": target.plan.get("nbytes"),
        "notes": notes_of(target), "artifact": dict(target.artifact),
        "progress": {"done": progress.done, "total": progress.total, "seconds": progress.seconds} if progress else None,
    }  # fmt: skip


def notes_of(target: Target) -> list[str]:
    """What a target's plan has to say: tensors that fall back to another type and why, what the format cannot hold."""
    return told(target.plan)


def event_data(event: Event) -> dict[str, Any]:
    """A change of a target's state."""
    return {"at": event.at, "target": event.target, "from": event.from_state, "to": event.to_state, "reason": event.reason}


def publication_data(publication: Publication) -> dict[str, Any]:
    """A place that an artifact is published to."""
    return {
        "target": publication.target, "destination": publication.destination, "revision": publication.revision,
        "state": publication.state, "reason": publication.reason, "commit": publication.commit_id, "error": publication.error,
    }  # fmt: skip


def sighting_data(sighting: Sighting) -> dict[str, Any]:
    """A model that is not complete, with the keys of a job."""
    return {
        "job": None, "model": sighting.name, "source": sighting.path, "recipe": ", ".join(sighting.recipes),
        "state": sighting.kind, "reason": sighting.reason, "fix": sighting.fix, "targets": [],
    }  # fmt: skip
