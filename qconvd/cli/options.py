"""Options that several commands have, and what they stand for."""

from __future__ import annotations

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
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A model's folder, a lone weights file, or `hub:owner/name` (also @revision).")
]


def load_config(file: Path | None) -> Config:
    """The config that the option, or its absence, means. Raises `ConfigError`."""
    from qconvd import config

    return config.load(file or config.find())
