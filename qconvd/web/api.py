"""The API's handlers, and the one table from which it is served and described (openapi.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from qconvd.errors import QconvdError
from qconvd.web import answers, questions
from qconvd.web.asking import Asker, locator_of
from qconvd.web.reading import Reader

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One request that passed the guard and fits its models."""

    reader: Reader
    asker: Asker
    path: Any = None
    query: Any = None
    body: Any = None


@dataclass(frozen=True)
class Endpoint:
    """A path and a method, what answers there, and the models of what is asked and answered."""

    method: Literal["GET", "POST"]
    path: str
    handle: Callable[[Call], BaseModel] | Callable[[Call], Awaitable[BaseModel]]
    summary: str
    answer: type[BaseModel]
    params: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    refusals: dict[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The operation's id."""
        return self.handle.__name__


class Missing(QconvdError):
    """There is nothing of that number."""


def status(call: Call) -> answers.Status:
    return call.reader.status()


def models(call: Call) -> answers.Models:
    return call.reader.models(call.query.before, call.query.limit)


def jobs(call: Call) -> answers.Jobs:
    return call.reader.jobs(call.query.before, call.query.limit, call.query.state)


def job(call: Call) -> answers.JobDetails:
    return _there(lambda: call.reader.job(call.path.job))


def job_log(call: Call) -> answers.Log:
    return _there(lambda: call.reader.log(call.path.job, call.query.lines))


def log(call: Call) -> answers.LogPiece:
    return _there(lambda: call.reader.log_piece(call.query.of, call.query.after, call.query.events))


def job_artifacts(call: Call) -> answers.Artifacts:
    return _there(lambda: call.reader.artifacts(call.path.job))


def history(call: Call) -> answers.History:
    return call.reader.history(call.query.since, call.query.limit)


def devices(call: Call) -> answers.Devices:
    return call.reader.devices()


def config(call: Call) -> answers.ConfigSummary:
    return call.reader.config_summary()


def plan(call: Call) -> answers.Plan:
    return call.asker.plan(call.query.model, call.query.recipe)


def request(call: Call) -> answers.Said:
    return _there(lambda: call.asker.asked(call.path.request))


async def ask(call: Call) -> answers.Said:
    ids = list(dict.fromkeys(call.body.of))
    await _looked(lambda: [call.reader.ledger.find(id) for id in ids])
    return await call.asker.ask(call.body.kind, ids=ids)


async def add(call: Call) -> answers.Said:
    return await call.asker.ask("add", path=locator_of(call.body.model), recipe=call.asker.recipe(call.body.recipe))


async def reload(call: Call) -> answers.Said:
    return await call.asker.ask("reload")


async def retry(call: Call) -> answers.Said:
    return await _of_job(call, "retry")


async def cancel(call: Call) -> answers.Said:
    return await _of_job(call, "cancel")


async def reconvert(call: Call) -> answers.Said:
    return await _of_job(call, "reconvert")


async def publish(call: Call) -> answers.Said:
    return await _of_job(call, "publish")


async def pause(call: Call) -> answers.Said:
    return await call.asker.ask("pause", reason=call.body.reason)


async def resume(call: Call) -> answers.Said:
    return await call.asker.ask("resume")


async def priority(call: Call) -> answers.Said:
    await _looked(lambda: call.reader.ledger.job(call.path.job))
    return await call.asker.ask("priority", job=str(call.path.job), priority=call.body.priority)


async def _of_job(call: Call, kind: str) -> answers.Said:
    ids = await _looked(lambda: call.asker.targets_of(call.path.job, call.body.targets))
    return await call.asker.ask(kind, ids=ids)


async def _looked(look: Callable[[], T]) -> T:
    """What a number stands for, without holding up everybody else meanwhile. Raises `Missing`."""
    return await asyncio.to_thread(_there, look)


def _there(look: Callable[[], T]) -> T:
    """What a number stands for. Raises `Missing`."""
    try:
        return look()
    except QconvdError as error:
        raise Missing(error.what, where=error.where, fix=error.fix) from error


_NO_JOB = {404: "There is no such job."}
_REFUSED = {409: "The daemon refuses; the answer says why.", 202: "Written down; the daemon has not answered yet."}
_OF_JOB: dict[str, Any] = {
    "answer": answers.Said, "params": questions.JobPath, "body": questions.Which, "refusals": {**_NO_JOB, **_REFUSED},
}  # fmt: skip

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/status", status, "The daemon at a glance", answers.Status),
    Endpoint("GET", "/models", models, "What is watched and what was seen there", answers.Models, query=questions.ModelsQuery),
    Endpoint("POST", "/models", add, "Hand a model to the daemon", answers.Said, body=questions.Add,
             refusals={**_REFUSED, 400: "That is no model, or no recipe."}),
    Endpoint("GET", "/plan", plan, "What would be made of a model; nothing is queued", answers.Plan, query=questions.PlanQuery,
             refusals={400: "It cannot be planned; the answer says why."}),
    Endpoint("GET", "/jobs", jobs, "Jobs, the newest first", answers.Jobs, query=questions.JobsQuery),
    Endpoint("GET", "/jobs/{job}", job, "One job and its history", answers.JobDetails, params=questions.JobPath,
             refusals=_NO_JOB),
    Endpoint("GET", "/jobs/{job}/log", job_log, "The end of what its workers wrote", answers.Log, params=questions.JobPath,
             query=questions.LogQuery, refusals=_NO_JOB),
    Endpoint("GET", "/log", log, "A job's history with what its workers wrote, in pieces that can be followed",
             answers.LogPiece, query=questions.LogPieceQuery, refusals=_NO_JOB),
    Endpoint("GET", "/jobs/{job}/artifacts", job_artifacts, "What it has made, with sizes, errors and hashes",
             answers.Artifacts, params=questions.JobPath, refusals=_NO_JOB),
    Endpoint("POST", "/jobs/{job}/retry", retry, "Try again what failed or was cancelled", **_OF_JOB),
    Endpoint("POST", "/jobs/{job}/cancel", cancel, "Stop it", **_OF_JOB),
    Endpoint("POST", "/jobs/{job}/reconvert", reconvert, "Make again what is done", **_OF_JOB),
    Endpoint("POST", "/jobs/{job}/publish", publish, "Publish what waits for somebody's word", **_OF_JOB),
    Endpoint("POST", "/jobs/{job}/priority", priority, "Do it before or after the others", answers.Said,
             params=questions.JobPath, body=questions.Priority, refusals={**_NO_JOB, **_REFUSED}),
    Endpoint("POST", "/pause", pause, "Start nothing new; what runs goes on to its end", answers.Said, body=questions.Pause,
             refusals=_REFUSED),
    Endpoint("POST", "/resume", resume, "Go on after a pause", answers.Said, body=questions.Nothing, refusals=_REFUSED),
    Endpoint("GET", "/history", history, "What happened, from the ledger", answers.History, query=questions.HistoryQuery),
    Endpoint("GET", "/devices", devices, "Cores, memory, GPUs and disks", answers.Devices),
    Endpoint("GET", "/config", config, "The configuration in force, without secrets", answers.ConfigSummary),
    Endpoint("POST", "/reload", reload, "Read the configuration again", answers.Said, body=questions.Nothing,
             refusals=_REFUSED),
    Endpoint("POST", "/requests", ask, "Retry, cancel, reconvert or publish several jobs, or single targets", answers.Said,
             body=questions.Ask, refusals={**_NO_JOB, **_REFUSED}),
    Endpoint("GET", "/requests/{request}", request, "What became of a request", answers.Said, params=questions.RequestPath,
             refusals={404: "There is no such request."}),
)  # fmt: skip
"""Another request of the daemon's is another line here, with a handler of its own above."""
