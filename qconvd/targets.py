"""Targets: what a recipe or `--to` says, as one object per artifact.

fp16                            a format, or a short name that a format gives to some of its options
gguf: q8_0                      a format with its one option as text; as one word, gguf-q8_0
gguf: [q8_0, q4_0]              several artifacts of one format
gguf: {types: [q8_0], device: cpu}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from qconvd.engine.plan import NameParts
from qconvd.errors import ConfigError, QconvdError
from qconvd.explain import KeyPath, explain, kind
from qconvd.formats import Format, FormatOptions
from qconvd.ledger.records import options_of, spec_digest
from qconvd.naming import BARE, Names, check_template, names
from qconvd.plugins import plugins
from qconvd.suggest import did_you_mean

EXAMPLE = re.compile(r"e\.g\. `([^`]+)`")
"""How the description of an option shows what to write."""


@dataclass(frozen=True)
class Target:
    """One artifact to make: a format and its resolved options."""

    format: str
    version: str
    options: FormatOptions
    parts: NameParts

    @property
    def spec(self) -> dict[str, Any]:
        """The target as canonical JSON data; defaults are left out, as in the ledger."""
        return {"format": self.format, "options": options_of(self)}

    @property
    def digest(self) -> str:
        """Identity of what is made, as the ledger counts it: where it is made makes no difference."""
        return spec_digest(self.format, options_of(self))

    @property
    def label(self) -> str:
        """For people: `gguf Q4_0`, `fp16`; the variant alone where that says the format: `bf16`, `int4-64g`, `bnb-4bit`."""
        variant = self.parts.variant
        format = plugins().formats.get(self.format)
        # Where a bare name is no target, as with GGUF, its variants are types that other formats have, too.
        whole = (self.format, *format.aliases) if format and not _needed(format) else (self.format,)
        says = any(variant.casefold() == word or variant.casefold().startswith(f"{word}-") for word in whole)
        return variant if says else f"{self.format} {variant}"

    def on(self, device: str) -> Target:
        """The same artifact, made on another device. Raises `ConfigError` if its format has no kernels for that."""
        if lacking := _without_kernels(plugins().formats[self.format], device):
            raise ConfigError(lacking)
        return replace(self, options=self.options.model_copy(update={"device": device}))

    def names(self, model_name: str, profile: str = "default") -> Names:
        """What this target's artifact of that model is called."""
        return names(model_name, self.parts, profile, self.options.name)


class Wrong(NamedTuple):
    """A mistake in a target: the path below it, a sentence, and whether the path's key is meant rather than its value."""

    path: KeyPath
    message: str
    at_key: bool = False


def resolve_target(raw: Any) -> list[Target]:
    """The targets that one entry of `targets:` (or of `--to`) stands for. Raises `ConfigError` with all its mistakes."""
    found, wrong = resolve(raw)
    if wrong:
        lines = tuple("".join((f"{dotted_below(w.path)}: " if w.path else "", w.message)) for w in wrong)
        fix = "`qconvd formats` lists what there is" if any("there is no format" in line for line in lines) else ""
        raise ConfigError("; ".join(lines), fix=fix, problems=lines)
    return found


def resolve_list(text: str) -> list[Target]:
    """The targets of `--to fp16,q8_0,gguf:q4_0`. Raises `ConfigError`, also for one that stands there twice.

    A format's options are written as in a recipe: `--to "fp16, gguf: {types: [q4_0], pure: true}"`.
    """
    words = [word.strip() for word in _outside_brackets(text) if word.strip()]
    if not words:
        raise ConfigError("no target is given", where="--to", fix=f"known targets: {', '.join(short_names())}")
    found: list[Target] = []
    for word in words:
        form, colon, rest = word.partition(":")
        for target in resolve_target({form.strip(): _inline(rest.strip(), word)} if colon else word):
            if any(target.digest == other.digest for other in found):
                raise ConfigError(f"the target {target.label} is given twice", where="--to")
            found.append(target)
    return found


def _outside_brackets(text: str) -> Iterator[str]:
    """`text` cut at the commas that stand in no brackets."""
    depth = start = 0
    for at, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth <= 0:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def _inline(text: str, word: str) -> Any:
    """Options as YAML if they are in brackets, else the text itself."""
    if not text.startswith(("{", "[")):
        return text
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it cannot be read"
        fix = "write it as in a recipe, e.g. --to 'gguf: {types: [q4_0], pure: true}'"
        raise ConfigError(f"{word!r} is not YAML: {problem}", where="--to", fix=fix) from error


def resolve(raw: Any, folder: Path | None = None) -> tuple[list[Target], list[Wrong]]:
    """As `resolve_target`, but what is right is returned beside what is wrong.

    Paths in options are relative to `folder`; without one, to the current folder.
    """
    folder = folder or Path.cwd()
    if isinstance(raw, str):
        # As on a command line. YAML takes `int8:w8a8`, without a blank, for text.
        form, colon, rest = (part.strip() for part in raw.partition(":"))
        if colon and _format_of(form):
            try:
                found, wrong = resolve({form: _inline(rest, raw) if rest else None}, folder)
            except ConfigError as error:
                return [], [Wrong((), error.what)]
            return found, [w._replace(path=(), at_key=False) for w in wrong]
        return _resolve_one(raw, None, (), folder)
    if isinstance(raw, Mapping) and len(raw) == 1:
        ((name, value),) = raw.items()
        if isinstance(value, list):
            return _resolve_all(name, value, folder)
        return _resolve_one(name, value, (name,), folder)
    if isinstance(raw, Mapping) and raw:
        keys = ", ".join(map(str, raw))
        return [], [
            Wrong((), f"a target has one format, but here are {len(raw)} keys: {keys}; options belong below the format's name")
        ]
    return [], [Wrong((), f"a target is a name (fp16) or a format with its options (gguf: q8_0), not {kind(raw)}")]


def short_names() -> list[str]:
    """Every word that may stand for a target: formats that need no options, and all aliases."""
    return sorted({w for f in plugins().formats.values() for w in (f.name, *f.aliases)})


def dotted_below(path: Sequence[str | int]) -> str:
    """`gguf.types[1]`."""
    return "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in path).lstrip(".")


def _resolve_all(name: str, items: list[Any], folder: Path) -> tuple[list[Target], list[Wrong]]:
    found: list[Target] = []
    wrong = [] if items else [Wrong((name,), "the list is empty; name at least one")]
    for index, item in enumerate(items):
        targets, mistakes = _resolve_one(name, item, (name, index), folder)
        found += targets
        wrong += mistakes
        if mistakes and not _format_of(name):
            break
    return found, wrong


def _resolve_one(name: str, value: Any, path: KeyPath, folder: Path) -> tuple[list[Target], list[Wrong]]:
    match = _format_of(name)
    if match is None:
        hint = (
            _of_a_list(name)
            or _of_a_format(name)
            or did_you_mean(name, short_names())
            or f"; there are {', '.join(plugins().formats)}"
        )
        broken = "".join(f"; the plugin {b.name} could not be loaded: {b.reason}" for b in plugins().broken if b.name == name)
        return [], [Wrong(path[:1], f"there is no format {name!r}{hint}{broken}", at_key=bool(path))]
    format, preset = match
    try:
        given = _given(format, value)
    except ValueError as error:
        return [], [Wrong(path, str(error))]
    if isinstance(given, str):
        return [], [Wrong(path, given)]
    clash = sorted(set(preset) & set(given))
    if clash and not isinstance(value, Mapping):
        return [], [Wrong(path, f"{name!r} already says {clash[0]}; write `{format.name}: {value}` instead")]
    if clash:
        return [], [
            Wrong(
                (*path, clash[0]),
                f"{name!r} already says {clash[0]}; write {format.name!r} with its options instead",
                at_key=True,
            )
        ]
    try:
        options = format.Options.model_validate({**preset, **given}, context={"folder": folder})
        if options.name is not None:
            check_template(options.name)
        if lacking := _without_kernels(format, options.device):
            return [], [Wrong((*path, "device"), lacking)]
        return [Target(format.name, format.version, o, format.name_parts(o)) for o in format.expand(options)], []
    except ValidationError as error:
        if value is None and (lacking := _lacking(name, format, error)):
            return [], [Wrong(path, lacking)]
        return [], [
            Wrong((*path, *loc), message, at_key) for loc, message, at_key in explain(error, format.Options, described=True)
        ]
    except QconvdError as error:
        return [], [Wrong((*path, "name"), ". ".join(filter(None, (error.what, error.fix))))]
    except ValueError as error:
        return [], [Wrong(path, str(error))]


def _without_kernels(format: Format, device: str) -> str:
    """Why a format cannot be asked to be made on a device; empty if it can."""
    if device != "cuda" or "cuda" in format.devices:
        return ""
    return f"{format.name} has no kernels for a GPU; leave `device` out, or say `cpu`"


def _needed(format: Format) -> bool:
    """Whether a format has options that must be given."""
    return any(field.is_required() for field in format.Options.model_fields.values())


def _lacking(name: str, format: Format, error: ValidationError) -> str:
    """How to write a format that stands alone and cannot: with the example that the option it needs gives of itself."""
    for key, *below in (e["loc"] for e in error.errors(include_url=False) if e["type"] == "missing"):
        about = format.Options.model_fields[str(key)].description or ""
        example = EXAMPLE.search(about)
        if example and not below:
            return f"{name} alone says no {key}; write for example `{name}: {{{key}: {example[1]}}}`"
    return ""


def _of_a_list(name: str) -> str:
    """A hint for several targets with nothing between them but blanks."""
    words = name.split()
    return f"; targets have commas between them: {','.join(words)}" if len(words) > 1 and all(map(_format_of, words)) else ""


def _of_a_format(name: str) -> str:
    """A hint for what is no target of its own but a format's option as text: `f16` is `gguf: f16`."""
    likely = []
    word = name.casefold()
    for format in plugins().formats.values():
        try:
            given = format.from_text(name)
            found = format.Options.model_validate(given)
        except ValueError:
            continue
        if word in (format.name_parts(format.expand(found)[0]).variant.casefold(), *map(str, given.values())):
            likely.append(f"{format.name}: {name}")
    return f" (did you mean {' or '.join(likely)}?)" if likely else ""


def _given(format: Format, value: Any) -> Mapping[str, Any] | str:
    """The options that were written, or a sentence about why they are none."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    if isinstance(value, str):
        return format.from_text(BARE.get(value.lower(), value))
    if isinstance(value, int) and not isinstance(value, bool):  # `int4: 32`, which YAML takes for a number
        return format.from_text(str(value))
    return f"the options of {format.name} are text or a mapping, not {kind(value)}"


def _format_of(name: str) -> tuple[Format, Mapping[str, Any]] | None:
    """The format that a word stands for, with the options that the word implies. Case does not count."""
    formats = plugins().formats
    word = BARE.get(name.lower(), name.lower())
    if word in formats:
        return formats[word], {}
    for format in formats.values():
        for alias, options in format.aliases.items():
            if alias.lower() == word:
                return format, options
    for format in formats.values():
        # The name of a published variant means what it names: `gptq-4bit-32g-actorder_True`.
        if word.startswith(f"{format.name}-"):
            with suppress(ValueError):
                return format, format.from_text(word.removeprefix(f"{format.name}-"))
    return None
