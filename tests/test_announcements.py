"""What the log says of a target's change of state."""

from __future__ import annotations

import logging

import pytest

from qconvd.announcements import sentence
from qconvd.ledger import Event


@pytest.mark.parametrize(
    ("before", "after", "reason", "level", "words"),
    [
        ("", "waiting", "waiting to be planned", logging.INFO, "is waiting to be planned"),
        ("", "waiting", "waits for the artifact that is made", logging.INFO, "waits for the artifact that is made"),
        ("", "failed", "would overwrite another", logging.ERROR, "failed: would overwrite another"),
        ("", "done", "made already from /inbox/m", logging.INFO, "is done: made already from /inbox/m"),
        ("waiting", "planned", "waiting to be converted", logging.INFO, "is planned"),
        ("planned", "converting", "converting", logging.INFO, "is being converted"),
        ("converting", "verifying", "waiting to be verified", logging.INFO, "is converted and waits to be verified"),
        ("verifying", "ready", "verified and in its place", logging.INFO, "is verified and in its place"),
        ("ready", "done", "done", logging.INFO, "is done"),
        ("converting", "planned", "was interrupted and goes on later", logging.INFO, "was interrupted and goes on later"),
        (
            "converting", "planned", "attempt 1 of 3 failed: was killed", logging.WARNING,
            "is to be tried again: attempt 1 of 3 failed: was killed",
        ),
        ("verifying", "planned", "the worker was killed", logging.INFO, "is to be tried again: the worker was killed"),
        ("failed", "waiting", "tried again on request", logging.INFO, "is waiting: tried again on request"),
        ("planned", "cancelled", "cancelled on request", logging.INFO, "is cancelled on request"),
        ("planned", "superseded", "the model changed", logging.INFO, "is superseded: the model changed"),
        ("converting", "failed", "failed 3 times", logging.ERROR, "failed: failed 3 times"),
    ],
)  # fmt: skip
def test_a_change_of_state_is_a_sentence(before: str, after: str, reason: str, level: int, words: str) -> None:
    assert sentence(Event(1, 0.0, 1, "t", None, before, after, reason)) == (level, words)
