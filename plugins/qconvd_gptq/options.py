"""What a recipe may say under `gptq`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from qconvd.api import CalibrationOptions, FileSize, FormatOptions, NameParts, module_patterns
from qconvd_gptq.readers import READERS, ReaderName, obstacle

BITS = (2, 3, 4, 8)
CLASSIC_NORM = 2.4
ORDERS = ("none", "static", "desc_act")
SOLVING = {
    "act_order": "an order of columns", "desc_act": "an order of columns", "static_groups": "an order of columns",
    "damp_percent": "damping", "calibration": "calibration",
}  # fmt: skip
"""Options that rounding to nearest has no use for, and what it does without."""
_SHORT = re.compile(
    r"(?:w|int)?(?P<bits>\d+)(?:-?bits?)?(?:-(?P<group>-?\d+)g)?(?:-act-?order(?:_(?P<order>true|false))?)?"
    r"(?P<asym>-asym)?(?P<v2>-v2)?(?P<rtn>-rtn)?",
    re.IGNORECASE,
)
_ACT = re.compile(r"act-?order", re.IGNORECASE)


def from_text(text: str) -> dict[str, Any]:
    """Options of a short form as the field writes it: `4bit-128g`, `4bit-32g-actorder`, `8bit`. Raises ValueError."""
    found = _SHORT.fullmatch(text.strip())
    if not found or int(found["bits"]) not in BITS:
        raise ValueError(f"gptq has no variant {text!r}; write bits and group size, e.g. 4bit-128g or 4bit-32g-actorder")
    given: dict[str, Any] = {"bits": [int(found["bits"])]}
    # `4bit` alone does not mean whole rows, as it does in a name, but the usual group size.
    if found["group"]:
        given["group_size"] = [int(found["group"])]
    if _ACT.search(text):
        given["act_order"] = "none" if (found["order"] or "true").lower() == "false" else "desc_act"
    if found["asym"]:
        given["sym"] = False
    if found["v2"]:
        given["checkpoint_format"] = "gptq_v2"
    if found["rtn"]:
        given["method"] = "rtn"
    return given


def _listed(given: Any) -> Any:
    return given if isinstance(given, list | tuple) else [given]


def _variants(given: Any) -> Any:
    """Mappings, of mappings and short forms."""
    return tuple(from_text(v) if isinstance(v, str) else v for v in given) if isinstance(given, list | tuple) else given


def _norm(given: Any) -> Any:
    return (CLASSIC_NORM if given else 0.0) if isinstance(given, bool) else given


def _order(given: Any) -> Any:
    if isinstance(given, bool):
        word = "yes" if given else "no"
        raise ValueError(
            f"{word} does not say which; write `none`, `static` (groups stay contiguous) or `desc_act` (they do not)"
        )
    return given


Bits = Annotated[tuple[Literal[2, 3, 4, 8], ...], BeforeValidator(_listed, json_schema_input_type=Any)]
GroupSizes = Annotated[tuple[int, ...], BeforeValidator(_listed, json_schema_input_type=Any)]


def _over(base: Mapping[str, Any], variant: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's options over those of all. What is said of solving is not said of a variant that is rounded."""
    said = {"act_order"} if {"desc_act", "static_groups"} & variant.keys() else set()
    if variant.get("method") == "rtn":
        said |= set(SOLVING)
    return {**{k: v for k, v in base.items() if k not in said}, **variant}


class ModuleOptions(BaseModel):
    """What is otherwise in the linears that a pattern finds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bits: Literal[2, 3, 4, 8] | None = None
    group_size: int | None = None
    sym: bool | None = None


def _modules(given: Any) -> Any:
    """Pairs of a regular expression and `skip` or options, in their order."""
    pairs = module_patterns(given, "{down_proj: {bits: 8}, gate_proj: skip}")
    for pattern, what in pairs:
        if isinstance(what, str) and what != "skip":
            raise ValueError(f"{pattern}: {what!r} is neither `skip` nor options such as {{bits: 8, group_size: 32}}")
    return pairs


Modules = Annotated[
    tuple[tuple[str, Literal["skip"] | ModuleOptions], ...], BeforeValidator(_modules, json_schema_input_type=Any)
]


class GptqOptions(FormatOptions):
    """One checkpoint for every combination of bits and group sizes, or for every variant."""

    bits: Bits = Field(
        (4,),
        min_length=1,
        description="2, 3, 4 or 8, or a list: one checkpoint for each.",
        json_schema_extra={"type": ["array", "integer"], "items": {"enum": list(BITS)}},
    )
    group_size: GroupSizes = Field(
        (128,),
        min_length=1,
        description="Inputs that share a scale, e.g. 32, 64, 128; -1 for a whole row; or a list: one checkpoint for each.",
        json_schema_extra={"type": ["array", "integer"], "items": {"type": "integer"}},
    )
    variants: Annotated[tuple[Mapping[str, Any], ...], BeforeValidator(_variants, json_schema_input_type=Any)] = Field(
        (),
        description="Several checkpoints, as short forms or with options of their own: "
        "`[4bit-128g, 4bit-32g-actorder, {bits: 8, sym: false}]`.",
        json_schema_extra={"type": "array", "items": {"type": ["string", "object"]}},
    )
    sym: bool = Field(True, description="Symmetric grids, which every reader takes; false: a zero point for each group.")
    act_order: Annotated[Literal["none", "static", "desc_act"], BeforeValidator(_order, json_schema_input_type=Any)] = Field(
        "static",
        description="The order in which columns are solved: `none` as they stand; `static` those with large activations first "
        "with groups that stay contiguous, so every reader loads it; `desc_act` the same with shuffled groups, which some "
        "readers refuse.",
        json_schema_extra={"enum": list(ORDERS), "type": "string"},
    )
    desc_act: bool | None = Field(
        None,
        description="`act_order` in other tools' words: false is `none`, true is `desc_act`, with `static_groups` `static`.",
    )
    static_groups: bool | None = Field(None, description="Belongs to `desc_act: true`.")
    damp_percent: float = Field(
        0.01,
        ge=0,
        le=1,
        description="The share of the Hessian's mean diagonal that is added to its diagonal; more if it cannot be factored.",
    )
    mse: Annotated[float, BeforeValidator(_norm, json_schema_input_type=Any)] = Field(
        0.0,
        ge=0,
        le=8,
        description="Search each group's range for the least error: true (the norm 2.4 of GPTQ's authors) or a norm, e.g. 2.",
        json_schema_extra={"type": ["number", "boolean"]},
    )
    checkpoint_format: Literal["auto", "gptq", "gptq_v2"] = Field(
        "auto",
        description="How zero points are stored: `gptq` less one, which every reader knows, `gptq_v2` as they are. `auto` is "
        "`gptq`, and `gptq_v2` for `sym: false`, whose `gptq` files GPTQModel takes from itself only.",
    )
    method: Literal["gptq", "rtn"] = Field(
        "gptq", description="`rtn` rounds to nearest on the same grid: worse, and needs no calibration."
    )
    partial_groups: bool = Field(
        False,
        description="Give linears whose width the group size does not divide a short last group, which only GPTQModel reads; "
        "otherwise they stay in 16 bits.",
    )
    modules: Modules = Field(
        (),
        description="Linears to leave in 16 bits or to give other bits: regular expressions, searched in names without "
        "`.weight`; the first that is found decides, e.g. `{down_proj: {bits: 8}, 'layers\\.0\\.': skip}`.",
        json_schema_extra={"type": "object"},
    )
    for_: Annotated[tuple[ReaderName, ...], BeforeValidator(_listed, json_schema_input_type=Any)] = Field(
        (),
        alias="for",
        description="Readers that must load the result: what one of them would refuse is an error, with what to change.",
        json_schema_extra={"type": ["array", "string"], "items": {"enum": list(READERS)}},
    )
    max_shard_size: FileSize = Field(
        5_000_000_000, gt=0, description="Weights above this size are split into several files with an index, e.g. `5GB`."
    )
    calibration: CalibrationOptions = Field(
        default_factory=CalibrationOptions, description="What activations are gathered from: docs/reference/calibration.md."
    )

    @model_validator(mode="before")
    @classmethod
    def _in_other_words(cls, given: Any) -> Any:
        """`desc_act` and `static_groups` as `act_order`."""
        if not isinstance(given, Mapping) or not {"desc_act", "static_groups"} & given.keys():
            return given
        rest = {k: v for k, v in given.items() if k not in ("desc_act", "static_groups")}
        if "act_order" in given:
            raise ValueError("act_order says it already; leave out desc_act and static_groups")
        if given.get("static_groups") and not given.get("desc_act"):
            raise ValueError("static_groups belongs to desc_act: true")
        order = "static" if given.get("static_groups") else "desc_act" if given.get("desc_act") else "none"
        return {**rest, "act_order": order}

    @model_validator(mode="after")
    def _sensible(self) -> GptqOptions:
        for size in self.group_size:
            if size != -1 and (size < 8 or size % 8):
                raise ValueError(f"group_size {size} is none that readers know; take 32, 64 or 128, or -1 for whole rows")
        if self.method == "rtn" and not self.variants and (idle := [name for name in SOLVING if name in self.model_fields_set]):
            raise ValueError(f"`method: rtn` rounds to nearest, without {SOLVING[idle[0]]}; leave out {idle[0]}")
        for one in self.each() if not self.variants else ():
            for reader in one.for_:
                if why := obstacle(reader, one):
                    raise ValueError(f"for: {reader} does not load {one.variant}: {why}")
        return self

    def each(self) -> Sequence[GptqOptions]:
        """One options object per checkpoint."""
        if self.variants:
            base = {k: v for k, v in self.model_dump(by_alias=True, exclude_unset=True).items() if k != "variants"}
            return [one for v in self.variants for one in GptqOptions.model_validate(_over(base, v)).each()]
        return [self.model_copy(update={"bits": (b,), "group_size": (g,)}) for b in self.bits for g in self.group_size]

    @property
    def calibrated(self) -> bool:
        return self.method == "gptq"

    @property
    def order(self) -> Literal["none", "static", "desc_act"]:
        """What the checkpoint says: groups of whole rows cannot be shuffled, so there `desc_act` is `static`."""
        if self.method == "rtn":
            return "none"
        return "static" if self.act_order == "desc_act" and self.group_size[0] == -1 else self.act_order

    @property
    def stored_as(self) -> Literal["gptq", "gptq_v2"]:
        if self.checkpoint_format != "auto":
            return self.checkpoint_format
        return "gptq" if self.sym else "gptq_v2"

    @property
    def name_parts(self) -> NameParts:
        return NameParts("gptq", self.variant)

    @property
    def variant(self) -> str:
        """As the field names it: `4bit-128g`, `4bit-32g-actorder_True`; `-1` gives no `g` part."""
        group = f"-{self.group_size[0]}g" if self.group_size[0] > 0 else ""
        order = {"desc_act": "-actorder_True", "none": "-actorder_False", "static": ""}[self.act_order]
        order = "" if self.method == "rtn" else order
        v2 = "-v2" if self.checkpoint_format == "gptq_v2" and self.sym else ""
        v1 = "-v1" if self.checkpoint_format == "gptq" and not self.sym else ""
        rtn = "-rtn" if self.method == "rtn" else ""
        return f"{self.bits[0]}bit{group}{order}{'' if self.sym else '-asym'}{v2}{v1}{rtn}"
