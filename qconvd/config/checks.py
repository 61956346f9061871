"""What no single key of a config can tell: targets, clashing names, recipes that are not there, folders inside one another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconvd.destinations import places
from qconvd.located_yaml import Document, Problem
from qconvd.naming import collisions
from qconvd.suggest import did_you_mean
from qconvd.targets import Target, resolve

if TYPE_CHECKING:
    from qconvd.config import Config

SAMPLE = "model"
"""Stands for any model's name when the names of two targets are compared."""


def resolve_recipes(document: Document, data: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[Problem]]:
    """`data` with every recipe's raw targets replaced by `Target` objects, and what is wrong with them.

    Paths in targets are relative to `folder`.
    """
    problems: list[Problem] = []
    recipes = data.get("recipes")
    if not isinstance(recipes, dict):
        return data, problems
    resolved = dict(recipes)
    for name, recipe in recipes.items():
        raw = recipe.get("targets") if isinstance(recipe, dict) else None
        if not isinstance(raw, list):
            continue
        base = ("recipes", name, "targets")
        targets: list[Target] = []
        places: dict[str, tuple[int, Target]] = {}
        for index, item in enumerate(raw):
            found, wrong = resolve(item, folder)
            here = (*base, index)
            problems += [
                Problem(
                    document.key((*here, *w.path)) if w.at_key else document.value((*here, *w.path)),
                    (*here, *w.path),
                    w.message,
                )
                for w in wrong
            ]
            for target in found:
                first = places.setdefault(target.digest, (index, target))
                if first[1] is not target:
                    line = document.value((*base, first[0])).line
                    problems.append(
                        Problem(document.value(here), here, f"{target.label} stands in this recipe twice; first on line {line}")
                    )
                else:
                    targets.append(target)
        resolved[name] = {**recipe, "targets": targets}
    return {**data, "recipes": resolved}, problems


def cross_checks(document: Document, data: Mapping[str, Any], config: Config | None, folder: Path) -> list[Problem]:
    """Mistakes between keys. Works on the raw data as far as the config as a whole is not valid."""
    problems = [*_unknown_recipes(document, data), *_nested_folders(document, data, folder)]
    if config is not None:
        problems += _watched_twice(document, config)
        problems += _clashing_names(document, config)
        problems += _clashing_places(document, config)
        problems += _folders_published(document, config)
        problems += _notifiers_called_alike(document, config)
    return problems


def _unknown_recipes(document: Document, data: Mapping[str, Any]) -> Iterator[Problem]:
    recipes = data.get("recipes")
    known = list(recipes) if isinstance(recipes, dict) else []
    entries = [(key, *one) for key in ("watch", "notify") if isinstance(data.get(key), list) for one in enumerate(data[key])]
    for key, index, entry in entries:
        named = entry.get("recipes") if isinstance(entry, dict) else None
        one = isinstance(named, str)
        for number, name in enumerate([named] if one else named if isinstance(named, list) else []):
            path = (key, index, "recipes") if one else (key, index, "recipes", number)
            if isinstance(name, str) and name not in known:
                hint = did_you_mean(name, known) or (f"; known are {', '.join(known)}" if known else "")
                yield Problem(document.value(path), path, f"there is no recipe {name!r}{hint}")


def _nested_folders(document: Document, data: Mapping[str, Any], folder: Path) -> Iterator[Problem]:
    """Outputs in a watched folder would be taken for models, and a watched folder in the output for artifacts."""
    watch = data.get("watch")
    watched: list[tuple[int, str, Path]] = []
    for index, entry in enumerate(watch if isinstance(watch, list) else []):
        if isinstance(entry, dict) and (real := _real(entry.get("folder"), folder)) is not None:
            watched.append((index, str(entry["folder"]), real))
    for key in ("output", "state"):
        said = str(data.get(key, "./state"))
        own = _real(data.get(key, "./state" if key == "state" else None), folder)
        for index, written, place in watched if own else []:
            path = ("watch", index, "folder")
            line = document.value(path).line
            if own is not None and own.is_relative_to(place):
                inside = "is" if own == place else "lies inside"
                sentence = f"{said} {inside} the watched folder {written} (line {line})"
                remedy = "what qconvd writes there would be taken for models, so choose a folder outside of it"
                yield Problem(document.value((key,)), (key,), f"{sentence}; {remedy}")
            elif own is not None and place.is_relative_to(own):
                sentence = f"{written} lies inside the {key} folder {said} (line {document.value((key,)).line})"
                yield Problem(document.value(path), path, f"{sentence}; choose a folder outside of it")
    for number, (index, written, place) in enumerate(watched):
        for other, before, outer in watched[:number]:
            if place == outer or place.is_relative_to(outer) or outer.is_relative_to(place):
                path = ("watch", index, "folder")
                how = "is the same folder as" if place == outer else "and"
                tail = "" if place == outer else " lie inside one another"
                line = document.value(("watch", other, "folder")).line
                yield Problem(
                    document.value(path), path, f"{written} {how} {before} (line {line}){tail}; list each folder once"
                )


def _watched_twice(document: Document, config: Config) -> Iterator[Problem]:
    """Entries for the same repository or author. Two filters of one author may well stand beside each other."""
    lines: dict[str, int] = {}
    for index, watch in enumerate(config.watch):
        models = getattr(watch, "hub", None)
        if models is None:
            continue
        path = ("watch", index, "hub")
        known = lines.setdefault(models.model_dump_json().casefold(), document.value(path).line)
        if known != document.value(path).line:
            sentence = f"{models.shown} is watched already (line {known}); list it once, with all its recipes"
            yield Problem(document.value(path), path, sentence)


def _clashing_names(document: Document, config: Config) -> Iterator[Problem]:
    """Targets that would overwrite each other's artifacts: in one recipe, or in recipes that one folder uses together."""
    groups: list[tuple[str, ...]] = [(name,) for name in config.recipes]
    groups += [tuple(dict.fromkeys(w.recipes)) for w in config.watch if len(w.recipes) > 1]
    told: set[tuple[str, str]] = set()
    for group in groups:
        targets = {
            f"{name} {number}": (name, target)
            for name in group
            for number, target in enumerate(config.recipes[name].targets if name in config.recipes else ())
        }
        named = [(key, target.names(SAMPLE, config.names)) for key, (_, target) in targets.items()]
        for first, second, place in collisions(named):
            (recipe, one), (other, two) = targets[first], targets[second]
            # One artifact that two recipes want is made once.
            if (first, second) in told or one.digest == two.digest:
                continue
            told.add((first, second))
            path = ("recipes", other, "targets")
            whose = "" if recipe == other else f" of the recipe {recipe}"
            both = f"{two.label} and {one.label}{whose} would both be called {place.replace(SAMPLE, '<model>')}"
            remedy = "give one of them a `name:`, e.g. name: '{model}-{variant}-2'"
            yield Problem(document.value(path), path, f"{both}; {remedy}")


def _clashing_places(document: Document, config: Config) -> Iterator[Problem]:
    """Artifacts that have folders of their own here, and would overwrite each other where they are published.

    As for names, in one recipe or in recipes that are used together.
    """
    groups: list[tuple[str, ...]] = [(name,) for name in config.recipes]
    groups += [tuple(dict.fromkeys(w.recipes)) for w in config.watch if len(w.recipes) > 1]
    told: set[tuple[str, int]] = set()
    for group in groups:
        taken: dict[tuple[str, ...], tuple[str, Target]] = {}
        for name, target in ((n, t) for n in group if n in config.recipes for t in config.recipes[n].targets):
            manifest = target.names(SAMPLE, config.names).manifest
            for index, place in enumerate(places(config.recipes[name], target, SAMPLE, config.names)):
                key = (place.destination.casefold(), place.revision, manifest.casefold())
                recipe, first = taken.setdefault(key, (name, target))
                if first.digest == target.digest or (name, index) in told:
                    continue
                told.add((name, index))
                path = ("recipes", name, "publish", index)
                where = place.shown.replace(SAMPLE, "<model>")
                whose = "" if recipe == name else f" of the recipe {recipe}"
                both = f"{target.label} and {first.label}{whose} would both be published as {where}"
                yield Problem(document.value(path), path, f"{both}; let `repo:` or `revision:` hold {{variant}}")


def _folders_published(document: Document, config: Config) -> Iterator[Problem]:
    """A folder that is published to must be neither watched, nor the output, nor inside one of them."""
    known = [(f"the watched folder {w.folder}", w.folder) for w in config.folders]
    known.append((f"the output {config.output}", config.output))
    for name, recipe in config.recipes.items():
        for index, destination in enumerate(recipe.publish):
            for what, folder in known if destination.folder is not None else ():
                own, other = Path(os.path.realpath(destination.folder or "")), Path(os.path.realpath(folder))
                if own.is_relative_to(other) or other.is_relative_to(own):
                    path = ("recipes", name, "publish", index, "folder")
                    sentence = f"{destination.folder} and {what} lie inside one another"
                    yield Problem(document.value(path), path, f"{sentence}; choose a folder outside of it")


def _notifiers_called_alike(document: Document, config: Config) -> Iterator[Problem]:
    """What waits for a notifier is kept under its name."""
    lines: dict[str, int] = {}
    for index, entry in enumerate(config.notify):
        line = document.value(("notify", index)).line
        if lines.setdefault(entry.name, line) != line:
            sentence = f"{entry.name} is an entry already (line {lines[entry.name]}); tell them apart by `called: …`"
            yield Problem(document.value(("notify", index)), ("notify", index), sentence)


def _real(written: Any, folder: Path) -> Path | None:
    if not isinstance(written, str) or not written.strip() or "\0" in written:
        return None
    try:
        return Path(os.path.realpath(folder / Path(written).expanduser()))
    except (OSError, RuntimeError):
        return None
