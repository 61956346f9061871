"""The section that says what the daemon's log looks like."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from qconvd.config.values import Section

LogFormat: TypeAlias = Literal["auto", "human", "json", "journal"]


class Log(Section):
    """What the daemon's log looks like: docs/reference/logging.md. `qconvd run --log-format` and `-v` come before it."""

    format: LogFormat = Field(
        "auto",
        description="`human`: lines for people; `json`: an object in each line; `journal`: fields of systemd's journal; "
        "`auto`: the journal where systemd has connected stderr to it, else for people.",
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is at least as grave is logged.")
