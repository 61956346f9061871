"""What a recipe says about calibration, and how a plan keeps it. The control side reads this: of a text only its digest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from qconvd.calibration.context import LEAST, USUAL, sample_length
from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.plan import CalibrationSpec
from qconvd.errors import QconvdError
from qconvd.input_files import NamedFile

DEFAULT = "default"
DATASET = "hub:datasets/"


def _text(value: Any, info: ValidationInfo) -> Any:
    """The text as it is now: a path with the digest of what lies there, a dataset with its commit. It must be there."""
    if not isinstance(value, str) or value == DEFAULT:
        return value
    if not value.strip() or "\0" in value:
        raise ValueError(f"{value!r} is no text; write `default`, a path, or hub:datasets/owner/name")
    if value.startswith(("http://", "https://")):
        raise ValueError(f"{value!r} is on the web; download it, and name the file")
    from qconvd.calibration.sources import dataset, digest

    try:
        if value.startswith("hub:"):
            parts = value.removeprefix(DATASET).partition("@")[0].split("/")
            if not value.startswith(DATASET) or len(parts) != 2 or not all(parts):
                raise ValueError(f"{value!r} is no dataset; write hub:datasets/owner/name")
            return dataset(value)
        # A path of the recipe is relative to the config file.
        place = Path((info.context or {}).get("folder", Path.cwd())) / Path(value).expanduser()
        path = os.path.abspath(place)  # noqa: PTH100 (resolve would follow symlinks)
        return NamedFile(path=path, sha256=digest(path))
    except RuntimeError:
        raise ValueError(f"the home folder in {value!r} is not known; write the whole path") from None
    except QconvdError as error:
        raise ValueError(f"{value}: {error.what}; {error.fix}" if error.fix else f"{value}: {error.what}") from error


class CalibrationOptions(BaseModel):
    """Which text is run through the model to see what its linears are fed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Annotated[NamedFile | str, BeforeValidator(_text, json_schema_input_type=str)] = Field(
        DEFAULT,
        description="The text: `default` (comes with qconvd), a file or folder (.txt, .md, .jsonl; relative to the config "
        "file), or a dataset of the Hub as `hub:datasets/owner/name`.",
    )
    samples: int = Field(128, gt=0, le=65536, description="How many samples are run through the model.")
    length: int | None = Field(
        None,
        ge=LEAST,
        le=1 << 20,
        description=f"Tokens of a sample; left out, {USUAL}, or the model's whole context if that is less.",
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="Which parts of the text are taken.")
    chat: bool | Literal["auto"] = Field(
        "auto",
        description="Whether text is put into the model's chat template; `auto` does so for conversations, and for a "
        "quarter of plain text if the model has a template.",
    )
    activations: Literal["original", "quantized"] = Field(
        "original",
        description="What a layer is fed: what the model itself feeds it (`original`: one pass serves every target), or what "
        "the quantized layers before it give (`quantized`: a pass of its own for each target).",
    )

    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="What the model is computed in. `auto`: bfloat16 on a GPU and on processors that multiply it (AVX512-BF16, "
        "AMX), which takes half the time; float32 on others.",
    )

    @property
    def place(self) -> str:
        """`default`, a path, or a dataset with its commit."""
        return self.text.path if isinstance(self.text, NamedFile) else self.text


def calibration_spec(
    options: CalibrationOptions, model: ModelInfo, linears: Mapping[str, tuple[str, ...]] | None = None
) -> CalibrationSpec:
    """What a plan keeps of `options`, with the digest of the text as it is now.

    `linears`: the checkpoint's tensors behind the names that units use, where these differ. Raises `QconvdError` if there is no
    such text, if the model is none that text can be run through (no tokenizer, no causal language model), or if its context is
    shorter than a sample.
    """
    from qconvd.calibration.suitable import check_suitable

    check_suitable(model)
    return CalibrationSpec(
        text=options.place,
        sha256=_unchanged(options),
        samples=options.samples,
        length=sample_length(options.length, model),
        seed=options.seed,
        chat=options.chat,
        stream=options.activations,
        dtype=options.dtype,
        linears=dict(linears or {}),
    )


def _unchanged(options: CalibrationOptions) -> str:
    """The digest of the text, which is still that of the recipe."""
    from qconvd.calibration.sources import digest

    found = digest(options.place)
    if isinstance(options.text, NamedFile) and options.text.sha256 != found:
        fix = "reload the daemon (SIGHUP, or `systemctl reload qconvd`) or run the command again"
        raise QconvdError("the calibration text changed since the recipe was read", where=options.place, fix=fix)
    return found
