"""What verifying an artifact found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qconvd.errors import QconvdError


@dataclass(frozen=True, slots=True)
class Report:
    """An artifact that passed. Holds no time and no machine's name: equal artifacts give equal reports."""

    artifact: str
    files: int = 0
    bytes: int = 0
    tensors: int = 0
    sha256: bool = False
    """Whether every file's SHA-256 was held against a manifest."""
    rows: int = 0
    """Rows that were decoded and held against the source."""
    max_error: float = 0.0
    """The largest finite difference to the source among them."""
    worst: float = 0.0
    """The largest share of what the format allows that a difference took; at most 1."""
    worst_tensor: str = ""
    non_finite: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """NaN and infinities per tensor of the artifact; the model has them too, or they are overflows that were accepted."""
    not_checked: tuple[str, ...] = ()
    """Sentences on what could not be verified, and why."""

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON data, for the manifest and `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Failure:
    """An artifact that did not pass, and the first thing that was wrong with it."""

    artifact: str
    error: QconvdError
