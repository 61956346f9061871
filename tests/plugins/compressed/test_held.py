"""Weights of bitsandbytes' types are held against the model in one go: what this says is what `decode` and `bound` say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from compressed_models import difficult
from converted import Converted, converted, rehashed
from header_models import headers
from qconvd.api import Device, QconvdError, Unit, as_float32
from qconvd_compressed.decoder import moving_point
from qconvd_compressed.formats import Int4

NAME = "model.layers.0.mlp.up_proj.weight"
INT4 = Int4()
every = pytest.mark.parametrize(("type_", "double"), [("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False)])


def made(x: np.ndarray, dtype: str, type_: str, double: bool) -> tuple[Unit, list[bytearray]]:
    plan = INT4.plan(headers({NAME: x.shape}, dtype), INT4.Options(container="bitsandbytes", type=type_, double_quant=double))
    unit = next(u for u in plan.units if u.id == NAME)
    encoded = INT4.encoder(plan, Device()).encode(unit, (0, len(x)), [x], {})
    return unit, [bytearray(memoryview(d).cast("B")) for d in encoded.data]


def shares(unit: Unit, data: list[bytearray], x: np.ndarray, dtype: str) -> tuple[float, float]:
    """By the two functions that every format has."""
    wanted = as_float32(x, dtype)
    (decoded,) = INT4.decode(unit, (0, len(x)), data)
    (bound,) = INT4.bound(unit, (0, len(x)), [wanted], {})
    error = np.abs(decoded - wanted)
    return float(error.max()), float((error / bound).max())


@every
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("shape", [(256, 384), (1, 64), (3, 341), (130, 64)])
def test_it_says_what_decoding_and_bounds_say(type_: str, double: bool, dtype: str, shape: tuple[int, int]) -> None:
    stored = difficult(256, 384, dtype).reshape(-1)[-shape[0] * shape[1] :].reshape(shape)
    x = stored.view(np.float16) if dtype == "F16" else stored
    unit, data = made(x, dtype, type_, double)
    found = INT4.held(unit, (0, len(x)), data, [x])
    assert found is not None
    # The order of the same float32 operations differs: what the last digits of a bound are divided by.
    assert found == pytest.approx(shares(unit, data, x, dtype), rel=1e-5)
    assert 0 < found[1] < 1
    data[0][int(np.abs(as_float32(x, dtype)).argmax()) // 2] ^= 0x77
    wrong = INT4.held(unit, (0, len(x)), data, [x])
    assert wrong is not None
    assert wrong == pytest.approx(shares(unit, data, x, dtype), rel=1e-5)
    assert wrong[1] > 1


@pytest.mark.parametrize("type_", ["nf4", "fp4"])
@pytest.mark.parametrize("size", [1e-39, 1.5e-38, 2.1e-38, 1e-37, 1e-36, 2.9e-36, 3.2e-36, 1e-30, 1e-29, 3e38])
def test_weights_of_any_size_are_within_their_bounds(type_: str, size: float) -> None:
    weights = np.random.default_rng(9).standard_normal((4, 64))
    weights *= size / np.abs(weights).max(axis=1, keepdims=True)
    x = (weights.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    unit, data = made(x, "BF16", type_, double=False)
    found = INT4.held(unit, (0, 4), data, [x])
    assert found == pytest.approx(shares(unit, data, x, "BF16"), rel=1e-4)
    assert found is not None and found[1] < 1


def test_data_of_another_length_is_not_looked_at() -> None:
    x = np.zeros((64, 64), np.uint16)
    unit, (codes, largest) = made(x, "BF16", "nf4", double=False)
    assert INT4.held(unit, (0, 64), [codes, largest], [x]) == (0, 0)
    assert INT4.held(unit, (0, 64), [codes[:32], largest], [x]) is None
    assert INT4.held(unit, (0, 64), [codes, largest[:8]], [x]) is None


@every
def test_it_says_nothing_where_something_is_not_finite(type_: str, double: bool) -> None:
    x = difficult(256, 384, "BF16")
    for bits in (0x7FC0, 0x7F80, 0xFF80):
        x[200, 7] = bits
        unit, data = made(x, "BF16", type_, double)
        assert INT4.held(unit, (0, 256), data, [x]) is None


def test_a_scale_that_is_no_number_is_not_within_any_bound() -> None:
    x = difficult(256, 384, "BF16")
    unit, data = made(x, "BF16", "nf4", double=False)
    data[1][:4] = np.float32(np.nan).tobytes()
    found = INT4.held(unit, (0, 256), data, [x])
    assert found is not None
    assert np.isnan(found).all()


def test_codes_of_scales_are_held_against_all_of_the_linear() -> None:
    """The mean that scales deviate from is that of all blocks; one code that is three steps off is seen."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((256, 384)).astype(np.float16)
    x[:, :64] *= np.float16(0.01)
    unit, data = made(x, "F16", "nf4", double=True)
    assert shares(unit, data, x, "F16")[1] < 1
    steps = np.diff(moving_point())
    # Where they are widest.
    codes = np.frombuffer(data[1], np.uint8)
    place = int(np.argmax(np.where(codes < 253, steps[np.minimum(codes, 252)], 0)))
    data[1][place] = int(codes[place]) + 3
    found = INT4.held(unit, (0, 256), data, [x])
    assert found is not None
    assert found[1] > 1


def in_parts(unit: Unit, data: list[bytearray], x: np.ndarray) -> list[tuple[float, float] | None]:
    """What is found of each part of a linear."""
    parts = INT4.parts(unit)
    assert parts is not None
    total, found = len(x), []
    for first in range(0, total, parts.rows):
        rows = first, first + parts.rows
        some = [d if i in parts.whole else d[len(d) * rows[0] // total : len(d) * rows[1] // total] for i, d in enumerate(data)]
        found.append(INT4.held(unit, rows, some, [x[slice(*rows)]]))
    return found


@pytest.mark.parametrize("type_", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(64, 1024), (128, 384), (8, 32768)])
def test_of_double_quantization_parts_are_held_as_the_whole_is(type_: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(11)
    x = (rng.standard_normal(shape) * np.exp(rng.standard_normal((shape[0], 1)))).astype(np.float16)
    unit, data = made(x, "F16", type_, double=True)
    whole, parts = INT4.held(unit, (0, len(x)), data, [x]), in_parts(unit, data, x)
    assert whole is not None
    known = [p for p in parts if p is not None]
    assert sum(len(d) for d in data) == x.size // 2 + x.size // 64 + x.size // 4096 + 256
    assert len(known) == len(parts)
    # The mean of the model, and what is stored for it, differ by what a float32 rounds.
    assert (max(e for e, _ in known), max(s for _, s in known)) == pytest.approx(whole, rel=1e-4)
    largest = int(np.abs(x.astype(np.float32)).argmax()) // 2
    for output, place, change in ((0, largest, 0x77), (1, 300, 128), (2, 7, 0x40)):
        broken = [bytearray(d) for d in data]
        broken[output][place] ^= change
        found = [i for i, p in enumerate(in_parts(unit, broken, x)) if p is None or not p[1] < 1]
        # That codes of all blocks deviate from their mean is found in the first one.
        assert found and set(found) <= {0, place * len(parts) // len(data[output])}


@pytest.mark.parametrize("factor", [1, 0.5, 2, -1, float("nan")])
def test_codes_for_another_mean_than_that_of_the_blocks_are_not_within_their_bounds(factor: float) -> None:
    """Each part by itself is as near to what it should be as the mean lets it."""
    rng = np.random.default_rng(12)
    x = rng.standard_normal((64, 1024)).astype(np.float16)
    unit, data = made(x, "F16", "nf4", double=True)
    state = json.loads(bytes(data[3]))
    mean = state["nested_offset"] * factor
    largest = np.abs(x.astype(np.float32)).reshape(-1, 256, 64).max(axis=2)
    scales = np.abs(largest - np.float32(mean)).max(axis=1).astype(np.float32)
    wanted = (largest - mean) / scales[:, None]
    codes = np.abs(wanted.reshape(-1, 1) - moving_point()).argmin(axis=1).astype(np.uint8)
    data[1:] = [bytearray(codes), bytearray(scales), bytearray(json.dumps(state | {"nested_offset": mean}).encode())]
    first, *others = in_parts(unit, data, x)
    assert (first is None) == (factor != 1)
    if factor == factor:
        assert all(p is not None and p[1] < 1 for p in others)


def test_a_linear_whose_blocks_are_not_nested_evenly_has_no_parts() -> None:
    for shape in ((63, 1024), (64, 1000)):
        unit, _ = made(np.ones(shape, np.float16), "F16", "nf4", double=True)
        assert INT4.parts(unit) is None
    unit, _ = made(np.ones((64, 1024), np.float16), "F16", "nf4", double=False)
    assert INT4.parts(unit) is None


class Asked(Int4):
    """Notes which rows it held against the model, and what it said, and of which units it decoded what."""

    def __init__(self) -> None:
        self.held_rows: list[tuple[tuple[int, int], tuple[float, float] | None]] = []
        self.decoded: list[tuple[str, tuple[int, int]]] = []

    def held(self, unit: Any, rows: Any, data: Any, x: Any) -> Any:
        found = super().held(unit, rows, data, x)
        self.held_rows.append((rows, found))
        return found

    def decode_linear(self, unit: Any, rows: Any, data: Any) -> Any:
        self.decoded.append((unit.id, rows))
        return super().decode_linear(unit, rows, data)


def changed(made: Converted, tensor: str, at: int, change: Callable[[bytes], bytes]) -> Path:
    """The file in which four bytes of a tensor are others now."""
    path = made.folder / "model.safetensors"
    offset = at + next(p.offset for f in made.plan.files for p in f.tensors if p.tensor == tensor)
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(4)
        file.seek(offset)
        file.write(change(old))
    return path


@pytest.mark.parametrize("place", [None, 0])
def test_verification_looks_at_some_parts_and_at_all_where_one_is_not_as_it_should_be(
    tmp_path: Path, place: int | None
) -> None:
    """`place`: a nested block whose scale is another than was made."""
    asked = Asked()
    model, name = tmp_path / "model", "model.layers.0.mlp.up_proj.weight"
    model.mkdir()
    x = np.random.default_rng(13).standard_normal((1024, 256)).astype(np.float16)
    save_file({name: x}, model / "model.safetensors")
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}')
    made = converted(model, tmp_path / "work", asked, container="bitsandbytes")
    some = [(0, 64), (256, 320), (512, 576), (704, 768), (960, 1024)]
    if place is None:
        assert made.verify().rows == 5 * 64 + 2, "and the two tables"
        assert ([rows for rows, _ in asked.held_rows[:5]], asked.decoded) == (some, [])
        return
    path = changed(made, f"{name}.nested_absmax", 4 * place, lambda _: np.float32(0.75).tobytes())
    with pytest.raises(QconvdError) as caught:
        rehashed(made).verify()
    assert str(caught.value).startswith(f"{path}, tensor {name}: row {64 * place}, column ")
    assert [rows for rows, _ in asked.held_rows] == [some[0], (0, 1024)]
    assert asked.decoded == [(name, (0, 1024))]


@pytest.mark.parametrize("double", [True, False])
def test_verification_asks_it_first_and_then_finds_what_is_wrong(tmp_path: Path, glass: Path, double: bool) -> None:
    asked = Asked()
    made = converted(glass, tmp_path / "work", asked, container="bitsandbytes", double_quant=double)
    report = made.verify()
    said = [found for _, found in asked.held_rows if found is not None]
    assert len(said) >= sum("scheme" in u.options for u in made.plan.units) > 0
    assert report.max_error == max(error for error, _ in said)
    assert not asked.decoded
    name = "model.layers.1.mlp.down_proj.weight"
    path = changed(made, name, 0, lambda old: bytes([old[0] ^ 0x70, *old[1:]]))
    with pytest.raises(QconvdError) as caught:
        rehashed(made).verify()
    assert str(caught.value).startswith(f"{path}, tensor {name}: row 0, column 0 holds ")
    assert "int4 may differ by " in str(caught.value)
    assert [unit for unit, _ in asked.decoded] == [name]
