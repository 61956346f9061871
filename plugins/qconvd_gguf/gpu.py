"""A GGUF file on a GPU: what can be made there, what it takes, and the encoder.

Block types are encoded by qconvd_ggml.cuda. What is only copied or cast (norms, F16 and BF16 tensors) stays on the CPU: there
is nothing to compute, and the bytes are the same anyway. What has no kernel is refused, never made elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qconvd.api import Array, Encoded, Encoder, Plan, Unit, Unsupported, check_report, cuda_device
from qconvd_ggml import cuda
from qconvd_gguf.encoder import BlockEncoder

if TYPE_CHECKING:
    from qconvd_ggml.cuda.staging import Staging

_FLOATS = ("F32", "F16", "BF16")
ON_THE_CPU = "say device: auto or device: cpu"


def memory_of(dtype: str) -> Mapping[Any, int]:
    """GPU memory of a unit that becomes this type, as `Unit.memory` says it; nothing if it is not made on a GPU."""
    return {"cuda": cuda.WORKING} if dtype in cuda.TYPES else {}


def measured_on(units: Sequence[Unit]) -> tuple[str, ...]:
    """GPUs on which everything that these units need was measured; none if some of it cannot be made on a GPU."""
    encoded = [unit for unit in units if _encoded(unit)]
    return () if any(_obstacle(unit) for unit in encoded) else cuda.measured_on({u.outputs[0].dtype for u in encoded})


def check(units: Sequence[Unit]) -> None:
    """Raise `Unsupported` if there are no kernels for a unit, which it names."""
    for unit in units:
        if _encoded(unit) and (why := _obstacle(unit)):
            raise Unsupported(f"cannot be made on a GPU: {why}", where=unit.outputs[0].name, fix=ON_THE_CPU)


def encoder(units: Sequence[Unit]) -> Encoder:
    """The encoder for the GPU that this process may see. Raises `Unsupported`."""
    check(units)
    try:
        from qconvd_ggml.cuda.staging import Staging
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"a GPU is used through torch and triton, and {error.name} is not installed",
            fix=f"pip install 'qconvd[cuda]', or {ON_THE_CPU}",
        ) from error
    return GpuEncoder(Staging(cuda_device()))


class GpuEncoder:
    """Rows of one tensor as blocks of its type, on a GPU. Keeps buffers, and nothing of what went through them."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._cpu = BlockEncoder()

    def prepare(self, plan: Plan) -> Iterator[str]:
        """Compile what the plan needs, or load it: Triton keeps its kernels on disk, too."""
        import numpy as np

        yield from self._cpu.prepare(replace(plan, units=tuple(u for u in plan.units if not _encoded(u))))
        for dtype in dict.fromkeys(u.outputs[0].dtype for u in plan.units if _encoded(u)):
            yield f"preparing {dtype} on the GPU"
            self._staging.encode(dtype, np.zeros((1, 256), np.float32), "F32")

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Encoded:
        if not _encoded(unit):
            return self._cpu.encode(unit, rows, x, stats)
        data, report = self._staging.encode(unit.outputs[0].dtype, x[0], unit.inputs[0].dtype)
        check_report(unit, report, unit.options)
        return Encoded((data,), report)


def _encoded(unit: Unit) -> bool:
    """Whether blocks are made of floats here."""
    return unit.inputs[0].dtype in _FLOATS and unit.outputs[0].dtype not in _FLOATS


def _obstacle(unit: Unit) -> str:
    if unit.outputs[0].dtype not in cuda.TYPES:
        return f"there are kernels for {', '.join(cuda.TYPES)}, not for {unit.outputs[0].dtype}"
    return "there are no kernels that use an importance matrix" if unit.statistics else ""
