"""What artifacts are called: one table from a profile and a family of formats to folder, file, repository and branch names.

The spellings are those that people look for on the Hub; docs/reference/naming.md shows who uses which.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from qconvd.errors import ConfigError
from qconvd.suggest import did_you_mean

if TYPE_CHECKING:
    from qconvd.engine.plan import NameParts

NAME_BYTES = 255
"""The longest name that ext4, XFS, btrfs and NTFS take."""
HUB_NAME = 96
"""Characters of a repository's name on the Hub."""
SUFFIX_BYTES = 40
"""What may still be appended to a stem: `-00001-of-00003.safetensors`, `.safetensors.index.json`, a temporary ending."""

BARE = {"q4": "q4_0", "q5": "q5_0"}
"""Short names that people write and what they mean by them."""


class Row(NamedTuple):
    """Templates for one family; `:lower` and `:upper` change the case.

    `{model}`, `{variant}`, `{format}`, `{bits}`, the number that a variant such as `4bit-128g` begins with, and `{scheme}`,
    which for formats without one is the variant, are filled in.
    `{variant:bare}` is `q4` for `q4_0`, as people say it.
    """

    folder: str
    stem: str
    repo: str = ""
    """Empty: as `folder`."""
    branch: str = ""
    """Empty: what the plan says, `main` unless a format keeps variants on branches."""
    first_on_main: bool = False
    """Whether the first of a recipe's variants is on `main`, and only the others on branches."""
    shared: bool = False
    """Whether siblings live in one folder; so only where the stem tells them apart."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one artifact. `manifest` is relative to `folder`."""

    folder: str
    stem: str
    repo: str
    branch: str
    manifest: str
    shared: bool
    first_on_main: bool = False


OWN = Row("{model}-{variant}", "model")
GGUF = Row("{model}-GGUF", "{model}-{variant}", shared=True)
GGML = Row("{model}-GGML", "{model:lower}.ggmlv3.{variant}", shared=True)

DEFAULT: dict[str, Row] = {
    "fp16": OWN,
    "gguf": GGUF,
    "int8": OWN,
    "int4": OWN,
    "fp8": OWN,
    "bitsandbytes": OWN,
    "gptq": OWN,
    "ggml": GGML,
    "awq": Row("{model}-AWQ", "model"),
    "exl2": Row("{model}-exl2-{variant}", "model", repo="{model}-exl2", branch="{variant}"),
    "exl3": Row("{model}-exl3-{variant}", "model", repo="{model}-exl3", branch="{variant}"),
    "mlx": OWN,
}

PROFILES: dict[str, dict[str, Row]] = {
    "default": DEFAULT,
    "thebloke": DEFAULT | {
        "gguf": Row("{model}-GGUF", "{model:lower}.{variant}", shared=True),
        "gptq": Row("{model}-GPTQ-{variant}", "model", repo="{model}-GPTQ", branch="gptq-{variant}", first_on_main=True),
    },
    "redhat": DEFAULT | dict.fromkeys(("int8", "int4"), Row("{model}-quantized.{scheme}", "model")),
    "qwen": DEFAULT | {"gptq": Row("{model}-GPTQ-Int{bits}", "model")},
    "bartowski": DEFAULT | {"gguf": GGUF},
    "gguf-my-repo": DEFAULT | {"gguf": Row("{model}-{variant}-GGUF", "{model:lower}-{variant:lower}")},
    "soulteary": DEFAULT | {"ggml": Row("{model}-ggml-{variant:bare}", "{model}.ggmlv3.{variant}")},
    "gptq-for-llama": DEFAULT | {"gptq": Row("{model}-{variant}", "{variant}")},
}  # fmt: skip

_FIELD = re.compile(r"\{(\w*)(?::(\w*))?\}")
_FIELDS = ("model", "variant", "format", "bits", "scheme")
KNOWN = f"fields: {', '.join(f'{{{name}}}' for name in _FIELDS)}"
# A name that Windows, or an SMB share, or we ourselves keep for something else.
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
# Bidirectional controls can make `fdp.exe` look like `exe.pdf`; the rest of Cf (joiners in emoji) is kept.
_UNSAFE = re.compile(r'[/\\<>:"|?*\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]')


def names(model_name: str, parts: NameParts, profile: str = "default", template: str | None = None) -> Names:
    """The names of one artifact of the model `model_name`.

    A `template` names the artifact itself: its folder, or in a shared folder its file; `folder/file` names both.
    Every result is one safe path component that leaves room for endings within 255 bytes. Raises `ConfigError`.
    """
    row = _row(parts, profile)
    if template is not None:
        check_template(template)
        before, slash, last = template.rpartition("/")
        if slash:
            row = row._replace(folder=before, stem=last)
        else:
            row = row._replace(stem=last) if row.shared else row._replace(folder=last, repo="")
    fields = _fields(parts)
    folder = _fill(row.folder, model_name, fields, NAME_BYTES - SUFFIX_BYTES)
    stem = _fill(row.stem, model_name, fields, NAME_BYTES - SUFFIX_BYTES)
    return Names(
        folder=folder,
        stem=stem,
        repo=_fill(row.repo, model_name, fields, NAME_BYTES - SUFFIX_BYTES) if row.repo else folder,
        branch=_fill(row.branch, model_name, fields, NAME_BYTES) if row.branch else parts.branch,
        manifest=f".qconvd/{stem}.json" if row.shared else "qconvd.json",
        shared=row.shared,
        first_on_main=row.first_on_main,
    )


def repository(
    model_name: str,
    parts: NameParts,
    named: Names,
    template: str | None = None,
    branch: str | None = None,
    *,
    first: bool = False,
) -> tuple[str, str]:
    """The names of a repository on the Hub and of the branch in it: those of the table, or by templates.

    `first`: it is the first of the recipe's artifacts in that repository, which some profiles keep on `main`.

    The Hub takes letters, digits and `-_.` only, 96 characters of them, and neither `--` nor `..`. Raises `ConfigError`.
    """
    fields = _fields(parts)
    for given in filter(None, (template, branch)):
        check_template(given)
        if "/" in given:
            raise ConfigError(f"the name template {given!r} is not a name", fix="write one name; `owner` is a key of its own")
    plain = hub_safe(model_name)
    # Where the table's name is kept, the model's name in it is the Hub's spelling of it, too.
    text = _fill(template, plain, fields, HUB_NAME) if template else hub_safe(named.repo)
    own = "main" if first and named.first_on_main else named.branch
    at = _fill(branch, plain, fields, NAME_BYTES) if branch else own
    return hub_safe(text), at


def hub_safe(text: str) -> str:
    """`text` as a repository of the Hub may be called; what had to be cut off is told apart by a hash of the whole."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", plain)
    plain = re.sub(r"([-.])[-.]*", r"\1", plain).strip("-.")
    plain = re.sub(r"(?:\.git|\.ipynb)+$", "", plain) or "model"
    if len(plain) <= HUB_NAME:
        return plain
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    before, dash, ending = plain.rpartition("-")
    if not dash or len(ending) > HUB_NAME // 2:
        before, ending = plain, ""
    tail = f"-{digest}-{ending}" if ending else f"-{digest}"
    return before[: HUB_NAME - len(tail)].rstrip("-._") + tail


def collisions(named: Iterable[tuple[str, Names]]) -> list[tuple[str, str, str]]:
    """Artifacts that would overwrite each other: (label, other label, the path they share).

    Names that differ in case only clash too: exFAT, SMB and macOS take them for one, and so do Ollama and llama.cpp.
    """
    owners: dict[str, tuple[str, Names]] = {}
    files: dict[tuple[str, str], str] = {}
    found = []
    for label, name in named:
        folder = name.folder.casefold()
        first, other = owners.setdefault(folder, (label, name))
        if first != label and not (name.shared and other.shared):
            found.append((first, label, f"{name.folder}/"))
            continue
        before = files.setdefault((folder, name.stem.casefold()), label)
        if before != label:
            found.append((before, label, f"{name.folder}/{name.stem}"))
    return found


def check_template(template: str) -> None:
    """Raise `ConfigError` unless every field of the template is known and it names one folder or `folder/file`."""
    for found in _FIELD.finditer(template):
        if found[1] not in _FIELDS:
            hint = did_you_mean(found[1], _FIELDS)
            raise ConfigError(
                f"the name template {template!r} has an unknown field {found[0]}{hint}",
                fix=KNOWN,
            )
        if found[2] not in (None, "lower", "upper", "bare"):
            fix = "write {model:lower}, {model:upper} or {variant:bare}"
            raise ConfigError(f"the name template {template!r} wants {found[2]!r} of a field", fix=fix)
    rest = _FIELD.sub("x", template)
    if "{" in rest or "}" in rest:
        raise ConfigError(f"the name template {template!r} has a brace that belongs to no field", fix=KNOWN)
    if rest.count("/") > 1 or not all(rest.split("/")) or any(part.startswith(".") for part in rest.split("/")):
        raise ConfigError(
            f"the name template {template!r} is not a name", fix="write a folder's name or folder/file, e.g. {model}-{variant}"
        )


def safe(text: str) -> str:
    """`text` as one path component on any filesystem: letters of every script are kept, what is special to one is not."""
    text = _UNSAFE.sub("-", "".join(c for c in text if unicodedata.category(c) != "Cc"))
    # Hidden names and our own .qconvd start with a dot; Windows drops dots and blanks at the end; a dash looks like an option.
    text = text.strip(" .").lstrip("-").strip(" .")
    if not text:
        return "model"
    return f"{text}_" if _RESERVED.fullmatch(text) else text


def file_name(model_name: str) -> str:
    """The model's name as it may stand before an ending: one safe path component that leaves room within 255 bytes."""
    return _fill("{model}", model_name, {}, NAME_BYTES - SUFFIX_BYTES)


def _row(parts: NameParts, profile: str) -> Row:
    if profile not in PROFILES:
        raise ConfigError(
            f"there is no name profile {profile!r}{did_you_mean(profile, PROFILES)}", fix=f"profiles: {', '.join(PROFILES)}"
        )
    row = PROFILES[profile].get(parts.format)
    if row is None:
        return Row("{model}-{format}", "{model}-{variant}", shared=True) if parts.shared else OWN
    # A format that keeps each artifact apart stays apart, whatever the table says of its family.
    return row if parts.shared or not row.shared else row._replace(shared=False)


def _fields(parts: NameParts) -> dict[str, str]:
    """What a template's fields stand for; a variant that begins with no number of bits stands for itself."""
    bits = re.match(r"(\d+)bit", parts.variant)
    return {
        "variant": parts.variant,
        "format": parts.format,
        "bits": bits[1] if bits else parts.variant,
        "scheme": parts.scheme or parts.variant,
    }


def _fill(template: str, model: str, fields: dict[str, str], limit: int) -> str:
    """Fill in the template; where the result is too long, the model's name gives way, told apart by a hash of the whole."""
    full = safe(_substitute(template, {"model": safe(model), **fields}))
    excess = len(full.encode()) - limit
    if excess <= 0:
        return full
    digest = hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    keep = max(0, len(safe(model).encode()) - excess - len(digest) - 1)
    short = f"{_cut(safe(model), keep)}-{digest}"
    return _cut(safe(_substitute(template, {"model": short, **fields})), limit)


def _substitute(template: str, fields: dict[str, str]) -> str:
    def fill(found: re.Match[str]) -> str:
        value = fields[found[1]]
        bare = value[:-2] if value.lower() in (*BARE.values(), "q8_0") else value
        return {"lower": value.lower(), "upper": value.upper(), "bare": bare}.get(found[2] or "", value)

    return _FIELD.sub(fill, template)


def _cut(text: str, limit: int) -> str:
    return text.encode()[:limit].decode("utf-8", "ignore")
