"""`qconvd check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconvd.cli.options import AsJson, ConfigFile

if TYPE_CHECKING:
    from qconvd.config import Config, Watch, WatchHub


def check(config: ConfigFile = None, json: AsJson = False) -> None:
    """Check the config file and say what it would do."""
    from qconvd.checkpoints.files import is_folder
    from qconvd.cli import output
    from qconvd.cli.options import load_config
    from qconvd.config import WatchHub
    from qconvd.destinations import places
    from qconvd.notifications.sender import trouble
    from qconvd.quantities import show_duration, show_size

    found = load_config(config)
    if json:
        recipes = {name: [t.spec for t in recipe.targets] for name, recipe in found.recipes.items()}
        published = {
            name: list(dict.fromkeys(p.shown for t in recipe.targets for p in places(recipe, t, "MODEL", found.names)))
            for name, recipe in found.recipes.items()
        }
        output.as_json(
            {
                "config": found.path,
                "recipes": recipes,
                "publish": published,
                **found.model_dump(mode="json", exclude={"recipes"}),
            }
        )
        return
    print(f"{found.path} is right.\n")
    for watch in found.watch:
        if isinstance(watch, WatchHub):
            print(output.filled(f"{_models(watch)}, asked for every {show_duration(watch.interval)}, becomes:"))
        else:
            print(f"A model dropped into {watch.folder}{'' if is_folder(watch.folder) else ' (not there yet)'} becomes:")
        rows: list[tuple[str, ...]] = []
        for name in watch.recipes:
            recipe = found.recipes[name]
            for target in recipe.targets:
                names = target.names("MODEL", found.names)
                place = f"{names.folder}/{names.stem}.*" if names.shared else f"{names.folder}/"
                device = "" if target.options.device == "auto" else target.options.device
                rows.append((name, target.label, place, device))
        headings: tuple[str, ...] = ("RECIPE", "TARGET", f"IN {found.output}", "DEVICE")
        if not any(device for *_, device in rows):
            headings, rows = headings[:-1], [row[:-1] for row in rows]
        output.table(headings, rows, whole=(0, 1))
        print(f"Then {_after(watch)}.\n")
    if not found.watch:
        print("Nothing is watched: models come with `qconvd add` only.\n")
    for name, recipe in found.recipes.items():
        if recipe.publish:
            where = dict.fromkeys(p.shown for t in recipe.targets for p in places(recipe, t, "MODEL", found.names))
            when = ", when `qconvd publish JOB` says so" if recipe.confirm else ""
            only = " (a dry run: nothing is)" if recipe.dry_run else ""
            print(output.filled(f"The recipe {name} publishes to {', '.join(where)}{when}{only}."))
        if limits := _match(recipe.match):
            print(f"The recipe {name} is only for models with {limits}.")
    for entry in found.notify:
        of = f", for {' and '.join(entry.recipes)}" if entry.recipes else ""
        print(output.filled(f"{entry.name} is told of: {', '.join(entry.on)}{of}."))
        if (wrong := trouble(entry)) is not None:
            print(output.filled(f"WRONG: {f'{wrong.where}: ' if wrong.where else ''}{wrong.what}", "  "))
            print(output.filled(wrong.fix, "    "))
    free = found.limits.disk_reserve
    output.pairs([
        ("output", found.output), ("state", found.state), ("left free", show_size(free)), ("names", found.names), *_hub(found),
        ("page", _page(found)),
    ])  # fmt: skip


def _hub(config: Config) -> list[tuple[str, object]]:
    """Which Hub is asked and with which token, if anything here has to do with it. A token itself is never shown."""
    from qconvd.errors import QconvdError
    from qconvd.hub.client import Hub

    published = any(place.hub for recipe in config.recipes.values() for place in recipe.publish)
    if not (published or config.repositories):
        return []
    try:
        hub = Hub.of(config.hub)
    except QconvdError as error:
        return [("the Hub", f"WRONG: {error}")]
    without = "without a token: only public models, and nothing is published there"
    return [("the Hub", f"{hub.endpoint}, {f'with {hub.token}' if hub.token else without}")]


def _page(config: Config) -> str:
    """Where the HTTP port is, and who is served there."""
    from qconvd.config import UNIX
    from qconvd.errors import QconvdError
    from qconvd.hub.tokens import web_token
    from qconvd.web.sockets import only_here

    listen = config.web.listen
    if listen is None:
        return "off"
    where = listen if listen.startswith(UNIX) else f"http://{listen}"
    try:
        token = web_token(config.web.token_file)
    except QconvdError as error:
        return f"{where}, WRONG: {error}"
    if token is not None:
        return f"{where}, with {token}"
    if only_here(listen):
        return f"{where}, for this machine only"
    return f"{where}, without a token: of other machines only webhooks are heard; name a file in `web.token_file`"


def _models(watch: WatchHub) -> str:
    from qconvd.quantities import show_count

    models = watch.hub
    if models.repo is not None:
        return f"{models.shown} on the Hub"
    fits = [
        *([f"for {models.pipeline}"] if models.pipeline else []),
        *([f"under {' or '.join(models.licenses)}"] if models.licenses else []),
        *([f"of at most {show_count(models.max_parameters)} parameters"] if models.max_parameters is not None else []),
        *([f"named like {' or '.join(models.name)}"] if models.name else []),
    ]
    return f"Each model of {models.author} on the Hub{' ' if fits else ''}{', '.join(fits)}"


def _after(watch: Watch) -> str:
    from qconvd.config import WatchHub

    if isinstance(watch, WatchHub):
        return {"keep": "what was fetched stays in the Hub cache", "delete": "what was fetched is deleted"}[watch.after]
    place = {"keep": "left where it is", "move": "moved to .qconvd-done/ there", "delete": "deleted"}[watch.after]
    return f"the model is {place}"


def _match(match: object) -> str:
    from qconvd.config import Match
    from qconvd.quantities import show_count

    assert isinstance(match, Match)
    parts = []
    if match.architectures:
        parts.append(f"the architecture {' or '.join(match.architectures)}")
    if match.names:
        parts.append(f"a name like {' or '.join(match.names)}")
    if match.min_parameters is not None:
        parts.append(f"at least {show_count(match.min_parameters)} parameters")
    if match.max_parameters is not None:
        parts.append(f"at most {show_count(match.max_parameters)} parameters")
    return ", ".join(parts)
