"""What people ask of the running daemon from the command line, and what they are answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qconvd import checkpoints, intake
from qconvd.checkpoints.files import is_there
from qconvd.config import Config
from qconvd.errors import QconvdError
from qconvd.hub.address import is_address
from qconvd.hub.address import parse as parse_address
from qconvd.ledger import Ledger, Request, Source
from qconvd.remote_arrivals import RemoteArrivals
from qconvd.wishes import Wishes

log = logging.getLogger(__name__)


class Later(Exception):
    """A request cannot be answered yet; it stays open."""


class Requests:
    """Answers each request once. `reload` is the daemon's own: it returns a sentence, or raises `QconvdError`."""

    def __init__(self, ledger: Ledger, wishes: Wishes, reload: Callable[[], str], remote: RemoteArrivals | None = None) -> None:
        self._ledger = ledger
        self._wishes = wishes
        self._reload = reload
        self._remote = remote

    def tick(self, config: Config) -> None:
        """Answer what is open. A request that cannot be met is refused with the reason; the daemon goes on."""
        for request in self._ledger.requests():
            try:
                answer, ok = self._answer(request, config), True
            except Later:
                continue
            except QconvdError as error:
                answer, ok = str(error), False
            self._ledger.answer(request.id, answer, ok=ok)
            said = [v if isinstance(v, list) else [v] for v in request.arguments.values() if v not in ("", None)]
            about = " ".join(str(v) for several in said for v in several)
            log.log(logging.INFO if ok else logging.WARNING, "asked to %s: %s", f"{request.kind} {about}".strip(), answer,
                    extra={"action": "request.done" if ok else "request.refused", "request": request.kind})  # fmt: skip

    def _answer(self, request: Request, config: Config) -> str:
        match request.kind:
            case "pause":
                return self._pause(str(request.arguments.get("reason", "")))
            case "resume":
                return self._resume()
            case "priority":
                return self._prioritize(request.arguments)
            case "add":
                return self._add(request.arguments, config)
            case "retry":
                return _count(self._ledger.retry(self._targets(request)), "will be tried again", "nothing to try again")
            case "cancel":
                return _count(self._ledger.cancel(self._targets(request)), "cancelled", "nothing to cancel")
            case "reconvert":
                return _count(
                    self._ledger.reconvert(self._made_of_what_is_there(request)), "will be made again", "nothing to make again"
                )
            case "publish":
                return self._confirmed(self._targets(request))
            case "reload":
                return self._reload()
        raise QconvdError(
            f"this daemon does not know the request {request.kind!r}", fix="restart it: it may be older than the command"
        )

    def _pause(self, reason: str) -> str:
        """Nothing new is started until somebody says so."""
        self._ledger.pause("by hand", " ".join(reason.split()))
        running = len(self._ledger.tasks("running"))
        ending = f"; {running} running {'task ends' if running == 1 else 'tasks end'} first" if running else ""
        return f"paused: no task is started until `qconvd resume`{ending}"

    def _resume(self) -> str:
        ended = self._ledger.resume("by hand")
        still = "; ".join(pause.told for pause in self._ledger.pauses())
        if not ended:
            raise QconvdError("nothing was paused by hand", fix=still)
        return f"still {still}" if still else "goes on"

    def _prioritize(self, arguments: Mapping[str, Any]) -> str:
        """Jobs by their numbers; a target has no priority of its own."""
        numbers = [self._ledger.job(id).id for id in _ids(arguments)]
        try:
            priority = int(arguments["priority"])
        except (KeyError, TypeError, ValueError):
            raise QconvdError("a priority is a whole number", fix="for example `qconvd priority 7 10`") from None
        with self._ledger.transaction():
            for number in numbers:
                self._ledger.prioritize(number, priority)
        jobs = f"job {numbers[0]} has" if len(numbers) == 1 else f"jobs {', '.join(map(str, numbers))} have"
        return f"{jobs} priority {priority}"

    def _add(self, arguments: Mapping[str, Any], config: Config) -> str:
        """A model from anywhere, for one recipe. It is not watched, so it must be complete now."""
        path, recipe = Path(str(arguments["path"])), str(arguments["recipe"])
        if full := [pause for pause in self._ledger.pauses() if pause.cause == "disk"]:
            raise QconvdError(f"nothing is taken in now: {full[0].reason}", where=str(path), fix="make room, then add it again")
        if recipe not in config.recipes:
            raise QconvdError(f"there is no recipe {recipe!r}", fix=f"known are {', '.join(sorted(config.recipes))}")
        if is_address(str(path)):
            return self._add_remote(str(path), recipe)
        try:
            look = intake.look(path)
        except OSError as error:
            raise QconvdError(f"cannot be read: {error.strerror}", where=str(path)) from error
        if look.state != "complete" or look.model is None:
            raise QconvdError(look.reason or "there is no model here", where=str(path), fix=look.fix)
        identity = checkpoints.identity(look.model)
        with self._ledger.transaction():
            source = self._ledger.source_seen(str(path), identity, look.model.name, look.fingerprint)
            others = {job.recipe for job in self._ledger.jobs_of(source.id)} & set(config.recipes)
            made = self._wishes.want(source, look.model, sorted({*others, recipe}))
        return self._taken(source, recipe, made, asked_before=bool(others))

    def _add_remote(self, text: str, recipe: str) -> str:
        """A model on the Hub. It is looked at by the thread that asks the Hub; the answer comes when that is done."""
        assert self._remote is not None
        added = self._remote.add(parse_address(text), recipe)
        if added is None:
            raise Later
        if added.error is not None:
            raise added.error
        source = self._ledger.source(added.source or 0)
        targets = self._ledger.targets(source=source.id)
        made = [t.id for t in targets if recipe in t.recipes and t.state == "waiting"]
        return self._taken(source, recipe, made, asked_before=len({j.recipe for j in self._ledger.jobs_of(source.id)}) > 1)

    def _taken(self, source: Source, recipe: str, made: list[str], *, asked_before: bool) -> str:
        """What becomes of a model that was added, in sentences. Raises `QconvdError` if no recipe takes it."""
        refusal = self._wishes.refusals.get(source.id)
        if refusal and not asked_before:
            raise QconvdError(refusal, where=source.locator)
        number = next((job.id for job in self._ledger.jobs_of(source.id) if job.recipe == recipe), 0)
        said = "\n".join([*self._new(made), *self._earlier(source, recipe, made)])
        return f"job {number}: {said or 'all that the recipe wants is there or on its way'}"

    def _confirmed(self, targets: list[str]) -> str:
        """Publish what awaits somebody's word. Raises `QconvdError` if nothing of these does."""
        if found := self._ledger.confirm(targets):
            where = ", ".join(dict.fromkeys(p.place for p in found))
            return f"{_count(list({p.target: None for p in found}), 'will be published', '')}: {where}"
        known = [p for id in targets for p in self._ledger.publications(target=id) if p.state != "unwanted"]
        if not known:
            raise QconvdError("its recipe does not publish", fix="add `publish:` to the recipe, then `qconvd reload`")
        said = dict.fromkeys(f"{p.place}: {_STATES[p.state]}" for p in known)
        raise QconvdError(f"nothing waits for a word: {'; '.join(said)}")

    def _new(self, made: list[str]) -> Iterator[str]:
        """What is to become of the new targets, in sentences."""
        new = [self._ledger.target(id) for id in made]
        if going := [t.id for t in new if t.state == "waiting" and not t.waits_for]:
            yield _count(going, "will be made", "")
        for target in new:
            if target.state != "waiting" or target.waits_for:
                yield f"{target.label}: {target.reason}"

    def _earlier(self, source: Source, recipe: str, made: list[str]) -> Iterator[str]:
        """What came to nothing before, of this model here and of copies of it elsewhere."""
        for job in self._ledger.jobs():
            here = job.source.id == source.id
            if job.source.digest != source.digest or (here and job.recipe != recipe):
                continue
            for target in job.targets:
                if target.state in ("failed", "cancelled") and target.id not in made:
                    of = "" if here else f" of the same model in {job.source.locator}"
                    began = "failed before" if target.state == "failed" else "was cancelled before"
                    why = f" ({target.reason})" if target.state == "failed" else ""
                    yield f"{target.label}{of} {began}{why}; `qconvd retry {job.id}` tries it again"

    def _made_of_what_is_there(self, request: Request) -> list[str]:
        """The targets of a request, which must have their models still: what is done would be given up for nothing."""
        targets = self._targets(request)
        for source in map(self._ledger.source, dict.fromkeys(self._ledger.target(id).source for id in targets)):
            if source.state == "gone" or not (is_address(source.locator) or is_there(Path(source.locator))):
                fix = "put it back there first; the artifacts stay as they are"
                raise QconvdError("the model is not there any more", where=source.locator, fix=fix)
        return targets

    def _targets(self, request: Request) -> list[str]:
        return list(dict.fromkeys(t.id for id in _ids(request.arguments) for t in self._ledger.find(id)))


_STATES = {
    "open": "will be published without asking", "publishing": "is being published", "done": "is published",
    "rehearsed": "the recipe says `dry_run: true`", "failed": "failed; `qconvd retry JOB` tries it again",
    "cancelled": "was cancelled; `qconvd retry JOB` takes it up again", "awaiting": "waits",
}  # fmt: skip


def _ids(arguments: Mapping[str, Any]) -> list[str]:
    found = arguments.get("ids", arguments.get("id", arguments.get("job", [])))
    return [str(i) for i in found] if isinstance(found, list) else [str(found)]


def _count(targets: list[str], done: str, nothing: str) -> str:
    return f"{len(targets)} {'artifact' if len(targets) == 1 else 'artifacts'} {done}" if targets else nothing
