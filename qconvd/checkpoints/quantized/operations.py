"""The arithmetic of quantized sources: any rows of a packed linear as float32, some at a time.

`packed`  words of GPTQ and compressed-tensors, along the columns     (q - z) * s
`awq`     words of AWQ, along the rows                                (q - z) * s
`scaled`  int8 and 8-bit floats, which the engine hands over as F32   (q - z) * s

Integers and scales of 8 or 11 bits multiply without rounding in float32, so casting the result rounds once, as the quantizers'
own kernels do in the scales' type. numpy is imported when rows are computed: the control side registers these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import TYPE_CHECKING, Any

from qconvd.errors import BadCheckpoint

if TYPE_CHECKING:
    from qconvd.engine.elements import AnyArray

PIECE = 1 << 18
"""Weights that are computed at a time: what numpy makes on the way stays in the second-level cache."""
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of AWQ each of eight columns is."""


class Packed:
    """Integers of `bits` in a stream along each row, low bits first. Options: `bits`, `columns`, and how groups and zeros are.

    Operands: words I32 (rows, columns * bits / 32), scales F32 (rows, groups); where the option `zeros` is there, words of zero
    points packed along the rows (rows * bits / 32, groups), to which that is added, else all are the option `zero`; and where
    the option `group` is not there, the group of each column (1, columns).
    """

    name = "packed"

    def rows(
        self, shapes: Sequence[tuple[int, ...]], options: Mapping[str, Any], start: int, stop: int
    ) -> Sequence[tuple[int, int]]:
        per, words = _run(options["bits"])
        found = [(start, stop), (start, stop)]
        if "zeros" in options:
            found.append((start // per * words, min(-(-stop // per) * words, shapes[2][0])))
        return found if "group" in options else [*found, (0, 1)]

    def apply(self, x: Sequence[Any], options: Mapping[str, Any], start: int, stop: int) -> AnyArray:
        import numpy as np

        bits, columns = options["bits"], options["columns"]
        words, scales = x[0], x[1]
        zeros: AnyArray = np.full((1, 1), options.get("zero", 0), np.float32)
        if "zeros" in options:
            first = start - start // _run(bits)[0] * _run(bits)[0]
            zeros = _unpacked(x[2].T, bits, first + stop - start)[:, first:].T.astype(np.float32) + options["zeros"]
        groups = _Groups(options.get("group"), None if "group" in options else x[-1][0], scales.shape[1], columns)
        out = np.empty((stop - start, columns), np.float32)
        for piece in _pieces(stop - start, columns):
            values = _unpacked(words[piece], bits, columns)
            groups.scale(values, zeros[piece] if len(zeros) > 1 else zeros, scales[piece], out[piece])
        return out


class Awq:
    """Integers of 4 bits, eight rows to a word. Options: `columns`, `group` (columns with a common scale).

    Operands: words I32 (rows / 8, columns), scales F32 (rows, groups), words of zero points (rows / 8, groups).
    """

    name = "awq"

    def rows(
        self,
        shapes: Sequence[tuple[int, ...]],  # noqa: ARG002
        options: Mapping[str, Any],  # noqa: ARG002
        start: int,
        stop: int,
    ) -> Sequence[tuple[int, int]]:
        words = (start // 8, -(-stop // 8))
        return [words, (start, stop), words]

    def apply(self, x: Sequence[Any], options: Mapping[str, Any], start: int, stop: int) -> AnyArray:
        import numpy as np

        columns = options["columns"]
        wanted = np.arange(start, stop)
        word = wanted // 8 - start // 8
        shift = (4 * np.array(AWQ_PLACES, np.uint32)[wanted % 8])[:, None]
        zeros = ((x[2].view(np.uint32)[word] >> shift) & 15).astype(np.float32)
        groups = _Groups(options["group"], None, x[1].shape[1], columns)
        out = np.empty((stop - start, columns), np.float32)
        for piece in _pieces(stop - start, columns):
            values = (x[0].view(np.uint32)[word[piece]] >> shift[piece]) & 15
            groups.scale(values, zeros[piece], x[1][piece], out[piece])
        return out


class Scaled:
    """Values times scales. Options: `columns`, `block` (rows and columns with a common scale), `zero`, `index`.

    Operands: values F32 (rows, columns), scales F32 (row blocks, column blocks); zero points of the same shape if `zero` is
    true; the column block of each column (1, columns) if `index` is true.
    """

    name = "scaled"

    def rows(
        self,
        shapes: Sequence[tuple[int, ...]],  # noqa: ARG002
        options: Mapping[str, Any],
        start: int,
        stop: int,
    ) -> Sequence[tuple[int, int]]:
        height = options["block"][0]
        blocks = (start // height, -(-stop // height))
        found = [(start, stop), blocks, *([blocks] if options.get("zero") else [])]
        return [*found, (0, 1)] if options.get("index") else found

    def apply(self, x: Sequence[Any], options: Mapping[str, Any], start: int, stop: int) -> AnyArray:
        import numpy as np

        height, width = options["block"]
        block = np.arange(start, stop) // height - start // height
        groups = _Groups(width, x[-1][0] if options.get("index") else None, x[1].shape[1], options["columns"])
        out = np.empty((stop - start, options["columns"]), np.float32)
        none = np.zeros((1, 1), np.float32)
        for piece in _pieces(stop - start, options["columns"]):
            zeros = x[2][block[piece]] if options.get("zero") else none
            groups.scale(x[0][piece], zeros, x[1][block[piece]], out[piece])
        return out


class _Groups:
    """Which scale each column has: by its place (`size` columns each), or by an index that a checkpoint brought."""

    def __init__(self, size: int | None, index: AnyArray | None, count: int, columns: int) -> None:
        import numpy as np

        self.index = None
        if index is not None:
            if index.min() < 0 or index.max() >= count:
                wrong = index.max() if index.max() >= count else index.min()
                what = f"a group index names the group {int(wrong)} of {count}, the first being 0"
                raise BadCheckpoint(what, fix="download the model again")
            size = int(np.count_nonzero(index == 0)) or columns
            if not np.array_equal(index, np.arange(columns) // size):
                self.index = index
        self.size, self.count, self.columns = size or columns, count, columns

    def scale(self, values: AnyArray, zeros: AnyArray, scales: AnyArray, out: AnyArray) -> None:
        """`(values - zeros) * scales` into `out` (rows, columns); zeros are (rows, groups) or one, scales (rows, groups)."""
        import numpy as np

        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(values, self._spread(zeros), out=out, dtype=np.float32)
            np.multiply(out, self._spread(scales), out=out)

    def _spread(self, x: AnyArray) -> AnyArray:
        """One value for each column."""
        import numpy as np

        if x.shape[1] == 1:
            return x
        if self.index is not None:
            return x[:, self.index]
        return np.repeat(x, self.size, axis=1)[:, : self.columns]


def _pieces(rows: int, columns: int) -> list[slice]:
    step = max(1, PIECE // max(1, columns))
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def _run(bits: int) -> tuple[int, int]:
    """The shortest run of values that fills whole words: (values, words)."""
    common = gcd(32, bits)
    return 32 // common, bits // common


def _unpacked(words: AnyArray, bits: int, count: int) -> AnyArray:
    """The first `count` values of each row of words I32, as uint8 (rows, count)."""
    import numpy as np

    raw = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return raw[:, :count]
    values: AnyArray
    if bits in (1, 2, 4):
        values = (raw[:, :, None] >> np.arange(0, 8, bits, dtype=np.uint8)) & np.uint8((1 << bits) - 1)
    else:  # eight values in as many bytes as each has bits
        whole = np.zeros((len(raw), -(-raw.shape[1] // bits), 8), np.uint8)
        padded = np.pad(raw, ((0, 0), (0, -raw.shape[1] % bits)))
        whole[:, :, :bits] = padded.reshape(len(raw), -1, bits)
        shifts = np.arange(0, 8 * bits, bits, dtype=np.uint64)
        values = (whole.view("<u8") >> shifts) & np.uint64((1 << bits) - 1)
    return values.reshape(len(raw), -1)[:, :count].astype(np.uint8, copy=False)
