"""What the log makes of names and messages that come from a model's makers, in each format."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable

import pytest
from structlog.typing import Processor

from qconvd.errors import QconvdError
from qconvd.logs.formats import ForPeople, as_entry, as_json

Logged = Callable[[Processor], tuple[logging.Logger, io.StringIO]]
PEOPLE = ForPeople(stamp=False)
NAMES = [
    ("Größe 大", "Größe 大"),
    ("a\x1b[31mb\x07", "a\\x1b[31mb\\x07"),
    ("a\nERROR all is lost", "a\\nERROR all is lost"),
    ("a\rb\tc", "a\\rb\\tc"),
    ("a\x9b31m\u2028b", "a\\x9b31m\\u2028b"),
    ("a\u202eb\udcff", "a\\u202eb\\udcff"),
]


@pytest.mark.parametrize(("name", "shown"), NAMES)
def test_a_name_cannot_steer_the_terminal_nor_write_a_line(logged: Logged, name: str, shown: str) -> None:
    log, out = logged(PEOPLE)
    log.info("%s is taken", name)
    assert out.getvalue() == f"INFO    {shown} is taken\n"


@pytest.mark.parametrize(("name", "shown"), NAMES)
def test_nor_in_json(logged: Logged, name: str, shown: str) -> None:
    log, out = logged(as_json)
    log.info("%s is taken", name, extra={"action": "model.taken", "model": name, "jobs": [7, name]})
    (line,) = out.getvalue().splitlines()
    assert line.isprintable()
    said = json.loads(line)
    assert (said["message"], said["model"], said["jobs"]) == (f"{shown} is taken", shown, [7, shown])


@pytest.mark.parametrize(("name", "shown"), NAMES)
def test_nor_in_the_journal(logged: Logged, name: str, shown: str) -> None:
    log, out = logged(as_entry)
    log.info("%s is taken", name, extra={"action": "model.taken", "model": name, "jobs": [7, name], name: 1})
    fields = [line.partition("=") for line in out.getvalue().rstrip("\n").split("\n")]
    assert ("MESSAGE", "=", f"{shown} is taken") == fields[0]
    assert ("QCONVD_MODEL", "=", shown) in fields
    assert [f[2] for f in fields if f[0] == "QCONVD_JOB"] == ["7", shown]
    assert all(key.isascii() and key.replace("_", "").isalnum() and key.upper() == key for key, _, _ in fields)


@pytest.mark.parametrize("shown", [PEOPLE, as_json])
def test_the_remedy_of_an_error_keeps_its_line(logged: Logged, shown: Processor) -> None:
    log, out = logged(shown)
    log.error("%s", QconvdError("is damaged", where="/m", fix="copy it again"))
    said = out.getvalue().removeprefix("ERROR   ") if shown is PEOPLE else json.loads(out.getvalue())["message"] + "\n"
    assert said == "/m: is damaged\n  copy it again\n"


def test_a_traceback_is_whole_and_harmless(logged: Logged) -> None:
    log, out = logged(PEOPLE)
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        log.exception("a defect")
    lines = out.getvalue().splitlines()
    assert (lines[0], lines[1], lines[-1]) == ("ERROR   a defect", "Traceback (most recent call last):", "ValueError: \\x1b[2J")
