"""Weights to the tensors of a linear; everything else is copied or cast."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qconvd.api import Array, Encoded, Plan, Unit, UnitReport, check_report, encode_rest
from qconvd_compressed.schemes import CODEBOOK_BLOCK
from qconvd_compressed.stored import STATE_BYTES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KERNELS = {
    "integers": ("integers",),
    "floats": ("floats",),
    "llm_int8": ("llm_int8",),
    "codebook": ("codebook", "codebook_error", "codebook_largest", "codebook_held"),
}
"""What a scheme needs, verification included."""


class QuantizedEncoder:
    """Rows of one linear per call. Kernels release the GIL."""

    stateless = True

    def prepare(self, plan: Plan) -> Iterator[str]:
        """Compile the kernels that the plan needs, or load them."""
        from qconvd_compressed.kernels import CACHE, ready

        schemes = dict.fromkeys(u.options["scheme"] for u in plan.units if "scheme" in u.options)
        for name in (n for scheme in schemes for n in KERNELS[scheme]):
            if not CACHE.is_compiled(name):
                yield f"compiling the kernel {name} (once)"
            ready(name)

    def encode(self, unit: Unit, rows: tuple[int, int], x: Sequence[Array], stats: Mapping[str, Array]) -> Encoded:  # noqa: ARG002
        """`x[0]`: rows of the linear in 16 bits, (rows, columns). Raises `QconvdError` for a NaN that is refused."""
        if "scheme" not in unit.options:
            return encode_rest(unit, x[0])
        import numpy as np

        halves = np.ascontiguousarray(x[0]).view(np.uint16)
        make = {"integers": _integers, "floats": _floats, "llm_int8": _llm_int8, "codebook": _codebook}[unit.options["scheme"]]
        sums = np.zeros(5)
        data = make(unit, halves, int(unit.inputs[0].dtype == "F16"), sums)
        report = UnitReport(halves.size, sums[0], sums[1], sums[2], nan=int(sums[3]), inf=int(sums[4]))
        check_report(unit, report, unit.options)
        return Encoded(data, report)


def _integers(unit: Unit, x: NDArray[np.uint16], half: int, sums: Any) -> list[Array]:
    import numpy as np

    from qconvd_compressed.kernels import ready

    o, (rows, columns) = unit.options, x.shape
    bits, width = int(o["bits"]), int(o["group_size"])
    out = np.empty((rows, columns * bits // 8), np.uint8)
    scales, zeros = np.empty((rows, columns // width), np.uint16), np.empty((rows, columns // width), np.int8)
    flags = int(o["symmetric"]), int(o["search"]), int(o["packed"])
    ready("integers")(x, half, bits, width, *flags, out, scales, zeros, sums)
    return [out, scales] if o["symmetric"] else [out, scales, _along_rows(zeros, bits)]


def _along_rows(zeros: NDArray[np.int8], bits: int) -> NDArray[np.uint32]:
    """(rows, groups) zero points as (rows * bits / 32, groups) words, the first row low; rows are a multiple of 32 / bits."""
    import numpy as np

    each = 32 // bits
    codes = (zeros.astype(np.int32) + (1 << (bits - 1))).astype(np.uint32)
    words = np.zeros((len(zeros) // each, zeros.shape[1]), np.uint32)
    for i in range(each):
        words |= codes[i::each] << np.uint32(bits * i)
    return words


def _floats(unit: Unit, x: NDArray[np.uint16], half: int, sums: Any) -> list[Array]:
    import numpy as np

    from qconvd_compressed.kernels import ready

    height, width = int(unit.options["height"]), int(unit.options["width"])
    out = np.empty(x.shape, np.uint8)
    scales = np.empty((-(-x.shape[0] // height), -(-x.shape[1] // width)), np.uint16)
    ready("floats")(x, half, height, width, out, scales, sums)
    return [out, scales]


def _llm_int8(unit: Unit, x: NDArray[np.uint16], half: int, sums: Any) -> list[Array]:  # noqa: ARG001
    import numpy as np

    from qconvd_compressed.kernels import ready

    out, largest = np.empty(x.shape, np.int8), np.empty(len(x), np.float32)
    ready("llm_int8")(x, half, out, largest, sums)
    return [out, largest]


def _codebook(unit: Unit, x: NDArray[np.uint16], half: int, sums: Any) -> list[Array]:
    import numpy as np

    from qconvd_compressed.kernels import ready
    from qconvd_compressed.nested import as_read, nested
    from qconvd_compressed.tables import ordered, pairs

    flat, o = x.reshape(-1), unit.options
    out, largest = np.empty((flat.size + 1) // 2, np.uint8), np.empty(-(-flat.size // CODEBOOK_BLOCK), np.float32)
    ready("codebook")(flat, half, CODEBOOK_BLOCK, *ordered(o["type"]), out, largest)
    data: list[Array] = [out, largest]
    if "state" in o:
        codes, of_codes, mean = nested(largest)
        about = {**json.loads(o["state"]), "nested_offset": float(mean)}
        data = [out, codes, of_codes, json.dumps(about).encode().ljust(STATE_BYTES)]
        largest = as_read(codes, of_codes, mean)
    ready("codebook_error")(flat, half, CODEBOOK_BLOCK, pairs(o["type"]), out, largest, sums)
    return data
