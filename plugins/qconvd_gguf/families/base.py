"""What a family file is made of: names in the checkpoint, names in GGUF, and what lies between them, as data.

A `Family` says four things: which numbers of config.json it needs (`numbers`), which metadata keys they become (`metadata`),
which tensors the file has and how each is made (`tensors`), and what llama.cpp's graph of this architecture cannot do
(`limits`). Everything else is the same for all families and lives in `mapping.py`.

Sizes are written as sums of small products: `"heads*head_dim"`, `"4*hidden"`, `"hidden/heads"`, `"hidden+2*kv"`; the words
are names of `numbers`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from qconvd.api import Expr, ModelInfo, Unsupported

Numbers: TypeAlias = Mapping[str, Any]
Config: TypeAlias = Mapping[str, Any]
Metadata: TypeAlias = list[tuple[str, str, Any]]


class Step(Protocol):
    """One change on the way from the checkpoint's tensor to GGUF's."""

    def apply(self, x: Expr, numbers: Numbers) -> Expr: ...

    def undo(self, x: Expr, numbers: Numbers) -> Expr:  # noqa: ARG002
        """The checkpoint's tensor from GGUF's. Raises `Unsupported` for a step that cannot be undone."""
        raise Unsupported(f"what became of a tensor by {type(self).__name__} cannot be undone")

    def rows(self, numbers: Numbers) -> int:  # noqa: ARG002
        """Rows that belong together: a chunk that is a multiple of them reads its source without waste."""
        return 1


@dataclass(frozen=True)
class Number:
    """A number of config.json: the first of `keys` that is there (dots go into sub-objects), else `default`.

    A default that is text is a product of other numbers (`"hidden/heads"`), a function computes it from the config and the
    numbers before it; with no `keys` it is all there is. Without a default the key must be there. `least` is the smallest
    value that makes sense.
    """

    keys: tuple[str, ...]
    default: int | float | str | Callable[[Config, Numbers], int | float | None] | None = None
    optional: bool = False
    least: int = 1
    real: bool = False
    """Whether it may have a fraction. One with such a default may."""


@dataclass(frozen=True)
class Key:
    """A metadata key `{arch}.name` and the product of numbers it holds; left out if an optional number is missing."""

    name: str
    value: str
    type: str = "u32"


@dataclass(frozen=True)
class Fixed:
    """A metadata key `{arch}.name` that is the same for every model of the family."""

    name: str
    type: str
    value: Any


@dataclass(frozen=True)
class FromFiles:
    """Keys that come from other files than config.json, such as an embedding model's pooling.

    Named without `{arch}.` among a family's `metadata`, by their whole names in its `vocabulary`.
    """

    make: Callable[[ModelInfo], Metadata]


FILE_TYPE = Key("file_type", "")
"""Stands in a family's metadata where llama.cpp's converter writes `general.file_type`."""

KeyMaker: TypeAlias = Callable[[Config, Numbers], Metadata]
"""Keys that depend on more than one number (rope scaling): (name without `{arch}.`, type, value)."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of the GGUF file, or one per layer if the names hold `{i}`.

    `source` holds `{p}` where checkpoints differ in a prefix (see `Family.prefixes`); `also` are other names that checkpoints
    have for it, of which the first one found is taken and the others, being copies, are dropped. Where `source` holds
    `{e}`, the tensors of 0 … `stack` - 1 (a number's name: the experts) become one, stacked along a new first axis. Several
    tensors may share a source, each with a step that takes its part. `over` names the number of layers where it is not the
    family's; `where` says which of them have the tensor (dense layers first, experts after them).
    `shape` is the checkpoint's, and is checked. `present` says whether it must be there: always; never (then it is taken if
    it is there); or a config key (`attention_bias`) or a function of the config that says so. `untied` tensors are left out
    where the config ties the embeddings.
    """

    name: str
    source: str
    shape: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    present: bool | str | Callable[[Config], bool] = True
    untied: bool = False
    also: tuple[str, ...] = ()
    over: str = ""
    where: Callable[[int, Numbers], bool] | None = None
    stack: str = ""


@dataclass(frozen=True)
class Made:
    """A tensor that no checkpoint holds; `make` returns None where the model does not need it."""

    name: str
    make: Callable[[Config, Numbers], Expr | None]


@dataclass(frozen=True)
class Limit:
    """What llama.cpp's graph assumes: the config key `key` (dots go into sub-objects) has one of `values`.

    A missing key is `default`, what transformers takes it for; None passes.
    """

    key: str
    values: tuple[Any, ...]
    reason: str
    default: Any = None


@dataclass(frozen=True)
class Family:
    """A model family: everything that tells it from others."""

    name: str
    """llama.cpp's name of the architecture, e.g. `llama`."""
    architectures: tuple[str, ...]
    """Class names in config.json that are this family."""
    numbers: Mapping[str, Number]
    """In an order in which defaults refer to earlier ones only. `vocab` and the one that `layers` names must be there."""
    metadata: Sequence[Key | Fixed | FromFiles | KeyMaker]
    tensors: Sequence[Tensor]
    made: Sequence[Made] = ()
    prefixes: tuple[str, ...] = ("",)
    layers: str = "layers"
    ties: bool = False
    """Whether embeddings are tied when config.json does not say."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions of checkpoint tensors that are not needed, and why."""
    spare: Mapping[str, str] = field(default_factory=dict)
    """Likewise, with a group that is the number of a layer: those that the config does not count (multi-token prediction)."""
    limits: Sequence[Limit] = ()
    checks: Sequence[Callable[[Config, Numbers], str | None]] = ()
    """What a single config key does not tell: a reason why llama.cpp cannot run the model, or None."""
    notes: Sequence[Callable[[Config, Numbers], str | None]] = ()
    """Warnings for the person who converts."""
    vocabulary: Sequence[Key | Fixed | FromFiles] = ()
    """Keys that llama.cpp's converter writes with the tokenizer, before it, by their whole names."""
    recover: Sequence[Callable[[Mapping[str, Any], Collection[str]], Config]] = ()
    """Back to config.json where `metadata` has functions: from GGUF's keys, without `{arch}.`, and the names of its tensors."""
    other_names: Callable[[Collection[str]], bool] | None = None
    """Whether a checkpoint with these tensors of GGUF calls them by the first name in `Tensor.also`, where there is one."""
    applies: Callable[[Config], bool] | None = None
    """Tells families apart that share an architecture's name."""

    def __post_init__(self) -> None:
        lacking = {self.layers, "vocab"} - set(self.numbers)
        if lacking:
            raise ValueError(f"the gguf family {self.name} lacks the numbers {', '.join(sorted(lacking))}")


def product(text: str, numbers: Numbers) -> Any:
    """The value of a size such as `"heads*head_dim"` or `"hidden+2*kv"`; None if one of its numbers is None.

    Raises `Unsupported` where a division leaves a rest, which means that config.json contradicts itself.
    """
    terms = [_term(term, numbers) for term in text.split("+")]
    return None if None in terms else sum(terms[1:], terms[0])


def _term(text: str, numbers: Numbers) -> Any:
    value: Any = 1
    sign = "*"
    for token in text.replace("*", " * ").replace("/", " / ").split():
        if token in "*/":
            sign = token
            continue
        factor = int(token) if token.isdecimal() else numbers[token]
        if factor is None:
            return None
        if sign == "*":
            value *= factor
        elif not factor or value % factor:
            raise Unsupported(f"config.json contradicts itself: {text} is {value}/{factor}, which is no whole number")
        else:
            value //= factor
    return value
