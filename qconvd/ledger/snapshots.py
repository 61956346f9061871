"""What the ledger knows of models on the Hub: which commit a source is, what of it is needed, and whether that is here.

A source on the Hub is planned from its headers; its targets are then planned and wait for one fetch task, during which they
stay `planned`. When the model is here they are converted like any other. Freed, it is fetched again if somebody wants more.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qconvd.ledger.needs import fetch_need, need_of
from qconvd.ledger.reading import Reading
from qconvd.ledger.records import Target, as_json

SnapshotState: TypeAlias = Literal["listed", "here", "freed"]
AWAITS_FETCH = "waiting to be fetched"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a model on the Hub. The paths are folders; `files` are what has to be here, with sizes and hashes."""

    source: int
    repo: str
    commit_id: str
    state: SnapshotState
    heads: str
    folder: str
    identity: str
    files: tuple[Mapping[str, Any], ...]
    nbytes: int
    fetched: tuple[str, ...]
    after: Literal["keep", "delete"]
    changed_at: float

    @property
    def place(self) -> Path:
        """Where a reader finds the model: all of it, or what planning needs."""
        return Path(self.folder if self.state == "here" else self.heads)

    def intact(self) -> bool:
        """Whether every file is still where it was fetched to, in its length. What it holds is checked by who reads it."""
        try:
            return all((Path(self.folder) / f["path"]).stat().st_size == f["size"] for f in self.files)
        except OSError:
            return False


class Snapshots(Reading):
    """Snapshots and what they mean to targets and tasks. All changes are made within the ledger's transactions."""

    _clock: Callable[[], float]

    def snapshot_of(self, source: int) -> Snapshot | None:
        """What is known of a source on the Hub; None for one on this machine."""
        found = self.rows("SELECT * FROM snapshot WHERE source = ?", (source,))
        return _snapshot(found[0]) if found else None

    def snapshots(self, *states: SnapshotState) -> list[Snapshot]:
        """Those in any of `states`, or all, the oldest first."""
        found = [_snapshot(row) for row in self.rows("SELECT * FROM snapshot ORDER BY source")]
        return [s for s in found if not states or s.state in states]

    def snapshot_listed(
        self, source: int, repo: str, commit: str, heads: Path, files: Sequence[Mapping[str, Any]], after: str = "keep"
    ) -> None:
        """A version of a model on the Hub, just taken: its commit, its headers, and what has to be fetched.

        What is known already stays: the first commit with this content is the one that is planned and fetched. See
        `snapshot_lost`.
        """
        with self.transaction() as db:
            db.execute(
                "INSERT INTO snapshot (source, repo, commit_id, state, heads, files, nbytes, after, changed_at)"
                " VALUES (?, ?, ?, 'listed', ?, ?, ?, ?, ?)"
                " ON CONFLICT (source) DO UPDATE SET after = excluded.after",
                (
                    source, repo, commit, str(heads), as_json([dict(f) for f in files]), sum(int(f["size"]) for f in files),
                    after, self._clock(),
                ),
            )  # fmt: skip

    def snapshot_lost(self, source: int) -> None:
        """The headers are gone from the disk: the next `snapshot_listed` begins anew."""
        with self.transaction() as db:
            db.execute("DELETE FROM snapshot WHERE source = ?", (source,))

    def snapshot_doubted(self, source: int) -> bool:
        """What was fetched is not what it was, or gone: it is checked, and what is missing is fetched again.

        Returns whether there was anything to doubt.
        """
        with self.transaction() as db:
            return bool(db.execute(
                "UPDATE snapshot SET state = 'listed', changed_at = ? WHERE source = ? AND state = 'here'",
                (self._clock(), source),
            ).rowcount)  # fmt: skip

    def snapshot_freed(self, source: int) -> None:
        """What was fetched is deleted."""
        with self.transaction() as db:
            db.execute(
                "UPDATE snapshot SET state = 'freed', fetched = '[]', changed_at = ? WHERE source = ?", (self._clock(), source)
            )

    # What this means to tasks

    def _not_here(self, source: int) -> bool:
        """Whether a model must be fetched before it can be converted."""
        snapshot = self.snapshot_of(source)
        return snapshot is not None and snapshot.state != "here"

    def _fetching(self, source: int) -> bool:
        """Whether an open task fetches a source already; another one would do the same."""
        query = "SELECT 1 FROM task WHERE kind = 'fetch' AND source = ? AND state IN ('queued', 'running')"
        return bool(self.rows(query, (source,)))

    def _need(self, kind: str, targets: Sequence[Target]) -> dict[str, int]:
        """What a task for these targets needs of the machine."""
        snapshot = self.snapshot_of(targets[0].source) if kind == "fetch" and targets else None
        return need_of(kind, targets) if snapshot is None else fetch_need(snapshot.nbytes)

    def _fetched(self, source: int, data: Mapping[str, Any]) -> None:
        """A fetch task has put a model into its place."""
        with self.transaction() as db:
            known = self.snapshot_of(source)
            ours = dict.fromkeys([*(known.fetched if known else ()), *map(str, data.get("fetched", ()))])
            db.execute(
                "UPDATE snapshot SET state = 'here', folder = ?, identity = ?, fetched = ?, changed_at = ? WHERE source = ?",
                (data["folder"], data["identity"], as_json(list(ours)), self._clock(), source),
            )


def _snapshot(row: sqlite3.Row) -> Snapshot:
    parsed = {"files": tuple(json.loads(row["files"])), "fetched": tuple(json.loads(row["fetched"]))}
    return Snapshot(**{**dict(row), **parsed})
