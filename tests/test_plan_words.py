"""What plans say of themselves, in the words that commands, logs and status files share."""

from __future__ import annotations

from typing import Any

from qconvd.plan_words import told


def test_what_stays_out_is_told_after_the_notes() -> None:
    left: list[dict[str, Any]] = [{"tensor": f"layers.{n}.down", "became": "F16", "reason": "too odd"} for n in range(5)]
    left.append({"tensor": "vision", "became": "dropped", "reason": "the text part only"})
    assert told({"notes": ["loads with vLLM"], "left_out": left}) == [
        "loads with vLLM",
        "layers.0.down, layers.1.down, layers.2.down and 2 more are stored as F16: too odd",
        "vision is dropped: the text part only",
    ]


def test_a_plan_that_is_not_made_yet_says_nothing() -> None:
    assert told({}) == []
