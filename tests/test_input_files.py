"""Options that are files: paths relative to the config, content that counts, and no path of this machine in a manifest."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from imatrix_files import write_gguf
from qconvd.config import Config, load
from qconvd.errors import ConfigError
from qconvd.input_files import published
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
    options = {"types": ["Q4_0"], "imatrix": {"path": "/home/ada/m.imatrix", "sha256": "ab"}, "other": {"path": "x"}}
    shown = {"types": ["Q4_0"], "imatrix": {"file": "m.imatrix", "sha256": "ab"}, "other": {"path": "x"}}
    assert published(options) == shown
    assert published(shown) == shown
