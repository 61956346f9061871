"""The journal's own protocol, spoken to a socket that hears as systemd's does."""

from __future__ import annotations

import array
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from qconvd.config.log import Log
from qconvd.errors import ConfigError
from qconvd.logs.formats import as_entry, formatter
from qconvd.logs.journal import JournalHandler
from qconvd.logs.setup import DaemonLog


class Journal:
    """The other end: what came in, as (field, value) pairs, and whether it came as a file."""

    def __init__(self, address: Path) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(address))
        self.socket.settimeout(10)
        self.files = 0

    def entry(self) -> list[tuple[str, str]]:
        data, ancillary, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _, kind, content in ancillary:
            assert kind == socket.SCM_RIGHTS and not data
            (file,) = array.array("i", content)
            # What journald asks of a file before it reads it.
            assert fcntl.fcntl(file, fcntl.F_GET_SEALS) & (fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            data = os.pread(file, os.fstat(file).st_size, 0)
            os.close(file)
            self.files += 1
        return parsed(data)


def parsed(data: bytes) -> list[tuple[str, str]]:
    found = []
    while data:
        line, _, rest = data.partition(b"\n")
        if b"=" in line:
            name, _, value = line.partition(b"=")
        else:
            name, (length,) = line, struct.unpack_from("<Q", rest)
            value, end, rest = rest[8 : 8 + length], rest[8 + length : 9 + length], rest[9 + length :]
            assert end == b"\n"
        found.append((name.decode(), value.decode()))
        data = rest
    return found


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal")
    yield made
    made.socket.close()


@pytest.fixture
def log(journal: Journal) -> Iterator[logging.Logger]:
    made, handler = logging.Logger("qconvd.test"), JournalHandler(journal.address)
    handler.setFormatter(formatter(as_entry))
    made.addHandler(handler)
    yield made
    handler.close()


def test_a_line_is_an_entry_with_fields(journal: Journal, log: logging.Logger) -> None:
    log.error(
        "%s failed", "Größe", extra={"action": "target.failed", "model": "Größe", "jobs": [7, 9], "target": "ab", "task": 3}
    )
    assert journal.entry() == [
        ("MESSAGE", "Größe failed"), ("PRIORITY", "3"), ("SYSLOG_IDENTIFIER", "qconvd"), ("QCONVD_LOGGER", "qconvd.test"),
        ("QCONVD_ACTION", "target.failed"), ("QCONVD_MODEL", "Größe"), ("QCONVD_JOB", "7"), ("QCONVD_JOB", "9"),
        ("QCONVD_TARGET", "ab"), ("QCONVD_TASK", "3"),
    ]  # fmt: skip


@pytest.mark.parametrize(("level", "priority"), [(10, "7"), (20, "6"), (30, "4"), (40, "3"), (50, "2"), (25, "5")])
def test_priorities_are_syslog_s(journal: Journal, log: logging.Logger, level: int, priority: str) -> None:
    log.log(level, "x")
    assert ("PRIORITY", priority) in journal.entry()


def test_lines_of_a_message_are_one_value_and_nobody_adds_a_field(journal: Journal, log: logging.Logger) -> None:
    log.error("m\nPRIORITY=0 is bad\n  mend it", extra={"action": "a.b", "model": "x\nPRIORITY=0"})
    found = journal.entry()
    assert found[0] == ("MESSAGE", "m\\nPRIORITY=0 is bad\n  mend it")
    assert [value for name, value in found if name == "PRIORITY"] == ["3"]
    assert ("QCONVD_MODEL", "x\\nPRIORITY=0") in found


def test_a_traceback_stands_below_the_message(journal: Journal, log: logging.Logger) -> None:
    try:
        raise ValueError("oh")
    except ValueError:
        log.exception("a defect")
    message = dict(journal.entry())["MESSAGE"].splitlines()
    assert (message[0], message[1], message[-1]) == ("a defect", "Traceback (most recent call last):", "ValueError: oh")


def test_what_is_too_long_for_a_datagram_comes_whole(journal: Journal, log: logging.Logger) -> None:
    log.info("x" * (1 << 20), extra={"action": "a.b"})
    found = dict(journal.entry())
    assert journal.files == 1 and len(found["MESSAGE"]) == 1 << 20 and found["QCONVD_ACTION"] == "a.b"


def test_a_journal_that_starts_again_is_found_again(journal: Journal, log: logging.Logger) -> None:
    journal.socket.close()
    journal.address.unlink()
    again = Journal(journal.address)
    log.info("x")
    assert dict(again.entry())["MESSAGE"] == "x"
    again.socket.close()


def test_a_journal_that_does_not_read_is_waited_for_once(
    journal: Journal, log: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qconvd.logs.journal.PATIENCE", 0.05)
    hasty = JournalHandler(journal.address)
    hasty.setFormatter(formatter(as_entry))
    log.handlers = [hasty]
    sent = 0
    while not (said := capsys.readouterr().err):
        log.info("%d", sent)
        sent += 1
    assert said == f"INFO    {sent - 1}\n"
    heard = [dict(journal.entry())["MESSAGE"] for _ in range(sent - 1)]
    assert heard == [str(n) for n in range(sent - 1)]
    log.info("again")
    assert dict(journal.entry())["MESSAGE"] == "again"
    hasty.close()


@pytest.mark.parametrize("message", ["x", "x\n  mend it", "x" * (1 << 20)])
def test_without_a_journal_stderr_hears_it(
    journal: Journal, log: logging.Logger, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    journal.socket.close()
    log.warning(message)
    assert capsys.readouterr().err == f"WARNING {message}\n"


def test_the_log_is_not_taken_to_a_journal_that_is_not_there(tmp_path: Path, restored: None) -> None:
    shown = DaemonLog(address=tmp_path / "none")
    shown.apply(Log(format="json"))
    before = logging.getLogger().handlers
    with pytest.raises(ConfigError) as told:
        shown.apply(Log(format="journal"))
    assert str(told.value) == (
        f"log.format: there is no journal at {tmp_path}/none: No such file or directory\n"
        "  write `log: {format: json}`, or `auto`, which looks whether there is one"
    )
    assert (shown.shown, logging.getLogger().handlers) == ("json", before)


def test_a_changed_configuration_changes_the_log(journal: Journal, restored: None, capfd: pytest.CaptureFixture[str]) -> None:
    shown, log = DaemonLog(address=journal.address), logging.getLogger("qconvd.test")
    shown.apply(Log(format="json", level="warning"))
    log.info("no")
    log.warning("one")
    shown.apply(Log(format="journal"))
    log.info("two")
    assert dict(journal.entry())["MESSAGE"] == "two"
    shown.apply(Log(format="human"))
    log.info("three")
    first, last = capfd.readouterr().err.splitlines()
    assert '"message": "one"' in first and last.endswith(" INFO    three")


def test_auto_is_the_journal_where_stderr_is_and_the_socket_too(
    journal: Journal, restored: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = DaemonLog(address=journal.address)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    shown.apply(Log())
    assert shown.shown == "human"
    ours = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{ours.st_dev}:{ours.st_ino}")
    shown.apply(Log())
    assert shown.shown == "journal"
    monkeypatch.setenv("JOURNAL_STREAM", f"{ours.st_dev}:{ours.st_ino + 1}")  # inherited by somebody whose stderr is another
    shown.apply(Log())
    assert shown.shown == "human"
    monkeypatch.setenv("JOURNAL_STREAM", f"{ours.st_dev}:{ours.st_ino}")
    elsewhere = DaemonLog(address=tmp_path / "none")
    elsewhere.apply(Log())
    assert elsewhere.shown == "human"


def test_the_command_line_comes_before_the_configuration(journal: Journal, restored: None) -> None:
    shown = DaemonLog("journal", verbose=True, address=journal.address)
    shown.apply(Log(format="json", level="error"))
    logging.getLogger("qconvd.test").debug("x")
    assert dict(journal.entry())["MESSAGE"] == "x"
