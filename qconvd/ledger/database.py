"""The ledger's SQLite file: opened the same way everywhere, migrated by numbered .sql files, written in transactions only."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from qconvd.errors import QconvdError
from qconvd.ledger.filesystem import MOUNTS, refuse_network

BUSY_SECONDS = 30.0
RETRY_SECONDS = 0.01


class LedgerUnusable(QconvdError):
    """SQLite cannot read or write the ledger's file: it is damaged, or who asks may not."""


class Database:
    """One connection. Safe to use from several threads, one statement or transaction at a time."""

    def __init__(self, path: Path, *, mounts: Path = MOUNTS, only_read: bool = False) -> None:
        """Open the ledger, make it if it is not there, and bring an older one up to date.

        With `only_read`, whatever would change it afterwards is refused by SQLite.

        Raises `QconvdError` on a network filesystem, for a ledger that a newer qconvd wrote, and for a file that SQLite
        cannot use.
        """
        self.path = path
        self._lock = threading.RLock()
        refuse_network(path.parent, mounts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise unusable(path, error) from error
        try:
            self._prepare()
            if only_read:
                self._connection.execute("PRAGMA query_only = ON")
            self._identity = path.stat().st_dev, path.stat().st_ino
        except sqlite3.Error as error:
            self._connection.close()
            raise unusable(path, error) from error
        except QconvdError:
            self._connection.close()
            raise

    def check(self) -> None:
        """Raise `QconvdError` if the file is no longer where it was: what is written to it then nobody will find again."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != self._identity:
            raise QconvdError(
                f"the ledger was {'replaced' if there else 'removed'} while it was in use",
                where=str(self.path),
                fix="put it back if you can, and start the daemon again",
            )

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: all of it reaches the disk, or nothing. Takes part in one that is already open."""
        with self._lock:
            if self._connection.in_transaction:
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # A full disk makes SQLite roll back by itself; a COMMIT that failed leaves the transaction open, and what
                # comes next would take part in it.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Several questions, answered as of one moment."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def mark(self) -> tuple[int, int]:
        """Equal to an earlier mark as long as nobody has written to the ledger since, neither here nor elsewhere. Cheap."""
        with self._lock:
            others = self._connection.execute("PRAGMA data_version").fetchone()[0]
            return int(others), self._connection.total_changes

    def copy_to(self, other: sqlite3.Connection) -> None:
        """All of the database into another one, as of one moment."""
        with self._lock:
            self._connection.backup(other)

    def _prepare(self) -> None:
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA foreign_keys = ON")
        found = self._version()
        known = migrations()
        if found > len(known):
            raise QconvdError(
                f"the ledger was written by a newer qconvd (schema {found}; this one knows {len(known)})",
                where=str(self.path),
                fix="install that version again, or point `state:` to another folder",
            )
        self._log_ahead()
        self._connection.execute("PRAGMA synchronous = FULL")
        if found < len(known):
            self._migrate(known)

    def _log_ahead(self) -> None:
        """Write-ahead logging. Where two make a ledger at once, SQLite refuses the second one without waiting for the first."""
        end = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
            time.sleep(RETRY_SECONDS)

    def _migrate(self, known: Sequence[str]) -> None:
        with self.transaction() as connection:
            # Another process may have done it while this one waited for the lock.
            for number in range(self._version(), len(known)):
                for statement in _statements(known[number]):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number + 1}")

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turn what SQLite says of a ledger's file, that it is damaged or held by somebody else, into a `QconvdError`."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise  # of a statement, so a defect
    except sqlite3.DatabaseError as error:
        raise unusable(path, error) from error


def migrations() -> list[str]:
    """The numbered scripts in order; the schema's version is how many have been applied."""
    folder = resources.files("qconvd.ledger") / "migrations"
    scripts = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [script.read_text() for script in scripts]


def _statements(script: str) -> Iterator[str]:
    """Split at the semicolons that end a statement (those inside a trigger do not): `executescript` would commit first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if any(line.strip() and not line.lstrip().startswith("--") for line in statement.splitlines()):
        raise ValueError(f"a migration ends in the middle of a statement: {statement.strip()[:80]}")


def unusable(path: Path, error: Exception) -> LedgerUnusable:
    """The error for a ledger that SQLite cannot read or write."""
    damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
    return LedgerUnusable(
        f"the ledger cannot be used: {error}",
        where=str(path),
        fix="the file is damaged or not a ledger: restore it, or move it away to begin anew"
        if damaged
        else "check the state folder's permissions and free space",
    )
