"""Options that several commands have, and what they stand for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qconvd.config import Config

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE",
        help="The config file; else $QCONVD_CONFIG, ./config.yaml, ~/.config/qconvd/config.yaml, /etc/qconvd/config.yaml.",
    ),
]  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def named(model: Path) -> Path:
    """A page's address as it is copied from the Hub means that repository. Raises `NotAModel` for one without `hub:`."""
    from qconvd.errors import QconvdError
    from qconvd.hub.address import is_address, of_page, parse

    if (page := of_page(str(model))) is not None:
        return Path(page.locator)
    if is_address(str(model)) or os.path.lexists(model):
        return model
    try:
        address = parse(str(model))
    except QconvdError:
        return model  # the command says what is wrong with a path
    from qconvd.checkpoints import NotAModel

    fix = f"if it is meant to be on the Hub, write {address.locator}"
    raise NotAModel("there is nothing at this path", where=str(model.absolute()), fix=fix)


_MODEL = "A model's folder, a lone weights file, or `hub:owner/name` (also @revision)."
Model = Annotated[Path, typer.Argument(metavar="MODEL", help=_MODEL, callback=named)]
ModelAnywhere = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)]
"""One that may lie on another machine; `named` looks whether it is here."""


def load_config(file: Path | None) -> Config:
    """The config that the option, or its absence, means. Raises `ConfigError`."""
    from qconvd import config

    return config.load(file or config.find())
