"""Bytes against compressed-tensors' and bitsandbytes' own quantizers, computing in float32, for the same settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams

from compressed_models import difficult
from header_models import headers
from qconvd.api import Device
from qconvd_compressed.formats import Fp8, Int4, Int8

pytestmark = pytest.mark.readers
ROWS, COLUMNS = 256, 384
TORCH = {"F16": torch.float16, "BF16": torch.bfloat16}
NAME = "model.layers.0.mlp.up_proj.weight"
DTYPES = pytest.mark.parametrize("dtype", ["BF16", "F16"])


def encoded(fmt: Any, x: np.ndarray, dtype: str, **options: Any) -> dict[str, np.ndarray]:
    """What the plugin makes of one linear, by the names of the tensors after the module's."""
    plan = fmt.plan(headers({NAME: x.shape}, dtype), fmt.Options(**options))
    found = {}
    for unit in plan.units:
        expr = unit.inputs[0]
        given = x if unit.id == NAME else np.frombuffer(expr.payload(), np.uint8).reshape(1, -1)
        if expr.dtype == "F16" and dtype == "BF16":
            given = halves(x, "BF16").half().numpy().view(np.uint16)
        data = fmt.encoder(plan, Device()).encode(unit, (0, len(given)), [given], {}).data
        for output, buffer in zip(unit.outputs, data, strict=True):
            found[output.name.removeprefix("model.layers.0.mlp.up_proj.")] = np.frombuffer(buffer, np.uint8)
    return found


def halves(x: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.from_numpy(x.view(np.int16)).view(TORCH[dtype])


def raw(x: torch.Tensor) -> np.ndarray:
    return x.contiguous().reshape(-1).view(torch.uint8).numpy()


def compress(w: torch.Tensor, format: str, **arguments: Any) -> dict[str, torch.Tensor]:
    """compressed-tensors' own tensors of a weight: range by row, group or block, then its compressor, in float32."""
    args = QuantizationArgs(**arguments)
    groups = w.unsqueeze(1)
    if args.group_size:
        groups = w.unflatten(1, (-1, args.group_size))
    if args.block_structure:
        groups = w.reshape(len(w) // 128, 128, -1, 128).transpose(1, 2).flatten(2)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    # As its kernel for GPUs does, which divides in float32; on a CPU it divides in the type of the weights.
    state = {"weight": w.float(), "weight_scale": scale.float(), "weight_zero_point": zero}
    if args.type == "float":
        state["weight_zero_point"] = zero.float()
    made = BaseCompressor.get_value_from_registry(format).compress(state, scheme)
    return {**made, "weight_scale": scale}


@DTYPES
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
def test_pack_quantized_4_bits(dtype: str, group: Any, symmetric: bool) -> None:
    x = difficult(ROWS, COLUMNS, dtype)
    ours = encoded(Int4(), x, dtype, group_size=group, sym=symmetric)
    strategy = {"strategy": "channel"} if group < 0 else {"strategy": "group", "group_size": group}
    theirs = compress(halves(x, dtype), "pack-quantized", num_bits=4, symmetric=symmetric, **strategy)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert np.array_equal(ours[name], raw(tensor)), name


@DTYPES
def test_8_bits_packed_and_in_bytes(dtype: str) -> None:
    x = difficult(ROWS, COLUMNS, dtype)
    for scheme, format in (("w8a16", "pack-quantized"), ("w8a8", "int-quantized")):
        theirs = compress(halves(x, dtype), format, num_bits=8, strategy="channel")
        ours = encoded(Int8(), x, dtype, scheme=scheme)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert np.array_equal(ours[name], raw(tensor)), name


@DTYPES
@pytest.mark.parametrize("scheme", ["dynamic", "block"])
def test_float_quantized(dtype: str, scheme: Any) -> None:
    x = difficult(ROWS, COLUMNS, dtype)
    more: dict[str, Any] = (
        {"strategy": "channel"} if scheme == "dynamic" else {"strategy": "block", "block_structure": [128, 128]}
    )
    theirs = compress(halves(x, dtype), "float-quantized", num_bits=8, type="float", **more)
    ours = encoded(Fp8(), x, dtype, scheme=scheme)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert np.array_equal(ours[name], raw(tensor)), name


def test_what_compressed_tensors_rounds_twice_on_a_cpu_is_worse_and_one_step_off_at_most() -> None:
    x = difficult(ROWS, COLUMNS, "BF16")
    w = halves(x, "BF16")
    args = QuantizationArgs(num_bits=8, strategy="channel")
    scale, zero = calculate_qparams(w.amin(1, keepdim=True), w.amax(1, keepdim=True), args)
    theirs = quantize(w, scale, zero, args, dtype=torch.int8).float()
    ours = torch.from_numpy(encoded(Int8(), x, "BF16", scheme="w8a8")["weight"].view(np.int8).reshape(x.shape).copy()).float()
    step = (ours - theirs).abs()
    assert step.max() == 1
    assert 0.01 < step.mean() < 0.2
    exact = w.double() / scale.double()
    inside = exact.abs() < 127
    assert ((ours - exact).abs() <= (theirs - exact).abs() + 1e-6)[inside].all()


@DTYPES
def test_llm_int8(dtype: str) -> None:
    x = difficult(ROWS, COLUMNS, dtype)
    codes, largest, _ = bnb.int8_vectorwise_quant(halves(x, dtype).half())
    ours = encoded(Int8(), x, dtype, container="bitsandbytes")
    # Of a row of zeros it makes 0 times infinity.
    whole = largest > 0
    assert np.array_equal(ours["SCB"], raw(largest))
    assert np.array_equal(ours["weight"].reshape(x.shape)[whole], codes.numpy().view(np.uint8)[whole])
    assert not ours["weight"].reshape(x.shape)[~whole].any()
    assert ours["weight_format"].tolist() == [0]


@DTYPES
@pytest.mark.parametrize("columns", [COLUMNS, 341])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_4_bit_types(dtype: str, kind: Any, columns: int) -> None:
    x = difficult(ROWS + 1, columns, dtype)
    packed, state = bnb.quantize_4bit(halves(x, dtype), quant_type=kind)
    theirs = {"weight": packed, **{f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}}
    ours = encoded(Int4(), x, dtype, container="bitsandbytes", type=kind, double_quant=False)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if "quant_state" in name:
            assert read(ours[name]) == read(raw(tensor))
        else:
            assert np.array_equal(ours[name], raw(tensor)), name


@DTYPES
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_double_quantization_takes_the_nearest_where_bitsandbytes_takes_the_one_beside_it(dtype: str, kind: Any) -> None:
    x = difficult(ROWS, COLUMNS, dtype)
    packed, state = bnb.quantize_4bit(halves(x, dtype), quant_type=kind, compress_statistics=True)
    theirs = {"weight": packed, **{f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}}
    ours = encoded(Int4(), x, dtype, container="bitsandbytes", type=kind)
    assert ours.keys() == theirs.keys()
    for name in ("weight", "weight.quant_map", "weight.nested_quant_map"):
        assert np.array_equal(ours[name], raw(theirs[name])), name
    # Its mean has other last digits, and near a middle between two numbers its code for CPUs may take the farther one.
    mine, other = ours["weight.absmax"].astype(int), raw(theirs["weight.absmax"]).astype(int)
    assert np.abs(mine - other).max() <= 1
    assert (mine != other).mean() < 0.01
    moved = (bnb.quantize_4bit(halves(x, dtype), quant_type=kind)[1].absmax - state.offset).double().numpy()
    numbers, scales = state.state2.code.double().numpy(), np.repeat(state.state2.absmax.double().numpy(), 256)
    assert (np.abs(numbers[mine] * scales - moved) <= np.abs(numbers[other] * scales - moved) + 1e-6).all()
    singles: Sequence[np.ndarray] = [
        a.view(np.float32) for a in (ours["weight.nested_absmax"], raw(theirs["weight.nested_absmax"]))
    ]
    assert np.allclose(*singles, rtol=1e-5)
    key = f"weight.quant_state.bitsandbytes__{kind}"
    told, reference = read(ours[key]), read(raw(theirs[key]))
    assert told.pop("nested_offset") == pytest.approx(reference.pop("nested_offset"), rel=1e-6)
    assert told == reference


def read(state: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(state.tobytes().decode())
    return found
