"""Families from other packages, and what a family must have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gguf_models
from qconvd.checkpoints.base import ModelInfo
from qconvd_gguf.families import BUILT_IN, family_of
from qconvd_gguf.families.base import Family, Number, product

PLUGIN = """
from dataclasses import replace

from qconvd.api import hookimpl
from qconvd_gguf.families import llama


@hookimpl
def qconvd_gguf_families():
    return [replace(llama.FAMILY, name="renamed", architectures=("RenamedForCausalLM",))]
"""
SCRIPT = """
import sys
from pathlib import Path
from qconvd.checkpoints import inspect
from qconvd.plugins import plugins

gguf = plugins().formats["gguf"]
plan = gguf.plan(inspect(Path(sys.argv[1])), gguf.Options(types="q8_0"))
print([value for key, _, value in plan.container.metadata if key in ("general.architecture", "renamed.block_count")])
"""


def test_a_family_of_another_package_is_found_through_its_entry_point(smollm2: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    information = site / "renamed_family-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "renamed_family.py").write_text(PLUGIN)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: renamed-family\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[qconvd]\nrenamed = renamed_family\n")
    model = gguf_models.tiny(tmp_path / "model", 49152)
    shutil.copy(smollm2 / "tokenizer.json", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["RenamedForCausalLM"]}))
    command = [sys.executable, "-c", SCRIPT, str(model)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(site)})
    assert ran.stdout.strip() == "['renamed', 2]", ran.stderr


def test_a_family_without_its_counts_is_a_mistake_of_its_author() -> None:
    with pytest.raises(ValueError, match="the gguf family half lacks the numbers vocab"):
        Family("half", ("HalfForCausalLM",), {"layers": Number(("n_layer",))}, (), ())


def test_no_architecture_belongs_to_two_families_that_nothing_tells_apart() -> None:
    names = [name for family in BUILT_IN if family.applies is None for name in family.architectures]
    assert len(names) == len(set(names))
    # Families that look at more than the architecture share none with one that does not.
    assert not {name for family in BUILT_IN for name in family.architectures if family.applies} & set(names)


@pytest.mark.parametrize(("config", "name"), [({}, "nomic-bert"), ({"moe_every_n_layers": 2}, "nomic-bert-moe")])
def test_families_that_share_an_architecture_are_told_apart_by_the_config(config: dict[str, Any], name: str) -> None:
    model = ModelInfo(Path("nomic"), "nomic", "safetensors", {}, (), {"architectures": ["NomicBertModel"]} | config)
    assert family_of(model).name == name


@pytest.mark.parametrize(
    ("text", "value"),
    [("4*hidden", 256), ("hidden/heads", 16), ("heads*head_dim", 32), ("hidden", 64), ("3", 3), ("hidden+2*heads", 72)],
)
def test_products(text: str, value: int) -> None:
    assert product(text, {"hidden": 64, "heads": 4, "head_dim": 8}) == value


def test_a_sum_of_which_a_number_is_missing_is_missing() -> None:
    assert product("hidden+2*kv", {"hidden": 64, "kv": None}) is None
