"""The spike: five units that later formats need, as plan data. They survive JSON, know their shapes, and can be evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qconvd.api import (
    Affine,
    Cast,
    Constant,
    ContainerSpec,
    Expr,
    FileSpec,
    ModelInfo,
    Named,
    NameParts,
    OutputTensor,
    Plan,
    Read,
    Reshape,
    RowSplit,
    SideFile,
    Slice,
    Stack,
    StatRequest,
    Transpose,
    Unit,
    Whole,
    reads,
    row_bytes,
    rows_columns,
)
from qconvd.engine.elements import to_float32
from qconvd.engine.evaluate import rows
from qconvd.engine.plan import from_json, to_json, unit_from_json, unit_to_json
from qconvd.engine.regions import needs
from qconvd.engine.source import Source
from tiny import random_bytes, raw_model

HIDDEN, INTER, EXPERTS = 64, 96, 4
HEADS, NOPE, VALUE, RANK = 4, 24, 16, 32
LAYER = "model.layers.3."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    tensors = {
        **{f"{LAYER}block_sparse_moe.experts.{e}.w1.weight": ("BF16", (INTER, HIDDEN)) for e in range(EXPERTS)},
        f"{LAYER}self_attn.kv_b_proj.weight": ("BF16", (HEADS * (NOPE + VALUE), RANK)),
        f"{LAYER}mlp.down_proj.weight": ("BF16", (HIDDEN, INTER)),
        f"{LAYER}input_layernorm.weight": ("BF16", (HIDDEN,)),
        f"{LAYER}self_attn.q_proj.weight": ("BF16", (HIDDEN, HIDDEN)),
        f"{LAYER}self_attn.k_proj.weight": ("BF16", (HIDDEN // 2, HIDDEN)),
    }
    return raw_model(tmp_path_factory.mktemp("model"), {"model.bin": tensors})


def read(model: ModelInfo, name: str) -> Read:
    return Read.of(model.tensors[LAYER + name])


def numbers(model: ModelInfo, name: str) -> Any:
    """A BF16 tensor as bits, in its shape."""
    t = model.tensors[LAYER + name]
    return np.frombuffer((model.path / t.file).read_bytes(), "<u2", t.nbytes // 2, t.offset).reshape(t.shape)


def mixtral_experts(model: ModelInfo) -> Unit:
    """n -> 1: the experts' w1, stacked, in a block type of GGUF."""
    xs = tuple(read(model, f"block_sparse_moe.experts.{e}.w1.weight") for e in range(EXPERTS))
    shape = (EXPERTS, INTER, HIDDEN)
    output = OutputTensor("blk.3.ffn_gate_exps.weight", "Q4_0", shape, EXPERTS * INTER * row_bytes("Q4_0", HIDDEN))
    return Unit(output.name, 3, (Stack(xs),), (output,), options={"type": "Q4_0"})


def deepseek_mla(model: ModelInfo) -> tuple[Unit, Unit]:
    """1 -> 2 units: kv_b_proj holds, per head, the key's rows and the value's; GGUF wants the key's part transposed."""
    heads = Reshape(read(model, "self_attn.kv_b_proj.weight"), (HEADS, NOPE + VALUE, RANK))
    k_b, v_b = Transpose(Slice(heads, 1, 0, NOPE)), Slice(heads, 1, NOPE, NOPE + VALUE)
    return gguf_unit("blk.3.attn_k_b.weight", k_b), gguf_unit("blk.3.attn_v_b.weight", v_b)


def gguf_unit(name: str, x: Expr) -> Unit:
    rows_, columns = rows_columns(x.shape)
    return Unit(name, 3, (x,), (OutputTensor(name, x.dtype, x.shape, rows_ * row_bytes(x.dtype, columns)),))


def gptq_linear(model: ModelInfo, bits: int = 4, group: int = 32) -> Unit:
    """1 -> 4 with a Hessian: packed along the inputs, so rows of the source are no rows of the outputs: one piece."""
    x = read(model, "mlp.down_proj.weight")
    out, inputs = x.shape
    name = LAYER + "mlp.down_proj"
    outputs = (
        OutputTensor(f"{name}.qweight", "I32", (inputs * bits // 32, out), inputs * bits // 32 * out * 4),
        OutputTensor(f"{name}.qzeros", "I32", (inputs // group, out * bits // 32), inputs // group * out * bits // 8),
        OutputTensor(f"{name}.scales", "F16", (inputs // group, out), inputs // group * out * 2),
        OutputTensor(f"{name}.g_idx", "I32", (inputs,), inputs * 4),
    )
    return Unit(
        name, 3, (Cast(x, "F32"),), outputs, Whole(), (StatRequest(name, "hessian"),),
        {"cpu": 2 * 4 * inputs**2, "cuda": 3 * 4 * inputs**2}, {"bits": bits, "group_size": group, "desc_act": True},
    )  # fmt: skip


def awq_pair(model: ModelInfo) -> Unit:
    """n -> n with mean squares: the norm is divided by the scales that the linears behind it are multiplied with."""
    xs = tuple(read(model, n) for n in ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "input_layernorm.weight"))
    outputs = [
        OutputTensor(f"{x.tensor[:-7]}.{kind}", dtype, shape, size) for x in xs[:2] for kind, dtype, shape, size in packed(x)
    ]
    norm = OutputTensor(xs[2].tensor, "F16", xs[2].shape, 2 * HIDDEN)
    requests = tuple(StatRequest(x.tensor[:-7], "mean_square") for x in xs[:2])
    return Unit(
        f"{LAYER}awq.input_layernorm", 3, xs, (*outputs, norm), Whole(), requests, options={"grid": 20, "group_size": 32}
    )


def packed(x: Read) -> list[tuple[str, str, tuple[int, ...], int]]:
    out, inputs = x.shape
    return [
        ("qweight", "I32", (inputs, out // 8), inputs * out // 2),
        ("qzeros", "I32", (inputs // 32, out // 8), inputs // 32 * out // 2),
        ("scales", "F16", (inputs // 32, out), inputs // 32 * out * 2),
    ]


def awq_folded(model: ModelInfo, scales: bytes) -> tuple[Unit, Unit]:
    """The same fold with known scales is data-free: an operation by name for the linear, arithmetic for the norm."""
    known = Constant.of("F32", (HIDDEN,), scales)
    w, norm = read(model, "self_attn.q_proj.weight"), read(model, "input_layernorm.weight")
    linear = Named("awq.scale_columns", (w, known), w.shape, "F32")
    divided = Named("awq.divide", (Affine(norm, 1.0, 1.0), known), norm.shape, "F32")
    return gguf_unit("w", linear), gguf_unit("norm", divided)


def bitsandbytes_nf4(model: ModelInfo, block: int = 64) -> tuple[Unit, Unit]:
    """1 -> 2 by rows, and the table that belongs to it from a constant: what is no share of the rows is a unit of its own."""
    x = read(model, "mlp.down_proj.weight")
    name, count = x.tensor, HIDDEN * INTER
    multiple = block // np.gcd(block, INTER)
    data = (
        OutputTensor(name, "U8", (count // 2, 1), count // 2),
        OutputTensor(f"{name}.absmax", "F32", (count // block,), count // block * 4),
    )
    table = np.linspace(-1, 1, 16, dtype="<f4").tobytes()
    quant_map = OutputTensor(f"{name}.quant_map", "F32", (16,), 64)
    state = OutputTensor(f"{name}.quant_state.bitsandbytes__nf4", "U8", (80,), 80)
    constant = Unit(
        f"{name}.tables", 3, (Constant.of("F32", (16,), table),), (quant_map, state), Whole(), options={"blocksize": block}
    )
    return Unit(name, 3, (x,), data, RowSplit(int(multiple)), options={"blocksize": block}), constant


def bitsandbytes_nested(model: ModelInfo) -> Unit:
    """1 -> 6 in one piece: with double quantization the scales are quantized over the whole tensor."""
    x = read(model, "mlp.down_proj.weight")
    sizes = {"": ("U8", (HIDDEN * INTER // 2, 1)), ".absmax": ("U8", (96,)), ".nested_absmax": ("F32", (1,)),
             ".nested_quant_map": ("F32", (256,)), ".quant_map": ("F32", (16,)), ".quant_state": ("U8", (120,))}  # fmt: skip
    outputs = tuple(
        OutputTensor(x.tensor + n, dtype, shape, int(np.prod(shape)) * row_bytes(dtype, 1))
        for n, (dtype, shape) in sizes.items()
    )
    return Unit(x.tensor, 3, (x,), outputs, Whole(), memory={"cpu": 4 * HIDDEN * INTER})


def all_units(model: ModelInfo) -> list[Unit]:
    scales = np.linspace(0.5, 2, HIDDEN, dtype="<f4").tobytes()
    return [
        mixtral_experts(model), *deepseek_mla(model), gptq_linear(model), awq_pair(model), *awq_folded(model, scales),
        *bitsandbytes_nf4(model), bitsandbytes_nested(model),
    ]  # fmt: skip


def test_the_units_go_through_json_unchanged(model: ModelInfo) -> None:
    for unit in all_units(model):
        data = unit_to_json(unit)
        again = unit_from_json(data)
        assert again == unit
        assert unit_to_json(again) == data
        assert [(x.dtype, x.shape) for x in again.inputs] == [(x.dtype, x.shape) for x in unit.inputs]
        assert repr(again.inputs) == repr(unit.inputs), "the engine tells expressions apart by this"


def test_a_whole_plan_goes_through_json_unchanged(model: ModelInfo) -> None:
    from tiny import plan

    units = [mixtral_experts(model), *deepseek_mla(model), gptq_linear(model)]
    assert from_json(to_json(plan(units))) == plan(units)


def test_mixtral_experts(model: ModelInfo) -> None:
    unit = mixtral_experts(model)
    assert unit.shape == (EXPERTS * INTER, HIDDEN)
    assert (unit.inputs[0].dtype, unit.inputs[0].shape) == ("BF16", (EXPERTS, INTER, HIDDEN))
    assert len(reads(unit.inputs[0])) == EXPERTS
    experts = [numbers(model, f"block_sparse_moe.experts.{e}.w1.weight") for e in range(EXPERTS)]
    with Source(model) as source:
        found = rows(unit.inputs[0], INTER - 2, 2 * INTER + 1, source, {})
        assert source.bytes_read == (INTER + 3) * HIDDEN * 2
    np.testing.assert_array_equal(found, np.concatenate(experts)[INTER - 2 : 2 * INTER + 1])


def test_deepseek_mla(model: ModelInfo) -> None:
    key, value = deepseek_mla(model)
    assert key.outputs[0].shape == (HEADS, RANK, NOPE)
    assert value.outputs[0].shape == (HEADS, VALUE, RANK)
    heads = numbers(model, "self_attn.kv_b_proj.weight").reshape(HEADS, NOPE + VALUE, RANK)
    with Source(model) as source:
        whole = rows(key.inputs[0], 0, HEADS * RANK, source, {})
        np.testing.assert_array_equal(whole, heads[:, :NOPE].swapaxes(1, 2).reshape(-1, NOPE))
        np.testing.assert_array_equal(rows(key.inputs[0], 30, 70, source, {}), whole[30:70])
        np.testing.assert_array_equal(rows(value.inputs[0], 5, 40, source, {}), heads[:, NOPE:].reshape(-1, RANK)[5:40])
        both = needs(key.inputs[0], 0, HEADS * RANK, {}) + needs(value.inputs[0], 0, HEADS * VALUE, {})
        assert sum(n.nbytes for n in both) == heads.nbytes, "each byte goes to one of the two"


def test_gptq_linear(model: ModelInfo) -> None:
    unit = gptq_linear(model)
    assert [(o.name.rpartition(".")[2], o.dtype, o.shape) for o in unit.outputs] == [
        ("qweight", "I32", (12, 64)), ("qzeros", "I32", (3, 8)), ("scales", "F16", (3, 64)), ("g_idx", "I32", (96,)),
    ]  # fmt: skip
    for output in unit.outputs:
        assert output.nbytes == int(np.prod(output.shape)) * row_bytes(output.dtype, 1)
    assert unit.statistics == (StatRequest(LAYER + "mlp.down_proj", "hessian"),)
    assert unit_from_json(unit_to_json(unit)).memory["cuda"] == 3 * 4 * INTER**2


def test_awq_pair(model: ModelInfo) -> None:
    unit = awq_pair(model)
    assert len(unit.inputs) == 3
    assert len(unit.outputs) == 7
    assert {r.kind for r in unit.statistics} == {"mean_square"}
    assert unit.shape == (HIDDEN, HIDDEN)


class Fold:
    """What AWQ's plugin would register: columns times scales, or a norm divided by them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def rows(self, shapes: Sequence[tuple[int, ...]], _: Mapping[str, Any], start: int, stop: int) -> list[tuple[int, int]]:
        assert shapes[1] == (HIDDEN,)
        return [(start, stop), (0, 1)]

    def apply(self, x: Sequence[Any], _: Mapping[str, Any], start: int, stop: int) -> Any:
        assert len(x[0]) == stop - start
        return to_float32(x[0], "BF16") * x[1] if self.name == "awq.scale_columns" else x[0] / x[1]


def test_awq_with_known_scales(model: ModelInfo) -> None:
    scales = np.random.default_rng(1).uniform(0.5, 2, HIDDEN).astype("<f4")
    linear, norm = awq_folded(model, scales.tobytes())
    operations = {n: Fold(n) for n in ("awq.scale_columns", "awq.divide")}
    w = to_float32(numbers(model, "self_attn.q_proj.weight"), "BF16")
    g = to_float32(numbers(model, "input_layernorm.weight"), "BF16")
    with Source(model) as source:
        np.testing.assert_array_equal(rows(linear.inputs[0], 7, 20, source, operations), (w * scales)[7:20])
        assert source.bytes_read == 13 * HIDDEN * 2, "rows of a named operation need no more than its rows"
        np.testing.assert_array_equal(rows(norm.inputs[0], 0, 1, source, operations)[0], (g + np.float32(1)) / scales)


def test_bitsandbytes_nf4(model: ModelInfo) -> None:
    data, tables = bitsandbytes_nf4(model)
    assert isinstance(data.rows, RowSplit)
    assert data.rows.multiple * INTER % 64 == 0, "a chunk is whole blocks"
    for output in data.outputs:
        assert output.nbytes * data.rows.multiple % data.shape[0] == 0
    with Source(model) as source:
        bits = rows(data.inputs[0], 0, HIDDEN, source, {})
        np.testing.assert_array_equal(bits, numbers(model, "mlp.down_proj.weight"))
        np.testing.assert_array_equal(rows(tables.inputs[0], 0, 1, source, {})[0], np.linspace(-1, 1, 16, dtype="<f4"))
    nested = bitsandbytes_nested(model)
    assert isinstance(nested.rows, Whole)
    assert sum(o.nbytes for o in nested.outputs) == HIDDEN * INTER // 2 + 96 + 4 + 1024 + 64 + 120


def test_random_bytes_have_the_size_of_their_type() -> None:
    assert len(random_bytes(np.random.default_rng(0), "Q8_0", (3, 64))) == 3 * 68


def test_a_plan_gets_its_names_last() -> None:
    files = (FileSpec("{stem}.safetensors", 9, ()),)
    sides = (SideFile("{stem}.safetensors.index.json", 2, text="{}"), SideFile("config.json", 2, text="{}"))
    plan = Plan(ContainerSpec("safetensors"), files, (), NameParts("fp16", "fp16"), side_files=sides)
    named = plan.named("glass")
    assert [f.path for f in named.files] == ["glass.safetensors"]
    assert [f.path for f in named.side_files] == ["glass.safetensors.index.json", "config.json"]
    assert replace(plan, files=()).named("glass").files == ()
