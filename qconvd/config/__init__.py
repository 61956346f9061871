"""config.yaml as typed data. Every mistake in it is found at once and told with file, line, column and the key's path."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator

from qconvd.config.log import Log
from qconvd.config.machine import Devices, DiskMarks, Keep, Limits
from qconvd.config.network import Hub, Web
from qconvd.config.notify import CommandNotifier, MailNotifier, Notify, WebhookNotifier
from qconvd.config.recipe import Destination, HubDestination, Match, Recipe
from qconvd.config.values import AnyPath, Section
from qconvd.config.watching import HubModels, Watch, WatchFolder, WatchHub
from qconvd.errors import ConfigError
from qconvd.explain import explain
from qconvd.located_yaml import Problem, dotted, parse
from qconvd.naming import PROFILES
from qconvd.suggest import did_you_mean
from qconvd.targets import Target, resolve_target
from qconvd.wire import UNIX

__all__ = [
    "UNIX", "Config", "Destination", "Devices", "DiskMarks", "Hub", "HubDestination", "HubModels", "Keep", "Limits", "Log",
    "Match", "Notify", "Recipe", "Target", "Watch", "WatchFolder", "WatchHub", "Web", "load", "resolve_target",
]  # fmt: skip

SIZE_LIMIT = 1 << 20
"""Bytes of a config.yaml; a longer file is some other file."""


class Config(Section):
    """A whole config.yaml, every path absolute."""

    watch: tuple[Watch, ...] = Field((), description="Where models appear: folders, and repositories on the Hub.")
    output: AnyPath = Field(description="Where the artifacts go.")
    state: AnyPath = Field(
        Path("./state"),
        validate_default=True,
        description="Where qconvd keeps its ledger, logs and plans: a folder on a local disk.",
    )
    recipes: dict[str, Recipe] = Field(min_length=1, description="What to make, by name.")
    limits: Limits = Field(default_factory=lambda: Limits.model_validate({}), description="What qconvd may use of the machine.")
    devices: Devices = Field(default_factory=lambda: Devices.model_validate({}), description="Which devices to convert on.")
    keep: Keep = Field(default_factory=lambda: Keep.model_validate({}), description="How long what is used up is kept.")
    hub: Hub = Field(default_factory=lambda: Hub.model_validate({}), description="How the Hub is reached.")
    web: Web = Field(default_factory=lambda: Web.model_validate({}), description="The daemon's HTTP port.")
    log: Log = Field(default_factory=lambda: Log.model_validate({}), description="What the daemon's log looks like.")
    notify: tuple[Notify, ...] = Field((), description="Whom to tell when a job is over: webhooks, mail, commands.")
    names: str = Field("default", description="How artifacts are named.", json_schema_extra={"enum": list(PROFILES)})
    _path: Path = PrivateAttr(Path("config.yaml"))

    @property
    def path(self) -> Path:
        """The file it came from."""
        return self._path

    @property
    def folders(self) -> tuple[WatchFolder, ...]:
        """The watched folders."""
        return tuple(w for w in self.watch if isinstance(w, WatchFolder))

    @property
    def repositories(self) -> tuple[WatchHub, ...]:
        """What is watched on the Hub."""
        return tuple(w for w in self.watch if isinstance(w, WatchHub))

    @field_validator("notify", mode="before")
    @classmethod
    def _entries(cls, value: Any) -> Any:
        if isinstance(value, str):  # perhaps an address, so it is not shown
            raise ValueError("this must be a list of entries, each `webhook: …`, `mail: …` or `command: […]`")
        return value

    @field_validator("names")
    @classmethod
    def _profile(cls, value: str) -> str:
        if value not in PROFILES:
            raise ValueError(
                f"there is no name profile {value!r}{did_you_mean(value, PROFILES) or '; known are ' + ', '.join(PROFILES)}"
            )
        return value


def load(path: Path) -> Config:
    """Read a config file. Raises `ConfigError`, whose text holds every mistake on a line of its own."""
    from qconvd.config.checks import cross_checks, resolve_recipes

    document = parse(_read(path))
    problems = list(document.problems)
    data = document.data
    if data is None and not problems:
        raise _error(path, [Problem(document.value(()), (), "is empty; `qconvd init` writes one for this machine")])
    if not isinstance(data, dict):
        raise _error(path, problems or [Problem(document.value(()), (), "is no mapping of keys like `watch:` and `recipes:`")])
    data, found = resolve_recipes(document, data, path.absolute().parent)
    problems += found
    config: Config | None = None
    try:
        config = Config.model_validate(data, context={"folder": path.absolute().parent})
        config._path = path.absolute()
    except ValidationError as error:
        known = {problem.path for problem in problems}
        unread = {problem.path for problem in document.problems if _at(document.data, problem.path) is None}
        for loc, sentence, at_key in explain(error, Config):
            where = tuple(step for step in loc if step not in ("[key]", "WatchFolder", "WatchHub"))
            # What is wrong with a target, or with a value that is not read, was told already, better than its absence could be.
            told = any(where == k[: len(where)] and len(where) > 1 and "targets" in where for k in known)
            if where not in unread and not told:
                problems.append(Problem(document.key(where) if at_key else document.value(where), where, sentence))
    problems += cross_checks(document, data, config, path.absolute().parent)
    if problems or config is None:
        raise _error(path, problems)
    return config


def find() -> Path:
    """The config file to use when none is named. Raises `ConfigError` with the places that were looked at."""
    named = os.environ.get("QCONVD_CONFIG")
    places = [Path(named).expanduser()] if named else [
        Path("config.yaml"),
        Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "qconvd" / "config.yaml",
        Path("/etc/qconvd/config.yaml"),
    ]  # fmt: skip
    denied = []
    for place in places:
        try:
            if stat.S_ISREG(place.stat().st_mode):
                return place
        except PermissionError as error:  # the service's folder in /etc is not for everybody
            denied.append((place, error))
        except OSError:
            continue
    if denied:
        raise _unreadable(*denied[-1])
    if named:
        raise ConfigError(
            "there is no such file", where=f"$QCONVD_CONFIG={named}", fix="unset it, or let it name a config file"
        )
    looked = ", ".join(map(str, places))
    raise ConfigError("there is no config file", fix=f"looked for {looked}; `qconvd init` writes one, --config names another")


def _at(data: Any, path: tuple[str | int, ...]) -> Any:
    """The value at a path, None if there is none."""
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _unreadable(path: Path, error: OSError) -> ConfigError:
    fix = "`qconvd init` writes a config"
    if isinstance(error, PermissionError):
        fix = "read it as root or a member of its group, name another, or ask a running daemon: --url http://127.0.0.1:8484"
    return ConfigError(f"cannot be read: {os.strerror(error.errno or 0)}", where=str(path), fix=fix)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(raw) > SIZE_LIMIT:
        raise ConfigError("is too large for a config (over 1 MiB)", where=str(path))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError("is not UTF-8 text", where=f"{path}:{line}", fix="save it as UTF-8") from error


def _error(path: Path, problems: list[Problem]) -> ConfigError:
    shown = _relative(path)
    lines = []
    for p in sorted(set(problems), key=lambda p: (p.position, str(p.path), p.message)):
        place = f"{shown}:{p.position.line}:{p.position.column}"
        lines.append(f"{place}: {dotted(p.path)}: {p.message}" if p.path else f"{place}: {p.message}")
    return ConfigError("\n".join(lines), problems=tuple(lines))


def _relative(path: Path) -> str:
    """As the user may have typed it: short where it is below the current folder."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def section_descriptions() -> Mapping[str, type[BaseModel]]:
    """The models that the reference page and the schema describe, in the order of the page."""
    return {
        "": Config,
        "watch[]": WatchFolder,
        "watch[] with `hub`": WatchHub,
        "watch[].hub": HubModels,
        "recipes.<name>": Recipe,
        "recipes.<name>.match": Match,
        "recipes.<name>.publish[]": Destination,
        "recipes.<name>.publish[].hub": HubDestination,
        "limits": Limits,
        "limits.disk": DiskMarks,
        "devices": Devices,
        "keep": Keep,
        "hub": Hub,
        "web": Web,
        "notify[]": Notify,
        "notify[].webhook": WebhookNotifier,
        "notify[].mail": MailNotifier,
        "notify[].command": CommandNotifier,
    }
