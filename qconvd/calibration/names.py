"""How transformers' parameters are called in checkpoints, where the two differ.

transformers 5 renames some modules and fuses the experts of a mixture into one parameter of three axes; checkpoints keep what
their makers wrote. Source: transformers' conversion_mapping.py, held against it by the tests of every family.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

RENAMED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "mixtral": ((".mlp.", ".block_sparse_moe."),),
    "granitemoe": (
        (".experts.gate_up_proj", ".input_linear.weight"),
        (".experts.down_proj", ".output_linear.weight"),
        (".router.weight", ".router.layer.weight"),
    ),
    "gemma3": (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")),
}
RENAMED = {**RENAMED, "granitemoeshared": RENAMED["granitemoe"], "mistral3": RENAMED["gemma3"]}
"""By model type: (what transformers says, what checkpoints say)."""

EXPERTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
"""A fused parameter, and the linears of one expert that it is made of, one after the other."""


def spellings(name: str, model_type: str, prefix: str) -> Iterator[str]:
    """The names that a parameter may have in a checkpoint. `prefix`: the base model's, which some checkpoints leave out."""
    renamed = name
    for ours, theirs in RENAMED.get(model_type, ()):
        renamed = renamed.replace(ours, theirs)
    for found in dict.fromkeys((renamed, name)):
        yield found
        yield found.removeprefix(f"{prefix}.") if found.startswith(f"{prefix}.") else f"{prefix}.{found}"


def expert_linears(name: str, expert: int) -> Iterator[tuple[str, ...]]:
    """What the part of one expert in a fused parameter may be called in a checkpoint: `….experts.3.gate_proj.weight`."""
    parent, _, leaf = name.rpartition(".")
    for linears in EXPERTS.get(leaf, ()):
        yield tuple(f"{parent}.{expert}.{linear}.weight" for linear in linears)
