"""What a recipe may say under `int8`, `int4` and `fp8`."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from qconvd.api import FileSize, FormatOptions, NameParts, module_patterns
from qconvd_compressed.readers import READERS, ReaderName
from qconvd_compressed.schemes import Codebook, Floats, Integers, LlmInt8, Scheme

CT, BNB = "compressed-tensors", "bitsandbytes"
GROUP_SIZES = (32, 64, 128, -1)
_INT4 = re.compile(r"(?:w4a16)?-?(?:(?P<group>\d+)g|(?P<row>channel))?(?P<asym>-?asym)?", re.IGNORECASE)


def _listed(given: Any) -> Any:
    return given if isinstance(given, list | tuple) else [given]


def _modules(given: Any) -> Any:
    found = module_patterns(given, "{down_proj: skip}")
    for pattern, what in found:
        if what != "skip":
            raise ValueError(f"{pattern}: {what!r} is not `skip`, which is all that can be said of a linear here")
    return found


Container = Literal["compressed-tensors", "bitsandbytes"]
Modules = Annotated[tuple[tuple[str, Literal["skip"]], ...], BeforeValidator(_modules, json_schema_input_type=Any)]


class QuantizedOptions(FormatOptions):
    """What the three formats have in common. An options object stands for as many artifacts as its lists say."""

    SEVERAL: ClassVar[tuple[str, ...]] = ()
    """Options that may be lists."""
    ONLY: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """By container, the options that belong to it."""

    modules: Modules = Field(
        (),
        description="Linears to leave in 16 bits: regular expressions, searched in names without `.weight`, e.g. "
        "`{'layers\\.0\\.': skip}`.",
        json_schema_extra={"type": "object"},
    )
    for_: Annotated[tuple[ReaderName, ...], BeforeValidator(_listed, json_schema_input_type=Any)] = Field(
        (),
        alias="for",
        description=f"Readers that must load the result, or it is an error: {', '.join(READERS)}.",
        json_schema_extra={"type": ["array", "string"], "items": {"enum": list(READERS)}},
    )
    max_shard_size: FileSize = Field(
        5_000_000_000, gt=0, description="Weights above this size are split into several files with an index, e.g. `5GB`."
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> QuantizedOptions:
        container = getattr(self, "container", CT)
        for other, names in self.ONLY.items():
            for name in names if other != container else ():
                if name in self.model_fields_set:
                    raise ValueError(f"{name} belongs to `container: {other}`; leave it out, or say that")
        return self

    def each(self) -> Sequence[QuantizedOptions]:
        """One options object per artifact."""
        found: list[QuantizedOptions] = [self]
        for name in self.SEVERAL:
            found = [o.model_copy(update={name: (value,)}) for o in found for value in getattr(o, name)]
        # What a container does not look at makes no second artifact of it.
        return list({o.name_parts: o for o in found}.values())

    @property
    @abstractmethod
    def scheme_of_one(self) -> Scheme:
        """How the linears of one artifact are stored."""

    @property
    @abstractmethod
    def name_parts(self) -> NameParts:
        """What its name is made of."""


class Int8Options(QuantizedOptions):
    """8-bit integers, one scale per row."""

    SEVERAL = ("scheme",)
    ONLY: ClassVar = {CT: ("scheme",), BNB: ("llm_int8_threshold",)}

    container: Container = Field(
        "compressed-tensors",
        description="The layout: `compressed-tensors`, for vLLM and transformers, or `bitsandbytes`: LLM.int8().",
    )
    scheme: Annotated[tuple[Literal["w8a16", "w8a8"], ...], BeforeValidator(_listed, json_schema_input_type=Any)] = Field(
        ("w8a16",),
        min_length=1,
        description="`w8a16`: weights only. `w8a8`: runtimes round activations to 8 bits as well, each token by its largest, "
        "which is faster and less accurate. A list makes one artifact of each.",
        json_schema_extra={"type": ["array", "string"], "items": {"enum": ["w8a16", "w8a8"]}},
    )
    llm_int8_threshold: float = Field(
        6.0,
        ge=0,
        allow_inf_nan=False,
        description="Activations beyond it are multiplied in 16 bits; what bitsandbytes reads from the config.",
    )

    @property
    def scheme_of_one(self) -> Scheme:
        if self.container == BNB:
            return LlmInt8(self.llm_int8_threshold)
        return Integers(8, activations=self.scheme[0] == "w8a8")

    @property
    def name_parts(self) -> NameParts:
        if self.container == BNB:
            return NameParts("bitsandbytes", "bnb-8bit")
        return NameParts("int8", "int8" if self.scheme[0] == "w8a16" else "int8-w8a8", scheme=self.scheme[0])


class Int4Options(QuantizedOptions):
    """4-bit integers with a scale per group, or bitsandbytes' 4-bit types."""

    SEVERAL = ("group_size", "type")
    ONLY: ClassVar = {CT: ("group_size", "sym", "mse"), BNB: ("type", "double_quant")}

    container: Container = Field(
        "compressed-tensors",
        description="The layout: `compressed-tensors` (W4A16), for vLLM and transformers, or `bitsandbytes`, for transformers "
        "and QLoRA.",
    )
    group_size: Annotated[tuple[Literal[32, 64, 128, -1], ...], BeforeValidator(_listed, json_schema_input_type=Any)] = Field(
        (128,),
        min_length=1,
        description="Inputs that share a scale: 32, 64, 128, or -1 for a whole row; or a list: one artifact of each.",
        json_schema_extra={"type": ["array", "integer"], "items": {"enum": list(GROUP_SIZES)}},
    )
    sym: bool = Field(True, description="Symmetric grids; false: a zero point for each group.")
    mse: bool = Field(False, description="Search each group's range for the least square error: better, in ten times the time.")
    type: Annotated[tuple[Literal["nf4", "fp4"], ...], BeforeValidator(_listed, json_schema_input_type=Any)] = Field(
        ("nf4",),
        min_length=1,
        description="bitsandbytes' numbers: `nf4` or `fp4`; or a list.",
        json_schema_extra={"type": ["array", "string"], "items": {"enum": ["nf4", "fp4"]}},
    )
    double_quant: bool = Field(
        True, description="Quantize the scales of bitsandbytes' blocks as well: 0.4 bits per weight less."
    )

    @property
    def scheme_of_one(self) -> Scheme:
        if self.container == BNB:
            return Codebook(self.type[0], self.double_quant)
        return Integers(4, self.group_size[0], self.sym, self.mse)

    @property
    def name_parts(self) -> NameParts:
        if self.container == BNB:
            more = ("" if self.type[0] == "nf4" else "-fp4") + ("" if self.double_quant else "-single")
            return NameParts("bitsandbytes", f"bnb-4bit{more}")
        group = self.group_size[0]
        more = {128: "", -1: "-channel"}.get(group, f"-{group}g") + ("" if self.sym else "-asym")
        return NameParts("int4", f"int4{more}", scheme=f"w4a16{more}")


class Fp8Options(QuantizedOptions):
    """8-bit floats."""

    SEVERAL = ("scheme",)

    scheme: Annotated[tuple[Literal["dynamic", "block"], ...], BeforeValidator(_listed, json_schema_input_type=Any)] = Field(
        ("dynamic",),
        min_length=1,
        description="`dynamic`: a scale per row, activations rounded by token. `block`: a scale per block of 128 x 128, "
        "activations by groups of 128. A list makes one artifact of each.",
        json_schema_extra={"type": ["array", "string"], "items": {"enum": ["dynamic", "block"]}},
    )

    @property
    def scheme_of_one(self) -> Scheme:
        return Floats(self.scheme[0] == "block")

    @property
    def name_parts(self) -> NameParts:
        return NameParts("fp8", "FP8-BLOCK" if self.scheme[0] == "block" else "FP8-dynamic")


def int8_from_text(text: str) -> dict[str, Any]:
    """`w8a8`, `w8a16`, `bitsandbytes`. Raises ValueError."""
    word = text.strip().lower()
    if word in ("w8a8", "w8a16"):
        return {"scheme": [word]}
    if word in ("bitsandbytes", "bnb"):
        return {"container": BNB}
    raise ValueError(f"int8 has no variant {text!r}; write w8a16, w8a8 or bitsandbytes")


def int4_from_text(text: str) -> dict[str, Any]:
    """`w4a16`, `32g`, `channel-asym`, `nf4`, `fp4`. Raises ValueError."""
    word = text.strip().lower()
    if word in ("nf4", "fp4"):
        return {"container": BNB, "type": [word]}
    if word in ("bitsandbytes", "bnb"):
        return {"container": BNB}
    found = _INT4.fullmatch(word)
    if word.isascii() and word.isdecimal() and int(word) in GROUP_SIZES:
        raise ValueError(f"int4 has no variant {text!r}; a group size is written {word}g")
    if not word or not found or (found["group"] and int(found["group"]) not in GROUP_SIZES):
        raise ValueError(
            f"int4 has no variant {text!r}; write w4a16, a group size such as 64g, channel, either "
            "with -asym, nf4, fp4 or bitsandbytes"
        )
    given: dict[str, Any] = {}
    if found["group"] or found["row"]:
        given["group_size"] = [int(found["group"] or -1)]
    if found["asym"]:
        given["sym"] = False
    return given


def fp8_from_text(text: str) -> dict[str, Any]:
    """`dynamic`, `block`. Raises ValueError."""
    if text.strip().lower() not in ("dynamic", "block"):
        raise ValueError(f"fp8 has no variant {text!r}; write dynamic or block")
    return {"scheme": [text.strip().lower()]}
