"""The sections that say how qconvd reaches the Hub, and how it is reached."""

from __future__ import annotations

import os
import re
from typing import Any

from pydantic import Field, field_validator

from qconvd.config.values import AnyPath, Duration, Section, Words, Workers
from qconvd.hub.client import ENDPOINT, TIMEOUT
from qconvd.hub.tokens import looks_like_token, redacted
from qconvd.wire import UNIX

DEFAULT_LISTEN = "127.0.0.1:8484"
LONGEST_SOCKET = len(UNIX) + 107
"""Bytes that Linux takes for a socket's path (unix(7)), after `unix:`."""


class Hub(Section):
    """How the Hub is reached. The token itself never stands here: `$HF_TOKEN`, a file, or systemd's credential `hf-token`."""

    endpoint: str = Field(ENDPOINT, description="Where it is; another one for a mirror or an own Hub.")
    token_file: AnyPath | None = Field(None, description="A file that holds the token, and nothing else.")
    cache: AnyPath | None = Field(
        None, description="The Hub cache that models are fetched into; left out: the one that all programs share."
    )
    timeout: Duration = Field(TIMEOUT, gt=0, description="How long to wait for the server's next byte.")
    fetches: Workers = Field(1, description="Models that are fetched at a time, beside what is converted.")
    webhook_secret_file: AnyPath | None = Field(
        None, description="A file with the secret of the Hub's webhooks; `$QCONVD_WEBHOOK_SECRET` and a credential do as well."
    )

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s/@]+(/[^\s@]*)?", value):
            raise ValueError(f"{redacted(value)!r} is no address; write for example {ENDPOINT}")
        return value.rstrip("/")

    @field_validator("token_file", "webhook_secret_file", mode="before")
    @classmethod
    def _no_token(cls, value: Any) -> Any:
        if isinstance(value, str) and looks_like_token(value):
            raise ValueError("this is a token itself; put it into a file that only you can read, and name the file here")
        return value


class Web(Section):
    """The daemon's HTTP port: the status page, the API, metrics, and where the Hub's webhooks come to (`/webhooks/hub`)."""

    listen: str | None = Field(
        DEFAULT_LISTEN,
        description="`address:port`, or `unix:/path` for a socket of that path, or `off`. "
        "Where other machines reach it, only who brings the token is served.",
        json_schema_extra={"anyOf": [{"type": "string"}, {"const": False}, {"type": "null"}]},
    )
    token_file: AnyPath | None = Field(
        None,
        description="A file with the token that clients must bring; systemd's credential `web-token` does as well. "
        "Left out, only this machine is served, without a token.",
    )
    hosts: Words = Field(
        (), description="Names that it is reached by, beside its address and the machine's host name: `qconvd.example.org`."
    )

    @field_validator("listen", mode="before")
    @classmethod
    def _listen(cls, value: Any) -> Any:
        if value in (None, False, "off"):
            return None
        if str(value).startswith(UNIX):
            if not str(value).startswith(f"{UNIX}/") or "\0" in str(value) or len(os.fsencode(str(value))) > LONGEST_SOCKET:
                raise ValueError(f"{value!r} is no path of a socket; write for example unix:/run/qconvd/http.sock")
            return str(value)
        host, _, port = str(value).rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"{value!r} is no address with a port; write for example {DEFAULT_LISTEN}")
        return str(value)

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not re.fullmatch(r"[\w.-]+", host, re.ASCII):
                raise ValueError(f"{host!r} is no name of a host; write for example qconvd.example.org")
        return tuple(host.lower() for host in value)
