"""The state folder of a config that is wrong by now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qconvd.in_force import NAME, address_of, note_config, state_of


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for name in ("state", "my state"):
        (tmp_path / name).mkdir()
        note_config(tmp_path / name, tmp_path / "config.yaml")
    return tmp_path / "config.yaml"


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("state: ./my state\nfrob: 1\n", "my state"),
        ("state: 'my state'  # here\nrecipes: [\n", "my state"),
        ("recipes: [\nstate: my state\n", "my state"),
        ("recipes: [\nstate: [\n", "state"),
        ("state: 7\n", "state"),
        ("stat: ./my state\n", "state"),
        ("state: ./elsewhere\n", "state"),
        ("state: ~nobody-of-that-name/x\n", "state"),
        ('state: "a\\0b"\n', "state"),
        ("- a list\n", "state"),
        ("", "state"),
    ],
)
def test_what_stands_at_state_is_read_however_wrong_the_rest_is(config: Path, text: str, state: str) -> None:
    config.write_text(text)
    assert state_of(config) == config.parent / state


def test_a_folder_counts_if_its_daemon_was_started_with_that_file(config: Path) -> None:
    assert state_of(config) == config.parent / "state", "the file is gone"
    other = config.with_name("other.yaml")
    other.write_text("state: ./my state\n")
    assert state_of(other) is None
    (config.parent / "state" / NAME).write_text("{torn")
    assert state_of(config) is None
    (config.parent / "state" / NAME).write_text("[]")
    assert state_of(config) is None


def test_a_link_to_the_file_is_the_file(config: Path) -> None:
    config.write_text("frob: 1\n")
    link = config.with_name("link.yaml")
    link.symlink_to(config)
    assert state_of(link) == config.parent / "state"


def test_it_is_written_when_it_changes(tmp_path: Path) -> None:
    note_config(tmp_path, Path("/etc/a.yaml"))
    before = (tmp_path / NAME).stat().st_ino
    note_config(tmp_path, Path("/etc/a.yaml"))
    assert (tmp_path / NAME).stat().st_ino == before
    note_config(tmp_path, Path("/etc/b.yaml"))
    assert json.loads((tmp_path / NAME).read_text()) == {"config": "/etc/b.yaml"}


@pytest.mark.parametrize("text", [b"[" * 100_000, b" " * (1 << 21) + b"{}", b"\xff", b"[]", b'{"pid": 7, "address": 8}', b""])
def test_a_note_that_is_damaged_names_no_address(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "listening.json").write_bytes(text)
    assert address_of(tmp_path, 7) == ""
    (tmp_path / "listening.json").unlink()
    (tmp_path / "listening.json").mkdir()
    assert address_of(tmp_path, 7) == ""
