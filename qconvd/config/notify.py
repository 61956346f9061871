"""The section that says whom to tell what happened."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from qconvd.config.values import AnyPath, Duration, Section, Words, any_path, one_or_many

EventName: TypeAlias = Literal["done", "failed", "cancelled", "confirm", "refused", "paused", "resumed"]
WEBHOOK_SECONDS, COMMAND_SECONDS = 10.0, 30.0
EITHER = "an entry is either `webhook: …` or `mail: …` or `command: […]`"
SENDMAIL = Path("/usr/sbin/sendmail")
_ADDRESS = re.compile(r"[^\s@<>,;:\"()\[\]\\-][^\s@<>,;:\"()\[\]\\]*@[\w.-]+", re.ASCII)


def check_url(text: str) -> str:
    """Raise ValueError, in words that do not hold it, unless it is the address of a webhook."""
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or not re.fullmatch(r"[!-~]+", text):
        raise ValueError("this is no address of a webhook; it begins with https:// and has no spaces (it is not shown here)")
    if "@" in parts.netloc:
        raise ValueError(
            "a user and a password in the address do not work; put a token into a file and name it in `token_file`"
        )
    return text


def _url(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value
    if not isinstance(value, str):
        raise ValueError("this is no address of a webhook; it begins with https://")
    return check_url(value)


SecretUrl = Annotated[SecretStr, BeforeValidator(_url), WithJsonSchema({"type": "string", "format": "address"})]


def _short(*forms: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Lets editors know what may stand in place of a mapping."""

    def extend(schema: dict[str, Any]) -> None:
        schema["anyOf"] = [*forms, *schema["anyOf"]]

    return extend


_TEXT: dict[str, Any] = {"type": "string"}
_TEXTS: dict[str, Any] = {"type": "array", "items": _TEXT, "minItems": 1}


class WebhookNotifier(Section):
    """Where to POST. An address that lets everybody write (Slack's, Discord's) is a secret: better a file or a credential."""

    model_config = ConfigDict(populate_by_name=True)

    url: SecretUrl | None = Field(None, description="The address; `webhook: https://…` is short for it. It is shown nowhere.")
    url_file: AnyPath | None = Field(None, description="A file that holds the address, and nothing else.")
    credential: str | None = Field(
        None, description="The name of a credential of systemd that holds it: `LoadCredential=NAME:/a/file`."
    )
    as_: Literal["json", "ntfy", "slack", "discord"] = Field(
        "json", alias="as", description="For whom: everything as JSON, or as ntfy, Slack or Discord want it."
    )
    template: AnyPath | None = Field(
        None, description="A Jinja template of the body, or for ntfy of the message, instead of qconvd's own."
    )
    token_file: AnyPath | None = Field(None, description="A file with a token that is sent as `Authorization: Bearer`.")
    timeout: Duration = Field(WEBHOOK_SECONDS, gt=0, le=300, description="How long all of it may take.")

    @field_validator("url_file", "token_file", "template", mode="before")
    @classmethod
    def _no_url(cls, value: Any) -> Any:
        if isinstance(value, str) and "://" in value:
            raise ValueError("this is an address itself; put it into a file and name the file here")
        return value

    @field_validator("credential")
    @classmethod
    def _credential(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\w[\w.-]*", value, re.ASCII):
            raise ValueError("this is no name of a credential; write for example notify-url")
        return value

    @field_validator("template")
    @classmethod
    def _template(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("there is no such file")
        return value

    @model_validator(mode="after")
    def _one(self) -> WebhookNotifier:
        if sum(v is not None for v in (self.url, self.url_file, self.credential)) != 1:
            raise ValueError("a webhook has either `url` or `url_file` or `credential`")
        return self

    @property
    def shown(self) -> str:
        """The host, or where the address is kept: never the address."""
        if self.url is not None:
            return urlsplit(self.url.get_secret_value()).hostname or ""
        return self.url_file.name if self.url_file else str(self.credential)


class MailNotifier(Section):
    """To whom to write. The mail is handed to the program that this machine sends mail with: sendmail, msmtp, postfix."""

    model_config = ConfigDict(populate_by_name=True)

    to: Words = Field(min_length=1, description="Addresses; `mail: me@example.org` is short for it.")
    from_: str | None = Field(None, alias="from", description="The sender's address; left out: as the program has it.")
    sendmail: AnyPath = Field(SENDMAIL, description="The program.")
    timeout: Duration = Field(COMMAND_SECONDS, gt=0, le=300, description="How long it may take before it is killed.")

    @field_validator("to", "from_")
    @classmethod
    def _addresses(cls, value: Any) -> Any:
        for address in value if isinstance(value, tuple) else [value] if value else []:
            if "://" in address:
                raise ValueError("this is no address to write to; write for example me@example.org (it is not shown here)")
            if not _ADDRESS.fullmatch(address):
                raise ValueError(f"{address!r} is no address; write for example me@example.org")
        return value


class CommandNotifier(Section):
    """What to run. It is started without a shell; the news are JSON on its stdin, and `QCONVD_…` in its environment."""

    run: tuple[str, ...] = Field(
        min_length=1,
        description="The program and its arguments; `command: [./tell.sh, -v]` is short. "
        "A name without a slash is looked for in `$PATH`.",
    )
    timeout: Duration = Field(COMMAND_SECONDS, gt=0, le=300, description="How long it may take before it is killed.")

    @field_validator("run", mode="before")
    @classmethod
    def _words(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str):
            raise ValueError("write the program and its arguments as a list: [./tell.sh, --loud]")
        if not isinstance(value, list | tuple):
            return value
        words = [str(word) for word in value]
        if words and "/" in words[0]:  # as a shell has it, any other name is looked for in $PATH
            words[0] = str(any_path(words[0], info))
        return words

    @field_validator("run")
    @classmethod
    def _printable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value[0] or any("\0" in word for word in value):
            raise ValueError("this is no program with arguments")
        return value


class Notify(Section):
    """Whom to tell: one of `webhook`, `mail` and `command`, and of what."""

    webhook: WebhookNotifier | None = Field(
        None, description="An address to POST to, or a mapping.", json_schema_extra=_short(_TEXT)
    )
    mail: MailNotifier | None = Field(
        None, description="An address to write to, a list of them, or a mapping.", json_schema_extra=_short(_TEXT, _TEXTS)
    )
    command: CommandNotifier | None = Field(
        None, description="A program and its arguments as a list, or a mapping.", json_schema_extra=_short(_TEXTS)
    )
    on: Annotated[tuple[EventName, ...], BeforeValidator(one_or_many, json_schema_input_type=EventName | list[EventName])] = (
        Field(
            ("failed", "done"),
            min_length=1,
            description="Of what: jobs that are done, have failed (in part, too), were cancelled or wait for `qconvd publish` "
            "(`confirm`); a model that is refused; the daemon, when it is paused because a disk is nearly full, and when "
            "it goes on.",
        )
    )
    recipes: Words = Field((), description="Of jobs: only those of these recipes; all, if left out.")
    called: str | None = Field(None, description="A name for the log and `qconvd status`; left out: what it is and where to.")

    @model_validator(mode="before")
    @classmethod
    def _written_short(cls, value: Any) -> Any:
        if isinstance(value, str):  # perhaps an address, so it is not shown
            raise ValueError(EITHER)
        if not isinstance(value, Mapping):
            return value
        long = {"webhook": ("url", str), "mail": ("to", str | list), "command": ("run", str | list)}
        return {
            key: {long[key][0]: said} if key in long and isinstance(said, long[key][1]) else said for key, said in value.items()
        }

    @field_validator("called")
    @classmethod
    def _called(cls, value: str | None) -> str | None:
        if value is not None and not (value.strip() and value.isprintable() and len(value) <= 60):
            raise ValueError("this is no name; write a few words on one line")
        return value

    @model_validator(mode="after")
    def _one(self) -> Notify:
        if sum(v is not None for v in (self.webhook, self.mail, self.command)) != 1:
            raise ValueError(EITHER)
        return self

    @property
    def name(self) -> str:
        """What it is called by in the ledger, the log and `status`; holds no secret."""
        if self.called:
            return self.called
        if self.webhook is not None:
            return f"webhook {self.webhook.shown}"
        if self.mail is not None:
            return f"mail {', '.join(self.mail.to)}"
        assert self.command is not None
        return f"command {Path(self.command.run[0]).name}"

    def wants(self, news: Mapping[str, Any]) -> bool:
        """Whether it is to be told of something. What has no recipe is told whatever the recipes are."""
        return news["event"] in self.on and (not self.recipes or not news["recipe"] or news["recipe"] in self.recipes)
