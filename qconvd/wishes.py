"""Which recipes want a model, and so which artifacts the ledger is to hold for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from qconvd.checkpoints.base import ModelInfo
from qconvd.config import Config
from qconvd.destinations import places
from qconvd.ledger import Ledger, Source
from qconvd.logs.about import about_source
from qconvd.sightings import Sighting

log = logging.getLogger(__name__)
REMEDY = "add a recipe that takes it to config.yaml, or change its `match`"


class Wishes:
    """The recipes of one configuration, held against models. It remembers which sources were held against these."""

    def __init__(self, ledger: Ledger) -> None:
        self.refusals: dict[int, str] = {}
        """Sources that no recipe wants, and why."""
        self._ledger = ledger
        self._config: Config | None = None
        self._asked: set[int] = set()

    def configure(self, config: Config) -> None:
        """From now on these recipes count; every source is to be held against them again."""
        self._config = config
        self._asked.clear()
        self.refusals.clear()

    def asked(self, source: int) -> bool:
        """Whether a source was held against the present recipes."""
        return source in self._asked

    def sightings(self) -> list[Sighting]:
        """Models that no recipe takes."""
        if not self.refusals:
            return []
        present = [s for s in self._ledger.sources() if s.state == "present" and s.id in self.refusals]
        return [Sighting("unwanted", s.locator, s.name, self.refusals[s.id], REMEDY) for s in present]

    def want(self, source: Source, model: ModelInfo, recipes: Sequence[str]) -> list[str]:
        """Let the ledger know what these recipes, and no others, want of a source. Returns the ids of new targets."""
        assert self._config is not None
        made: list[str] = []
        reasons: list[str] = []
        with self._ledger.transaction():
            for name in recipes:
                recipe = self._config.recipes[name]
                reason = recipe.match.why_not(model)
                if reason:
                    reasons.append(f"the recipe {name} does not take it: {reason}")
                made += self._ledger.want(source.id, name, [] if reason else recipe.targets, self._config.names)
                if not reason:
                    self._publish(source, name)
            for job in self._ledger.jobs_of(source.id):
                if job.recipe not in recipes:
                    self._ledger.want(source.id, job.recipe, [], self._config.names)
        self._asked.add(source.id)
        self.refusals.pop(source.id, None)
        if len(reasons) == len(recipes):
            self.refusals[source.id] = "; ".join(reasons) or "no recipe is set for it"
            log.info("%s: %s", source.locator, self.refusals[source.id],
                     extra={"action": "model.unwanted", **about_source(source)})  # fmt: skip
        return made

    def _publish(self, source: Source, name: str) -> None:
        """Let the ledger know where a recipe wants its artifacts of a source published."""
        assert self._config is not None
        recipe = self._config.recipes[name]
        live = {t.spec_digest: t for t in self._ledger.targets(source=source.id) if t.state != "superseded"}
        for target in recipe.targets:
            if target.digest in live:
                wanted = places(recipe, target, source.name, self._config.names)
                self._ledger.publish_to(live[target.digest].id, name, wanted)
