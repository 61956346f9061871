"""Where the ledger of a config is: found although the file on disk is wrong by now, as the daemon runs on with the old one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qconvd.errors import ConfigError
    from qconvd.ledger import Ledger


@dataclass(frozen=True)
class Place:
    """A config file and the state folder that belongs to it. `mistakes` is empty if the file on disk is right.

    `token_file`: where the token of its HTTP port is, if the config says so.
    """

    config: Path
    state: Path
    mistakes: tuple[str, ...] = ()
    token_file: Path | None = None

    @property
    def ledger(self) -> Path:
        return self.state / "ledger.sqlite"

    @property
    def daemon(self) -> int | None:
        """The daemon's process id, if one runs."""
        from qconvd.state_lock import holder

        return holder(self.state)


def find_place(file: Path | None) -> Place:
    """The place of the option's, or the default, config file; says on stderr if that is wrong.

    Raises `ConfigError` if it is wrong and no daemon was ever started with it.
    """
    from qconvd import config
    from qconvd.errors import ConfigError
    from qconvd.in_force import state_of

    try:
        path = file or config.find()
    except ConfigError:
        path = Path("config.yaml")
        if state_of(path) is None:
            raise
    try:
        loaded = config.load(path)
    except ConfigError as error:
        state = state_of(path)
        if state is None:
            raise
        place = Place(path.absolute(), state, error.problems or (str(error),))
        _tell(place, error)
        return place
    return Place(loaded.path, loaded.state, token_file=loaded.web.token_file)


@contextmanager
def opened(file: Path | None) -> Iterator[tuple[Place, Ledger]]:
    """The place and its ledger. Raises `QconvdError` if no daemon ever ran, or if the ledger cannot be used."""
    from qconvd.ledger import Ledger
    from qconvd.ledger.database import in_words

    place = find_place(file)
    check_ledger(place)
    ledger = Ledger(place.ledger)
    try:
        with in_words(ledger.path):
            yield place, ledger
    finally:
        ledger.close()


def check_ledger(place: Place) -> None:
    """Raise `QconvdError` if no daemon ever ran with this config, or if who asks may not know: there is nothing to ask."""
    from qconvd.errors import QconvdError

    try:
        place.ledger.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        fix = "start one with `qconvd run`"
        raise QconvdError("no daemon has run with this config yet", where=str(place.state), fix=fix) from error
    except OSError as error:
        fix = "read it as root or a member of its group, or ask a running daemon: --url http://127.0.0.1:8484"
        raise QconvdError(f"cannot be read: {error.strerror}", where=str(place.state), fix=fix) from error


def _tell(place: Place, error: ConfigError) -> None:
    from qconvd.cli import output

    count = len(error.problems)
    what = f"has {count} {'mistake' if count == 1 else 'mistakes'} (`qconvd check` tells)" if count else error.what
    then = "the daemon runs on with what it read before" if place.daemon else "no daemon can be started with it"
    output.note(f"qconvd: {place.config} {what}; {then}")
