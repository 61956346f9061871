"""What a run wrote, as its journal tells it: every byte of the data files is held against it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qconvd.api import BadCheckpoint, ModelInfo
from qconvd.engine import graph as graph_module
from qconvd.engine.journal import JOURNAL
from qconvd.engine.run import ConvertTarget, Limits, convert
from qconvd.engine.written import Follow, Written, written
from tiny import HEADER, copies, llama, raw_model, target


@pytest.fixture
def model(tmp_path: Path) -> ModelInfo:
    return raw_model(tmp_path / "m", {"one.bin": llama()})


@pytest.fixture
def made(model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConvertTarget:
    monkeypatch.setattr(graph_module, "CHUNK_BYTES", 2048)
    made = target("a", copies(model, shards=2), tmp_path)
    convert(model, [made], Limits(memory=1 << 28, threads=2), operations={}, on_event=lambda _: None, cancelled=lambda: False)
    return made


def follow(path: Path, wanted: Written, step: int) -> None:
    data = path.read_bytes()
    seen = Follow(path, wanted)
    for start in range(0, len(data), step):
        seen.update(data[start : start + step])
    seen.finish()


@pytest.mark.parametrize("step", [1, 100, 4096, 1 << 20])
def test_what_was_written_is_found_in_pieces_of_any_size(made: ConvertTarget, step: int) -> None:
    found = written(made.work, made.plan)
    assert found is not None
    assert found.keys() == {f.path for f in made.plan.files}
    for path, wanted in found.items():
        assert wanted.header == HEADER
        assert len(wanted.pieces) > len(made.plan.files[0].tensors)
        follow(made.work / "files" / path, wanted, step)


def test_a_changed_bit_is_found_wherever_it_is(made: ConvertTarget) -> None:
    """Between the pieces are only zeros, which the scan sees to."""
    path = made.work / "files" / made.plan.files[0].path
    found = written(made.work, made.plan)
    assert found is not None
    wanted = found[made.plan.files[0].path]
    data = path.read_bytes()
    bounds = [(0, len(HEADER)), *((start, stop) for start, stop, _ in wanted.pieces)]
    for start, stop in bounds:
        for at in (start, (start + stop) // 2, stop - 1):
            path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
            with pytest.raises(BadCheckpoint) as caught:
                follow(path, wanted, 1000)
            assert (caught.value.what, caught.value.where, caught.value.fix) == (
                f"has other bytes than were written, at {start} to {stop}", str(path), "convert it again"
            )  # fmt: skip


def test_a_file_that_ends_early_is_found(made: ConvertTarget) -> None:
    spec = made.plan.files[0]
    path = made.work / "files" / spec.path
    found = written(made.work, made.plan)
    assert found is not None
    size = found[spec.path].pieces[-1][1] - 1
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BadCheckpoint, match=f"has other bytes than were written, at {size} to {size}"):
        follow(path, found[spec.path], 1 << 20)


def test_a_journal_that_does_not_tell_everything_proves_nothing(made: ConvertTarget) -> None:
    journal = made.work / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]))
    assert written(made.work, made.plan) is None
    journal.write_bytes(b"".join([*lines, lines[-1]]))
    assert written(made.work, made.plan) is not None, "rows may be recorded twice, by a run that was resumed"
    journal.unlink()
    assert written(made.work, made.plan) is None
