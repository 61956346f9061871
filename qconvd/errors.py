"""The one kind of error that a user can mend."""

from __future__ import annotations

from typing import Any


class QconvdError(Exception):
    """What happened, where, and what to do about it.

    The command line prints it without a traceback, the ledger keeps it as a reason, and the status file of a model shows
    it to the person who only drops files. Every other exception is a defect of ours and keeps its traceback.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}" + (f"\n  {self.fix}" if self.fix else "")

    def as_dict(self) -> dict[str, Any]:
        """The error as JSON data, for events, the ledger and `--json`."""
        return {"error": type(self).__name__, "what": self.what, "where": self.where, "fix": self.fix}


class Unsupported(QconvdError):
    """A format cannot be made from this model; raised by `Format.plan` before any weight is read."""


class BadCheckpoint(QconvdError):
    """A model on disk is damaged, inconsistent or hostile."""


class Incomplete(BadCheckpoint):
    """A model on disk is not all there yet: its own bytes promise more than is there."""


class OutOfSpace(QconvdError):
    """A disk is full. It may be better another time, so the ledger tries again."""


class TakenAway(QconvdError):
    """What was being made was removed or moved meanwhile. The ledger tries again."""


class Busy(QconvdError):
    """Another worker is at the same thing. It is tried again when that one has ended."""


class HubRefused(QconvdError):
    """The Hub says no, and will say so again until the configuration, a token or the repository changes: no retry."""


class HubBusy(QconvdError):
    """The Hub cannot answer now, or not be reached at all. `seconds`: how long it asks to wait, 0 if it does not say."""

    def __init__(self, what: str, *, where: str = "", fix: str = "", seconds: float = 0.0, reached: bool = True) -> None:
        super().__init__(what, where=where, fix=fix)
        self.seconds = seconds
        self.reached = reached

    def as_dict(self) -> dict[str, Any]:
        """As every error, with the seconds as text."""
        return {**super().as_dict(), "seconds": f"{self.seconds:g}"}


class ConfigError(QconvdError):
    """config.yaml is wrong; `problems` holds every mistake found."""

    def __init__(self, what: str, *, where: str = "", fix: str = "", problems: tuple[str, ...] = ()) -> None:
        super().__init__(what, where=where, fix=fix)
        self.problems = problems

    def as_dict(self) -> dict[str, Any]:
        """As every error, with every mistake on its own."""
        return {**super().as_dict(), "problems": list(self.problems)} if self.problems else super().as_dict()


def from_dict(data: dict[str, str]) -> QconvdError:
    """Rebuild an error from `as_dict`, e.g. one that a worker reported. Unknown kinds become `QconvdError`."""
    kinds: dict[str, type[QconvdError]] = {
        c.__name__: c
        for c in (QconvdError, Unsupported, BadCheckpoint, Incomplete, OutOfSpace, TakenAway, HubRefused, HubBusy, ConfigError)
    }
    kind = kinds.get(data.get("error", ""), QconvdError)
    if kind is HubBusy:
        return HubBusy(data["what"], where=data["where"], fix=data["fix"], seconds=float(data.get("seconds") or 0))
    return kind(data.get("what", ""), where=data.get("where", ""), fix=data.get("fix", ""))
