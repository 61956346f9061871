"""What a recipe may say, what it comes to, and what is said of mistakes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from qconvd.errors import ConfigError
from qconvd.targets import resolve, resolve_target
from qconvd_compressed.formats import Fp8, Int4, Int8
from qconvd_compressed.options import Int4Options, Int8Options

FORMATS = {f.name: f for f in (Int8(), Int4(), Fp8())}


@pytest.mark.parametrize(
    ("format", "options", "variants"),
    [
        ("int8", {}, ["int8"]),
        ("int8", {"scheme": ["w8a16", "w8a8"]}, ["int8", "int8-w8a8"]),
        ("int8", {"container": "bitsandbytes"}, ["bnb-8bit"]),
        ("int4", {}, ["int4"]),
        (
            "int4",
            {"group_size": [32, 64, 128, -1], "sym": False},
            ["int4-32g-asym", "int4-64g-asym", "int4-asym", "int4-channel-asym"],
        ),
        ("int4", {"container": "bitsandbytes", "type": ["nf4", "fp4"]}, ["bnb-4bit", "bnb-4bit-fp4"]),
        ("int4", {"container": "bitsandbytes", "double_quant": False}, ["bnb-4bit-single"]),
        ("fp8", {"scheme": ["dynamic", "block"]}, ["FP8-dynamic", "FP8-BLOCK"]),
    ],
)
def test_one_artifact_for_each_item_of_a_list(format: str, options: dict[str, Any], variants: list[str]) -> None:
    fmt = FORMATS[format]
    assert [fmt.name_parts(o).variant for o in fmt.expand(fmt.Options(**options))] == variants
    # The ledger keeps options as they are dumped.
    for one in fmt.expand(fmt.Options(**options)):
        assert fmt.Options.model_validate(one.model_dump(mode="json", by_alias=True, exclude_defaults=True)) == one


@pytest.mark.parametrize(
    ("word", "variant", "scheme"),
    [
        ("int8", "int8", "w8a16"),
        ("w8a8", "int8-w8a8", "w8a8"),
        ("bnb-8bit", "bnb-8bit", ""),
        ("int8-w8a8", "int8-w8a8", "w8a8"),
        ("w4a16", "int4", "w4a16"),
        ("int4-32g", "int4-32g", "w4a16-32g"),
        ("int4-64g-asym", "int4-64g-asym", "w4a16-64g-asym"),
        ("int4-channel", "int4-channel", "w4a16-channel"),
        ("int4-asym", "int4-asym", "w4a16-asym"),
        ("nf4", "bnb-4bit", ""),
        ("bnb-4bit", "bnb-4bit", ""),
        ("int4-fp4", "bnb-4bit-fp4", ""),
        ("FP8-dynamic", "FP8-dynamic", ""),
        ("fp8-block", "FP8-BLOCK", ""),
    ],
)
def test_words(word: str, variant: str, scheme: str) -> None:
    (target,) = resolve_target(word)
    assert (target.parts.variant, target.parts.scheme) == (variant, scheme)


@pytest.mark.parametrize(
    ("format", "text", "message"),
    [
        ("int8", "w8", "int8 has no variant 'w8'; write w8a16, w8a8 or bitsandbytes"),
        (
            "int4",
            "16g",
            "int4 has no variant '16g'; write w4a16, a group size such as 64g, channel, either with "
            "-asym, nf4, fp4 or bitsandbytes",
        ),
        ("int4", "", "int4 has no variant ''"),
        ("int4", "32", "int4 has no variant '32'; a group size is written 32g"),
        ("fp8", "static", "fp8 has no variant 'static'; write dynamic or block"),
    ],
)
def test_other_words_are_refused(format: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match="no variant") as caught:
        FORMATS[format].from_text(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"container": "bitsandbytes", "group_size": 64},
            "group_size belongs to `container: compressed-tensors`; leave it out",
        ),
        (
            {"container": "bitsandbytes", "sym": False},
            "sym belongs to `container: compressed-tensors`; leave it out, or say that",
        ),
        ({"type": "fp4"}, "type belongs to `container: bitsandbytes`; leave it out, or say that"),
        ({"double_quant": False}, "double_quant belongs to `container: bitsandbytes`"),
        # Also what is the default: who asks for nf4 does not want W4A16.
        ({"type": "nf4"}, "type belongs to `container: bitsandbytes`; leave it out, or say that"),
        ({"container": "bitsandbytes", "group_size": 128}, "group_size belongs to `container: compressed-tensors`"),
        ({"max_shard_size": 5}, "5 bytes are no size for a file; write it with its unit, e.g. 5GB"),
        ({"group_size": 48}, "Input should be 32, 64, 128 or -1"),
        (
            {"modules": {"down_proj": {"bits": 8}}},
            "down_proj: {'bits': 8} is not `skip`, which is all that can be said of a linear",
        ),
        ({"modules": ["down_proj"]}, "modules is a mapping from patterns, e.g. {down_proj: skip}"),
        ({"modules": {"": "skip"}}, "'' is no pattern; write part of a linear's name, e.g. down_proj"),
        ({"modules": {"(": "skip"}}, "'(' is no regular expression: missing ), unterminated subpattern at position 0"),
        ({"for": "exllama"}, "Input should be 'transformers' or 'vllm'"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Int4Options(**options)
    assert message in str(caught.value)


def test_what_belongs_to_the_other_container_of_int8() -> None:
    for options in ({"container": "bitsandbytes", "scheme": "w8a8"}, {"llm_int8_threshold": 3}):
        with pytest.raises(ValidationError, match="belongs to `container"):
            Int8Options(**options)  # type: ignore[arg-type]


def test_a_threshold_is_a_number() -> None:
    with pytest.raises(ValidationError, match="Input should be a finite number"):
        Int8Options(container="bitsandbytes", llm_int8_threshold=float("inf"))


@pytest.mark.parametrize(
    ("text", "variant"),
    [("int8:w8a8", "int8-w8a8"), ("fp8: block", "FP8-BLOCK"), ("gguf:[q4_0]", "Q4_0"), ("gguf: {types: [q4_0]}", "Q4_0")],
)
def test_a_recipe_takes_what_a_command_line_does(text: str, variant: str) -> None:
    (target,) = resolve_target(text)
    assert target.parts.variant == variant


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"int4": 64}, "int4 has no variant '64'; a group size is written 64g"),
        ({"gptq-4bit": 8}, "'gptq-4bit' already says bits; write `gptq: 8` instead"),
        ("int8:w9", "int8 has no variant 'w9'; write w8a16, w8a8 or bitsandbytes"),
        ("gguf: {types: [q4_0", "'gguf: {types: [q4_0' is not YAML: expected ',' or ']', but got '<stream end>'"),
    ],
)
def test_what_a_recipe_says_wrong_in_text(text: Any, message: str) -> None:
    assert [w.message for w in resolve(text)[1]] == [message]


def test_an_alias_with_a_variant_says_how_to_write_it() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_target({"bnb-4bit": "fp4"})
    assert str(caught.value) == "bnb-4bit: 'bnb-4bit' already says container; write `int4: fp4` instead"


def test_advice_says_when_one_takes_what() -> None:
    assert Int8().advice("int8") == "close to 16 bits in half the space"
    assert Int4().advice("int4-32g") == ""
