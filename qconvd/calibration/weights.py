"""Weights for a network's modules, from the checkpoint and only while they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qconvd.calibration.errors import unsupported
from qconvd.calibration.network import Network, Origin
from qconvd.engine import evaluate
from qconvd.engine.expr import Read, rows_columns
from qconvd.engine.source import Source
from qconvd.errors import QconvdError
from qconvd.plugins import plugins

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Weights:
    """Reads tensors of a model as torch tensors of one type on one device."""

    def __init__(self, network: Network, source: Source, device: torch.device, dtype: torch.dtype) -> None:
        self._network = network
        self._source = source
        self.device = device
        self.dtype = dtype

    def load(self, module: nn.Module, replaced: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Give every parameter and stored buffer below a module its values. `replaced` holds some by the checkpoint's names.

        Buffers stay in float32, as transformers keeps them: some decide between nearly equal scores (DeepSeek 3's router).
        """
        buffers = dict(module.named_buffers())
        for name, origin in self._network.origins(module).items():
            dtype = torch.float32 if name in buffers and buffers[name].is_floating_point() else self.dtype
            put(module, name, self._value(origin, replaced or {}, dtype))
        for owner in module.modules():
            fill_buffers(self._network, owner, self.device)

    def unload(self, module: nn.Module) -> None:
        """Let go of everything below a module; its shapes stay."""
        for owner in module.modules():
            for held in (owner._parameters, owner._buffers):
                for name, value in held.items():
                    if value is not None:
                        empty = torch.empty_like(value, device="meta")
                        held[name] = nn.Parameter(empty, requires_grad=False) if isinstance(value, nn.Parameter) else empty

    def value(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A parameter by its name in the whole model."""
        return self._value(self._network.origin(name, shape), {}, self.dtype)

    def rows(self, tensor: str, rows: NDArray[np.int64]) -> torch.Tensor:
        """Some rows of a matrix, ascending, in the compute type."""
        parts = [self._read(tensor, int(a), int(b)) for a, b in _runs(rows)]
        return self._converted(np.concatenate(parts), tensor, self.dtype)

    def _value(self, origin: Origin, replaced: Mapping[str, NDArray[Any]], dtype: torch.dtype) -> torch.Tensor:
        if not origin.experts:
            return self._tensor(origin.tensors[0], replaced, dtype)
        parts = []
        for linears in origin.experts:
            parts.append(
                torch.cat([self._tensor(t, replaced, dtype) for t in linears])
                if len(linears) > 1
                else self._tensor(linears[0], replaced, dtype)
            )
        return torch.stack(parts)

    def _tensor(self, name: str, replaced: Mapping[str, NDArray[Any]], dtype: torch.dtype) -> torch.Tensor:
        info = self._network.model.tensors[name]
        if name in replaced:
            given = replaced[name]
            if given.shape != rows_columns(info.shape):
                raise QconvdError(f"{name}: weights of the shape {given.shape} cannot stand for {info.shape}")
            return torch.tensor(np.asarray(given), device=self.device).to(dtype).reshape(info.shape)
        return self._converted(self._read(name, 0, info.rows), name, dtype).reshape(info.shape)

    def _read(self, name: str, first: int, last: int) -> NDArray[Any]:
        """Some rows, also of a tensor that does not lie in the files as it is (turned, or quantized)."""
        return evaluate.rows(Read.of(self._network.model.tensors[name]), first, last, self._source, plugins().operations)

    def _converted(self, raw: NDArray[Any], name: str, dtype: torch.dtype) -> torch.Tensor:
        kind = self._network.model.tensors[name].dtype
        if kind not in TYPES:
            what = f"{name} is stored as {kind}; calibration reads {', '.join(TYPES)}"
            raise unsupported(self._network.model, what, "give qconvd the model in 16 or 32 bits")
        raw = np.require(raw, requirements=["W"])  # torch knows no tensors that must not be written to
        values = torch.from_numpy(raw.view(np.int16) if kind == "BF16" else raw)
        if kind == "BF16":
            values = values.view(torch.bfloat16)
        return values.to(self.device, dtype)


def put(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Set one parameter or buffer below a module."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[leaf] = value


def fill_buffers(network: Network, owner: Any, device: torch.device) -> None:
    """Compute a module's own buffers that no checkpoint holds (rotary frequencies) as transformers does in loading a model."""
    missing = {name: buffer for name, buffer in owner._buffers.items() if buffer is not None and buffer.is_meta}
    for name, like in missing.items():
        fill = float("nan") if like.is_floating_point() else 0
        owner._buffers[name] = torch.full_like(like, fill, device=device)
    if missing:
        with torch.no_grad():
            network.whole._init_weights(owner)
    for name in missing:
        if owner._buffers[name].isnan().any():
            what = f"transformers does not say what the buffer {name} of {type(owner).__name__} holds"
            raise unsupported(network.model, what)


def _runs(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ascending numbers as ranges [start, end) of neighbours, (ranges, 2)."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    starts = np.concatenate(([0], breaks))
    ends = np.concatenate((breaks, [len(rows)]))
    return np.stack((rows[starts], rows[ends - 1] + 1), axis=1)
