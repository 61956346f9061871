"""What may be said under `gptq`, in which words, and what is told where it makes no sense."""

from __future__ import annotations

from typing import Any

import pytest

from qconvd.errors import ConfigError
from qconvd.ledger.records import options_of
from qconvd.plugins import plugins
from qconvd.targets import resolve_list, resolve_target
from qconvd_gptq.options import GptqOptions


def variants(raw: Any) -> list[str]:
    return [t.parts.variant for t in resolve_target(raw)]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("gptq", ["4bit-128g"]),
        ("gptq-4bit-32g-actorder_True", ["4bit-32g-actorder_True"]),
        ("gptq-8bit-128g", ["8bit-128g"]),
        ({"gptq": "4bit-32g-actorder"}, ["4bit-32g-actorder_True"]),
        ({"gptq": "4bit-32g-actorder_False"}, ["4bit-32g-actorder_False"]),
        ({"gptq": "int8"}, ["8bit-128g"]),
        ({"gptq": "3bit--1g-asym"}, ["3bit-asym"]),
        ({"gptq": "4bit-64g-rtn"}, ["4bit-64g-rtn"]),
        ({"gptq": ["4bit-128g", "8bit-32g"]}, ["4bit-128g", "8bit-32g"]),
        ({"gptq": {"bits": [4, 8], "group_size": [32, -1]}}, ["4bit-32g", "4bit", "8bit-32g", "8bit"]),
        ({"gptq": {"variants": ["4bit-128g", {"bits": 8, "sym": False}], "group_size": 64}}, ["4bit-128g", "8bit-64g-asym"]),
        ({"gptq": {"variants": [{"desc_act": True}], "act_order": "none"}}, ["4bit-128g-actorder_True"]),
        ({"gptq": {"checkpoint_format": "gptq_v2"}}, ["4bit-128g-v2"]),
        ({"gptq": {"checkpoint_format": "gptq", "sym": False}}, ["4bit-128g-asym-v1"]),
    ],
)
def test_variants(raw: Any, expected: list[str]) -> None:
    assert variants(raw) == expected


def test_a_published_variants_name_is_a_word_of_the_command_line() -> None:
    found = resolve_list("gptq-4bit-32g-actorder_True,gptq-8bit-128g,gguf-q4_0")
    assert [t.label for t in found] == ["gptq 4bit-32g-actorder_True", "gptq 8bit-128g", "gguf Q4_0"]


@pytest.mark.parametrize(
    ("given", "order"),
    [
        ({}, "static"),
        ({"desc_act": True}, "desc_act"),
        ({"desc_act": False}, "none"),
        ({"desc_act": True, "static_groups": True}, "static"),
        ({"act_order": "desc_act"}, "desc_act"),
        ({"act_order": "desc_act", "group_size": -1}, "static"),
        ({"method": "rtn"}, "none"),
    ],
)
def test_orders(given: dict[str, Any], order: str) -> None:
    assert GptqOptions.model_validate(given).order == order


def test_what_is_said_of_all_variants_is_not_said_of_one_that_is_rounded() -> None:
    given = {"variants": ["4bit-128g", "4bit-128g-rtn"], "calibration": {"samples": 7}, "act_order": "none", "mse": True}
    solved, rounded = resolve_target({"gptq": given})
    assert options_of(solved)["calibration"] == {"samples": 7}
    assert options_of(rounded).keys() == {"mse", "method"}


@pytest.mark.parametrize(
    ("given", "stored"),
    [({}, "gptq"), ({"sym": False}, "gptq_v2"), ({"sym": False, "checkpoint_format": "gptq"}, "gptq")],
)
def test_zero_points_are_stored_as_readers_take_them(given: dict[str, Any], stored: str) -> None:
    assert GptqOptions.model_validate(given).stored_as == stored


def test_what_the_ledger_keeps_is_read_again() -> None:
    given = {
        "bits": 3, "for": "gptqmodel", "modules": {"down_proj": "skip", "o_proj": {"bits": 8}}, "mse": True,
        "calibration": {"samples": 7},
    }  # fmt: skip
    (target,) = resolve_target({"gptq": given})
    again = plugins().formats["gptq"].Options.model_validate(options_of(target))
    assert again == target.options
    assert target.options.mse == 2.4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("5bit", "gptq has no variant '5bit'; write bits and group size, e.g. 4bit-128g or 4bit-32g-actorder"),
        ({"bits": 5}, "gptq.bits[0]: 5 is none of 2, 3, 4, 8"),
        ({"group_size": 100}, "group_size 100 is none that readers know; take 32, 64 or 128, or -1 for whole rows"),
        ({"static_groups": True}, "static_groups belongs to desc_act: true"),
        ({"desc_act": True, "act_order": "none"}, "act_order says it already; leave out desc_act and static_groups"),
        ({"modules": {"(": "skip"}}, "'(' is no regular expression: missing ), unterminated subpattern at position 0"),
        ({"modules": {"up": "away"}}, "up: 'away' is neither `skip` nor options such as {bits: 8, group_size: 32}"),
        ({"modules": ["up"]}, "modules is a mapping from patterns, e.g. {down_proj: {bits: 8}, gate_proj: skip}"),
        ({"damp": 0.1}, "gptq.damp: there is no key 'damp' here"),
        ({"damp_percent": 2}, "gptq.damp_percent: "),
        (
            {"act_order": True},
            "gptq.act_order: yes does not say which; write `none`, `static` (groups stay contiguous) or "
            "`desc_act` (they do not)",
        ),
        ({"act_order": False}, "gptq.act_order: no does not say which; write `none`, `static` "),
        (
            {"method": "rtn", "calibration": {"samples": 64}},
            "`method: rtn` rounds to nearest, without calibration; leave out calibration",
        ),
        ({"method": "rtn", "damp_percent": 0.1}, "`method: rtn` rounds to nearest, without damping; leave out damp_percent"),
        ({"method": "rtn", "desc_act": True}, "rounds to nearest, without an order of columns; leave out act_order"),
        ("4bit-32g-actorder-rtn", "`method: rtn` rounds to nearest, without an order of columns; leave out act_order"),
        ({"variants": [{"method": "rtn", "calibration": {}}]}, "without calibration; leave out calibration"),
    ],
)  # fmt: skip
def test_mistakes(given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_target({"gptq": given})
    assert message in str(caught.value)


def test_a_wrong_member_is_no_empty_list() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_target({"gptq": {"bits": 5}})
    assert "this is empty" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"gptq\.bits: this is empty; name at least one"):
        resolve_target({"gptq": {"bits": []}})


MARLIN, EXLLAMA, MODEL = "for: vllm-marlin does not load ", "for: exllamav2 does not load ", "for: gptqmodel does not load "
SHUFFLED = "it does not load shuffled groups any more; say `act_order: static`, which is nearly as accurate"


@pytest.mark.parametrize(
    ("reader", "given", "message"),
    [
        ("vllm-marlin", {"bits": 3}, MARLIN + "3bit-128g: its kernel has 4 and 8 bits, not 3; say `bits: 4`"),
        ("vllm-marlin", {"sym": False}, MARLIN + "4bit-128g-asym: its kernel has symmetric grids only; say `sym: true`"),
        (
            "vllm-marlin", {"group_size": 1024},
            MARLIN + "4bit-1024g: its kernel has groups of 32, 64, 128 or whole rows, not 1024; say `group_size: 128`",
        ),
        (["gptqmodel", "vllm"], {"desc_act": True}, f"for: vllm does not load 4bit-128g-actorder_True: {SHUFFLED}"),
        (
            "vllm", {"variants": ["4bit-128g", "4bit-32g-actorder"]},
            f"for: vllm does not load 4bit-32g-actorder_True: {SHUFFLED}",
        ),
        ("exllamav2", {"bits": 8}, EXLLAMA + "8bit-128g: it has 4 bits, not 8; say `bits: 4`"),
        (
            "exllamav2", {"sym": False},
            EXLLAMA + "4bit-128g-asym: it reads zero points as `gptq` stores them; say `checkpoint_format: gptq`",
        ),
        (
            "exllamav2", {"modules": {"down": {"bits": 8}}},
            EXLLAMA + "4bit-128g: it has one width for all linears; leave out what `modules` says of bits and groups",
        ),
        (
            "gptqmodel", {"sym": False, "checkpoint_format": "gptq"},
            MODEL + "4bit-128g-asym-v1: of asymmetric `gptq` files it takes its own only; say `checkpoint_format: gptq_v2`",
        ),
        (
            "gptqmodel", {"group_size": 96},
            MODEL + "4bit-96g: GPTQModel has groups of 16, 32, 64, 128, 256, 512, 1024 or whole rows, not 96",
        ),
        (
            "transformers", {"partial_groups": True},
            "for: transformers does not load 4bit-128g: a short last group is read by GPTQModel alone; "
            "say `partial_groups: false`",
        ),
    ],
)  # fmt: skip
def test_a_reader_that_would_not_load_it_is_a_mistake(reader: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_target({"gptq": {"for": reader, **given}})
    assert message in str(caught.value)
