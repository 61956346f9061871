"""A folder of shards as a model: what all readers of such folders do alike, once each shard's header is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvd.checkpoints.base import ModelInfo, TensorInfo
from qconvd.checkpoints.files import inventory, model_name
from qconvd.checkpoints.quantized import Packing
from qconvd.checkpoints.refusals import refuse_tensors
from qconvd.checkpoints.shards import check_shards


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors of one shard by name: as they lie in the file, and as the model means them."""

    stored: Mapping[str, TensorInfo]
    meant: Mapping[str, TensorInfo]


def folder_model(
    folder: Path,
    kind: str,
    config: Mapping[str, Any],
    index: Mapping[str, str],
    shards: Mapping[str, Tensors],
    packed: Packing | None,
    *,
    metadata: Mapping[str, Any] | None = None,
    notes: tuple[str, ...] = (),
) -> ModelInfo:
    """The model of these shards; `packed` says how they are quantized, if they are.

    Raises `Unsupported` if the tensors' names give away an adapter, a diffusion model or a quantized one that the config does
    not tell of, `BadCheckpoint` where index and shards, or the parts of a packed tensor, disagree.
    """
    stored = check_shards(folder, index, {shard: tensors.stored for shard, tensors in shards.items()})
    meant = {name: tensor for tensors in shards.values() for name, tensor in tensors.meant.items()}
    if packed:
        meant = packed.unpacked(folder, stored)
        notes = (packed.note, *notes)
    refuse_tensors(str(folder), meant)
    return ModelInfo(
        path=folder,
        name=model_name(folder),
        kind=kind,
        tensors=meant,
        files=inventory(folder, set(shards)),
        config=config,
        metadata=metadata or {},
        stored_as=stored if meant != stored else None,
        quantization=packed.label if packed else "",
        notes=notes,
    )
