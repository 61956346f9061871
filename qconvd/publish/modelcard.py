"""Model cards: what a repository of artifacts holds, told from their manifests and from what the model says of itself.

The body is a Jinja template (templates/card.md.j2) that a recipe may replace or extend. qconvd owns what stands between its
two markers, and the keys of the YAML whose values are those that it wrote; everything else in a card is a person's and stays.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any

import jinja2

from qconvd import __version__
from qconvd.engine.calibration_cost import samples_in_words
from qconvd.engine.manifest import Manifest
from qconvd.errors import QconvdError
from qconvd.formats import Advises
from qconvd.plugins import plugins
from qconvd.publish import front_matter
from qconvd.publish.upstream import CARRIED, HUB, Upstream
from qconvd.quantities import show_size

NAME = "README.md"
TEMPLATE = "card.md.j2"
OWN = "recipe"
"""Prefix of the name under which a recipe's own template is loaded."""
BEGIN, END = "<!-- qconvd:begin ", "<!-- qconvd:end -->"
CONTEXT = 4096
"""Tokens of context that the memory needed is reckoned for."""
BUFFERS = 256 << 20
"""What a runtime takes beside weights and cache: buffers of a forward pass, its own code."""
MISSING = "not measured"
ENOUGH_BITS = 4.5
"""Bits per weight of Q4_0. What is smaller is for whoever has no room for more: nobody should meet a model by it first."""
FORMAT_TAGS = frozenset(
    [
        "coreml",
        "flax",
        "ggml",
        "gguf",
        "jax",
        "mlx",
        "onnx",
        "openvino",
        "pytorch",
        "rust",
        "safetensors",
        "tensorrt",
        "tf",
        "tflite",
        "transformers.js",
    ]
)
"""Tags by which the Hub finds repositories that hold a format; another repository's do not hold for this one."""
SPLIT = "-00001-of-"


@dataclass(frozen=True)
class Row:
    """One artifact in the card's table."""

    artifact: str
    type: str
    """As people call it: `Q4_K_M`, `fp16`."""
    files: tuple[str, ...]
    """Its weights, relative to the repository."""
    nbytes: int
    bits_per_weight: float
    """Of the whole file; 0 if the weights were not counted."""
    memory: str
    error: str
    perplexity: str
    advice: str
    readers: Mapping[str, str]
    """Runtimes that load it, with their limits in words."""
    container: str
    manifest: Manifest

    @property
    def file(self) -> str:
        """The file to open: of several parts the first."""
        return self.files[0] if self.files else ""

    @property
    def in_parts(self) -> bool:
        return len(self.files) > 1

    @property
    def size(self) -> str:
        return show_size(self.nbytes)

    @property
    def bits(self) -> str:
        return _of_weights(self.manifest, f"{self.bits_per_weight:.2f}" if self.bits_per_weight else MISSING)

    @property
    def statistics(self) -> str:
        """What its errors were weighed with."""
        return ", ".join(f"{s.get('kind')} {s.get('file')}" for s in self.manifest.statistics)

    @property
    def calibration(self) -> str:
        """What it was calibrated on, and what that was good for; empty if it was not."""
        about = self.manifest.calibration
        if not about.get("samples"):
            return ""
        said = samples_in_words(about)
        linears = [x for x in about.get("linears", {}).values() if x.get("output_error") and x.get("nearest_error")]
        if linears:
            share = median(x["output_error"] / x["nearest_error"] for x in linears)
            said += f": its linears' outputs are off by {share:.0%} of what rounding to nearest gives (squared; "
            said += f"median of {len(linears)})"
        return said


@dataclass(frozen=True)
class Card:
    """All that a template may speak of."""

    title: str
    repo: str
    """`owner/name`, or empty for a folder."""
    revision: str
    model: Upstream
    rows: tuple[Row, ...]
    metadata: Mapping[str, Any]

    @property
    def readers(self) -> list[str]:
        """Every runtime that loads one of the artifacts, in the order in which the formats name them."""
        return list(dict.fromkeys(name for row in self.rows for name in row.readers))

    def loads(self, reader: str, *, whole: bool = False) -> list[Row]:
        """The artifacts that a runtime opens by itself, without a note on what has to be done first. `whole`: in one file."""
        fitting = [row for row in self.rows if row.readers.get(reader) == ""]
        return [row for row in fitting if not (whole and row.in_parts)]

    def opens(self, *readers: str) -> bool:
        """Whether one of some runtimes opens one of the artifacts, be it with a note on what it needs."""
        return any(reader in row.readers for row in self.rows for reader in readers)

    def suggested(self, reader: str, *, whole: bool = False) -> Row | None:
        """The artifact to begin with: the smallest of at least `ENOUGH_BITS`, or the largest; None if it loads none."""
        fitting = sorted(self.loads(reader, whole=whole), key=lambda row: row.nbytes)
        return next((row for row in fitting if row.bits_per_weight >= ENOUGH_BITS), fitting[-1] if fitting else None)

    def notes(self, reader: str) -> list[str]:
        """What has to be said of a runtime that does not simply load the artifacts."""
        return list(dict.fromkeys(row.readers[reader] for row in self.rows if row.readers.get(reader)))

    @property
    def versions(self) -> dict[str, list[str]]:
        """Programs and plugins with the versions that made the artifacts."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            for name, version in row.manifest.versions.items():
                if version not in found.setdefault(name, []):
                    found[name].append(version)
        return found

    @property
    def recipes(self) -> list[str]:
        return list(dict.fromkeys(row.manifest.recipe for row in self.rows if row.manifest.recipe))


def card(
    model: Upstream, manifests: Sequence[Manifest], *, title: str, repo: str = "", revision: str = "main", by: str = ""
) -> Card:
    """The card of a repository or a folder that holds these artifacts. `by` is who publishes them."""
    rows = tuple(sorted((_row(model, m) for m in manifests), key=lambda row: (-row.nbytes, row.artifact)))
    return Card(title, repo, revision, model, rows, _metadata(model, rows, by))


def render(card: Card, template: Path | None = None) -> tuple[str, dict[str, Any]]:
    """The card's body, and its metadata with what the template adds to it in a YAML head of its own.

    Raises `QconvdError` for a template that cannot be read or is wrong, with file and line.
    """
    own = jinja2.FileSystemLoader(template.parent) if template else jinja2.DictLoader({})
    environment = jinja2.Environment(
        # `card.md.j2` is qconvd's even for a template that is called so itself, and may extend it.
        loader=jinja2.ChoiceLoader([
            jinja2.PrefixLoader({OWN: own}, delimiter=":"), jinja2.PackageLoader("qconvd.publish"), own,
        ]),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        autoescape=False,
    )  # fmt: skip
    environment.filters.update(cell=_cell, fenced=_fenced, size=show_size)
    name = f"{OWN}:{template.name}" if template else TEMPLATE
    try:
        text = environment.get_template(name).render(card=card, missing=MISSING, context=CONTEXT, version=__version__)
    except jinja2.TemplateNotFound as error:
        where = str(template) if template and error.name == name else f"{template or name}: {error.name}"
        raise QconvdError("there is no such template of a card", where=where, fix="mend `card:` in the recipe") from error
    except jinja2.TemplateSyntaxError as error:
        place = f"{error.filename or name}:{error.lineno}"
        raise QconvdError(f"the template of the card is wrong: {error.message}", where=place) from error
    except OSError as error:
        raise QconvdError(f"cannot be read: {error.strerror}", where=str(template)) from error
    except Exception as error:  # whatever the code in somebody's template raises
        if template is None:
            raise
        reason = error.message if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
        raise QconvdError(
            f"the template of the card is wrong: {reason}",
            where=_place(template, error), fix="docs/how-to/publish.md lists what a template may use",
        ) from error  # fmt: skip
    head, body = front_matter.split(text)
    return body.strip("\n"), {**card.metadata, **front_matter.read(head, str(template or TEMPLATE))}


def _place(template: Path, error: Exception) -> str:
    """The template with the last of its lines that was being rendered; Jinja names it in the traceback."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(template)]
    return f"{template}:{lines[-1]}" if lines else str(template)


def compose(body: str, metadata: Mapping[str, Any], existing: str = "", where: str = NAME) -> str:
    """The whole card: a new one, or the one that is there with what is ours in it brought up to date.

    Raises `QconvdError` if the card's YAML or its markers are damaged.
    """
    head, rest = front_matter.split(existing)
    before, last, after = _parted(rest, where)
    head = front_matter.update(head, metadata, last, where)
    noted = json.dumps(dict(metadata), ensure_ascii=False, sort_keys=True, default=str).replace("--", "-\\u002d")
    ours = f"{BEGIN}{noted} -->\n{_unmarked(body)}\n{END}\n"
    return f"---\n{head}---\n{before}{ours}{after}"


def _parted(text: str, where: str) -> tuple[str, dict[str, Any], str]:
    """What stands before our part and after it, and the metadata that we wrote the last time."""
    start, end = text.find(BEGIN), text.find(END)
    if start < 0 and end < 0:
        return ("\n" if not text.strip() else f"{text.rstrip()}\n\n"), {}, ""
    if start < 0 or end < start or text.count(BEGIN) > 1 or text.count(END) > 1:
        raise QconvdError(
            "the card has lost one of qconvd's two markers, so nobody can tell what in it was written by hand",
            where=where,
            fix=f"put {BEGIN.strip()} --> and {END} around the part that qconvd may replace, or remove both",
        )
    line, _, _ = text[start + len(BEGIN) : end].partition("-->")
    try:
        last = json.loads(line)
    except ValueError:
        last = {}
    after = text[end + len(END) :].removeprefix("\n")
    return text[:start], last if isinstance(last, dict) else {}, after


def _unmarked(body: str) -> str:
    """A model's own texts must not look like our markers."""
    return body.replace("<!-- qconvd:", "<!-- qconvd :")


def _metadata(model: Upstream, rows: Sequence[Row], by: str) -> dict[str, Any]:
    """The card's YAML, in the order in which people read it."""
    carried = {key: _carried(model, key) for key in CARRIED}
    containers = {row.container for row in rows}
    library = "gguf" if containers == {"gguf"} else str(model.card.get("library_name") or "transformers")
    tags = [t for t in map(str, _list(model.card.get("tags"))) if ":" not in t and t.casefold() not in FORMAT_TAGS]
    found: dict[str, Any] = {
        "base_model": model.repo or None,
        "base_model_relation": "quantized" if model.repo else None,
        "quantized_by": by or None,
        "library_name": library,
        "license": carried.pop("license"),
        **carried,
        "tags": list(dict.fromkeys([*tags, *sorted(containers), *(row.manifest.format for row in rows), "qconvd"])),
    }
    return {key: value for key, value in found.items() if value not in (None, "", [])}


def _carried(model: Upstream, key: str) -> Any:
    value = model.card.get(key)
    if key == "license_link" and isinstance(value, str) and model.url and "://" not in value:
        return f"{model.url}/blob/main/{value}"
    return value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _row(model: Upstream, manifest: Manifest) -> Row:
    weights = [f for f in manifest.files if PurePosixPath(f.path).suffix in (".safetensors", ".gguf", ".bin")]
    nbytes, count = sum(f.bytes for f in weights), manifest.errors.get("weights")
    cache = model.cache_bytes(CONTEXT) if model.generates else 0
    return Row(
        artifact=manifest.artifact,
        type=str(manifest.extra.get("variant") or manifest.format),
        files=tuple(sorted(f.path for f in weights)),
        nbytes=nbytes,
        bits_per_weight=8 * nbytes / count if isinstance(count, int) and count else 0.0,
        memory=_of_weights(manifest, MISSING if cache is None else show_size(nbytes + cache + BUFFERS)),
        error=_of_weights(manifest, _percent(manifest.errors.get("relative_rms"))),
        perplexity=_of_weights(manifest, _number(_quality(manifest).get("perplexity"))),
        advice=_advice(manifest),
        readers={str(r.get("name")): str(r.get("note") or "") for r in manifest.loads_with},
        container=manifest.container,
        manifest=manifest,
    )


def _of_weights(manifest: Manifest, figure: str) -> str:
    """A figure about weights; empty for an artifact that holds none (an importance matrix)."""
    return "" if manifest.errors.get("weights") == 0 else figure


def _quality(manifest: Manifest) -> Mapping[str, Any]:
    found = manifest.extra.get("quality")
    return found if isinstance(found, Mapping) else {}


def _advice(manifest: Manifest) -> str:
    """When to choose it, as its format says; empty if the format is not installed here or says nothing."""
    form = plugins().formats.get(manifest.format)
    return form.advice(str(manifest.extra.get("variant", ""))) if isinstance(form, Advises) else ""


def _percent(value: Any) -> str:
    if not isinstance(value, int | float):
        return MISSING
    return "exact" if value == 0 else f"{100 * value:.2g} %"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else MISSING


def _cell(text: object) -> str:
    """A text that may stand in a table of Markdown."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _fenced(text: str, language: str = "") -> str:
    """A block of code whose fence is longer than any in the text."""
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


__all__ = ["HUB", "MISSING", "NAME", "Card", "Row", "card", "compose", "render"]
