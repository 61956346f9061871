"""The test equipment itself: the models are what the tests believe them to be."""

import json
from pathlib import Path

from safetensors import safe_open


def parameters(folder: Path) -> tuple[int, set[str]]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = [file.get_slice(k) for k in file.keys()]  # noqa: SIM118 (safe_open has keys() only)
        sizes = [t.get_shape() for t in tensors]
        count = 0
        for shape in sizes:
            n = 1
            for axis in shape:
                n *= axis
            count += n
        return count, {t.get_dtype() for t in tensors}


def test_smollm2_is_the_real_model(smollm2: Path) -> None:
    assert parameters(smollm2) == (134_515_008, {"BF16"})
    assert json.loads((smollm2 / "config.json").read_text())["num_hidden_layers"] == 30


def test_glass_has_odd_rows(glass: Path) -> None:
    assert parameters(glass) == (852_608, {"F16"})
    assert json.loads((glass / "config.json").read_text())["intermediate_size"] == 341
