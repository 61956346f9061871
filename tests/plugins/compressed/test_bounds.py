"""What is encoded decodes to within the bound, for weights of every kind, in pieces as well as whole; figures come true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compressed_models import difficult
from header_models import headers
from qconvd.api import Device, QconvdError, RowSplit, Unit, as_float32
from qconvd_compressed.formats import Fp8, Int4, Int8

NAME = "model.layers.0.mlp.up_proj.weight"
ALL = [
    (Int8(), {}),
    (Int8(), {"scheme": "w8a8"}),
    (Int8(), {"container": "bitsandbytes"}),
    (Int4(), {"group_size": 32}),
    (Int4(), {"group_size": -1}),
    (Int4(), {"sym": False}),
    (Int4(), {"mse": True}),
    (Int4(), {"mse": True, "sym": False, "group_size": 64}),
    (Int4(), {"container": "bitsandbytes"}),
    (Int4(), {"container": "bitsandbytes", "type": "fp4", "double_quant": False}),
    (Int4(), {"container": "bitsandbytes", "type": "fp4"}),
    (Fp8(), {}),
    (Fp8(), {"scheme": "block"}),
]
every = pytest.mark.parametrize(("fmt", "options"), ALL, ids=[f"{f.name}-{'-'.join(map(str, o.values()))}" for f, o in ALL])


def planned(fmt: Any, shape: tuple[int, int], dtype: str, **options: Any) -> tuple[Any, Unit]:
    plan = fmt.plan(headers({NAME: shape}, dtype), fmt.Options(**options))
    return fmt.encoder(plan, Device()), next(u for u in plan.units if u.id == NAME)


def given(x: np.ndarray, dtype: str, unit: Unit) -> np.ndarray:
    """As the engine hands it over."""
    if unit.inputs[0].dtype == dtype:
        return x.view(np.float16) if dtype == "F16" else x
    with np.errstate(over="ignore"):
        return np.asarray(as_float32(x, dtype).astype(np.float16))


@every
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_decoded_weights_are_within_the_bound_and_some_reach_it(fmt: Any, options: dict[str, Any], dtype: str) -> None:
    encoder, unit = planned(fmt, (256, 384), dtype, **options)
    x = given(difficult(256, 384, dtype), dtype, unit)
    wanted = as_float32(x, unit.inputs[0].dtype)
    encoded = encoder.encode(unit, (0, 256), [x], {})
    data = [memoryview(d).cast("B") for d in encoded.data]
    assert [d.nbytes for d in data] == [o.nbytes for o in unit.outputs]
    (decoded,) = fmt.decode(unit, (0, 256), data)
    (bound,) = fmt.bound(unit, (0, 256), [wanted], {})
    error = np.abs(decoded.astype(np.float64) - wanted)
    assert (error <= bound).all()
    assert (error / bound).max() > 0.9
    assert encoded.report.square_error == pytest.approx((error**2).sum(), rel=1e-4)
    assert encoded.report.square == pytest.approx((wanted.astype(np.float64) ** 2).sum(), rel=1e-4)
    assert encoded.report.max_error == pytest.approx(error.max(), rel=1e-4)


@every
def test_pieces_are_the_same_bytes(fmt: Any, options: dict[str, Any]) -> None:
    encoder, unit = planned(fmt, (256, 384), "BF16", **options)
    x = given(difficult(256, 384, "BF16"), "BF16", unit)
    whole = [memoryview(d).cast("B").tobytes() for d in encoder.encode(unit, (0, 256), [x], {}).data]
    if not isinstance(unit.rows, RowSplit):
        return
    step = max(64, unit.rows.multiple)
    parts = [encoder.encode(unit, (r, r + step), [x[r : r + step]], {}).data for r in range(0, 256, step)]
    for i, one in enumerate(whole):
        assert b"".join(memoryview(p[i]).cast("B").tobytes() for p in parts) == one


@every
def test_nan_and_infinities_are_counted_and_harm_nothing_but_their_row(fmt: Any, options: dict[str, Any]) -> None:
    encoder, unit = planned(fmt, (256, 384), "BF16", **options)
    x = difficult(256, 384, "BF16")
    x[200, 7], x[200, 8], x[201, 9] = 0x7FC0, 0x7F80, 0xFF80
    encoded = encoder.encode(unit, (0, 256), [given(x, "BF16", unit)], {})
    assert (encoded.report.nan, encoded.report.inf) == (1, 2)
    (decoded,) = fmt.decode(unit, (0, 256), [memoryview(d).cast("B") for d in encoded.data])
    assert np.isfinite(decoded).all()
    encoder, unit = planned(fmt, (256, 384), "BF16", non_finite="refuse", **options)
    with pytest.raises(QconvdError) as caught:
        encoder.encode(unit, (0, 256), [given(x, "BF16", unit)], {})
    # LLM.int8() is in float16.
    cast = "" if unit.inputs[0].dtype == "BF16" else " (or too large for F16)"
    assert f"has 1 NaN and 2 infinite weights{cast}, and `non_finite: refuse` is set" in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 64), (3, 341), (130, 64)])
def test_odd_shapes_of_bitsandbytes(shape: tuple[int, int]) -> None:
    for fmt, options in ALL:
        if options.get("container") != "bitsandbytes":
            continue
        encoder, unit = planned(fmt, shape, "F16", **options)
        x = np.random.default_rng(5).standard_normal(shape).astype(np.float16)
        data = [memoryview(d).cast("B") for d in encoder.encode(unit, (0, shape[0]), [x], {}).data]
        assert [d.nbytes for d in data] == [o.nbytes for o in unit.outputs]
        (decoded,) = fmt.decode(unit, (0, shape[0]), data)
        (bound,) = fmt.bound(unit, (0, shape[0]), [x.astype(np.float32)], {})
        assert (np.abs(decoded - x.astype(np.float64)) <= bound).all()


def test_blocks_that_end_with_the_matrix() -> None:
    encoder, unit = planned(Fp8(), (200, 128), "F16", scheme="block")
    x = np.random.default_rng(6).standard_normal((200, 128)).astype(np.float16)
    data = [memoryview(d).cast("B") for d in encoder.encode(unit, (0, 200), [x], {}).data]
    (decoded,) = Fp8().decode(unit, (0, 200), data)
    (bound,) = Fp8().bound(unit, (0, 200), [x.astype(np.float32)], {})
    assert (np.abs(decoded - x.astype(np.float64)) <= bound).all()


def test_the_search_is_better_and_never_worse() -> None:
    x = difficult(256, 384, "BF16")
    for symmetric in (True, False):
        errors = []
        for mse in (False, True):
            encoder, unit = planned(Int4(), (256, 384), "BF16", mse=mse, sym=symmetric, group_size=64)
            per_row = [encoder.encode(unit, (r, r + 8), [x[r : r + 8]], {}).report.square_error for r in range(0, 256, 8)]
            errors.append(np.array(per_row))
        assert (errors[1] <= errors[0] * (1 + 1e-6)).all()
        assert errors[1].sum() < 0.97 * errors[0].sum()


@pytest.mark.parametrize("options", [{"double_quant": False}, {}, {"type": "fp4"}])
def test_blocks_that_are_all_but_zero_are_within_the_bound(options: dict[str, Any]) -> None:
    """Of bfloat16's subnormals bitsandbytes makes zeros, in some blocks or in all."""
    fmt = Int4()
    encoder, unit = planned(fmt, (64, 64), "BF16", container="bitsandbytes", **options)
    for rows in (slice(5, 6), slice(0, 64)):
        x = difficult(64, 64, "BF16")
        x[rows] = np.arange(x[rows].size).reshape(x[rows].shape) % 120 + 1
        encoded = encoder.encode(unit, (0, 64), [x], {})
        data = [memoryview(d).cast("B") for d in encoded.data]
        wanted = as_float32(x, "BF16")
        ((decoded,), (bound,)) = fmt.decode(unit, (0, 64), data), fmt.bound(unit, (0, 64), [wanted], {})
        assert (np.abs(decoded.astype(np.float64) - wanted) <= bound).all()
