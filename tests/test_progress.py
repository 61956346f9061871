"""How far conversions are, as another process reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qconvd.bell import Bell
from qconvd.progress import Progress, ProgressBoard, read_progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def event(done: int, **more: object) -> dict[str, object]:
    return {"event": "progress", "target": "a", "unit": "u", "done": done, "total": 100, "seconds": 2.0, **more}


def test_the_file_follows_the_events_but_not_each_one(tmp_path: Path) -> None:
    clock = Clock()
    board = ProgressBoard(tmp_path, clock)
    board.hear([event(10), event(20)])
    board.tick()
    assert read_progress(tmp_path) == {"a": Progress(20, 100, 2.0, "u")}
    board.hear([event(30)])
    board.tick()
    assert read_progress(tmp_path)["a"].done == 20
    clock.now += 0.5
    board.tick()
    assert read_progress(tmp_path)["a"].done == 30
    board.keep([])
    board.tick()
    assert read_progress(tmp_path) == {}
    assert [p.name for p in tmp_path.iterdir()] == ["progress.json"]


def test_what_makes_no_sense_is_passed_over(tmp_path: Path) -> None:
    board = ProgressBoard(tmp_path)
    board.hear([{"event": "progress", "target": "a"}, event(1, total="many"), {"event": "target-done", "target": "a"}, {}])
    assert board.targets == {}


def test_rate_and_time_left() -> None:
    progress = Progress(25, 100, 5.0)
    assert progress.rate == pytest.approx(5.0)
    assert progress.left == pytest.approx(15.0)
    assert Progress(0, 100, 0.0).left is None


def test_what_an_earlier_run_made_does_not_make_this_one_quick() -> None:
    progress = Progress.of(event(85, resumed=75))
    assert progress.rate == pytest.approx(5.0)
    assert progress.left == pytest.approx(3.0)
    assert Progress.of(event(75, resumed=75)).left is None


@pytest.mark.parametrize("content", ["", "[]", '{"a": {"done": 1}}', "no JSON"])
def test_a_damaged_file_is_no_progress(tmp_path: Path, content: str) -> None:
    (tmp_path / "progress.json").write_text(content)
    assert read_progress(tmp_path) == {}
    assert read_progress(tmp_path / "nothing") == {}


def test_a_bell_remembers_that_it_rang() -> None:
    with Bell() as bell:
        assert not bell.wait(0)
        bell.ring()
        bell.ring()
        assert bell.wait(60)
        assert not bell.wait(0)
    bell.ring()


def test_what_takes_long_before_the_first_byte_is_told_until_there_is_progress(tmp_path: Path) -> None:
    board = ProgressBoard(tmp_path)
    board.hear([{"event": "preparing", "target": "a", "doing": "compiling Q4_0 (once)"}, {"event": "preparing", "target": "b"}])
    board.tick()
    assert read_progress(tmp_path) == {"a": Progress(0, 0, 0.0, doing="compiling Q4_0 (once)")}
    board.hear([event(10)])
    assert board.targets["a"] == Progress(10, 100, 2.0, "u")
