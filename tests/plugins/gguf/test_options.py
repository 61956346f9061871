"""What recipes may write under `gguf`, its short names, and how model names are taken apart."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from qconvd.engine.plan import NameParts
from qconvd.plugins import plugins
from qconvd_gguf.model_name import Counts, NameOf, parts_of, size_label, title

GGUF = plugins().formats["gguf"]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("q8_0", ("Q8_0",)),
        ("q8_0, Q4_0", ("Q8_0", "Q4_0")),
        ("q8_0 q4_0", ("Q8_0", "Q4_0")),
        (["Q4_0", "q4", "f16"], ("Q4_0", "F16")),
        (["fp16", "bf16", "FP32"], ("F16", "BF16", "F32")),
        (["q5", "q8"], ("Q5_0", "Q8_0")),
        ("q4_k, q5_k q3_k mxfp4", ("Q4_K_M", "Q5_K_M", "Q3_K_M", "MXFP4_MOE")),
        (["q4_k_m", "Q4_K", "q4_k_l", "iq4_xs"], ("Q4_K_M", "Q4_K_L", "IQ4_XS")),
    ],
)
def test_types_as_people_write_them(given: Any, names: tuple[str, ...]) -> None:
    assert GGUF.Options.model_validate({"types": given}).types == names
    if isinstance(given, str):
        assert GGUF.Options.model_validate(GGUF.from_text(given)).types == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"types": ["q4_km"]}, "gguf has no type 'q4_km' (did you mean q4_k_m?)"),
        ({"types": ["awq"]}, "gguf has no type 'awq'; it has f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_k_s"),
        ({"types": []}, "no type is named"),
        ({"types": " "}, "no type is named"),
        ({"types": 4}, "types are a list, e.g. [q8_0, q4_k_m]"),
        ({}, "Field required"),
        ({"types": "q8_0", "output_tensor_type": "q4_k_m"}, "gguf has no tensor type 'q4_k_m' (did you mean q4_k?)"),
        ({"types": "q8_0", "tensor_types": {"ffn": "q4_k_m"}}, "gguf has no tensor type 'q4_k_m' (did you mean q4_k?)"),
        ({"types": "q8_0", "tensor_types": {"ffn(": "q4_k"}}, "'ffn(' is no regular expression: missing ), unterminated"),
        ({"types": "q8_0", "tensor_types": {"": "q4_k"}}, "'' is no pattern; write part of a tensor's name, e.g. ffn_down"),
        (
            {"types": "q8_0", "tensor_types": "ffn=q4_k"},
            "tensor_types is a mapping from patterns to types, e.g. {ffn_down: q8_0}",
        ),
        ({"types": "q4_k_m", "imatrix": "./none.gguf"}, "./none.gguf: is not there"),
        ({"types": "q4_k_m", "imatrix": 4}, "4 is not a path; write for example ./model-imatrix.gguf"),
        ({"types": "q8_0", "pre": ""}, "at least 1 character"),
        ({"types": "q8_0", "typ": 1}, "Extra inputs are not permitted"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        GGUF.Options.model_validate(options)
    assert message in str(caught.value)


def test_text_that_names_no_type_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"gguf has no type 'q9'"):
        GGUF.from_text("q9")


def test_one_artifact_for_each_type() -> None:
    options = GGUF.Options.model_validate({"types": "q8_0, q4_0", "pre": "gpt-2", "output_tensor_type": "q6_k"})
    apart = GGUF.expand(options)
    assert [o.types for o in apart] == [("Q8_0",), ("Q4_0",)]
    assert all(o.pre == "gpt-2" and o.output_tensor_type == "Q6_K" for o in apart)
    assert [GGUF.name_parts(o) for o in apart] == [
        NameParts("gguf", "Q8_0", shared=True),
        NameParts("gguf", "Q4_0", shared=True),
    ]
    assert GGUF.Options.model_validate_json(apart[0].model_dump_json()) == apart[0]


def test_short_names_leave_the_plain_types_to_safetensors() -> None:
    assert {"q4", "q8", "q4_0", "q4_k", "q4_k_m", "q4_k_l", "iq1_s", "tq2_0", "mxfp4_moe"} <= set(GGUF.aliases)
    assert not {"f16", "bf16", "f32"} & set(GGUF.aliases)
    assert all(len(GGUF.Options.model_validate(options).types) == 1 for options in GGUF.aliases.values())


def test_the_schema_lists_the_types_in_both_spellings() -> None:
    items = GGUF.Options.model_json_schema()["properties"]["types"]["items"]["enum"]
    assert {"q4_0", "Q4_0", "bf16", "F32"} <= set(items)


def test_importing_the_plugin_is_light() -> None:
    script = "import qconvd_gguf, qconvd_gguf.format, sys; qconvd_gguf.qconvd_formats(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "qconvd_gguf.format" in loaded
    assert not {"numpy", "numba", "torch", "transformers", "tokenizers", "sentencepiece", "gguf", "safetensors"} & set(loaded)


# What llama.cpp's own rules (gguf-py, metadata.py) say of real names; None of them is made up to fit.
@pytest.mark.parametrize(
    ("name", "parameters", "parts"),
    [
        ("SmolLM2-135M-Instruct", 134_515_008, NameOf("SmolLM2", "135M", "Instruct", None)),
        ("Llama-3.2-1B", 1_235_814_400, NameOf("Llama-3.2", "1B", None, None)),
        ("Meta-Llama-3-8B-Instruct", 8_030_261_248, NameOf("Meta-Llama-3", "8B", "Instruct", None)),
        ("Mistral-7B-Instruct-v0.3", 7_248_023_552, NameOf("Mistral", "7B", "Instruct", "v0.3")),
        ("Phi-3-mini-4k-instruct", 3_821_079_552, NameOf("Phi-3", "mini", "4k-instruct", None)),
        ("bloom-7b1-petals", 7_069_016_064, NameOf("bloom", "7.1B", "petals", None)),
        ("Mixtral-8x7B-v0.1", 46_702_792_704, NameOf("Mixtral", "8x7B", None, "v0.1")),
        ("gpt2", 124_439_808, NameOf()),
        ("my model-7B", 7_000_000_000, NameOf()),
        ("gpt2-xl", 1_557_611_200, NameOf("gpt2", "xl", None, None)),
    ],
)
def test_model_names_are_taken_apart_as_llama_cpp_does(name: str, parameters: int, parts: NameOf) -> None:
    from gguf import Metadata

    assert parts_of(name, parameters) == parts
    _, _, basename, finetune, version, size = Metadata.get_model_id_components(name, parameters)
    assert parts == NameOf(basename, size, finetune, version)


@pytest.mark.parametrize("name", ["tiny-llama v1", "SmolLM2-135M", "a--b", "llama-v2.1-7b", "smollm2"])
def test_titles_are_llama_cpps(name: str) -> None:
    from gguf import Metadata

    assert title(name) == Metadata.id_to_title(name)


@pytest.mark.parametrize(
    "parameters", [0, 999, 852_608, 1_000_000, 9_949_999, 134_515_008, 1_235_814_400, 70_553_706_496, 1_040_000_000_000]
)
def test_size_labels_are_llama_cpps(parameters: int) -> None:
    from gguf import size_label as theirs

    assert size_label(Counts(parameters)) == theirs(parameters, parameters, 0, 0)


def test_a_mixtures_size_label_counts_one_expert() -> None:
    from gguf import size_label as theirs

    counts = Counts.of({"token_embd.weight": (32000, 4096), "blk.0.ffn_up_exps.weight": (8, 14336, 4096)})
    assert counts == Counts(32000 * 4096 + 8 * 14336 * 4096, 8, 32000 * 4096 + 14336 * 4096)
    assert size_label(counts) == theirs(counts.weights, 32000 * 4096, 14336 * 4096, 8) == "8x190M"
