"""What a recipe may say about calibration."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CalibrationOptions(BaseModel):
    """Where activations come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = Field("default", description="`default` (bundled), or a file, folder, .jsonl or `hub:datasets/owner/name`.")
    samples: int = Field(128, gt=0, description="Pieces of text.")
    length: int = Field(512, gt=0, description="Tokens of each.")
    seed: int = Field(0, ge=0, description="Which pieces are taken.")
    chat: bool | Literal["auto"] = Field("auto", description="Whether texts go through the model's chat template.")
    activations: Literal["original", "quantized"] = Field(
        "original",
        description="Of the original model, shared by all variants; or each layer's of the one quantized so far, as GPTQ's "
        "authors do.",
    )
