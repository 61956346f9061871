"""What changes something: requests that pass through the ledger, as those of the command line, and plans."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from qconvd.config import Config
from qconvd.errors import QconvdError
from qconvd.hub.address import is_address, of_page, parse
from qconvd.ledger import Ledger, Request
from qconvd.suggest import did_you_mean
from qconvd.web import answers
from qconvd.web.site import Site
from qconvd.wire import LOOK, WAIT

PLAN_SECONDS = 60.0
PLANS = 2
"""Plans at a time: each is a process."""


class Asker:
    """Asks the daemon of one site."""

    def __init__(self, site: Site, ledger: Ledger) -> None:
        self._site = site
        self._ledger = ledger
        self._plans = threading.BoundedSemaphore(PLANS)
        self._ended = False

    def end(self) -> None:
        """Wait for no answer any more: the port closes. Called in the loop."""
        self._ended = True

    async def ask(self, kind: str, **arguments: Any) -> answers.Said:
        """Write a request down, wake the daemon, and wait for what it says. Raises `Refused` if it says no."""
        number = await asyncio.to_thread(self._write, kind, arguments)
        end = asyncio.get_running_loop().time() + WAIT
        while True:
            last = self._ended  # before the look: what was answered by then is told
            found = await asyncio.to_thread(self._ledger.asked, number)
            if found.state != "open" or last or asyncio.get_running_loop().time() > end:
                return said(found)
            await asyncio.sleep(LOOK)

    def asked(self, number: int) -> answers.Said:
        """What became of a request. Raises `QconvdError` if there is none."""
        return said(self._ledger.asked(number))

    def targets_of(self, job: int, wanted: Sequence[str] | None) -> list[str]:
        """What a request for a job is about: its number, or these of its targets. Raises `QconvdError` for others."""
        known = {t.id for t in self._ledger.job(job).targets}
        if other := next((id for id in wanted or () if id not in known), None):
            raise QconvdError(f"job {job} has no target {other}", fix=f"/api/v1/jobs/{job} lists them")
        return list(wanted) if wanted is not None else [str(job)]

    def recipe(self, name: str | None) -> str:
        """The recipe that is meant. Raises `QconvdError` if there is none, or several."""
        recipes = self._config.recipes
        if name is None:
            if len(recipes) != 1:
                raise QconvdError("say what to make of it", fix=f"`recipe` is one of {', '.join(recipes)}")
            return next(iter(recipes))
        if name not in recipes:
            hint = did_you_mean(name, recipes)
            raise QconvdError(f"there is no recipe {name!r}{hint}", fix=f"known are {', '.join(recipes)}")
        return name

    def plan(self, model: str, recipe: str | None) -> answers.Plan:
        """What would be made of a model. A process of its own reads it, so no model can harm the daemon.

        Raises `QconvdError` for what is no model, and if planning takes too long or too many plan already.
        """
        locator = locator_of(model)
        # The command line's own, with the configuration's file: what it prints is what this answers.
        command = [sys.executable, "-m", "qconvd", "plan", locator, "--json", f"--config={self._config.path}"]
        if recipe is not None:
            command.append(f"--recipe={self.recipe(recipe)}")
        if not self._plans.acquire(blocking=False):
            raise QconvdError("others are planning", fix="try again in some seconds")
        try:
            done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=PLAN_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise QconvdError(f"planning took more than {PLAN_SECONDS:.0f} s", where=locator) from None
        finally:
            self._plans.release()
        try:
            told = json.loads(done.stdout)
        except ValueError:
            raise QconvdError("planning broke off", where=locator, fix="`qconvd plan` says more") from None
        if "artifacts" not in told:
            raise QconvdError(str(told.get("what", "")), where=str(told.get("where", "")), fix=str(told.get("fix", "")))
        return answers.Plan.model_validate(told)

    @property
    def _config(self) -> Config:
        assert self._site.config is not None
        return self._site.config

    def _write(self, kind: str, arguments: dict[str, Any]) -> int:
        with closing(Ledger(self._ledger.path)) as ledger:
            number = ledger.request(kind, **arguments)
        (self._site.state / "wake").touch()
        return number


def said(request: Request) -> answers.Said:
    """A request as the API tells of it."""
    return answers.Said(request=request.id, state=request.state, answer=request.answer)


def locator_of(text: str) -> str:
    """The model that a person wrote: an absolute path, or where it is on the Hub. Raises `QconvdError`."""
    if not text.startswith("/"):  # the name of a folder may end with a space
        text = text.strip()
    if text.startswith("/"):
        return str(Path(text))
    if is_address(text):
        return parse(text).locator
    if text.startswith(("http:", "https:")):
        page = of_page(text)
        if page is None:
            raise QconvdError("is no page of a model on the Hub", where=text, fix="https://huggingface.co/owner/name")
        return page.locator
    if text.startswith((".", "~")):
        raise QconvdError("is no absolute path", where=text, fix="write the whole path, from / on")
    return parse(text).locator
