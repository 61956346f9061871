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


def test_empty_lines_and_events_end_a_piece_too(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "PIECE", 1000)
    monkeypatch.setattr(log_module, "READ", 2000)
    (id,) = bench.want(Wish("fp16"))
    task = bench.start()
    write(tmp_path, task.id, "\n" * 5000 + "@@q {}\n" * 5000 + "the end\n")
    piece = log_piece(bench.ledger, tmp_path, id)
    assert piece["more"] and len(piece["lines"]) <= 1000
    lines = read(bench, tmp_path, id)
    assert (lines[-1], lines.count("")) == ("the end", 5000)
    after = f"{piece['next'].partition(';')[0]};{task.id}:5000"
    events = log_piece(bench.ledger, tmp_path, id, after)
    assert (events["lines"], events["more"], events["next"]) == ([], True, after.replace(":5000", ":7002"))


def test_a_long_event_is_no_text(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "LONGEST_LINE", 10)
    (id,) = bench.want(Wish("fp16"))
    write(tmp_path, bench.start().id, "before\n@@q " + "x" * 95 + "\nafter\n@@q " + "y" * 30)
    assert read(bench, tmp_path, id)[-2:] == ["before", "after"]


@pytest.mark.parametrize(
    ("line", "pieces"),
    [
        ("0123456789", ["0123456789"]),
        ("two words that are long", ["two words ", "that are ", "long"]),
        ("with hf_abcdefgh", ["with ", "hf_(token)"]),
        ("größe größe", ["größe ", "größe"]),
    ],
)
def test_a_long_line_is_broken_between_words(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, pieces: list[str]
) -> None:
    monkeypatch.setattr(log_module, "LONGEST_LINE", 11 if "hf_" in line else 10)
    (id,) = bench.want(Wish("fp16"))
    write(tmp_path, bench.start().id, f"{line}\n")
    assert read(bench, tmp_path, id)[-len(pieces) :] == pieces


def test_the_last_words_of_a_worker_that_was_killed_in_the_middle_of_a_line(bench: Bench, tmp_path: Path) -> None:
    (id,) = bench.want(Wish("fp16"))
    task = bench.start()
    write(tmp_path, task.id, "Segmentation fau")
    first = log_piece(bench.ledger, tmp_path, id)
    assert first["lines"][-1] == f"── task {task.id}: plan fp16 ──"
    bench.ledger.fail(task.id, task.fence, "killed", retry=True, at=0.0)
    second = log_piece(bench.ledger, tmp_path, id, first["next"])
    assert second["lines"][-2:] == ["Segmentation fau", f"── task {task.id} ended: killed ──"]
    bench.start()
    write(tmp_path, task.id, "again\n")
    assert log_piece(bench.ledger, tmp_path, id, second["next"])["lines"][-1] == "again"


def test_a_place_does_not_grow_with_every_task(bench: Bench, tmp_path: Path) -> None:
    (id,) = bench.want(Wish("fp16"))
    for _ in range(20):
        write(tmp_path, bench.start().id, "one\n")
        bench.ledger.cancel([id])
        bench.ledger.release(bench.ledger.tasks("running")[0].id, bench.ledger.tasks("running")[0].fence, "stopped")
        bench.ledger.retry([id])
    piece = log_piece(bench.ledger, tmp_path, id)
    assert (piece["tasks"], ";" in piece["next"]) == (20, False)
    assert log_piece(bench.ledger, tmp_path, id, piece["next"])["tasks"] == 20


def test_a_place_leads_to_no_other_log(bench: Bench, tmp_path: Path) -> None:
    bench.want(Wish("fp16"))
    (other,) = bench.want(Wish("fp16"), source=bench.model("/inbox/other", "sha256:b"))
    theirs = bench.start()
    write(tmp_path, theirs.id, "not yours\n")
    piece = log_piece(bench.ledger, tmp_path, other, f"0;{theirs.id}:0;7:0")
    assert (len(piece["lines"]), ";" in piece["next"]) == (1, False)
    assert log_piece(bench.ledger, tmp_path, theirs.targets[0], f"999;{theirs.id}:999999999999999")["lines"] == []
