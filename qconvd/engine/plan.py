"""Plans: everything about one artifact that can be known before a weight is read, as plain data.

A `Plan` goes through JSON without loss (`to_json`, `from_json`): it is stored beside the ledger, shown by `qconvd plan`,
and handed to the worker that converts. Sizes are exact bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from pydantic import Field, TypeAdapter

from qconvd.engine.expr import Expr, rows_columns

DeviceKind: TypeAlias = Literal["cpu", "cuda"]
StatKind: TypeAlias = Literal["hessian", "mean_square", "square_sums"]
"""`square_sums` is what mean squares are made of: sums of squares and how many tokens they are of, as files hold them."""
Array: TypeAlias = Any
"""numpy on the CPU, a torch tensor on a GPU. BF16 travels as uint16 bit patterns, F8 as uint8: the unit says which."""
Buffer: TypeAlias = Any
"""Bytes-like: what an encoder made of some rows, ready to be written."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where an encoder runs. `id` is a GPU's UUID, or empty for the CPU."""

    kind: DeviceKind = "cpu"
    id: str = ""


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor of the artifact: row-major `shape`, stored as `dtype` in exactly `nbytes`.

    Where the unit is split into rows, rows `a:b` of the input fill the same share of these bytes: `nbytes / rows` each.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class RowSplit:
    """The unit may be encoded in row chunks, each a multiple of `multiple` rows (the last may be shorter)."""

    multiple: int = 1
    single: bool = False
    """Whether each row is encoded by itself, so that any can be decoded alone; `multiple` only says what to read together."""
    op: Literal["rows"] = "rows"


@dataclass(frozen=True, slots=True)
class Whole:
    """The unit is encoded in one piece."""

    op: Literal["whole"] = "whole"


@dataclass(frozen=True, slots=True)
class StatRequest:
    """A statistic of what a linear was multiplied with. The unit cannot be encoded without it."""

    linear: str
    """As the plan's file of statistics, or calibration, calls it."""
    kind: StatKind

    @property
    def key(self) -> str:
        """What the encoder finds it under."""
        return f"{self.linear}:{self.kind}"

    @property
    def gathered(self) -> StatRequest:
        """What a calibration is asked for where no file holds this: sums come from the files that mean squares are kept in."""
        return replace(self, kind="mean_square") if self.kind == "square_sums" else self


@dataclass(frozen=True, slots=True)
class StatisticsFile:
    """A file that holds statistics of the model, as it was when the plan was made."""

    path: str
    sha256: str
    kind: str = "imatrix"
    kinds: tuple[StatKind, ...] = ("mean_square", "square_sums")
    """The statistics that such a file holds."""
    without: tuple[str, ...] = ()
    """Tensors that would use it and that it holds nothing for."""


@dataclass(frozen=True, slots=True)
class CalibrationSpec:
    """What activations statistics are gathered from: text that is run through the model itself, as it was when planned."""

    text: str
    """`default` for the text that comes with qconvd, else a path."""
    sha256: str
    """Digest of the text's content."""
    samples: int = 128
    length: int = 512
    """Tokens of a sample."""
    seed: int = 0
    chat: bool | Literal["auto"] = "auto"
    stream: Literal["original", "quantized"] = "original"
    """`original`: every layer is fed what the model itself feeds it. `quantized`: what the layers before it give once their
    weights are the target's own, dequantized."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and activations while the model is run; `auto`: as the device is fastest."""
    linears: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The checkpoint's tensors behind a `StatRequest.linear` of another name; several are stacked (experts)."""

    @property
    def name(self) -> str:
        """The text as others may see it: where it lies on this machine is nobody's business."""
        return PurePosixPath(self.text).name if self.text.startswith("/") else self.text

    @property
    def dataset(self) -> str:
        """What was gathered from, in a line, as importance matrices name it: at most 127 bytes."""
        about = f" (qconvd: {self.samples} x {self.length} tokens, seed {self.seed})"
        return self.name.encode()[: 127 - len(about)].decode(errors="ignore") + about


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest thing that is encoded, journalled and resumed: inputs to outputs, many to many."""

    id: str
    layer: int | None
    """None for what belongs to no decoder layer; the engine orders embedding, layers, head."""
    inputs: tuple[Expr, ...]
    """The first one's rows are what a chunk is a range of. One with another number of rows (a norm folded into a linear)
    is handed to every chunk whole. Empty for a unit that is made of its `statistics` alone: such a one is `Whole`."""
    outputs: tuple[OutputTensor, ...]
    rows: Annotated[RowSplit | Whole, Field(discriminator="op")] = field(default_factory=RowSplit)
    statistics: tuple[StatRequest, ...] = ()
    memory: Mapping[DeviceKind, int] = field(default_factory=dict)
    """Working bytes beyond inputs and outputs, per device kind, for the largest chunk."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the encoder must know of this unit and cannot see in its outputs (bits, group size)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the first input, or without one of the first output: what a chunk is a range of."""
        return rows_columns(self.inputs[0].shape if self.inputs else self.outputs[0].shape)


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """The file format that holds the tensors. `metadata` is the container's own header data, in order."""

    kind: str
    metadata: tuple[tuple[str, str, Any], ...] = ()
    """(key, type, value): for gguf the type is `u32`, `f32`, `bool`, `str`, `arr[str]`, …; for safetensors it is `str`."""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a tensor's bytes lie in a file, counted from the start of the file."""

    tensor: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A data file of the artifact. `path` may hold `{stem}`, which naming fills in."""

    path: str
    nbytes: int
    tensors: tuple[Placed, ...]
    shard: int = 0
    """0 for a single file, else 1 … n."""
    header: str = ""
    """The file's bytes before the first tensor, base64; empty if the container writes them from the spec."""


@dataclass(frozen=True, slots=True)
class SideFile:
    """A file that is no weights: copied from the model (`source`), or written as `text` or `data`. `path` may hold `{stem}`."""

    path: str
    nbytes: int
    source: str | None = None
    text: str | None = None
    data: str | None = None
    """Base64 of bytes that are no text."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tensor that the format treats otherwise than the rest, and why."""

    tensor: str
    became: str
    """`dropped`, or the type it got instead."""
    reason: str


@dataclass(frozen=True, slots=True)
class Reader:
    """A runtime that loads the artifact, with its limits in words."""

    name: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class NameParts:
    """What naming and publishing read."""

    format: str
    """The family of names: a key of the table in naming.py (`fp16`, `gguf`, …)."""
    variant: str
    """What distinguishes siblings, in the field's spelling: `fp16`, `Q4_0`, `4bit-128g`."""
    shared: bool = False
    """Whether siblings live in one folder (GGUF) or each has its own."""
    branch: str = "main"
    scheme: str = ""
    """What some profiles name it by instead: how weights and activations are stored, `w4a16`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One artifact, decided: what a format returns from `plan`."""

    container: ContainerSpec
    files: tuple[FileSpec, ...]
    units: tuple[Unit, ...]
    name: NameParts
    side_files: tuple[SideFile, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    loads_with: tuple[Reader, ...] = ()
    notes: tuple[str, ...] = ()
    """Warnings for the person who asked (a fallback, a guess that was made)."""
    statistics: tuple[StatisticsFile, ...] = ()
    """Where the units' statistics come from; only what they ask for is read."""
    calibration: CalibrationSpec | None = None
    """How the statistics come about that none of these files holds."""
    measured_on: tuple[str, ...] = ()
    """GPUs, by the name that NVML gives them, on which every kernel that this plan needs was measured.

    `device: auto` chooses among these only, so with none it stays on the CPU; `device: cuda` takes any GPU.
    """

    @property
    def nbytes(self) -> int:
        """Bytes of the whole artifact on disk, without its manifest."""
        return sum(f.nbytes for f in self.files) + sum(f.nbytes for f in self.side_files)

    @property
    def tensors(self) -> Sequence[OutputTensor]:
        return [t for u in self.units for t in u.outputs]

    def noting(self, notes: Sequence[str]) -> Plan:
        """The plan with more notes, before its own."""
        return replace(self, notes=(*notes, *self.notes)) if notes else self

    def named(self, stem: str) -> Plan:
        """The plan with `{stem}` filled in."""
        return replace(
            self,
            files=tuple(replace(f, path=f.path.replace("{stem}", stem)) for f in self.files),
            side_files=tuple(replace(f, path=f.path.replace("{stem}", stem)) for f in self.side_files),
        )


class UnitReport(NamedTuple):
    """What encoding did to the numbers, as sums that chunks can be added up from."""

    weights: int = 0
    square_error: float = 0.0
    """Sum of (decoded - source) squared."""
    square: float = 0.0
    """Sum of source squared."""
    max_error: float = 0.0
    overflows: int = 0
    """Finite weights that became infinite or were clamped."""
    underflows: int = 0
    """Non-zero weights that became zero in a plain cast."""
    nan: int = 0
    inf: int = 0

    def plain(self) -> UnitReport:
        """The same in Python's own numbers, which JSON takes; encoders may use numpy's."""
        counts = (int(n) for n in (self.overflows, self.underflows, self.nan, self.inf))
        return UnitReport(int(self.weights), float(self.square_error), float(self.square), float(self.max_error), *counts)

    def __add__(self, other: object) -> UnitReport:
        if not isinstance(other, UnitReport):
            return NotImplemented
        return UnitReport(
            self.weights + other.weights,
            self.square_error + other.square_error,
            self.square + other.square,
            max(self.max_error, other.max_error),
            self.overflows + other.overflows,
            self.underflows + other.underflows,
            self.nan + other.nan,
            self.inf + other.inf,
        )


class Encoded(NamedTuple):
    """What an encoder made of some rows."""

    data: Sequence[Buffer]
    """One buffer per output of the unit, for these rows."""
    report: UnitReport = UnitReport()
    figures: Mapping[str, float] = MappingProxyType({})
    """What else is worth knowing of these rows, for the manifest: by name, as sums that chunks are added up from."""
    fallback: str = ""
    """Why the unit was encoded without the statistics that it asked for; empty if it was not."""


class Encoder(Protocol):
    """Pure arithmetic: thread-safe, opens no file, keeps no state between calls, never writes to its inputs."""

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Encoded:
        """Encode rows `rows[0]:rows[1]`. `x` holds these rows of each input, each of shape (rows, columns).

        `stats` holds what the unit asked for, by `StatRequest.key`: float32 for the whole unit, whatever the rows. A mean
        square is (columns,), or (experts * columns,) where the unit stacks experts; square sums are (experts, columns + 1), in
        the last column of how many tokens.
        """
        ...


@runtime_checkable
class Prepares(Protocol):
    """An encoder that needs long before its first rows, because it compiles kernels or computes a table."""

    def prepare(self, plan: Plan) -> Iterator[str]:
        """Do that now, and say what is coming before each part that takes longer than a second: `compiling Q4_0 (once)`.

        Called once, before anything is read. Between two parts the task may be stopped.
        """
        ...


@runtime_checkable
class Stateless(Protocol):
    """An encoder whose `stateless` says that any two of its class do the same: unit, rows and statistics decide.

    What several targets have in common is then encoded once.
    """

    stateless: bool


@cache
def _adapter() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)


@cache
def _unit_adapter() -> TypeAdapter[Unit]:
    return TypeAdapter(Unit)


def prepare() -> None:
    """Make what reads and writes plans, which takes some 30 ms: once, in a process whose forks do so."""
    _adapter()


def to_json(plan: Plan) -> bytes:
    """The plan as UTF-8 JSON; equal plans give equal bytes."""
    return _adapter().dump_json(plan)


def from_json(data: bytes) -> Plan:
    """The plan that `to_json` wrote. Raises pydantic's ValidationError on anything else."""
    return _adapter().validate_json(data)


def unit_to_json(unit: Unit) -> bytes:
    return _unit_adapter().dump_json(unit)


def unit_from_json(data: bytes) -> Unit:
    return _unit_adapter().validate_json(data)
