"""What can be asked of a daemon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Document: TypeAlias = dict[str, Any]
"""JSON data as web/answers.py describes it. One from another version may lack what it does not know."""
NOT_YET = "The daemon has not answered yet; `qconvd status` shows what it does."


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request: `open` if it was not answered yet, and then why."""

    state: str
    said: str


class Daemon(Protocol):
    """A daemon, or what one has left. Every method raises `QconvdError` for what is not there or cannot be done."""

    def status(self) -> Document:
        """What it does and waits for: `Status`; `pid` is None if none runs."""
        ...

    def jobs(self) -> list[Document]:
        """All jobs, the oldest first: `Job`."""
        ...

    def job(self, number: str) -> Document:
        """A job and its history: `JobDetails`."""
        ...

    def log(self, of: str, after: str = "", *, events: bool = False) -> Document:
        """A piece of a job's or a target's log: `LogPiece`."""
        ...

    def ask(self, kind: str, ids: Sequence[str]) -> Answer:
        """Retry, cancel, reconvert or publish jobs, or single targets."""
        ...

    def prioritize(self, job: str, priority: int) -> Answer:
        """Let a job go before others or after them."""
        ...

    def pause(self, reason: str) -> Answer:
        """Start nothing new."""
        ...

    def resume(self) -> Answer:
        """Go on after a pause."""
        ...

    def reload(self) -> Answer:
        """Read the configuration again."""
        ...

    def add(self, locator: str, recipe: str | None) -> Answer:
        """Take a model: an absolute path, or where it is on the Hub."""
        ...
