"""Logs in pieces: whatever their length, together they are the whole; secrets are taken out; what is no place is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledger_kit import Bench, Wish
from qconvd.documents import log as log_module
from qconvd.documents.log import log_piece
from qconvd.errors import QconvdError


def read(bench: Bench, state: Path, of: str) -> list[str]:
    """All pieces, one after the other."""
    lines: list[str] = []
    after = ""
    while True:
        piece = log_piece(bench.ledger, state, of, after)
        lines += piece["lines"]
        if not piece["more"]:
            return lines
        assert piece["next"] != after
        after = piece["next"]


def write(state: Path, task: int, text: str) -> None:
    (state / "logs").mkdir(exist_ok=True)
    with (state / "logs" / f"{task}.log").open("a") as file:
        file.write(text)


@pytest.mark.parametrize("length", [1, 7, 40, 1 << 18])
def test_pieces_are_the_whole(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(log_module, "PIECE", length)
    (id,) = bench.want(Wish("fp16"))
    task = bench.start()
    write(tmp_path, task.id, "one\n@@q {}\ntwo with hf_abcdefgh1\nthr")
    assert [line.partition(":00 ")[2] or line for line in read(bench, tmp_path, id)][-3:] == [
        f"── task {task.id}: plan fp16 ──", "one", "two with hf_(token)",
    ]  # fmt: skip
    write(tmp_path, task.id, "ee\n")
    assert read(bench, tmp_path, id)[-1] == "three"


def test_a_piece_goes_on_where_the_last_ended(bench: Bench, tmp_path: Path) -> None:
    (id,) = bench.want(Wish("fp16"))
    task = bench.start()
    write(tmp_path, task.id, "one\ntw")
    first = log_piece(bench.ledger, tmp_path, id)
    assert (first["lines"][-1], first["more"], first["over"], first["tasks"]) == ("one", False, False, 1)
    write(tmp_path, task.id, "o\n")
    second = log_piece(bench.ledger, tmp_path, id, first["next"])
    assert second["lines"] == ["two"]
    bench.ledger.cancel([id])
    third = log_piece(bench.ledger, tmp_path, id, second["next"])
    assert third["over"] and len(third["lines"]) >= 1 and "cancelled" in third["lines"][-1]
    assert log_piece(bench.ledger, tmp_path, id, third["next"])["lines"] == []


def test_a_line_without_an_end_is_broken(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "LONGEST_LINE", 10)
    (id,) = bench.want(Wish("fp16"))
    write(tmp_path, bench.start().id, "x" * 25)
    assert read(bench, tmp_path, id)[-2:] == ["x" * 10, "x" * 10]


@pytest.mark.parametrize("after", ["x", "1;", "1;2", "-1", "1;2:3;", "1" * 20])
def test_what_is_no_place(bench: Bench, tmp_path: Path, after: str) -> None:
    (id,) = bench.want(Wish("fp16"))
    with pytest.raises(QconvdError) as refused:
        log_piece(bench.ledger, tmp_path, id, after)
    assert str(refused.value) == f"{after!r} is no place in a log\n  `after` is the `next` of the piece before"
