"""How fast it went here: what workers note, and what `qconvd plan` makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qconvd import rates
from qconvd.api import CalibrationSpec

MILLION = 1_000_000


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QCONVD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_never_made_is_not_guessed() -> None:
    assert rates.conversion_seconds(["gguf Q4_0"], MILLION) is None
    assert rates.fetch_seconds(MILLION) is None
    rates.note_conversion(["gguf Q4_0"], 100 * MILLION, 10)
    assert rates.conversion_seconds(["gguf Q4_0", "fp16"], MILLION) is None
    assert rates.conversion_seconds([], MILLION) is None


def test_seconds_follow_from_what_was_made_before() -> None:
    rates.note_conversion(["gguf Q4_0"], 100 * MILLION, 10)
    assert rates.conversion_seconds(["gguf Q4_0"], 50 * MILLION) == pytest.approx(5)
    rates.note_conversion(["gguf Q4_0"], 100 * MILLION, 5)
    assert rates.conversion_seconds(["gguf Q4_0"], 150 * MILLION) == pytest.approx(10), "the mean of both speeds"


def test_a_pass_for_several_takes_what_they_take_together() -> None:
    rates.note_conversion(["gguf Q4_0", "gguf Q8_0"], 100 * MILLION, 10)
    assert rates.conversion_seconds(["gguf Q4_0", "gguf Q8_0"], 100 * MILLION) == pytest.approx(10)
    assert rates.conversion_seconds(["gguf Q8_0"], 100 * MILLION) == pytest.approx(5)


def test_what_is_too_small_says_nothing_about_speed(home: Path) -> None:
    rates.note_conversion(["fp16"], MILLION, 1)
    rates.note_fetch(MILLION, 1)
    assert not home.exists()
    rates.note_fetch(32 << 20, 2)
    assert rates.fetch_seconds(64 << 20) == pytest.approx(4)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fp16": "quick", "fetch": -1, "gguf Q4_0": 1e300}', "\x00"])
def test_a_damaged_file_is_none(home: Path, text: str) -> None:
    home.mkdir()
    (home / rates.FILE).write_text(text)
    assert rates.conversion_seconds(["fp16"], MILLION) is None
    rates.note_fetch(32 << 20, 2)
    assert json.loads((home / rates.FILE).read_text()) == {"fetch": 16 << 20}


def test_a_folder_that_cannot_be_written_stops_nothing(home: Path) -> None:
    home.write_text("a file")
    rates.note_fetch(32 << 20, 2)
    assert rates.fetch_seconds(1) is None


def test_calibrating_is_reckoned_apart_and_by_its_text() -> None:
    spec = CalibrationSpec("default", "", samples=4, length=100)
    rates.note_conversion(["gptq 4bit-128g"], 100 * MILLION, 2)
    rates.note_conversion([rates.calibrating("gptq 4bit-128g", spec)], 100 * MILLION, 8)
    both = ["gptq 4bit-128g", rates.calibrating("gptq 4bit-128g", spec)]
    assert rates.conversion_seconds(both, 100 * MILLION) == pytest.approx(10)
    other = rates.calibrating("gptq 4bit-128g", replace(spec, samples=8))
    assert rates.conversion_seconds([both[0], other], 100 * MILLION) is None
