"""The pages: HTML from templates, made on the server and kept up to date by events. Without scripts they work, too."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jinja2

from qconvd import __version__
from qconvd.errors import QconvdError
from qconvd.progress import read_progress
from qconvd.quantities import show_count, show_duration, show_size
from qconvd.web import answers
from qconvd.web.overview import Overview
from qconvd.web.plot import Point, plot
from qconvd.web.reading import Reader
from qconvd.web.site import Site

OVERVIEW = "page"
JOB = "job:"
LOG_LINES = 200
OVERVIEW_SECTIONS = ("summary", "watched", "running", "queue", "history", "machine")
JOB_SECTIONS = ("head", "targets", "plot", "events", "log")


class Pages:
    """Makes pages and their sections. Called from several threads."""

    def __init__(self, site: Site, reader: Reader) -> None:
        self._site = site
        self._reader = reader
        self._overview = Overview(site, reader)
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("qconvd.web"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
            lstrip_blocks=True, auto_reload=False,
        )  # fmt: skip
        self._templates.filters |= {"size": show_size, "count": show_count, "duration": show_duration, "error": _error}
        self._templates.globals |= {"when": _when, "iso": _iso, "version": __version__}

    def overview(self) -> str:
        """The status page."""
        return self._page("overview.html", stream="/events", **self._overview_data())

    def job(self, id: int) -> str:
        """A job's page. Raises `QconvdError` if there is no such job."""
        return self._page("job.html", stream=f"/events?job={id}", **self._job_data(id))

    def plan(self, found: answers.Plan | QconvdError, model: str, recipe: str) -> str:
        """What would be made, with a button that queues it; or why nothing can be."""
        plan = found if isinstance(found, answers.Plan) else None
        error = found if isinstance(found, QconvdError) else None
        return self._page("plan.html", plan=plan, error=error, model=model, recipe=recipe, recipes=self._recipes())

    def said(self, title: str, text: str, back: str, *, ok: bool) -> str:
        """The daemon's answer to a form."""
        return self._page("said.html", title=title, text=text, back=back, ok=ok)

    def sign_in(self, *, wrong: bool = False) -> str:
        """Where the token is given."""
        return self._page("sign_in.html", wrong=wrong)

    def unannounced(self, channel: str) -> dict[str, str]:
        """Those parts of a page that change though nothing in the ledger does: memory and disks, the end of a log."""
        try:
            if channel == OVERVIEW:
                return self._sections(("machine",), {"machine": self._reader.devices()})
            job = self._reader.ledger.job(number := int(channel.removeprefix(JOB)))
            return self._sections(("log",), {"job": job, "log": self._reader.log(number, LOG_LINES)})
        except QconvdError:
            return {}

    def sections(self, channel: str) -> dict[str, str]:
        """The parts of a page that change, by the ids of their elements."""
        if channel == OVERVIEW:
            return self._sections(OVERVIEW_SECTIONS, self._overview_data())
        try:
            return self._sections(JOB_SECTIONS, self._job_data(int(channel.removeprefix(JOB))))
        except QconvdError:
            return {}  # there is no such job

    def _sections(self, names: Sequence[str], data: dict[str, Any]) -> dict[str, str]:
        return {name: self._part(f"sections/{name}.html", **data) for name in names}

    def _overview_data(self) -> dict[str, Any]:
        waiting, more = self._overview.queue()
        return {
            "summary": self._overview.summary(), "watched": self._reader.watched(), "seen": self._reader.sightings(),
            "refused": self._reader.refused(),
            "running": self._overview.running(), "waiting": waiting, "more": more, "history": self._overview.history(),
            "machine": self._reader.devices(), "recipes": self._recipes(),
        }  # fmt: skip

    def _job_data(self, id: int) -> dict[str, Any]:
        reader = self._reader
        job = reader.ledger.job(id)
        details = reader.job(id)
        made = reader.artifacts(id)
        rows = [self._overview.row(t, job) for t in job.targets if t.state != "superseded"]
        progress = read_progress(self._site.state)
        points = [Point(a.label, a.bytes, a.errors.relative_rms) for a in made.artifacts if a.errors.relative_rms is not None]
        return {
            "job": job, "rows": rows, "progress": progress, "details": details, "made": made, "plot": plot(points),
            "labels": {t.id: t.label for t in job.targets}, "log": reader.log(id, LOG_LINES),
            "files": {a.target: a for a in made.artifacts}, "pending": any(t.pending for t in job.targets),
            "stopped": any(t.state in ("failed", "cancelled") for t in job.targets),
            "awaits": any(p.state == "awaiting" for p in details.publications),
        }  # fmt: skip

    def _recipes(self) -> dict[str, list[str]]:
        """Names of recipes and what they make."""
        config = self._site.config
        return {name: [t.label for t in recipe.targets] for name, recipe in config.recipes.items()} if config else {}

    def _page(self, template: str, **data: Any) -> str:
        return self._part(template, **{"stream": "", **data})

    def _part(self, template: str, **data: Any) -> str:
        return self._templates.get_template(template).render(**data, form_secret=self._site.form_secret)


def _error(value: float | None) -> str:
    """`0.43 %`, `exact`; nothing where it is not known."""
    if value is None:
        return ""
    return "exact" if value < 1e-9 else f"{100 * value:.2g} %"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
