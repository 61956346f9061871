"""What the API is asked: the models behind its paths, queries and bodies. What does not fit them is refused with 422."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from qconvd.documents.log import CURSOR
from qconvd.ledger.control import HIGHEST
from qconvd.ledger.records import TargetState

LARGEST = 1 << 53
"""What JSON's numbers hold exactly, and SQLite's hold in any case."""
Number = Annotated[int, Field(ge=0, le=LARGEST)]
# No control characters: they are part of no path or name that somebody means.
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
_MODEL = "`owner/name` or `hub:owner/name@revision` on the Hub, the address of its page, or an absolute path."
ModelName = Annotated[Text, Field(description=_MODEL)]


TargetId = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z-]{1,64}$")]
JobOrTarget = Annotated[TargetId, Field(description="A job's number, or a target's id.")]


class Question(BaseModel):
    """Part of a request."""

    model_config = ConfigDict(extra="forbid")


class Nothing(Question):
    """Nothing has to be said: `{}`."""


class JobPath(Question):
    """Which job."""

    job: int = Field(ge=1, le=LARGEST, description="The job's number.")


class RequestPath(Question):
    """Which request."""

    request: int = Field(ge=1, le=LARGEST, description="The request's number.")


class ModelsQuery(Question):
    """Which models."""

    before: Number | None = Field(None, description="Only models with smaller numbers.")
    limit: int = Field(50, ge=1, le=500)


class JobsQuery(Question):
    """Which jobs."""

    before: Number | None = Field(None, description="Only jobs with smaller numbers.")
    limit: int = Field(50, ge=1, le=500)
    state: TargetState | None = Field(None, description="Only jobs with a target in this state.")


class HistoryQuery(Question):
    """Which events."""

    since: Number | None = Field(None, description="Only what happened after this event; left out: the last ones.")
    limit: int = Field(200, ge=1, le=1000)


class LogQuery(Question):
    """How much of a log."""

    lines: int = Field(200, ge=1, le=2000, description="At most so many lines, the last ones.")


class LogPieceQuery(Question):
    """Which log, from where on."""

    of: JobOrTarget
    after: Annotated[str, StringConstraints(max_length=8192, pattern=f"^{CURSOR}$")] = Field(
        "", description="The `next` of the piece before; left out: from the beginning."
    )
    events: bool = Field(False, description="Also what the workers told the daemon, in JSON lines.")


class PlanQuery(Question):
    """What to plan."""

    model: ModelName
    recipe: Text | None = Field(None, description="A recipe of the configuration; left out: all that take the model.")


class Add(Question):
    """A model to convert."""

    model: ModelName
    recipe: Text | None = Field(None, description="What to make of it; may be left out where there is one recipe.")


class Pause(Question):
    """Why, for whoever looks."""

    reason: Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")] = ""


class Priority(Question):
    """Above 0: before what others want; below: after it."""

    priority: int = Field(ge=-HIGHEST, le=HIGHEST)


class Which(Question):
    """Which targets of a job; left out: all of them."""

    targets: list[TargetId] | None = Field(None, max_length=1000)


class Ask(Question):
    """What is to be done with several jobs, or single targets, at once."""

    kind: Literal["retry", "cancel", "reconvert", "publish"]
    of: list[JobOrTarget] = Field(min_length=1, max_length=1000)
