"""The model that a command names: a folder, a file, or one on the Hub, of which only the headers are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qconvd.checkpoints.base import ModelInfo
    from qconvd.config import Hub as HubSettings
    from qconvd.hub.heads import Found


@contextmanager
def named(model: Path, config: Path | None) -> Iterator[tuple[ModelInfo, Found | None]]:
    """The model's headers, and if it is on the Hub, what lies there. No weight is read, and none fetched."""
    from qconvd import checkpoints
    from qconvd.hub.address import is_address, parse

    if not is_address(str(model)):
        yield checkpoints.inspect(model), None
        return
    from qconvd.hub.client import Hub
    from qconvd.hub.heads import look
    from qconvd.scratch import scratch

    with scratch() as state:
        found = look(Hub.of(hub_settings(config)), parse(str(model)), state.path / "hub", ours=True)
        yield found.model, found


def hub_settings(config: Path | None) -> HubSettings:
    """How the Hub is reached: as the config file says, if there is one."""
    from qconvd import config as configuration
    from qconvd.errors import ConfigError

    try:
        return configuration.load(config or configuration.find()).hub
    except ConfigError:
        if config is not None:
            raise
        return configuration.Hub.model_validate({})
