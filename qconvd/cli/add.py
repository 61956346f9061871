"""`qconvd add`."""

from __future__ import annotations

from typing import Annotated

import typer

from qconvd.cli.options import ConfigFile, Model


def add(
    model: Model,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="What to make of it: a recipe of the config file; the only one may be left out."),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Hand a model to the running daemon.

    The model may lie anywhere, or on the Hub (hub:owner/name); on a disk it must be complete.
    Without a daemon it is taken when one is started.
    """
    from qconvd import checkpoints
    from qconvd.cli.options import load_config
    from qconvd.cli.requests import ask
    from qconvd.errors import QconvdError
    from qconvd.hub.address import is_address, parse
    from qconvd.hub.client import Hub
    from qconvd.ledger import Ledger
    from qconvd.suggest import did_you_mean

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
    if is_address(str(model)):
        address = parse(str(model))
        hub = Hub.of(loaded.hub)
        hub.commit_of(address.repo, address.revision)
        hub.may_read(address.repo)
        Ledger(loaded.state / "ledger.sqlite").close()
        ask(loaded.path, "add", path=address.locator, recipe=recipe)
        return
    # The reason why it cannot be converted is told now, whether a daemon runs or not.
    checkpoints.inspect(model)
    Ledger(loaded.state / "ledger.sqlite").close()
    ask(loaded.path, "add", path=str(model.absolute()), recipe=recipe)
