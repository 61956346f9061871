"""The sections that say where models come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from qconvd.config.values import AnyPath, Count, Duration, Section, Words, address

SHORTEST_INTERVAL = 0.1
"""Seconds between two scans of a folder: shorter ones would do nothing else."""
SHORTEST_POLL = 1.0
"""Seconds between two questions to the Hub about the same thing; its own limit is 1,000 requests in 5 minutes."""


class WatchFolder(Section):
    """A folder in which models appear."""

    folder: AnyPath = Field(description="The folder. Each model in it is a folder of its own or a lone file.")
    recipes: Words = Field(min_length=1, description="What to make of the models in it: names from `recipes`.")
    after: Literal["keep", "move", "delete"] = Field(
        "keep",
        description="What becomes of a model when all its artifacts are done: it stays, goes to `.qconvd-done/`, is deleted.",
    )
    settle: Duration | None = Field(
        None, description="How long a complete model must lie unchanged before it is taken: 2s with events, 30s when polled."
    )
    poll: Literal["auto", "always", "never"] = Field(
        "auto", description="Look by polling instead of file events: where events cannot work (NFS, SMB), always, or never."
    )
    interval: Duration = Field(
        60.0, ge=SHORTEST_INTERVAL, description="How often the whole folder is looked at anew, whatever events say."
    )


class HubModels(Section):
    """Models on the Hub: one repository, or those of an author that fit every line that is given."""

    repo: str | None = Field(None, description="One repository, `owner/name`; `hub: owner/name` is short for it.")
    revision: str | None = Field(
        None, description="Its branch, tag or commit, `main` if left out. Short: `hub: owner/name@branch`."
    )
    author: str | None = Field(None, description="A user or an organisation whose models are watched.")
    pipeline: str | None = Field(None, description="Of an author: only models for this task, e.g. `text-generation`.")
    licenses: Words = Field((), description="Of an author: only models under these licenses, e.g. `[apache-2.0, mit]`.")
    max_parameters: Count | None = Field(
        None,
        description="Of an author: only models of at most so many weights; not those whose number the Hub does not know.",
    )
    name: Words = Field((), description="Of an author: only repositories whose names fit these globs, e.g. `*-Instruct`.")

    @model_validator(mode="before")
    @classmethod
    def _written_short(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        where = address(value)
        return {"repo": where.repo, "revision": where.revision if "@" in value else None}

    @field_validator("repo")
    @classmethod
    def _repo(cls, value: str | None) -> str | None:
        return None if value is None else address(value).repo

    @model_validator(mode="after")
    def _one(self) -> HubModels:
        if (self.repo is None) == (self.author is None):
            raise ValueError("write `hub: owner/name`, or `hub: {author: …}` for all models of somebody")
        only = [name for name in ("pipeline", "licenses", "max_parameters", "name") if getattr(self, name) not in (None, ())]
        if self.repo is not None and only:
            raise ValueError(f"`{only[0]}` chooses among the models of an `author`; this is one repository")
        if self.author is not None and self.revision is not None:
            raise ValueError("`revision` belongs to one repository; of an author the main branches are watched")
        return self

    @property
    def shown(self) -> str:
        """As people write it."""
        at = f"@{self.revision}" if self.revision else ""
        return f"hub:{self.repo}{at}" if self.repo else f"hub:{self.author}/*"


class WatchHub(Section):
    """Models on the Hub that are fetched and converted, and again when their weights change."""

    hub: HubModels = Field(description="`owner/name`, `owner/name@branch`, or a mapping: an author and which models.")
    recipes: Words = Field(min_length=1, description="What to make of the models: names from `recipes`.")
    after: Literal["keep", "delete"] = Field(
        "keep",
        description="What becomes of what was fetched when all artifacts are done: it stays in the Hub cache, or is deleted.",
    )
    interval: Duration = Field(
        300.0, ge=SHORTEST_POLL, description="How often the Hub is asked whether something changed, give or take a tenth."
    )


def _which_watch(value: Any) -> str:
    """Which kind of an entry of `watch` somebody wrote."""
    found = value.get("hub") if isinstance(value, Mapping) else getattr(value, "hub", None)
    return "WatchHub" if found is not None else "WatchFolder"


Watch = Annotated[
    Annotated[WatchFolder, Tag("WatchFolder")] | Annotated[WatchHub, Tag("WatchHub")], Discriminator(_which_watch)
]
