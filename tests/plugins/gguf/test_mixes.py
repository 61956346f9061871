"""Which type each tensor gets, against what llama-quantize itself chose: for shapes of every kind, and for whole files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import gguf_mixes
from qconvd.errors import Unsupported
from qconvd_gguf.file_types import ALIASES, FILE_TYPES, NEEDS_IMATRIX, PLAIN, WEIGHT_TYPES, WEIGHTED
from qconvd_gguf.mixes import Tensor, Traits, Wish, check_imatrix, choose, convert, file_order, traits_of
from qconvd_gguf.mixes.roles import always_f32

OPTIONS: dict[str, Wish] = {
    "pure": Wish("Q4_K_M", pure=True),
    "leave": Wish("Q4_K_M", keep_output=True),
    "large": Wish("Q4_K_L"),
    "output": Wish("IQ2_M", output="Q5_1"),
    "patterns": Wish("Q4_K_M", overrides=(("ffn_down", "Q6_K"), (r"blk\.[13]\.", "Q5_K"), ("attn", "Q3_K"))),
    "pure patterns": Wish("Q2_K", overrides=(("token_embd", "Q5_K"), ("output", "Q6_K")), pure=True),
}


def load(path: Path) -> Any:
    with gzip.open(path) as file:
        return json.load(file)


@pytest.mark.parametrize("kind", gguf_mixes.MODELS)
def test_every_tensor_gets_llama_quantizes_type(kind: str, golden: Path) -> None:
    theirs = load(golden / "mixes.json.gz")[kind]
    model = gguf_mixes.MODELS[kind]
    shapes = gguf_mixes.tensors(model)
    traits = traits_of(gguf_mixes.metadata(model))
    assert list(shapes) == file_order(list(shapes))
    tensors = [Tensor(n, s, gguf_mixes.source_dtype(n, s)) for n, s in shapes.items()]
    for label, types in theirs.items():
        preset = label.removesuffix(".imatrix")
        wish = OPTIONS[label] if label in OPTIONS else Wish(preset, imatrix=label.endswith(".imatrix"))
        chosen = choose(tensors, wish, traits)
        ours = {name: chosen[name].dtype for name in shapes}
        wanted = dict(zip(shapes, types, strict=True))
        if (kind, label) == ("odd", "large"):
            # Nothing falls back there from a type that an option names: llama-quantize would fail on these rows of 80.
            wanted["token_embd.weight"] = "F16"
        assert {n: (ours[n], wanted[n]) for n in ours if ours[n] != wanted[n]} == {}, label


def test_the_record_covers_every_preset(golden: Path) -> None:
    presets = {name for name, type_ in FILE_TYPES.items() if name not in PLAIN and not type_.mix}
    assert presets == set(gguf_mixes.PRESETS)
    for kind, records in load(golden / "mixes.json.gz").items():
        assert set(records) == {p + s for p in presets for s in ("", ".imatrix")} | set(OPTIONS), kind
    # A rule that no model of the record reaches would be tested by nothing: between them they use every type.
    used = {t for records in load(golden / "mixes.json.gz").values() for types in records.values() for t in types}
    assert used == set(WEIGHT_TYPES) - {"BF16"}


@pytest.mark.parametrize(
    "record", ["smollm2", "random_llama", "random_llama-tied", "random_mixtral", "random_qwen3moe", "random_gpt2"]
)
def test_whole_files_have_llama_cpps_types(record: str, golden: Path) -> None:
    """From the shapes in the record alone: families and kernels have no part in it."""
    types = load(golden / f"{record}_gguf.json.gz")["types"]
    held = types["BF16"]["tensors"]
    assert len(types) > 10
    for label, file in types.items():
        if label == "BF16":
            continue
        preset = label.removesuffix(".imatrix")
        traits = traits_of(file["metadata"])
        tensors = [Tensor(name, tuple(reversed(shape)), held[name][0]) for name, (_, shape, _) in file["tensors"].items()]
        chosen = choose(tensors, Wish(preset, imatrix=label.endswith(".imatrix")), traits)
        assert {n: c.dtype for n, c in chosen.items()} == {n: t[0] for n, t in file["tensors"].items()}, label
        assert file["metadata"]["general.file_type"] == FILE_TYPES[preset].number


def test_traits_come_from_the_metadata() -> None:
    keys = {"general.architecture": "llama", "llama.block_count": 80, "llama.attention.head_count": 64}
    assert traits_of(keys) == Traits("llama", 80, group=1)
    assert traits_of(keys | {"llama.attention.head_count_kv": 8}) == Traits("llama", 80, 8, shared_values=True)
    per_layer = keys | {"llama.attention.head_count_kv": [16, 8], "llama.expert_count": 8}
    assert traits_of(per_layer) == Traits("llama", 80, group=4, experts=8)
    assert traits_of({"general.architecture": "mamba", "mamba.block_count": 4}) == Traits("mamba", 4, group=0)


LLAMA = Traits("llama", 2)
SQUARE = (256, 256)


def types(wish: Wish, traits: Traits = LLAMA, **shapes: tuple[int, ...]) -> dict[str, tuple[str, str]]:
    named = {name.replace("__", "."): shape for name, shape in shapes.items()}
    tensors = [Tensor(name, shape, "F32" if always_f32(name, shape) else "BF16") for name, shape in named.items()]
    return {name: (c.dtype, c.reason) for name, c in choose(tensors, wish, traits).items()}


def test_counts_that_are_no_whole_numbers_are_as_good_as_missing() -> None:
    for wrong in (float("inf"), float("nan"), 2.0, "2", [float("inf")]):
        said = {"general.architecture": "llama", "llama.block_count": wrong, "llama.attention.head_count": wrong}
        assert traits_of(said) == traits_of({"general.architecture": "llama"})


def test_the_community_variants_have_q8_0_at_both_ends() -> None:
    for name in ("Q2_K_L", "Q3_K_XL", "Q4_K_L", "Q5_K_L", "Q6_K_L"):
        found = types(Wish(name), token_embd__weight=SQUARE, output__weight=SQUARE, blk__0__attn_q__weight=SQUARE)
        assert found["token_embd.weight"] == found["output.weight"] == ("Q8_0", f"{name} has Q8_0 there")
        assert found["blk.0.attn_q.weight"] == (FILE_TYPES[name].dtype, "")
        assert types(Wish(name), token_embd__weight=SQUARE) == {"token_embd.weight": ("Q8_0", f"{name} has Q8_0 there")}
        assert FILE_TYPES[name].number == FILE_TYPES[FILE_TYPES[name].mix].number
    asked = types(Wish("Q4_K_L", output="Q6_K"), token_embd__weight=SQUARE, output__weight=SQUARE)
    assert asked["output.weight"] == ("Q6_K", "output_tensor_type asks for it")


def test_tensors_that_are_left_keep_the_models_type() -> None:
    found = types(
        Wish("Q4_K_M"), blk__0__attn_norm__weight=(256,), blk__0__attn_q__bias=(256,), blk__0__ffn_gate_inp__weight=(4, 256),
        enc__blk__0__attn_rel_b__weight=(4, 32), position_embd__weight=SQUARE, blk__0__altup_proj__weight=(3, 256, 256),
        blk__0__ssm_conv1d__weight=(256, 4),
    )  # fmt: skip
    left = ("BF16", "llama-quantize leaves such tensors as they are")
    read = ("F32", "readers expect it as F32")
    assert found == {
        "blk.0.attn_norm.weight": ("F32", ""), "blk.0.attn_q.bias": ("F32", ""), "blk.0.ffn_gate_inp.weight": read,
        "enc.blk.0.attn_rel_b.weight": left, "position_embd.weight": read, "blk.0.altup_proj.weight": left,
        "blk.0.ssm_conv1d.weight": read,
    }  # fmt: skip


def test_plain_files_are_the_converters() -> None:
    tensors = [
        Tensor(n, (4, 30), "F16") for n in ("a.weight", "blk.0.attn_rel_b.weight", "blk.0.ffn_gate_inp.weight", "b.bias")
    ]
    found = {name: (c.dtype, c.reason) for name, c in convert([*tensors, Tensor("n.weight", (4,), "F16")], "BF16").items()}
    read = ("F32", "readers expect it as F32")
    assert found == {
        "a.weight": ("BF16", ""), "blk.0.attn_rel_b.weight": ("BF16", ""), "blk.0.ffn_gate_inp.weight": read, "b.bias": read,
        "n.weight": ("F32", ""),
    }  # fmt: skip


def test_reasons_say_who_decided() -> None:
    found = types(
        Wish("Q4_K_M", overrides=(("attn_k", "Q8_0"),)), output__weight=SQUARE, blk__0__attn_k__weight=SQUARE,
        blk__0__attn_v__weight=SQUARE, blk__0__ffn_down__weight=(256, 96), blk__0__ffn_up__weight=(256, 24),
    )  # fmt: skip
    assert found == {
        "output.weight": ("Q6_K", "the output layer gets more bits"),
        "blk.0.attn_k.weight": ("Q8_0", "tensor_types asks for it: attn_k"),
        "blk.0.attn_v.weight": ("Q6_K", "the mix Q4_K_M has another type for attention values"),
        "blk.0.ffn_down.weight": ("Q5_0", "rows of 96 weights are no multiple of Q4_K's block of 256"),
        "blk.0.ffn_up.weight": ("F16", "rows of 24 weights are no multiple of Q4_K's block of 256"),
    }


def test_a_pattern_that_changes_nothing_is_an_error() -> None:
    shapes = {"blk__0__attn_norm__weight": (256,), "blk__0__attn_q__weight": SQUARE}
    for pattern in ("attn_norm", "ffn_dwon"):
        message = f"tensor_types: '{pattern}' is found in no name of a tensor that is quantized"
        with pytest.raises(Unsupported, match=message) as caught:
            types(Wish("Q4_K_M", overrides=(("attn_q", "Q6_K"), (pattern, "Q8_0"))), **shapes)
        assert caught.value.fix == "those of this model, and as in layer 0 in every layer: blk.0.attn_q.weight"


def test_types_that_need_an_imatrix_are_refused_without() -> None:
    tensors = [Tensor(n, SQUARE, "BF16") for n in ("token_embd.weight", "output.weight", "blk.0.attn_q.weight")]
    for wish in (Wish("IQ2_XS"), Wish("Q2_K_S"), Wish("Q4_K_M", overrides=(("attn_q", "IQ1_S"),)), Wish("IQ3_XXS")):
        with pytest.raises(Unsupported) as caught:
            check_imatrix(choose(tensors, wish, LLAMA), wish)
        assert f"{wish.file} needs an importance matrix: without one blk.0.attn_q.weight would be useless" in str(caught.value)
        assert "say `imatrix: auto`, give `imatrix:` a file made of this model by llama-imatrix" in str(caught.value)
    # llama-quantize's exceptions: embeddings and output layer, and Q2_K everywhere but in Q2_K_S.
    for wish in (Wish("Q2_K"), Wish("IQ3_S"), Wish("IQ4_XS"), Wish("Q8_0", output="IQ2_S", embedding="IQ1_M")):
        check_imatrix(choose(tensors, wish, LLAMA), wish)
    rows_of_32 = [Tensor("blk.0.attn_q.weight", (4, 96), "BF16")]
    check_imatrix(choose(rows_of_32, Wish("IQ2_XS"), LLAMA), Wish("IQ2_XS"))


def test_the_tables_of_names_agree() -> None:
    assert {t.dtype for t in FILE_TYPES.values()} | {t.ends for t in FILE_TYPES.values() if t.ends} <= set(WEIGHT_TYPES)
    assert set(ALIASES.values()) <= set(FILE_TYPES)
    assert NEEDS_IMATRIX < WEIGHTED < set(WEIGHT_TYPES)
    assert {t.mix for t in FILE_TYPES.values() if t.mix} <= set(FILE_TYPES)
