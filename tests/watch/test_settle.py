"""When a candidate may be taken, on a clock that the tests turn."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from qconvd.intake import Look
from qconvd.watch.settle import Settling

MODEL = Path("/inbox/model")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settling(clock: Clock) -> Settling:
    return Settling(clock)


def look(
    state: Literal["complete", "incomplete", "refused", "not-a-model"] = "complete", fingerprint: str = "a", reason: str = ""
) -> Look:
    return Look(state, reason=reason, fingerprint=fingerprint)


def test_a_complete_model_is_taken_when_it_was_quiet_for_long_enough(settling: Settling, clock: Clock) -> None:
    candidate = settling.observe(MODEL, look(), 2.0)
    assert (candidate.verdict, candidate.reason, candidate.due) == ("settling", "it is still changing", 1002.0)
    clock.now = 1001.9
    assert settling.observe(MODEL, look(), 2.0).verdict == "settling"
    assert settling.due() == []
    assert settling.next_due() == pytest.approx(0.1)
    clock.now = 1002.0
    assert settling.due() == [MODEL]
    candidate = settling.observe(MODEL, look(), 2.0)
    assert (candidate.verdict, candidate.reason, candidate.due) == ("take", "", None)


def test_every_change_begins_the_wait_anew(settling: Settling, clock: Clock) -> None:
    for second, fingerprint in enumerate("abcd"):
        clock.now = 1000.0 + 1.5 * second
        assert settling.observe(MODEL, look(fingerprint=fingerprint), 2.0).verdict == "settling"
    clock.now += 1.9
    assert settling.observe(MODEL, look(fingerprint="d"), 2.0).verdict == "settling"
    clock.now += 0.1
    assert settling.observe(MODEL, look(fingerprint="d"), 2.0).verdict == "take"


def test_no_wait_is_asked_for(settling: Settling) -> None:
    assert settling.observe(MODEL, look(), 0.0).verdict == "take"


def test_an_incomplete_model_says_what_is_missing(settling: Settling, clock: Clock) -> None:
    candidate = settling.observe(MODEL, look("incomplete", reason="shard 2 of 3 is missing"), 2.0)
    assert (candidate.verdict, candidate.reason) == ("waiting", "shard 2 of 3 is missing")
    clock.now += 60
    candidate = settling.observe(MODEL, look("incomplete", reason="shard 2 of 3 is missing"), 2.0)
    assert candidate.verdict == "waiting"
    assert candidate.due is None, "what stands still is left to the next scan"
    assert settling.next_due() is None


def test_a_refusal_settles_too(settling: Settling, clock: Clock) -> None:
    """Half of a config.json may look like a bad one."""
    assert settling.observe(MODEL, look("refused", reason="is not valid JSON"), 2.0).verdict == "settling"
    clock.now += 2
    candidate = settling.observe(MODEL, look("refused", reason="is not valid JSON"), 2.0)
    assert (candidate.verdict, candidate.reason) == ("refused", "is not valid JSON")


def test_what_is_no_model_is_nothing(settling: Settling) -> None:
    assert settling.observe(MODEL, look("not-a-model", reason="nothing here looks like a model"), 2.0).verdict == "nothing"
    assert settling.arriving(MODEL.parent) == []


def test_what_arrives_is_known_by_folder(settling: Settling) -> None:
    settling.observe(MODEL, look(), 2.0)
    settling.observe(Path("/other/model"), look("incomplete"), 2.0)
    assert settling.arriving(Path("/inbox")) == [MODEL]
    assert [c.path for c in settling.forget([MODEL, Path("/never/seen")])] == [MODEL]
    assert settling.arriving(Path("/inbox")) == []


def test_a_growing_copy_is_told_once_and_then_at_most_once_a_minute(settling: Settling, clock: Clock) -> None:
    told = []
    for second in range(150):
        clock.now = 1000.0 + second
        for part in range(5):
            done = 5 * second + part
            candidate = settling.observe(
                MODEL, look("incomplete", str(done), f"{done} of 9,000 bytes are there, 1.{done} MiB"), 2
            )
            if candidate.worth_telling(clock.now):
                told.append((second, candidate.reason))
    assert told == [(s, f"{5 * s} of 9,000 bytes are there, 1.{5 * s} MiB") for s in (0, 60, 120)]


def test_what_is_new_is_told_at_once_and_what_is_old_never_again(settling: Settling, clock: Clock) -> None:
    said = []
    for number, reason in enumerate(["has no weights yet", "2 of 3 shards are missing", "has no weights yet"] * 2):
        clock.now += 100
        said.append(settling.observe(MODEL, look("incomplete", str(number), reason), 2).worth_telling(clock.now))
    assert said == [True, True, False, False, False, False]
