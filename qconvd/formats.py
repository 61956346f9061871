"""What a format is: it says what to make (a plan, which is data) and how to encode one unit (pure arithmetic)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.expr import Cast, dequantized
from qconvd.engine.plan import Array, Buffer, Device, Encoder, NameParts, Plan, Unit, UnitReport
from qconvd.errors import QconvdError, Unsupported
from qconvd.quantities import size

Size: TypeAlias = Annotated[int, BeforeValidator(size), WithJsonSchema({"type": ["string", "integer"], "format": "size"})]
"""Bytes in a format's options, written as people write them: `5GB`, `512MiB`."""


def _file_size(given: str | float) -> int:
    found = size(given)
    if 0 < found < 1000:
        raise ValueError(f"{found} bytes are no size for a file; write it with its unit, e.g. 5GB")
    return found


FileSize: TypeAlias = Annotated[
    int, BeforeValidator(_file_size), WithJsonSchema({"type": ["string", "integer"], "format": "size"})
]
"""The size above which weights are split into several files: as `Size`, but that a forgotten unit is noticed."""


class FormatOptions(BaseModel):
    """What a recipe may say under any target; formats subclass it and add their own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Where to convert: `auto` takes a GPU only if the kernels were measured on one like it; `cuda` waits "
        "for a GPU, never falls back.",
    )
    name: str | None = Field(None, description="A name template for this target's artifact, e.g. `{model}-{variant}`.")
    non_finite: Literal["report", "refuse"] = Field(
        "report", description="NaN or infinite weights in the model: count them in the manifest, or fail and name the tensor."
    )

    @property
    def calibrated(self) -> bool:
        """Whether text must be run through the model for it, which needs torch and transformers. For `qconvd doctor`."""
        return False


@dataclass(frozen=True)
class Detail:
    """A table about a format, for `qconvd formats FORMAT`: given through the hook `qconvd_format_details`."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


class Format(Protocol):
    """A target format. Registered through the `qconvd_formats` hook; instances are stateless."""

    name: ClassVar[str]
    """As a recipe says it: `gguf`."""
    version: ClassVar[str]
    """Changes when the same options give other bytes."""
    summary: ClassVar[str]
    """One line for `qconvd formats`."""
    Options: ClassVar[type[FormatOptions]]
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Short names and the options they stand for: `{"q4_0": {"types": ["q4_0"]}}`."""
    devices: ClassVar[Sequence[str]]
    """The device kinds that `encoder` has kernels for: `("cpu",)`."""

    def from_text(self, text: str) -> Mapping[str, Any]:
        """Options for the short form `gguf: q8_0`. Raises ValueError with a sentence if it has none."""
        ...

    def expand(self, options: Any) -> Sequence[Any]:
        """One options object per artifact: `types: [q8_0, q4_0]` becomes two."""
        ...

    def name_parts(self, options: Any) -> NameParts:
        """What tells this artifact's name from its siblings'; `plan` puts the same into `Plan.name`.

        It follows from one artifact's options alone, so that two targets with one name are found before any model is there.
        """
        ...

    def plan(self, model: ModelInfo, options: Any) -> Plan:
        """Decide everything about one artifact. Reads headers and side files, no weights. Raises `Unsupported`."""
        ...

    def encoder(self, plan: Plan, device: Device) -> Encoder:
        """The arithmetic for this plan on this device; called in the worker, once per target."""
        ...

    def decode(self, unit: Unit, rows: tuple[int, int], data: Sequence[Buffer]) -> Sequence[Array]:
        """The numbers that the unit's bytes for these rows stand for: float32 (rows, columns) per input.

        Used to verify, so it must not share code with `encoder`.
        """
        ...

    def bound(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Sequence[Array]:
        """How far a right decoding of these rows may be from the source `x` (float32), element by element: same shapes as `x`.

        `stats` is what `encode` was given.
        """
        ...


@runtime_checkable
class RowsAlike(Protocol):
    """A format whose `rows_alike` says that `decode` and `bound` go by bytes and weights, and not by which rows these are.

    Of units without statistics, verification then hands over rows of several places at once, as if they stood together: a
    multiple of the unit's rows from each place but the last. `rows` is (0, their number).
    """

    rows_alike: bool


@runtime_checkable
class HoldsItself(Protocol):
    """A format that holds what it made against the model by itself, where `decode` and `bound` would take long."""

    def held(self, unit: Unit, rows: tuple[int, int], data: Sequence[Buffer], x: Sequence[Array]) -> tuple[float, float] | None:
        """The largest deviation from `x` (rows of each input, as stored), and the largest share that one has of its bound.

        `rows` and `data` are those of `decode`, where `rows_alike` says so of several places; like it this shares no code with
        `encoder`. If the deviation is not finite or its share not clearly below 1, or with None, `decode` and `bound` are
        asked, which find out what is wrong and where. So a deviation where the bound is 0 must not pass for a share of 0. Units
        with statistics are never asked about.
        """
        ...


class Parts(NamedTuple):
    """What of a unit that is encoded whole can be held against the model alone."""

    rows: int
    """How many rows; the unit has a multiple of them."""
    whole: Collection[int] = ()
    """Which outputs, by index, are handed over whole; of any other one it is the share that these rows are of all."""


@runtime_checkable
class HoldsParts(HoldsItself, Protocol):
    """A format that holds some rows of units against the model that are encoded whole: a few of them are enough then."""

    def parts(self, unit: Unit) -> Parts | None:
        """How, if `held` can do so; if it then does not find that all is clearly within its bounds, all rows are looked at."""
        ...


@runtime_checkable
class Advises(Protocol):
    """A format that says when one chooses which of its artifacts; model cards show it."""

    def advice(self, variant: str) -> str:
        """Half a sentence on a variant, as `NameParts` spells it; empty if there is nothing to say."""
        ...


def planned(format: Format, model: ModelInfo, options: Any) -> Plan:
    """The plan of a format, with what has to be said of the model itself.

    Raises `Unsupported` as `Format.plan` does, and where weights that were quantized once would be quantized again without
    anybody having asked for it: a format whose options have `allow_requantize` may be asked.
    """
    plan = format.plan(model, options)
    if model.quantization and not getattr(options, "allow_requantize", False):
        for unit in plan.units:
            if any(t.dtype not in PLAIN for t in unit.outputs) and any(dequantized(x) for x in unit.inputs):
                made = plan.name.variant or format.name
                asked = f"say `allow_requantize: true` under {format.name}"
                fix = asked if hasattr(options, "allow_requantize") else "make fp16 or bf16 of this one"
                raise Unsupported(
                    f"is quantized already ({model.quantization}), and {made} made from it is worse than from the original",
                    where=str(model.path),
                    fix=f"start from the model that it was made from, or {fix}",
                )
    return plan.noting(model.notes)


PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
"""Types that hold dequantized weights without quantizing them again."""


def check_report(unit: Unit, report: UnitReport, options: FormatOptions | Mapping[str, Any]) -> None:
    """Hold a unit's report against `non_finite`: raises `QconvdError` that names the tensor if NaN or infinities are refused.

    An encoder calls it with the report of a chunk, so that a target fails before its first file is complete. It need not:
    verification asks the same of every format. `options` are the target's, or the part of them that `plan` put into
    `Unit.options` (encoders do not see a target's options).
    """
    wanted = options.non_finite if isinstance(options, FormatOptions) else options.get("non_finite", "report")
    if wanted == "refuse" and (report.nan or report.inf):
        narrow = next((x.dtype for x in unit.inputs if isinstance(x, Cast)), "")
        counted = f" (or too large for {narrow})" if narrow and report.inf else ""
        raise QconvdError(
            f"has {report.nan} NaN and {report.inf} infinite weights{counted}, and `non_finite: refuse` is set",
            where=unit.outputs[0].name,
            fix="mend the model, or convert it with `non_finite: report`",
        )


def type_list(given: Any, each: Callable[[Any], str], example: str, known: str) -> tuple[str, ...]:
    """Names of types from a list or from text such as `q8_0, q4_0`, each once, as `each` spells them.

    `example` and `known` (what has which types) are for the sentences of the ValueError if `given` is no list, or an empty one.
    """
    words = re.split(r"[,\s]+", given.strip()) if isinstance(given, str) else given
    if not isinstance(words, list | tuple):
        raise ValueError(f"types are a list, e.g. {example}")
    names = tuple(dict.fromkeys(each(word) for word in words if str(word).strip()))
    if not names:
        raise ValueError(f"no type is named; {known}")
    return names
