"""What a recipe may say under `gguf`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from qconvd.api import CalibrationOptions, FileOrAuto, FileSize, GgmlSource, NameParts, type_list
from qconvd_gguf.file_types import ALIASES, FILE_TYPES, PLAIN, WEIGHT_TYPES

SHORT = {
    "Q4": "Q4_0",
    "Q5": "Q5_0",
    "Q8": "Q8_0",
    "FP16": "F16",
    "FP32": "F32",
    "FLOAT16": "F16",
    "FLOAT32": "F32",
    "BFLOAT16": "BF16",
}
"""What people also write; a bare q4 has always meant q4_0."""


def file_type(text: Any) -> str:
    """llama.cpp's spelling of a file's type. Raises ValueError with what there is."""
    name = _upper(text)
    return _known(text, ALIASES.get(name, name), tuple(FILE_TYPES), "type")


def type_names(given: Any) -> tuple[str, ...]:
    """Types from a list or from text such as `q8_0, q4_0`, each once."""
    return type_list(given, file_type, "[q8_0, q4_k_m]", f"gguf has {_list(FILE_TYPES)}")


def weight_type(given: Any) -> str | None:
    """The type of a single tensor."""
    return None if given is None else _known(given, _upper(given), WEIGHT_TYPES, "tensor type")


def tensor_types(given: Any) -> tuple[tuple[str, str], ...]:
    """Patterns and types, in their order, from a mapping or from pairs."""
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, list | tuple) or any(not isinstance(p, list | tuple) or len(p) != 2 for p in pairs):
        raise ValueError("tensor_types is a mapping from patterns to types, e.g. {ffn_down: q8_0}")
    found = []
    for pattern, dtype in pairs:
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"{pattern!r} is no pattern; write part of a tensor's name, e.g. ffn_down")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        found.append((pattern, _known(dtype, _upper(dtype), WEIGHT_TYPES, "tensor type")))
    return tuple(found)


def _upper(text: Any) -> str:
    name = str(text).strip().upper()
    return SHORT.get(name, name)


def _known(text: Any, name: str, known: Sequence[str], what: str) -> str:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0].lower()}?)" if near else f"; it has {_list(known)}"
        raise ValueError(f"gguf has no {what} {str(text).strip()!r}{hint}")
    return name


def _list(names: Any) -> str:
    return ", ".join(n.lower() for n in names)


def _spellings(names: Sequence[str]) -> list[Any]:
    return [*(n.lower() for n in names), *names]


Types = Annotated[tuple[str, ...], BeforeValidator(type_names, json_schema_input_type=Any)]
WeightType = Annotated[str | None, BeforeValidator(weight_type)]
TensorTypes = Annotated[tuple[tuple[str, str], ...], BeforeValidator(tensor_types, json_schema_input_type=Any)]


def check_activations(calibration: CalibrationOptions) -> None:
    """Raise ValueError for options that an importance matrix is not gathered by."""
    if calibration.activations != "original":
        raise ValueError("an importance matrix is of the model's own activations; leave out `activations`")


class GgufOptions(GgmlSource):
    """One file for every type."""

    types: Types = Field(
        min_length=1,
        description="Types to make, one file each, as llama-quantize calls them, e.g. `[q8_0, q4_k_m]`.",
        json_schema_extra={
            "type": ["array", "string"],
            "items": {"enum": _spellings((*FILE_TYPES, *ALIASES))},
        },
    )
    imatrix: FileOrAuto | None = Field(
        None,
        description="An importance matrix that llama-imatrix made of this model: a path, relative to the config file. `auto` "
        "gathers one while converting.",
    )
    calibration: CalibrationOptions = Field(
        default_factory=CalibrationOptions, description="What `imatrix: auto` is gathered from: docs/reference/calibration.md."
    )
    pre: str | None = Field(
        None,
        min_length=1,
        description="The pre-tokenizer (`tokenizer.ggml.pre`), for a tokenizer that is not recognised, e.g. `llama-bpe`.",
    )
    tensor_types: TensorTypes = Field(
        (),
        description="Types of single tensors in quantized files: regular expressions, searched in GGUF's names; the first "
        "that is found decides, e.g. `{ffn_down: q8_0}`.",
        json_schema_extra={"type": "object", "additionalProperties": {"enum": _spellings(WEIGHT_TYPES)}},
    )
    output_tensor_type: WeightType = Field(
        None,
        description="The output layer's type in quantized files, instead of llama-quantize's choice.",
        json_schema_extra={"enum": [*_spellings(WEIGHT_TYPES), None]},
    )
    token_embedding_type: WeightType = Field(
        None,
        description="The embeddings' type in quantized files, instead of llama-quantize's choice.",
        json_schema_extra={"enum": [*_spellings(WEIGHT_TYPES), None]},
    )
    leave_output_tensor: bool = Field(False, description="Leave the output layer in the checkpoint's type in quantized files.")
    pure: bool = Field(False, description="No mix: every quantized tensor gets the file's type.")

    split_max_size: FileSize = Field(
        50_000_000_000,
        gt=0,
        description="Split the file above this many bytes of tensors, e.g. `20GB`; llama.cpp's names and metadata.",
    )
    split_max_tensors: int | None = Field(None, gt=0, description="Split the file after this many tensors.")
    allow_requantize: bool = Field(
        False,
        description="From a model that is quantized already (a GGUF or GGML file, GPTQ, AWQ …): make the type from its rounded "
        "weights, which are worse than the original's.",
    )

    @model_validator(mode="after")
    def _gathered(self) -> GgufOptions:
        if self.imatrix != "auto" and self.calibration != CalibrationOptions():
            raise ValueError("calibration is what `imatrix: auto` is gathered from; without it there is nothing to gather")
        check_activations(self.calibration)
        return self

    @property
    def calibrated(self) -> bool:
        return self.imatrix == "auto"

    @property
    def name_parts(self) -> NameParts:
        """Of the first type: `Gguf.expand` gives one file each."""
        return NameParts("gguf", self.types[0], shared=True)

    def of(self, name: str) -> GgufOptions:
        """The options of one file. What changes nothing in a plain file is left out, so that it is not made again for it."""
        if name not in PLAIN:
            return self.model_copy(update={"types": (name,)})
        return self.model_copy(update={**_DEFAULTS, "types": (name,)})


_DEFAULTS = {
    name: GgufOptions.model_fields[name].get_default(call_default_factory=True)
    for name in (
        "imatrix", "calibration", "tensor_types", "output_tensor_type", "token_embedding_type", "leave_output_tensor", "pure",
    )
}  # fmt: skip
"""Options that are about quantized files only."""
