"""Which daemon a command is about, and how it is asked: over HTTP if one runs that listens, in its ledger otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qconvd.cli.place import Place
    from qconvd.client import Daemon
    from qconvd.client.http import NotServed, OverHttp

URL_VARIABLE = "QCONVD_URL"

Url = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="URL",
        help="A daemon elsewhere: http://host:8484, https://host, unix:/a/socket; else $QCONVD_URL. Token: $QCONVD_WEB_TOKEN.",
    ),
]  # fmt: skip


def elsewhere(file: Path | None, url: str | None) -> str:
    """The address that is meant; empty if it is the daemon of a config. Raises `QconvdError` for what is no address."""
    from qconvd.client.http import checked

    if file and url is not None:
        raise typer.BadParameter("--config and --url name two daemons; leave out one of them")
    # An address that is empty is a script's mistake: without one, another daemon would be meant.
    if url is not None:
        return checked(url)
    found = "" if file else os.environ.get(URL_VARIABLE, "").strip()
    return checked(found) if found else ""


@contextmanager
def reached(file: Path | None, url: str | None) -> Iterator[Daemon]:
    """The daemon at an address, or that of a config. Raises `QconvdError` if no daemon ever ran with that, or none is there."""
    if address := elsewhere(file, url):
        from qconvd.client.http import OverHttp

        away = OverHttp(address, _token_here())
        try:
            yield away
        finally:
            away.close()
        return
    from qconvd.cli.place import check_ledger, find_place
    from qconvd.client.here import Here
    from qconvd.client.ledger import OverLedger
    from qconvd.ledger import Ledger
    from qconvd.ledger.database import LedgerUnusable, in_words

    place = find_place(file)
    check_ledger(place)
    over_http, refused = _listening(place)
    with ExitStack() as at_the_end:

        def ledger() -> OverLedger:
            opened = Ledger(place.ledger)
            at_the_end.callback(opened.close)
            return OverLedger(opened, place.state, place.config)

        if over_http is not None:
            at_the_end.callback(over_http.close)
        try:
            with in_words(place.ledger):
                yield Here(over_http, ledger)
        except LedgerUnusable:
            if refused is None:
                raise
            raise refused from None


def _listening(place: Place) -> tuple[OverHttp | None, NotServed | None]:
    """The daemon of a place, if one of this version listens and serves us, and why it does not serve us.

    Who may use its ledger can do without.
    """
    from qconvd.in_force import address_of

    pid = place.daemon
    address = address_of(place.state, pid) if pid else ""
    if pid is None or not address:
        return None, None
    from qconvd.client.http import NotServed, OverHttp, checked
    from qconvd.errors import QconvdError

    try:
        daemon = OverHttp(checked(address), _token_of(place) or _token_here())
        daemon.hello(pid)
    except NotServed as error:
        return None, error
    except QconvdError:
        return None, None
    return daemon, None


def _token_of(place: Place) -> str:
    """What its HTTP port wants to see, as far as it may be read here."""
    from qconvd.errors import QconvdError
    from qconvd.hub.tokens import web_token

    try:
        found = web_token(place.token_file)
    except QconvdError:
        return ""
    return found.value if found else ""


def _token_here() -> str:
    from qconvd.client.http import TOKEN_VARIABLE

    return os.environ.get(TOKEN_VARIABLE, "").strip()
