"""Options as tables: what every kind of field is called, and its default."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, WithJsonSchema

from qconvd.config import Config, Devices, Limits, WatchFolder
from qconvd.formats import FormatOptions, Size
from qconvd.option_table import Option, options_of


class Options(FormatOptions):
    bits: Literal[4, 8] = Field(8, description="How many.")
    only: Literal["one"] = "one"
    groups: int | None = None
    share: float = 0.5
    parts: tuple[Literal["a", "b"], ...] = ("a",)
    limit: Size = Field(1 << 20, gt=0)
    label: str = Field("x", alias="called")
    spelled: Annotated[str | None, WithJsonSchema({"enum": ["q8_0", "Q8_0", None]})] = None


class Inner(BaseModel):
    bits: int = 8


class Nesting(FormatOptions):
    inner: Inner = Inner()


def test_every_kind_of_option() -> None:
    found = {o.name: (o.values, o.default) for o in options_of(Options)}
    assert found == {
        "device": ("auto, cpu, cuda", "auto"),
        "name": ("text", ""),
        "non_finite": ("report, refuse", "report"),
        "bits": ("4, 8", "8"),
        "only": ("one", "one"),
        "groups": ("whole number", ""),
        "share": ("number", "0.5"),
        "parts": ("list of a, b", "a"),
        "limit": ("size", "1MiB"),
        "called": ("text", "x"),
        "spelled": ("q8_0", ""),
    }
    assert [o.name for o in options_of(Nesting, nested=True)][3:] == ["inner", "inner.bits"]
    assert [o.name for o in options_of(Nesting)][3:] == ["inner"]
    assert options_of(Options)[3] == Option("bits", "4, 8", "8", False, "How many.")


@pytest.mark.parametrize(
    ("section", "name", "values", "default"),
    [
        (Config, "state", "path", "./state"),
        (Config, "names", "default, thebloke, redhat, qwen, bartowski, gguf-my-repo, soulteary, gptq-for-llama", "default"),
        (WatchFolder, "after", "keep, move, delete", "keep"),
        (WatchFolder, "interval", "duration", "60s"),
        (WatchFolder, "settle", "duration", ""),
        (WatchFolder, "recipes", "text or list of text", ""),
        (Limits, "memory", "size", ""),
        (Limits, "disk_reserve", "size", "1GiB"),
        (Devices, "cuda", "auto, none or list of text", "auto"),
        (Devices, "cpu", "true, false", "true"),
    ],
)
def test_the_sections_of_the_config(section: type[BaseModel], name: str, values: str, default: str) -> None:
    found = next(o for o in options_of(section) if o.name == name)
    assert (found.values, found.default) == (values, default)
    assert found.required == (name == "recipes")
