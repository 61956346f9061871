"""Any range of rows of any expression equals the same rows of the whole tensor, computed by plain numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvd.api import (
    Affine,
    Cast,
    Concat,
    Constant,
    Dequantize,
    Expr,
    ModelInfo,
    Named,
    Permute,
    Read,
    Repeat,
    Reshape,
    Slice,
    Stack,
    Transpose,
    Unsupported,
    rows_columns,
)
from qconvd.engine.elements import cast, to_float32
from qconvd.engine.evaluate import footprint, rows
from qconvd.engine.regions import grain, needs, period
from qconvd.engine.source import Source
from qconvd.errors import BadCheckpoint, QconvdError
from tiny import raw_model

SHAPES = {"a": (8, 6), "b": (8, 6), "c": (12,), "d": (2, 3, 4), "e": (4, 2, 3, 2), "f": (1, 5), "g": (12, 8), "s": ()}


class AddRows:
    """An operation for tests: the sum of its inputs' rows, as float32."""

    name = "add"

    def rows(
        self, shapes: Sequence[tuple[int, ...]], options: Mapping[str, Any], start: int, stop: int
    ) -> list[tuple[int, int]]:
        return [(start, stop)] * (len(shapes) if options is not None else 0)

    def apply(self, x: Sequence[Any], options: Mapping[str, Any], start: int, stop: int) -> Any:
        assert all(len(a) == stop - start for a in x)
        return sum(to_float32(a, "BF16") for a in x) * np.float32(options.get("times", 1))


OPERATIONS = {"add": AddRows()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    files = {f"{d}.bin": {f"{d}.{n}": (d, shape) for n, shape in SHAPES.items()} for d in ("BF16", "F32", "F16")}
    files["q.bin"] = {"packed": ("Q8_0", (6, 64)), "ids": ("I64", (3, 4))}
    return raw_model(tmp_path_factory.mktemp("model"), files)


def whole(expr: Expr, model: ModelInfo) -> Any:
    """The naive evaluation: every tensor in memory, shapes as they are."""
    if isinstance(expr, Read):
        info = model.tensors[expr.tensor]
        data = (model.path / info.file).read_bytes()[info.offset : info.offset + info.nbytes]
        kind = {"BF16": "<u2", "F32": "<f4", "F16": "<f2", "I64": "<i8"}[info.dtype]
        return np.frombuffer(data, kind).reshape(info.shape)
    if isinstance(expr, Constant):
        return np.frombuffer(expr.payload(), "<f4").reshape(expr.shape)
    if isinstance(expr, Concat):
        return np.concatenate([whole(x, model) for x in expr.xs], expr.axis)
    if isinstance(expr, Stack):
        return np.stack([whole(x, model) for x in expr.xs])
    if isinstance(expr, Named | Dequantize):
        return sum(to_float32(whole(x, model), "BF16") for x in expr.xs)
    x = whole(expr.x, model)
    if isinstance(expr, Slice):
        return x.take(range(expr.start, expr.stop), expr.axis)
    if isinstance(expr, Reshape):
        return x.reshape(expr.shape)
    if isinstance(expr, Permute):
        return x.transpose(expr.axes)
    if isinstance(expr, Transpose):
        return np.swapaxes(x, -1, -2)
    if isinstance(expr, Repeat):
        return np.repeat(x, expr.times, expr.axis)
    if isinstance(expr, Cast):
        return cast(x.reshape(1, -1), expr.x.dtype, expr.dtype).reshape(expr.shape)
    assert isinstance(expr, Affine)
    values = to_float32(x.reshape(1, -1), expr.x.dtype) * np.float32(expr.scale) + np.float32(expr.offset)
    return values.reshape(expr.shape)


@st.composite
def expressions(draw: st.DrawFn) -> Expr:
    name = draw(st.sampled_from(sorted(SHAPES)))
    expr: Expr = Read(f"BF16.{name}", "BF16", SHAPES[name])
    for _ in range(draw(st.integers(0, 5))):
        expr = draw(one_more(expr))
    return expr


@st.composite
def one_more(draw: st.DrawFn, x: Expr) -> Expr:
    shape = x.shape
    kinds = ["reshape", "stack", "affine", "cast"] + (["slice", "concat", "permute", "repeat"] if shape else [])
    if len(shape) > 1:
        kinds.append("transpose")
    if x.dtype == "BF16":
        kinds += ["named"]
    kind = draw(st.sampled_from(kinds))
    axis = draw(st.integers(0, max(0, len(shape) - 1)))
    if kind == "reshape":
        return Reshape(x, draw(shapes_of(prod(shape))))
    if kind == "stack":
        return Stack((x,) * draw(st.integers(1, 3)))
    if kind == "affine":
        return Affine(x, draw(st.sampled_from([1.0, 0.5, -3.0])), draw(st.sampled_from([0.0, 1.0])))
    if kind == "cast":
        return Cast(x, draw(st.sampled_from(["F32", "F16", "BF16", "F64"])))
    if kind == "slice":
        start = draw(st.integers(0, shape[axis] - 1))
        return Slice(x, axis, start, draw(st.integers(start + 1, shape[axis])))
    if kind == "concat":
        return Concat((x, *[Slice(x, axis, 0, draw(st.integers(1, shape[axis])))] * draw(st.integers(1, 2))), axis)
    if kind == "permute":
        return Permute(x, tuple(draw(st.permutations(range(len(shape))))))
    if kind == "repeat":
        return Repeat(x, axis, draw(st.integers(1, 3)))
    if kind == "named":
        return Named("add", (x, x), x.shape, "F32")
    return Transpose(x)


@st.composite
def shapes_of(draw: st.DrawFn, elements: int) -> tuple[int, ...]:
    shape = []
    for _ in range(draw(st.integers(0, 3))):
        factor = draw(st.sampled_from([n for n in range(1, elements + 1) if elements % n == 0]))
        shape.append(factor)
        elements //= factor
    return (*shape, elements)


@settings(max_examples=500, deadline=None)
@given(data=st.data(), expr=expressions())
def test_rows_are_the_rows_of_the_whole(model: ModelInfo, data: st.DataObject, expr: Expr) -> None:
    expected = whole(expr, model)
    assert expected.shape == expr.shape
    total, columns = rows_columns(expr.shape)
    start = data.draw(st.integers(0, total - 1))
    stop = data.draw(st.integers(start + 1, total))
    wanted = needs(expr, start, stop, OPERATIONS)
    with Source(model) as source:
        window = source.window(wanted)
        planned = source.bytes_read
        found = rows(expr, start, stop, window, OPERATIONS)
        assert source.bytes_read == planned == sum(n.nbytes for n in wanted), "evaluating read what `needs` did not foresee"
        direct = rows(expr, start, stop, source, OPERATIONS)
    assert found.flags.c_contiguous
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected.reshape(total, columns)[start:stop])
    np.testing.assert_array_equal(found, direct)
    assert footprint(expr, stop - start) >= 0


@settings(max_examples=200, deadline=None)
@given(expr=expressions(), step=st.integers(1, 4))
def test_chunks_on_the_grain_of_a_permutation_share_no_source_row(expr: Expr, step: int) -> None:
    """Holds for what moves rows only; `grain` promises no more."""
    x = Permute(Reshape(Read("BF16.g", "BF16", (12, 8)), (3, 2, 2, 8)), (0, 2, 1, 3))
    assert grain(x) == 4
    seen: set[int] = set()
    for start in range(0, 12, 4 * step):
        mine = {r for n in needs(x, start, min(12, start + 4 * step), {}) for r in range(n.r0, n.r1)}
        assert not mine & seen
        seen |= mine
    total = rows_columns(expr.shape)[0]
    assert grain(expr) >= 1
    assert total % period(expr) == 0


def test_a_rope_permutation_reads_each_head_once(model: ModelInfo) -> None:
    heads = Reshape(Read("F32.g", "F32", (12, 8)), (3, 2, 2, 8))
    rope = Reshape(Permute(heads, (0, 2, 1, 3)), (12, 8))
    assert [(n.r0, n.r1) for n in needs(rope, 4, 8, {})] == [(4, 8)]
    with Source(model) as source:
        np.testing.assert_array_equal(rows(rope, 4, 8, source, {}), whole(rope, model)[4:8])
        assert source.bytes_read == 4 * 8 * 4


def test_scattered_rows_are_read_alone() -> None:
    x = Reshape(Permute(Reshape(Read("F32.g", "F32", (12, 8)), (2, 6, 8)), (1, 0, 2)), (12, 8))
    assert [(n.r0, n.r1) for n in needs(x, 0, 2, {})] == [(0, 1), (6, 7)]


def test_a_transpose_reads_only_its_columns(model: ModelInfo) -> None:
    x = Transpose(Read("F32.g", "F32", (12, 8)))
    with Source(model) as source:
        np.testing.assert_array_equal(rows(x, 2, 5, source, {}), whole(x, model)[2:5])
        assert source.bytes_read == 12 * 3 * 4


def test_experts_are_read_one_at_a_time() -> None:
    stack = Stack((Read("F32.a", "F32", (8, 6)), Read("F32.b", "F32", (8, 6))))
    assert period(stack) == 8
    assert [(n.read.tensor, n.r0, n.r1) for n in needs(stack, 6, 8, {})] == [("F32.a", 6, 8)]
    assert [(n.read.tensor, n.r0, n.r1) for n in needs(stack, 6, 10, {})] == [("F32.a", 6, 8), ("F32.b", 0, 2)]


def test_packed_rows_move_whole_and_are_never_cut(model: ModelInfo) -> None:
    packed = Read("packed", "Q8_0", (6, 64))
    with Source(model) as source:
        found = rows(Stack((packed, packed)), 5, 8, source, {})
        assert found.shape == (3, 68)
        raw = (model.path / "q.bin").read_bytes()[16 : 16 + 6 * 68]
        assert found.tobytes() == raw[5 * 68 :] + raw[: 2 * 68]
        for cut in (Slice(packed, 1, 0, 32), Transpose(packed), Reshape(packed, (3, 128))):
            with pytest.raises(Unsupported, match=r"rows of Q8_0 blocks cannot be|no multiple of Q8_0's block"):
                rows(cut, 0, 1, source, {})
        with pytest.raises(Unsupported, match="Q8_0 is packed and cannot be cast"):
            rows(Cast(packed, "F32"), 0, 1, source, {})


def test_constants_and_operations(model: ModelInfo) -> None:
    constant = Constant.of("F32", (2, 3), np.arange(6, dtype="<f4").tobytes())
    a = Read("BF16.a", "BF16", (8, 6))
    with Source(model) as source:
        assert rows(constant, 1, 2, source, {}).tolist() == [[3.0, 4.0, 5.0]]
        assert rows(Transpose(constant), 1, 3, source, {}).tolist() == [[1.0, 4.0], [2.0, 5.0]]
        for expr in (Named("add", (a, a), (8, 6), "F32"), Dequantize((a, a), "add", (8, 6))):
            np.testing.assert_array_equal(rows(expr, 2, 5, source, OPERATIONS), whole(expr, model)[2:5])
        with pytest.raises(Unsupported, match="no plugin provides the operation 'awq'\n  install the plugin"):
            rows(Named("awq", (a,), (8, 6), "F32"), 0, 1, source, OPERATIONS)
        with pytest.raises(QconvdError, match=r"the operation 'add' returned float32 \(1, 6\) where F32 \(1, 7\) was due"):
            rows(Named("add", (a,), (8, 7), "F32"), 0, 1, source, OPERATIONS)


def test_a_plan_for_another_model_is_refused(model: ModelInfo) -> None:
    with Source(model) as source:
        for read in (Read("F32.a", "F32", (6, 8)), Read("F32.a", "BF16", (8, 6)), Read("nope", "F32", (1,))):
            with pytest.raises(BadCheckpoint, match=r"the plan wants .*\n  the model changed after it was planned; plan again"):
                rows(read, 0, 1, source, {})
        with pytest.raises(BadCheckpoint, match="rows 7:9 are not in the tensor"):
            rows(Read("F32.a", "F32", (8, 6)), 7, 9, source, {})


def test_expressions_that_make_no_sense_are_refused() -> None:
    a = Read("a", "F32", (8, 6))
    for make in (
        lambda: Slice(a, -1, 0, 2), lambda: Slice(a, 1, 2, 9), lambda: Concat((a, a), 2), lambda: Repeat(a, 3, 2),
        lambda: Repeat(a, 0, 0), lambda: Permute(a, (0, 0)), lambda: Transpose(Read("v", "F32", (3,))),
        lambda: Stack((a, Read("b", "F32", (8, 7)))), lambda: Reshape(a, (7, 7)),
    ):  # fmt: skip
        with pytest.raises(Unsupported):
            make()
