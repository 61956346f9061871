"""Options that are files: paths relative to the config, content that counts, and no path of this machine in a manifest."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from imatrix_files import write_gguf
from qconvd.config import Config, load
from qconvd.errors import ConfigError
from qconvd.named_files import identified, published
from qconvd.targets import resolve_target

CONFIG = """\
watch: [{folder: ./inbox, recipes: [r]}]
output: ./models
recipes:
  r:
    targets:
      - gguf: {types: [q4_k_m, f16], imatrix: ./some/m.imatrix}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "some").mkdir()
    write_gguf(tmp_path / "some" / "m.imatrix", {"a.weight": ([[1]], [1])})
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path / "config.yaml"


def targets(config: Config) -> dict[str, str]:
    return {t.label: t.digest for t in config.recipes["r"].targets}


def test_the_path_is_relative_to_the_config(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir("/")
    named, plain = (t.options.imatrix for t in load(config).recipes["r"].targets)  # type: ignore[attr-defined]
    path = tmp_path / "some" / "m.imatrix"
    assert (named.path, named.sha256) == (str(path), sha256(path.read_bytes()).hexdigest())
    assert plain is None


def test_another_content_is_another_artifact(config: Path) -> None:
    before = targets(load(config))
    assert targets(load(config)) == before
    write_gguf(config.parent / "some" / "m.imatrix", {"a.weight": ([[2]], [1])})
    after = targets(load(config))
    assert after["gguf Q4_K_M"] != before["gguf Q4_K_M"]
    assert after["gguf F16"] == before["gguf F16"]


def test_where_a_file_lies_makes_no_difference(config: Path) -> None:
    before = targets(load(config))
    (config.parent / "some" / "m.imatrix").rename(config.parent / "some" / "n.imatrix")
    config.write_text(CONFIG.replace("m.imatrix", "n.imatrix"))
    assert targets(load(config)) == before


CALIBRATED = """\
watch: [{folder: ./inbox, recipes: [r]}]
output: ./models
recipes:
  r:
    targets:
      - gptq: {bits: 4, calibration: {text: ./manuals}}
"""


def test_of_a_calibration_text_the_content_counts(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CALIBRATED)
    (tmp_path / "manuals").mkdir()
    (tmp_path / "manuals" / "a.txt").write_text("first")
    before = targets(load(config))
    (tmp_path / "manuals").rename(tmp_path / "moved")
    config.write_text(CALIBRATED.replace("./manuals", "./moved"))
    assert targets(load(config)) == before
    (tmp_path / "moved" / "a.txt").write_text("other")
    assert targets(load(config)) != before


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (None, "there is no calibration text here; name a file or folder that is there as `text` under `calibration`, or "),
        (Path.mkdir, "holds no calibration text: no file ends in .txt, .md or .jsonl; name another folder, or a file"),
    ],
)
def test_a_calibration_text_that_is_not_there_is_told_with_its_line(
    tmp_path: Path, make: Callable[[Path], None] | None, what: str
) -> None:
    (tmp_path / "config.yaml").write_text(CALIBRATED)
    if make:
        make(tmp_path / "manuals")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "config.yaml")
    assert f"config.yaml:6:45: recipes.r.targets[0].gptq.calibration.text: ./manuals: {what}" in str(caught.value)


def test_what_the_ledger_keeps_is_read_back_without_the_file(config: Path) -> None:
    target = load(config).recipes["r"].targets[0]
    kept = target.spec["options"]
    (config.parent / "some" / "m.imatrix").unlink()
    assert type(target.options).model_validate(kept) == target.options


def test_a_file_that_is_not_there_is_told_with_its_line(config: Path) -> None:
    (config.parent / "some" / "m.imatrix").unlink()
    with pytest.raises(ConfigError) as caught:
        load(config)
    assert "config.yaml:6:47: recipes.r.targets[0].gguf.imatrix: ./some/m.imatrix: is not there" in str(caught.value)
    (config.parent / "some" / "m.imatrix").mkdir()
    with pytest.raises(ConfigError, match=r"\./some/m\.imatrix: is a folder where a file should be"):
        load(config)


def test_the_same_type_with_and_without_would_have_one_name(config: Path) -> None:
    config.write_text(CONFIG + "      - q4_k_m\n")
    with pytest.raises(ConfigError) as caught:
        load(config)
    assert "gguf Q4_K_M and gguf Q4_K_M would both be called <model>-GGUF/<model>-Q4_K_M" in str(caught.value)
    assert "give one of them a `name:`, e.g. name: '{model}-{variant}-2'" in str(caught.value)
    config.write_text(CONFIG + "      - q4_k_m: {name: '{model}-{variant}-static'}\n")
    assert len(load(config).recipes["r"].targets) == 3


def test_without_a_config_paths_are_relative_to_the_current_folder(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parent / "some")
    (target,) = resolve_target({"gguf": {"types": "q4_0", "imatrix": "m.imatrix"}})
    assert target.options.imatrix.path == str(config.parent / "some" / "m.imatrix")  # type: ignore[attr-defined]


def test_manifests_show_the_name_and_the_content() -> None:
    text = {"samples": 3, "text": {"path": "/home/ada/a.txt", "sha256": "cd"}}
    options = {"types": ["Q4_0"], "imatrix": {"path": "/home/ada/m.imatrix", "sha256": "ab"}, "calibration": text, "other": {}}
    shown = options | {
        "imatrix": {"file": "m.imatrix", "sha256": "ab"},
        "calibration": {"samples": 3, "text": {"file": "a.txt", "sha256": "cd"}},
    }
    assert published(options) == shown
    assert published(shown) == shown
    assert identified(shown) == identified(options)
    assert identified(options)["calibration"] == {"samples": 3, "text": {"sha256": "cd"}}
