"""What the log makes of names and messages that come from a model's makers."""

from __future__ import annotations

import io
import logging

import pytest

from qconvd.errors import QconvdError
from qconvd.log_lines import LogLines


@pytest.fixture
def logged() -> tuple[logging.Logger, io.StringIO]:
    log, out = logging.Logger("test"), io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(LogLines("%(levelname)s %(message)s"))
    log.addHandler(handler)
    return log, out


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Größe 大", "Größe 大"),
        ("a\x1b[31mb\x07", "a\\x1b[31mb\\x07"),
        ("a\nERROR all is lost", "a\\nERROR all is lost"),
        ("a\rb\tc", "a\\rb\\tc"),
        ("a\u202eb\udcff", "a\\u202eb\\udcff"),
    ],
)
def test_a_name_cannot_steer_the_terminal_nor_write_a_line(
    logged: tuple[logging.Logger, io.StringIO], name: str, shown: str
) -> None:
    log, out = logged
    log.info("%s is taken", name)
    assert out.getvalue() == f"INFO {shown} is taken\n"


def test_the_remedy_of_an_error_keeps_its_line(logged: tuple[logging.Logger, io.StringIO]) -> None:
    log, out = logged
    log.error("%s", QconvdError("is damaged", where="/m", fix="copy it again"))
    assert out.getvalue() == "ERROR /m: is damaged\n  copy it again\n"


def test_a_traceback_is_whole_and_harmless(logged: tuple[logging.Logger, io.StringIO]) -> None:
    log, out = logged
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        log.exception("a defect")
    lines = out.getvalue().splitlines()
    assert (lines[0], lines[1], lines[-1]) == ("ERROR a defect", "Traceback (most recent call last):", "ValueError: \\x1b[2J")
