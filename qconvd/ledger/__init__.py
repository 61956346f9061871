"""The ledger: SQLite, and the truth about every source, target and task."""

from __future__ import annotations

from qconvd.ledger.control import Pause
from qconvd.ledger.ledger import Ledger, StaleFence
from qconvd.ledger.outbox import Notification, NotifierTrouble
from qconvd.ledger.patience import RETRIES, backoff
from qconvd.ledger.publishing import Publication
from qconvd.ledger.reading import Reading
from qconvd.ledger.records import (
    PENDING,
    Event,
    Job,
    Outcome,
    Request,
    Source,
    Target,
    Task,
    options_of,
    spec_digest,
)
from qconvd.ledger.snapshots import Snapshot

__all__ = [
    "PENDING", "RETRIES", "Event", "Job", "Ledger", "Notification", "NotifierTrouble", "Outcome", "Pause", "Publication",
    "Reading", "Request", "Snapshot", "Source", "StaleFence", "Target", "Task", "backoff", "options_of", "spec_digest",
]  # fmt: skip
