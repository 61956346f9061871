"""What the daemon sees, for whoever asks from another process."""

from __future__ import annotations

from pathlib import Path

import pytest

from qconvd.sightings import AWAITED, NAME, Sighting, SightingsBoard, read_sightings

HALF = Sighting("incomplete", "/inbox/half", "half", "1 of 3 shards are missing", "copy it", ("everyday", "small"))
AWAY = Sighting("unreadable", "/inbox", "inbox", "No such file or directory")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    board = SightingsBoard(tmp_path)
    board.tick(1, lambda: [HALF, AWAY])
    assert read_sightings(tmp_path) == [HALF, AWAY]
    assert [s.kind in AWAITED for s in (HALF, AWAY)] == [True, False]
    board.tick(2, list)
    assert read_sightings(tmp_path) == []
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


def test_it_looks_and_writes_only_when_something_is_new(tmp_path: Path) -> None:
    board = SightingsBoard(tmp_path)
    board.tick(1, lambda: [HALF])
    before = (tmp_path / NAME).stat().st_ino
    board.tick(1, lambda: pytest.fail("nothing was new"))
    board.tick(2, lambda: [HALF])
    assert (tmp_path / NAME).stat().st_ino == before


@pytest.mark.parametrize("text", ["{torn", "{}", "[1]", '[{"kind": "x"}]', '[{"recipes": 1}]', "null"])
def test_a_file_that_makes_no_sense_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    assert read_sightings(tmp_path) == []
    assert read_sightings(tmp_path / "nowhere") == []
