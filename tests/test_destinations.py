"""Where artifacts are published: repositories and branches by the recipe's order and the profile of names."""

from __future__ import annotations

from pathlib import Path

import pytest

from qconvd.config import load
from qconvd.destinations import places

CONFIG = """\
watch: [{folder: ./in, recipes: [all]}]
output: ./out
names: %s
recipes:
  all:
    targets: [fp16, {gptq: 4bit-128g}, {gptq: [4bit-32g-actorder, 8bit-32g]}]
    publish: [{hub: {owner: me}}]
"""


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (
            "thebloke",
            ["me/m-fp16", "me/m-GPTQ", "me/m-GPTQ at gptq-4bit-32g-actorder_True", "me/m-GPTQ at gptq-8bit-32g"],
        ),
        ("default", ["me/m-fp16", "me/m-4bit-128g", "me/m-4bit-32g-actorder_True", "me/m-8bit-32g"]),
    ],
)
def test_the_first_variant_of_a_recipe_is_on_main_where_variants_are_branches(
    profile: str, expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG % profile)
    recipe = load(tmp_path / "config.yaml").recipes["all"]
    assert [p.shown for t in recipe.targets for p in places(recipe, t, "m", profile)] == expected


def test_a_branch_that_the_recipe_names_is_kept(tmp_path: Path) -> None:
    text = (CONFIG % "thebloke").replace("{hub: {owner: me}}", "{hub: {owner: me, revision: 'v-{variant}'}}")
    (tmp_path / "config.yaml").write_text(text)
    recipe = load(tmp_path / "config.yaml").recipes["all"]
    assert [p.revision for t in recipe.targets for p in places(recipe, t, "m", "thebloke")][1:3] == [
        "v-4bit-128g", "v-4bit-32g-actorder_True",
    ]  # fmt: skip
