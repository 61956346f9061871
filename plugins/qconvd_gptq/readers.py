"""Which runtimes load which GPTQ checkpoints, and what is in the way where one does not.

Known from the runtimes' own sources; docs/reference/gptq.md names the versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from qconvd.api import Detail

if TYPE_CHECKING:
    from qconvd_gptq.linears import Chosen
    from qconvd_gptq.options import GptqOptions

ReaderName: TypeAlias = Literal["vllm-marlin", "vllm", "exllamav2", "transformers", "gptqmodel"]
READERS: dict[ReaderName, str] = {
    "vllm-marlin": "vLLM (Marlin)",
    "vllm": "vLLM",
    "exllamav2": "ExLlamaV2",
    "transformers": "transformers",
    "gptqmodel": "GPTQModel",
}
"""How each is shown."""
NOTES: dict[ReaderName, str] = {
    "vllm-marlin": "on GPUs; its CPU build loads the same with groups of any width",
    "vllm": "releases that still have its gptq kernel; newer ones take what vLLM (Marlin) takes",
    "exllamav2": "",
    "transformers": "with gptqmodel and optimum installed; on a CPU not 4 bits in groups of 512 or 1024",
    "gptqmodel": "",
}
SHORT_GROUP = 'on a CPU with `backend="torch"`, for the last groups are short'
GPTQMODEL_GROUPS = (-1, 16, 32, 64, 128, 256, 512, 1024)
MARLIN_GROUPS = (-1, 32, 64, 128)


def obstacle(reader: ReaderName, options: GptqOptions) -> str:
    """Why a reader refuses what these options make of any model, with what to change; empty if it does not."""
    bits, group = options.bits[0], options.group_size[0]
    marlin, vllm = reader == "vllm-marlin", reader.startswith("vllm")
    if marlin and bits not in (4, 8):
        return f"its kernel has 4 and 8 bits, not {bits}; say `bits: 4`"
    if reader == "exllamav2" and bits != 4:
        return f"it has 4 bits, not {bits}; say `bits: 4`"
    if marlin and not options.sym:
        return "its kernel has symmetric grids only; say `sym: true`"
    if marlin and group not in MARLIN_GROUPS:
        return f"its kernel has groups of 32, 64, 128 or whole rows, not {group}; say `group_size: 128`"
    if reader in ("gptqmodel", "transformers") and group not in GPTQMODEL_GROUPS:
        return f"GPTQModel has groups of {', '.join(map(str, GPTQMODEL_GROUPS[1:]))} or whole rows, not {group}"
    if vllm and options.order == "desc_act":
        return "it does not load shuffled groups any more; say `act_order: static`, which is nearly as accurate"
    if options.partial_groups and reader != "gptqmodel":
        return "a short last group is read by GPTQModel alone; say `partial_groups: false`"
    if reader == "exllamav2" and options.stored_as == "gptq_v2":
        return "it reads zero points as `gptq` stores them; say `checkpoint_format: gptq`"
    if reader == "gptqmodel" and not options.sym and options.stored_as == "gptq":
        return "of asymmetric `gptq` files it takes its own only; say `checkpoint_format: gptq_v2`"
    if (
        options.modules
        and any(not isinstance(what, str) for _, what in options.modules)
        and reader not in ("vllm", "vllm-marlin", "gptqmodel")
    ):
        return "it has one width for all linears; leave out what `modules` says of bits and groups"
    return ""


def hindrance(reader: ReaderName, linears: Sequence[Chosen], left_out: Sequence[str], uniform: bool) -> str:
    """Why a reader refuses this model's checkpoint; empty if it does not. `uniform`: whether layers are treated alike."""
    if reader == "exllamav2" and (odd := next((x for x in linears if x.columns % 32 or x.rows % 32), None)):
        return f"it needs widths that 32 divides, and {odd.module} has {odd.rows} x {odd.columns}"
    if reader.startswith("vllm") and (mixed := _mixed({x.module for x in linears}, left_out)):
        return f"it joins {mixed}, which are not all quantized alike"
    if reader == "transformers" and not uniform:
        return "it leaves the same linears out of every layer, and here layers differ"
    return ""


def note(reader: ReaderName, linears: Sequence[Chosen]) -> str:
    """What has to be done before a reader loads it; empty if nothing."""
    short = reader == "gptqmodel" and any(x.bits == 4 and x.columns % x.width for x in linears)
    return SHORT_GROUP if short else NOTES[reader]


def _mixed(quantized: set[str], left_out: Sequence[str]) -> str:
    """Members of a set that vLLM joins into one linear, where some are quantized and some are not."""
    for members in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        for module in left_out:
            before, _, last = module.rpartition(".")
            if last in members and any(f"{before}.{m}" in quantized for m in members):
                return " and ".join(members)
    return ""


def details() -> Sequence[Detail]:
    """For `qconvd formats gptq`: rules in words."""
    rows = [
        ("vLLM (Marlin)", "4, 8", "-1, 32, 64, 128", "no", "no"),
        ("vLLM", "2, 3, 4, 8", "any", "yes", "no"),
        ("ExLlamaV2", "4", "any", "in `gptq` files", "yes"),
        ("transformers", "2, 3, 4, 8", "-1, 16 … 1024", "yes", "yes"),
        ("GPTQModel", "2, 3, 4, 8", "-1, 16 … 1024", "in `gptq_v2` files", "yes"),
    ]
    forms = [
        ("4bit-128g", "bits and group size"),
        ("8bit", "bits, in groups of 128"),
        ("4bit--1g", "whole rows as groups"),
        ("4bit-32g-actorder", "`act_order: desc_act`"),
        ("4bit-128g-asym", "`sym: false`"),
        ("4bit-128g-v2", "`checkpoint_format: gptq_v2`"),
        ("4bit-128g-rtn", "`method: rtn`"),
    ]
    return (
        Detail("Short forms, as `--to gptq-4bit-128g` and in recipes as `gptq: 4bit-128g`", ("form", "meaning"), forms),
        Detail("Readers", ("reader", "bits", "group size", "sym: false", "act_order: desc_act"), rows),
    )
