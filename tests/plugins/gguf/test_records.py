"""Whole files against records of llama.cpp's own: every metadata key, every tensor's type, shape, order and bytes."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gguf_models
from gguf_files import converted, differences, metadata, tensors

TYPES = ("BF16", "Q4_0", "Q5_1", "Q8_0")
MODELS = ("smollm2", "random_llama", "random_llama-tied", "random_gpt2", "random_mixtral", "random_qwen3moe")


@pytest.fixture(scope="module", params=MODELS)
def pair(
    request: pytest.FixtureRequest, smollm2: Path, golden: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Path], dict[str, Any]]]:
    """Our files by type, and llama.cpp's records by type."""
    kind = request.param
    folder = smollm2
    work = tmp_path_factory.mktemp(kind)
    if kind.startswith("random_"):
        folder = work / "source"
        gguf_models.make(kind.removeprefix("random_"), smollm2, folder)
    with gzip.open(golden / f"{kind}_gguf.json.gz") as file:
        theirs = json.load(file)["types"]
    # Tied embeddings differ from untied ones in Q4_0 only; BF16 shows the order. Experts are about names and stacks.
    fewer = {"random_llama-tied": ("BF16", "Q4_0"), "random_mixtral": ("BF16", "Q8_0"), "random_qwen3moe": ("BF16", "Q4_0")}
    types = fewer.get(kind, TYPES)
    yield converted(folder, types, work / "out", name=kind), theirs
    shutil.rmtree(work)


def test_every_tensor_has_llama_cpps_type_shape_place_and_bytes(pair: tuple[dict[str, Path], dict[str, Any]]) -> None:
    ours, theirs = pair
    assert {type_: differences(tensors(path), theirs[type_]["tensors"]) for type_, path in ours.items()} == {
        t: [] for t in ours
    }


def test_every_metadata_key_is_llama_cpps(pair: tuple[dict[str, Path], dict[str, Any]]) -> None:
    for type_, path in list(pair[0].items())[:2]:
        ours, theirs = metadata(path), pair[1][type_]["metadata"]
        # The random models had no lasting name when the records were made, so theirs lack it.
        unnamed = {} if "general.name" in theirs else {"general.name"}
        assert differences({k: v for k, v in ours.items() if k not in unnamed}, theirs) == []
        if not unnamed:
            assert path.stat().st_size == pair[1][type_]["size"]
