"""compressed-tensors' own files, and what it makes of them itself: the same numbers as ours, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_files import CONFIG
from converted import converted
from quantized_models import fp8, write_quantized

pytestmark = pytest.mark.readers
NAME = "model.layers.0.self_attn.q_proj"
PACKED = ("PackedQuantizationCompressor", "pack-quantized")
CASES: dict[str, tuple[tuple[str, str], dict[str, Any]]] = {
    **{
        f"{bits} bits, {strategy}{'' if symmetric else ', asymmetric'}": (
            PACKED,
            dict(num_bits=bits, type="int", strategy=strategy, symmetric=symmetric)
            | ({"group_size": 32} if strategy == "group" else {}),
        )
        for bits in (2, 3, 4, 5, 8)
        for strategy in ("group", "channel")
        for symmetric in (True, False)
    },
    "int8": (
        ("IntQuantizationCompressor", "int-quantized"),
        dict(num_bits=8, type="int", strategy="channel", symmetric=True),
    ),
    **{
        f"float8, {strategy}": (
            ("FloatQuantizationCompressor", "float-quantized"),
            dict(num_bits=8, type="float", strategy=strategy, symmetric=True)
            | ({"block_structure": [128, 128]} if strategy == "block" else {}),
        )
        for strategy in ("channel", "tensor", "block")
    },
}


@pytest.mark.parametrize("case", CASES)
def test_compressed_tensors_decompresses_to_the_same_numbers(tmp_path: Path, case: str) -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    (compressor, format), arguments = CASES[case]
    args = quantization.QuantizationArgs(**arguments)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    dice = torch.Generator().manual_seed(7)
    rows, columns = 192, 320
    shapes = {"group": (rows, columns // 32), "channel": (rows, 1), "tensor": (1,), "block": (2, 3)}
    shape, half = shapes[arguments["strategy"]], 1 << (arguments["num_bits"] - 1)
    floats = arguments["type"] == "float"
    zeros = torch.zeros(shape, dtype=torch.float8_e4m3fn if floats else torch.int8)
    if not arguments["symmetric"]:
        zeros = torch.randint(-half, half, shape, generator=dice).to(torch.int8)
    state = {
        "weight": torch.randn(rows, columns, generator=dice).bfloat16(),
        "weight_scale": ((torch.rand(shape, generator=dice) + 3) / (448 if floats else half)).bfloat16(),
        "weight_zero_point": zeros,
    }
    reference = getattr(compressors, compressor)
    packed = reference.compress(dict(state), scheme)
    wanted = reference.decompress(dict(packed), scheme)["weight"]
    said = {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args.model_dump(mode="json")}},
    }
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": said}))
    save_file({f"{NAME}.{name}": part.contiguous() for name, part in packed.items()}, tmp_path / "m" / "model.safetensors")
    made = converted(tmp_path / "m", tmp_path / "out", "fp16", dtype="bf16")
    assert torch.equal(load_file(made.folder / "model.safetensors")[f"{NAME}.weight"], wanted)


def test_transformers_dequantizes_fp8_in_blocks_to_the_same_numbers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    said = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
    write_quantized(tmp_path / "m", fp8(32, 32), said)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m",
        dtype=torch.bfloat16,
        quantization_config=transformers.FineGrainedFP8Config(dequantize=True, weight_block_size=(32, 32)),
    ).state_dict()
    ours = load_file(converted(tmp_path / "m", tmp_path / "out", "fp16", dtype="bf16").folder / "model.safetensors")
    for name, weight in ours.items():
        assert torch.equal(theirs[name], weight), name
