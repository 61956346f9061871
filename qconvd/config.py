"""config.yaml as typed data. Every mistake in it is found at once and told with file, line, column and the key's path."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from qconvd import quantities
from qconvd.errors import ConfigError, QconvdError
from qconvd.explain import explain
from qconvd.hub.address import Address
from qconvd.hub.address import parse as parse_address
from qconvd.hub.client import ENDPOINT, TIMEOUT
from qconvd.hub.tokens import looks_like_token, redacted
from qconvd.located_yaml import Problem, dotted, parse
from qconvd.naming import PROFILES, check_template
from qconvd.suggest import did_you_mean
from qconvd.targets import Target, resolve_target

if TYPE_CHECKING:
    from qconvd.checkpoints.base import ModelInfo

__all__ = [
    "Config", "Destination", "Devices", "DiskMarks", "Hub", "HubDestination", "HubModels", "Limits", "Match", "Recipe",
    "Target", "WatchFolder", "WatchHub", "Web", "load", "resolve_target",
]  # fmt: skip

MOST_WORKERS = 1 << 16
SHORTEST_INTERVAL = 0.1
"""Seconds between two scans of a folder: shorter ones would do nothing else."""
SHORTEST_POLL = 1.0
"""Seconds between two questions to the Hub about the same thing; its own limit is 1,000 requests in 5 minutes."""
DEFAULT_LISTEN = "127.0.0.1:8484"
UNIX = "unix:"
LONGEST_SOCKET = len(UNIX) + 107
"""Bytes that Linux takes for a socket's path (unix(7)), after `unix:`."""
SIZE_LIMIT = 1 << 20
"""Bytes of a config.yaml; a longer file is some other file."""


def _size(value: Any) -> Any:
    return quantities.size(value)


def _duration(value: Any) -> Any:
    return quantities.duration(value)


def _count(value: Any) -> Any:
    return quantities.count(value)


def _whole_number(value: Any) -> Any:
    if isinstance(value, bool):  # an int to Python, and `yes` is true to YAML
        raise ValueError(f"{str(value).lower()} is not a number")
    return value


def _hours(value: Any) -> Any:
    """Minutes since midnight from `22:00-07:00`; 24:00 is midnight as an end."""
    if isinstance(value, tuple | list) and len(value) == 2:
        return tuple(value)
    found = re.fullmatch(r"\s*(\d{1,2}):(\d\d)\s*[-\u2013]\s*(\d{1,2}):(\d\d)\s*", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{value!r} is no time of day; write for example 22:00-07:00")
    hours = [int(n) for n in found.groups()]
    start, end = 60 * hours[0] + hours[1], 60 * hours[2] + hours[3]
    if start >= 24 * 60 or end > 24 * 60 or hours[1] > 59 or hours[3] > 59:
        raise ValueError(f"{value!r} names a time that no day has; write for example 22:00-07:00")
    if start == end % (24 * 60):
        raise ValueError(f"{value!r} begins when it ends; `qconvd pause` pauses for longer")
    return start, end % (24 * 60)


def _path(value: Any, info: ValidationInfo) -> Any:
    """Paths are relative to the config file; `~` is the home folder."""
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"{value!r} is not a path; write for example ./inbox or /srv/models")
    try:
        place = Path((info.context or {}).get("folder", Path.cwd())) / Path(value).expanduser()
        return place.resolve() if ".." in place.parts else place
    except RuntimeError:
        raise ValueError(f"the home folder in {value!r} is not known; write the whole path") from None


def _check_name(template: str) -> None:
    """Raise ValueError unless it is a template of one name."""
    try:
        check_template(template)
    except ConfigError as error:
        raise ValueError(f"{error.what}. {error.fix}") from None
    if "/" in template:
        raise ValueError(f"the name template {template!r} is not a name; write one, e.g. {{model}}-{{variant}}")


def _address(value: str) -> Address:
    try:
        return parse_address(value)
    except QconvdError as error:
        raise ValueError(f"{error.what}; {error.fix}") from None


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


# `format` is for people: the reference page and `qconvd formats` show it (option_table.py).
Size = Annotated[int, BeforeValidator(_size), WithJsonSchema({"type": ["string", "integer"], "format": "size"})]
Duration = Annotated[float, BeforeValidator(_duration), WithJsonSchema({"type": ["string", "number"], "format": "duration"})]
Count = Annotated[
    int, BeforeValidator(_count), WithJsonSchema({"type": ["string", "integer"], "format": "number of parameters"})
]
AnyPath = Annotated[Path, BeforeValidator(_path), WithJsonSchema({"type": "string", "format": "path"})]
QuietHours = Annotated[tuple[int, int], BeforeValidator(_hours), WithJsonSchema({"type": "string", "format": "times of day"})]
_Workers = Annotated[int, Field(ge=1, le=MOST_WORKERS)]
Workers = Annotated[_Workers, BeforeValidator(_whole_number, json_schema_input_type=_Workers)]
Words = Annotated[tuple[str, ...], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, arbitrary_types_allowed=True)


class WatchFolder(_Section):
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


class HubModels(_Section):
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
        address = _address(value)
        return {"repo": address.repo, "revision": address.revision if "@" in value else None}

    @field_validator("repo")
    @classmethod
    def _repo(cls, value: str | None) -> str | None:
        return None if value is None else _address(value).repo

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


class WatchHub(_Section):
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


class Match(_Section):
    """Which models a recipe is for; every line that is given must fit. Without any, all models are."""

    architectures: Words = Field((), description="Class names as in config.json, e.g. `LlamaForCausalLM`; globs are allowed.")
    names: Words = Field((), description="Globs for the model's name, e.g. `*-Instruct`; case does not count.")
    containers: Words = Field((), description="What the weights come in: `safetensors`, `gguf`, `ggml`; globs are allowed.")
    min_parameters: Count | None = Field(None, description="The fewest weights, e.g. `100M`.")
    max_parameters: Count | None = Field(None, description="The most weights, e.g. `70B`.")

    @field_validator("max_parameters")
    @classmethod
    def _not_less(cls, value: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get("min_parameters")
        if value is not None and least is not None and value < least:
            most, fewest = quantities.show_count(value), quantities.show_count(least)
            raise ValueError(f"{most} is less than min_parameters, {fewest}: no model fits both")
        return value

    def why_not(self, model: ModelInfo) -> str:
        """Why the model does not match, as half a sentence; empty if it does."""
        if self.architectures and not any(fnmatchcase(model.architecture, a) for a in self.architectures):
            return f"its architecture {model.architecture or '(none)'} is none of {', '.join(self.architectures)}"
        if self.names and not any(fnmatchcase(model.name.casefold(), n.casefold()) for n in self.names):
            return f"its name {model.name} fits none of {', '.join(self.names)}"
        if self.containers and not any(fnmatchcase(model.kind, c.casefold()) for c in self.containers):
            return f"its weights come as {model.kind}, not as {' or '.join(self.containers)}"
        size = quantities.show_count(model.parameters)
        if self.min_parameters is not None and model.parameters < self.min_parameters:
            return f"its {size} parameters are fewer than {quantities.show_count(self.min_parameters)}"
        if self.max_parameters is not None and model.parameters > self.max_parameters:
            return f"its {size} parameters are more than {quantities.show_count(self.max_parameters)}"
        return ""


class HubDestination(_Section):
    """Repositories of the Hub that artifacts are published to."""

    owner: str = Field(description="The user or organisation whose repositories they are.")
    private: bool | None = Field(
        None,
        description="Whether a repository that has to be made is private; one that is there stays as it is. "
        "Left out: as the model's own is on the Hub, a gated one counts as private; public if it came from elsewhere.",
    )
    repo: str | None = Field(
        None, description="A template for the repository's name, e.g. `{model}-{format:upper}`; left out: as `names` says."
    )
    revision: str | None = Field(
        None, description="The branch, or a template for it; left out: as `names` says, mostly `main`."
    )
    commit: Literal["together", "each"] = Field(
        "together", description="One commit for all artifacts of a model that go there, when the last is made, or one for each."
    )
    base_model: str | None = Field(
        None,
        description="The model's repository on the Hub, for the card, if it did not come from there: `meta-llama/{model}`.",
    )

    @field_validator("owner")
    @classmethod
    def _owner(cls, value: str) -> str:
        if not re.fullmatch(r"(?!.*(--|\.\.))\w[\w.-]{0,94}\w|\w", value, re.ASCII):
            raise ValueError(f"{value!r} is no name of a user or an organisation on the Hub")
        return value

    @field_validator("repo", "revision")
    @classmethod
    def _template(cls, value: str | None) -> str | None:
        if value is not None:
            _check_name(value)
        return value

    @field_validator("base_model")
    @classmethod
    def _base(cls, value: str | None) -> str | None:
        owner, slash, name = (value or "").partition("/")
        if value is not None:
            if not owner or not slash or "{" in owner:
                raise ValueError(f"{value!r} is no repository; write for example meta-llama/{{model}}")
            _check_name(name)
        return value


class Destination(_Section):
    """Where artifacts are published: one of the two keys."""

    hub: HubDestination | None = Field(None, description="Repositories on the Hub.")
    folder: AnyPath | None = Field(None, description="A folder; each artifact gets the place in it that it has in `output`.")

    @model_validator(mode="after")
    def _one(self) -> Destination:
        if (self.hub is None) == (self.folder is None):
            raise ValueError("a destination is either `hub: {owner: …}` or `folder: …`")
        return self


class Recipe(_Section):
    """What to make of a model."""

    match: Match = Field(
        default_factory=lambda: Match.model_validate({}), description="Which models it is for; all, if left out."
    )
    targets: tuple[Target, ...] = Field(min_length=1, description="The artifacts to make.")
    publish: tuple[Destination, ...] = Field((), description="Where they are published when they are verified.")
    card: AnyPath | None = Field(
        None, description="A Jinja template for the cards of what is published; left out: qconvd's own."
    )
    confirm: bool = Field(False, description="Publish nothing until `qconvd publish JOB` says so.")
    dry_run: bool = Field(False, description="Only say what would be published; nothing is, and nothing is done.")

    @field_validator("card")
    @classmethod
    def _card(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("there is no such file")
        return value


class DiskMarks(_Section):
    """When the disks of `output` and `state` are nearly full: models are not taken in and no task is started."""

    low: Size = Field(gt=0, description="Pause when less than this is free on one of them.")
    high: Size | None = Field(None, gt=0, description="Go on when this is free on each; left out: twice `low`.")

    @property
    def enough(self) -> int:
        """Bytes with which it goes on."""
        return self.high or 2 * self.low

    @field_validator("high")
    @classmethod
    def _not_lower(cls, value: int | None, info: ValidationInfo) -> int | None:
        low = info.data.get("low")
        if value is not None and low is not None and value < low:
            raise ValueError(f"{quantities.write_size(value)} is less than `low`, {quantities.write_size(low)}")
        return value


class Limits(_Section):
    """What qconvd may use of the machine."""

    memory: Size | None = Field(None, gt=0, description="Memory of all workers together; left out: half of the machine's.")
    threads: Workers | None = Field(None, description="Threads of all workers together; left out: one per core.")
    jobs: Workers | None = Field(None, description="Workers at a time; left out: as many as memory and threads allow.")
    stop_grace: Duration = Field(10.0, ge=0, description="How long a worker may take to stop before it is killed.")
    disk_reserve: Size = Field(1 << 30, ge=0, description="Free space on the output's disk that is left alone.")
    disk: DiskMarks | None = Field(None, description="When to pause because a disk is nearly full; left out: never.")
    quiet_hours: tuple[QuietHours, ...] = Field(
        (),
        description="When no task is started, in local time, beyond midnight, too: `[22:00-07:00]`. What runs goes on.",
    )


class Devices(_Section):
    """Which devices conversions may run on."""

    cpu: bool = Field(True, description="Whether to convert on the CPU.")
    cuda: Literal["auto", "none"] | tuple[str, ...] = Field(
        "auto", description="GPUs: all that are there, none, or a list of UUIDs as `nvidia-smi -L` shows them."
    )
    cuda_reserve: Size = Field(1 << 30, ge=0, description="Memory of each GPU that is left alone.")

    @field_validator("cuda", mode="before")
    @classmethod
    def _cuda(cls, value: Any) -> Any:
        if isinstance(value, list):
            if wrong := [v for v in value if not isinstance(v, str)]:
                raise ValueError(
                    f"{wrong[0]!r} is not a GPU's UUID; `nvidia-smi -L` shows them (numbers change when a GPU fails)"
                )
            return tuple(value)
        if value not in ("auto", "none"):
            raise ValueError(
                f"{value!r} is neither auto nor none nor a list of GPU UUIDs{did_you_mean(str(value), ('auto', 'none'))}"
            )
        return value


class Hub(_Section):
    """How the Hub is reached. The token itself never stands here: `$HF_TOKEN`, a file, or systemd's credential `hf-token`."""

    endpoint: str = Field(ENDPOINT, description="Where it is; another one for a mirror or an own Hub.")
    token_file: AnyPath | None = Field(None, description="A file that holds the token, and nothing else.")
    cache: AnyPath | None = Field(
        None, description="The Hub cache that models are fetched into; left out: the one that all programs share."
    )
    timeout: Duration = Field(TIMEOUT, gt=0, description="How long to wait for the server's next byte.")
    fetches: Workers = Field(1, description="Models that are fetched at a time, beside what is converted.")
    webhook_secret_file: AnyPath | None = Field(
        None, description="A file with the secret of the Hub's webhooks; `$QCONVD_WEBHOOK_SECRET` and a credential do as well."
    )

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s/@]+(/[^\s@]*)?", value):
            raise ValueError(f"{redacted(value)!r} is no address; write for example {ENDPOINT}")
        return value.rstrip("/")

    @field_validator("token_file", "webhook_secret_file", mode="before")
    @classmethod
    def _no_token(cls, value: Any) -> Any:
        if isinstance(value, str) and looks_like_token(value):
            raise ValueError("this is a token itself; put it into a file that only you can read, and name the file here")
        return value


class Web(_Section):
    """The daemon's HTTP port: the status page, the API, metrics, and where the Hub's webhooks come to (`/webhooks/hub`)."""

    listen: str | None = Field(
        DEFAULT_LISTEN,
        description="`address:port`, or `unix:/path` for a socket of that path, or `off`. "
        "Where other machines reach it, only who brings the token is served.",
        json_schema_extra={"anyOf": [{"type": "string"}, {"const": False}, {"type": "null"}]},
    )
    token_file: AnyPath | None = Field(
        None,
        description="A file with the token that clients must bring; systemd's credential `web-token` does as well. "
        "Left out, only this machine is served, without a token.",
    )
    hosts: Words = Field((), description="Names that it is reached by, beside its address: `qconvd.example.org`.")

    @field_validator("listen", mode="before")
    @classmethod
    def _listen(cls, value: Any) -> Any:
        if value in (None, False, "off"):
            return None
        if str(value).startswith(UNIX):
            if not str(value).startswith(f"{UNIX}/") or "\0" in str(value) or len(os.fsencode(str(value))) > LONGEST_SOCKET:
                raise ValueError(f"{value!r} is no path of a socket; write for example unix:/run/qconvd/http.sock")
            return str(value)
        host, _, port = str(value).rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"{value!r} is no address with a port; write for example {DEFAULT_LISTEN}")
        return str(value)

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not re.fullmatch(r"[\w.-]+", host, re.ASCII):
                raise ValueError(f"{host!r} is no name of a host; write for example qconvd.example.org")
        return tuple(host.lower() for host in value)


def _which_watch(value: Any) -> str:
    """Which kind of an entry of `watch` somebody wrote."""
    found = value.get("hub") if isinstance(value, Mapping) else getattr(value, "hub", None)
    return "WatchHub" if found is not None else "WatchFolder"


Watch = Annotated[
    Annotated[WatchFolder, Tag("WatchFolder")] | Annotated[WatchHub, Tag("WatchHub")], Discriminator(_which_watch)
]


class Config(_Section):
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
    hub: Hub = Field(default_factory=lambda: Hub.model_validate({}), description="How the Hub is reached.")
    web: Web = Field(default_factory=lambda: Web.model_validate({}), description="The daemon's HTTP port.")
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
    from qconvd.config_checks import cross_checks, resolve_recipes

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
    for place in places:
        if place.is_file():
            return place
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


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {os.strerror(error.errno or 0)}", where=str(path), fix="`qconvd init` writes a config"
        ) from error
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
        "hub": Hub,
        "web": Web,
    }
