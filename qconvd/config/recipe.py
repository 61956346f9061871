"""The sections that say what is made of a model, and where it goes."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from qconvd import quantities
from qconvd.config.values import AnyPath, Count, Section, Words, check_name
from qconvd.plugins import plugins
from qconvd.suggest import did_you_mean
from qconvd.targets import Target

if TYPE_CHECKING:
    from qconvd.checkpoints.base import ModelInfo


class Match(Section):
    """Which models a recipe is for; every line that is given must fit. Without any, all models are."""

    architectures: Words = Field((), description="Class names as in config.json, e.g. `LlamaForCausalLM`; globs are allowed.")
    names: Words = Field((), description="Globs for the model's name, e.g. `*-Instruct`; case does not count.")
    containers: Words = Field(
        (), description="What the weights come in: `safetensors`, `torch`, `gguf`, `ggml`; globs are allowed."
    )
    min_parameters: Count | None = Field(None, description="The fewest weights, e.g. `100M`.")
    max_parameters: Count | None = Field(None, description="The most weights, e.g. `70B`.")

    @field_validator("containers")
    @classmethod
    def _known(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        known = [reader.name for reader in plugins().readers]
        for value in values:
            if not any(fnmatchcase(name, value.casefold()) for name in known):
                raise ValueError(
                    f"no model's weights come as {value!r}{did_you_mean(value, known)}; there are {', '.join(known)}"
                )
        return values

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


class HubDestination(Section):
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
            check_name(value)
        return value

    @field_validator("base_model")
    @classmethod
    def _base(cls, value: str | None) -> str | None:
        owner, slash, name = (value or "").partition("/")
        if value is not None:
            if not owner or not slash or "{" in owner:
                raise ValueError(f"{value!r} is no repository; write for example meta-llama/{{model}}")
            check_name(name)
        return value


class Destination(Section):
    """Where artifacts are published: one of the two keys."""

    hub: HubDestination | None = Field(None, description="Repositories on the Hub.")
    folder: AnyPath | None = Field(None, description="A folder; each artifact gets the place in it that it has in `output`.")

    @model_validator(mode="after")
    def _one(self) -> Destination:
        if (self.hub is None) == (self.folder is None):
            raise ValueError("a destination is either `hub: {owner: …}` or `folder: …`")
        return self


class Recipe(Section):
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
