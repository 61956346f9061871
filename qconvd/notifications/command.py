"""News for a program: as JSON on its stdin, and in its environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from qconvd.config.notify import CommandNotifier
from qconvd.executors.base import TOKENS
from qconvd.notifications import program
from qconvd.notifications.attempt import BreakOff, NotSent
from qconvd.notifications.news import News, one_line

FIX = "name a program that is there and may be run by the user that runs qconvd; paths are relative to the config file"
LONGEST = 4000
"""Characters of a variable; what is longer stands on stdin."""
TEMPORARY = 75
"""EX_TEMPFAIL of sysexits.h."""


def send(notifier: CommandNotifier, news: News, stop: BreakOff) -> str:
    """Run it; returns what happened. Raises `NotSent`: every failure is tried again, for nobody knows what it means."""
    stdin = json.dumps(news, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    ended = program.run(notifier.run, stdin, {**cleaned(os.environ), **variables(news)}, notifier.timeout, stop, FIX)
    if ended.code:
        how = f"exit code {ended.code}" if ended.code > 0 else f"signal {-ended.code}"
        raise NotSent(f"{notifier.run[0]} failed ({how})" + (f": {one_line(ended.said)}" if ended.said else ""), again=True,
                      fix="run it by hand with the same JSON on stdin")  # fmt: skip
    return "exit code 0"


def variables(news: News) -> dict[str, str]:
    """`QCONVD_EVENT`, `QCONVD_TITLE`, …: everything but the artifacts, of which there is a number."""
    told = {key: value for key, value in news.items() if key != "artifacts"}
    told["artifacts"] = len(news["artifacts"])
    return {
        f"QCONVD_{key.upper()}": "" if value is None else str(value).replace("\0", "\N{REPLACEMENT CHARACTER}")[:LONGEST]
        for key, value in told.items()
    }


def cleaned(environment: Mapping[str, str]) -> dict[str, str]:
    """The daemon's environment without the tokens in it."""
    return {name: value for name, value in environment.items() if name not in TOKENS}
