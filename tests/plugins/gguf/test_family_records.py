"""Every family against llama.cpp's converter: metadata key by key, tensors by name, order, type, shape and bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import family_models
from gguf_files import converted, differences, metadata, planned, tensors

RECORDS = {name: family_models.record(name) for name in family_models.NAMES}
CONVERTED = [name for name, record in RECORDS.items() if "tensors" in record]


@pytest.mark.parametrize("name", CONVERTED)
def test_a_familys_file_is_llama_cpps(name: str, tmp_path: Path) -> None:
    record = RECORDS[name]
    model = family_models.make(tmp_path / "model", record["config"], record["checkpoint"])
    path = converted(model, ["F16"], tmp_path / "out", pre=family_models.PRE)["F16"]
    ours = {k: v for k, v in metadata(path).items() if not k.startswith("tokenizer.")}
    assert differences(_general_first(ours), _general_first(record["metadata"])) == []
    assert differences(tensors(path), record["tensors"]) == []


@pytest.mark.parametrize("name", [name for name, record in RECORDS.items() if "rope_parameters" in str(record["config"])])
def test_configs_of_transformers_4_say_the_same(name: str, tmp_path: Path) -> None:
    record = RECORDS[name]
    new = family_models.make(tmp_path / "new", record["config"], record["checkpoint"])
    old = family_models.make(tmp_path / "old", family_models.old_spelling(record["config"]), record["checkpoint"])
    plans = [planned(folder, "F16", name="same", pre=family_models.PRE) for folder in (new, old)]
    assert plans[0].container == plans[1].container
    assert plans[0].units == plans[1].units


def _general_first(keys: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp writes a key of phi3 among the general ones."""
    return dict(sorted(keys.items(), key=lambda item: not item[0].startswith("general.")))
