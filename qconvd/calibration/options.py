"""What a recipe says about calibration, and how a plan keeps it. The control side reads this: no text is opened here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.plan import CalibrationSpec

DEFAULT = "default"
DATASET = "hub:datasets/"


def _text(value: Any, info: ValidationInfo) -> Any:
    """A path of the recipe is relative to the config file."""
    if not isinstance(value, str) or value == DEFAULT:
        return value
    if not value.strip() or "\0" in value:
        raise ValueError(f"{value!r} is no text; write `default`, a path, or hub:datasets/owner/name")
    if value.startswith(("http://", "https://")):
        raise ValueError(f"{value!r} is on the web; download it, and name the file")
    if value.startswith("hub:"):
        parts = value.removeprefix(DATASET).split("/")
        if not value.startswith(DATASET) or len(parts) != 2 or not all(parts):
            raise ValueError(f"{value!r} is no dataset; write hub:datasets/owner/name")
        return value
    try:
        place = Path((info.context or {}).get("folder", Path.cwd())) / Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"the home folder in {value!r} is not known; write the whole path") from None
    return os.path.abspath(place)  # noqa: PTH100 (resolve would follow symlinks)


class CalibrationOptions(BaseModel):
    """Which text is run through the model to see what its linears are fed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Annotated[str, BeforeValidator(_text)] = Field(
        DEFAULT,
        description="The text: `default` (comes with qconvd), a file or folder (.txt, .md, .jsonl; relative to the config "
        "file), or a dataset of the Hub as `hub:datasets/owner/name`.",
    )
    samples: int = Field(128, gt=0, le=65536, description="How many samples are run through the model.")
    length: int = Field(
        512, ge=16, le=1 << 20, description="Tokens of a sample; left out, never more than the model's context."
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


def calibration_spec(
    options: CalibrationOptions, model: ModelInfo, linears: Mapping[str, tuple[str, ...]] | None = None
) -> CalibrationSpec:
    """What a plan keeps of `options`, with the digest of the text as it is now.

    `linears`: the checkpoint's tensors behind the names that units use, where these differ. Raises `QconvdError` if there is no
    such text, or if the model is none that text can be run through (no tokenizer, no causal language model).
    """
    from qconvd.calibration.sources import digest
    from qconvd.calibration.suitable import check_suitable

    check_suitable(model)
    return CalibrationSpec(
        text=options.text,
        sha256=digest(options.text),
        samples=options.samples,
        length=_length(options, model),
        seed=options.seed,
        chat=options.chat,
        stream=options.activations,
        linears=dict(linears or {}),
    )


def _length(options: CalibrationOptions, model: ModelInfo) -> int:
    """Tokens of a sample: a model with a short context gets shorter ones, unless somebody asked for a length."""
    text = model.config.get("text_config")
    config = {**model.config, **text} if isinstance(text, Mapping) else model.config
    contexts: list[int] = [
        config[key] for key in ("max_position_embeddings", "n_positions") if isinstance(config.get(key), int)
    ]
    if "length" in options.model_fields_set or not contexts:
        return options.length
    return max(1, min(options.length, *contexts))
