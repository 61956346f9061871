"""Where a recipe wants a model's artifacts published: its `publish:` made into places, one per artifact and destination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qconvd.naming import hub_safe, names, repository

if TYPE_CHECKING:
    from qconvd.config import Destination, Recipe
    from qconvd.targets import Target

HUB, FOLDER = "hub:", "folder:"


@dataclass(frozen=True, slots=True)
class Place:
    """One place for one artifact."""

    destination: str
    """`hub:owner/name` or `folder:/a/folder/name`: what one publish task is about, together with `revision`."""
    revision: str
    """A branch; empty for a folder."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the publish task has to know beside: `private`, `commit`, `base_model`, `card`, `confirm`, `dry_run`."""

    @property
    def shown(self) -> str:
        """For people: `me/X-GGUF`, `me/X-GPTQ at 4bit-128g`, `/srv/models/X-GGUF`."""
        return shown(self.destination, self.revision)


def shown(destination: str, revision: str) -> str:
    """A place as people write it."""
    place = destination.removeprefix(HUB).removeprefix(FOLDER)
    return place if revision in ("", "main") else f"{place} at {revision}"


def places(recipe: Recipe, target: Target, model_name: str, profile: str) -> list[Place]:
    """Where an artifact of this recipe goes."""
    return [_place(recipe, destination, target, model_name, profile) for destination in recipe.publish]


def _place(recipe: Recipe, destination: Destination, target: Target, model_name: str, profile: str) -> Place:
    named = names(model_name, target.parts, profile, target.options.name)
    options: dict[str, Any] = {
        "card": str(recipe.card) if recipe.card else "",
        "confirm": recipe.confirm,
        "dry_run": recipe.dry_run,
    }
    if destination.folder is not None:
        return Place(f"{FOLDER}{destination.folder / named.folder}", "", {**options, "commit": "each"})
    hub = destination.hub
    assert hub is not None
    # Which variant is on `main` follows from the recipe's order, not from what happens to be made first.
    siblings = (t for t in recipe.targets if names(model_name, t.parts, profile, t.options.name).repo == named.repo)
    first = next(siblings, target).digest == target.digest
    repo, branch = repository(model_name, target.parts, named, hub.repo, hub.revision, first=first)
    base = (hub.base_model or "").replace("{model}", hub_safe(model_name))
    more = {"private": hub.private, "commit": hub.commit, "base_model": base}
    return Place(f"{HUB}{hub.owner}/{repo}", branch, {**options, **more})
