"""Lines for people and as JSON: what stands in them."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from structlog.typing import Processor

from qconvd.logs.formats import ForPeople, as_json, take_structlog_along

Logged = Callable[[Processor], tuple[logging.Logger, io.StringIO]]


def test_json_has_time_level_logger_action_message_and_fields_in_this_order(logged: Logged) -> None:
    log, out = logged(as_json)
    log.warning("%s waits", Path("/m"), extra={
        "action": "model.waiting", "model": "m", "source": Path("/m"), "jobs": [1, 2], "task": 3, "target": "", "device": None,
        "targets": (),
    })  # fmt: skip
    said = json.loads(out.getvalue())
    assert said.pop("time")
    assert list(said.items()) == [
        ("level", "warning"), ("logger", "qconvd.test"), ("action", "model.waiting"), ("message", "/m waits"), ("model", "m"),
        ("source", "/m"), ("jobs", [1, 2]), ("task", 3),
    ]  # fmt: skip


def test_times_are_utc_with_milliseconds(logged: Logged) -> None:
    log, out = logged(as_json)
    log.handle(at_half_a_second())
    assert json.loads(out.getvalue())["time"] == "1970-01-01T00:00:00.500Z"


def at_half_a_second() -> logging.LogRecord:
    return logging.makeLogRecord(dict(name="x", levelname="INFO", levelno=20, msg="%s is taken", args=("m",), created=0.5))


def test_values_that_json_does_not_know_are_text(logged: Logged) -> None:
    log, out = logged(as_json)
    log.info("x", extra={"action": "a.b", "a": float("nan"), "b": 0.5, "c": {"k": "v\n"}, "d": b"\xff", "e": False})
    said = json.loads(out.getvalue(), parse_constant=lambda _: pytest.fail("no JSON"))
    assert [said[k] for k in "abcde"] == ["nan", 0.5, "{'k': 'v\\n'}", "b'\\xff'", False]


def test_fields_do_not_take_the_place_of_what_every_line_has(logged: Logged) -> None:
    log, out = logged(as_json)
    log.info("x", extra={"action": "a.b", "time": "never", "level": "none", "logger": "nobody"})
    said = json.loads(out.getvalue())
    assert (said["level"], said["logger"]) == ("info", "qconvd.test") and said["time"] != "never"


def test_a_traceback_is_a_field(logged: Logged) -> None:
    log, out = logged(as_json)
    try:
        raise ValueError("all is lost")
    except ValueError:
        log.exception("a defect", extra={"action": "daemon.defect"})
    (line,) = out.getvalue().splitlines()
    said = json.loads(line)
    assert said["message"] == "a defect"
    assert said["exception"].startswith("Traceback (most recent call last):\n")
    assert said["exception"].endswith("\nValueError: all is lost")


@pytest.mark.parametrize("name", ["watchdog.observers.inotify", "watchdog"])
def test_what_libraries_say_has_their_names(logged: Logged, name: str) -> None:
    log, out = logged(as_json)
    log.name = name
    log.info("x")
    assert json.loads(out.getvalue())["action"] == "library.watchdog"


def test_people_get_the_local_time_the_level_and_the_message(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        log, out = logged(ForPeople())
        log.handle(at_half_a_second())
        assert out.getvalue() == "1970-01-01 05:30:00 INFO    m is taken\n"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_colours_are_around_time_and_level_only(logged: Logged) -> None:
    log, out = logged(ForPeople(stamp=False, color=True))
    log.info("x")
    log.error("y")
    assert out.getvalue() == "INFO    x\n\x1b[31mERROR  \x1b[0m y\n"


def test_a_plugin_may_log_with_structlog_itself(restored: None) -> None:
    out = io.StringIO()
    before = structlog.get_config()
    handler = logging.StreamHandler(out)
    from qconvd.logs.formats import formatter

    handler.setFormatter(formatter(as_json))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel("INFO")
    try:
        take_structlog_along()
        log = structlog.get_logger("qconvd_mine").bind(model="m\x1b")
        log.info("%s is odd", "it", action="mine.odd")
        log.debug("nobody hears this")
        try:
            raise ValueError("oh")
        except ValueError:
            log.exception("a defect")
    finally:
        structlog.configure(**before)
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["action"], first["message"], first["model"]) == ("mine.odd", "it is odd", "m\\x1b")
    assert (second["action"], second["level"], second["logger"]) == ("library.qconvd_mine", "error", "qconvd_mine")
    assert second["exception"].endswith("ValueError: oh")
