"""What the bytes of a unit stand for, and how far they may be from the source: what verification holds artifacts against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qconvd.api import Array, Buffer, Unit
from qconvd_gguf.encoder import experts_of


def decoded(unit: Unit, rows: tuple[int, int], data: Sequence[Buffer]) -> Sequence[Array]:
    """The numbers of a tensor's blocks, by the decoders of qconvd_ggml, which are not its encoders.

    What was copied in a type that is no float is held against the source as it is stored.
    """
    from qconvd_ggml.decode import decode

    if _copied(unit):
        return (_stored(unit.outputs[0].dtype, data[0], rows[1] - rows[0]),)
    return (decode(unit.outputs[0].dtype, data[0], unit.shape[1]),)


def bounds(unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Sequence[Array]:
    """The largest right error of every weight."""
    import numpy as np

    from qconvd_ggml.decode import error_bound

    dtype = unit.outputs[0].dtype
    if _copied(unit):
        return (np.zeros(x[0].shape, np.float32),)
    if not unit.statistics:
        return (error_bound(dtype, x[0]),)
    by_expert = stats[unit.statistics[0].key].reshape(-1, unit.shape[1])
    parts = [
        error_bound(dtype, x[0][first:last], by_expert[expert])
        for expert, first, last in experts_of(rows, unit.shape[0] // len(by_expert))
    ]
    return (np.concatenate(parts),)


def _copied(unit: Unit) -> bool:
    return unit.inputs[0].dtype not in ("F32", "F16", "BF16")


def _stored(dtype: str, data: Buffer, rows: int) -> Array:
    """Bytes as the engine hands a tensor of this type to an encoder, with the float64 of old files as float32."""
    import numpy as np

    held = {"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F64": "<f8"}.get(dtype, "u1")
    array = np.frombuffer(data, held).reshape(rows, -1)
    return array.astype(np.float32) if dtype == "F64" else array
