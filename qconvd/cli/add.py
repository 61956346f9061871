"""`qconvd add`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from qconvd.cli.options import ConfigFile, ModelAnywhere, named
from qconvd.cli.reached import Url, elsewhere, reached


def add(
    model: ModelAnywhere,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="What to make of it: a recipe of the config file; the only one may be left out."),
    ] = None,
    config: ConfigFile = None,
    url: Url = None,
) -> None:
    """Hand a model to the running daemon.

    The model may lie anywhere, or on the Hub (hub:owner/name); on a disk it must be complete.
    Without a daemon it is taken when one is started.
    """
    from qconvd import checkpoints
    from qconvd.cli.options import load_config
    from qconvd.cli.requests import told
    from qconvd.errors import QconvdError
    from qconvd.hub.address import is_address, parse
    from qconvd.hub.client import Hub
    from qconvd.ledger import Ledger
    from qconvd.suggest import did_you_mean

    if elsewhere(config, url):  # the disk, the recipes and the Hub that count are those over there
        with reached(config, url) as daemon:
            told(daemon.add(_over_there(Path(model)), recipe))
        return
    path = named(Path(model))
    loaded = load_config(config)
    if recipe is None:
        if len(loaded.recipes) != 1:
            raise typer.BadParameter(f"say what to make of it: --recipe, with one of {', '.join(loaded.recipes)}")
        (recipe,) = loaded.recipes
    if recipe not in loaded.recipes:
        fix = f"its recipes: {', '.join(loaded.recipes)}"
        raise QconvdError(
            f"there is no recipe {recipe!r}{did_you_mean(recipe, loaded.recipes)}", where=str(loaded.path), fix=fix
        )
    # The reason why it cannot be converted is told now, whether a daemon runs or not.
    if is_address(str(path)):
        address = parse(str(path))
        hub = Hub.of(loaded.hub)
        hub.commit_of(address.repo, address.revision)
        hub.may_read(address.repo)
    else:
        checkpoints.inspect(path)
    Ledger(loaded.state / "ledger.sqlite").close()
    with reached(loaded.path, None) as daemon:
        told(daemon.add(_locator(path), recipe))


def _over_there(model: Path) -> str:
    """What a model is called where the daemon is. Raises `QconvdError` for a name that says nothing there."""
    from qconvd.errors import QconvdError
    from qconvd.hub.address import is_address, of_page, parse

    text = str(model)
    if (page := of_page(text)) is not None:
        return page.locator
    if is_address(text) or os.path.lexists(model):  # what is here may be there as well: the same machine, or the same disk
        return _locator(model)
    if model.is_absolute():
        return text
    fix = "write the whole path that it has over there, from / on"
    with suppress(QconvdError):
        fix = f"{fix}; or, if it is meant to be on the Hub, {parse(text).locator}"
    raise QconvdError("there is nothing at this path", where=str(model.absolute()), fix=fix)


def _locator(model: Path) -> str:
    from qconvd.hub.address import is_address, parse
    from qconvd.intake import spelled

    return parse(str(model)).locator if is_address(str(model)) else spelled(model.absolute())
