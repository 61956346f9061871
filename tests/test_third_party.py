"""A format written outside the package, against qconvd.api alone: found, planned, converted, verified, read."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from installed import install, python
from olmo import write_olmo

ROOT = Path(__file__).parent.parent
TINY = ROOT / "tests/thirdparty/qconvd-tiny"
OLMO = ROOT / "tests/thirdparty/qconvd-olmo"
OWN = sorted(p for p in (ROOT / "plugins").iterdir() if p.name.startswith("qconvd_"))

CONVERT = """
import json, sys
from pathlib import Path
from converted import converted
from qconvd.plugins import plugins
found = plugins()
made = converted(Path(sys.argv[1]), Path(sys.argv[2]), "int8rows", **json.loads(sys.argv[3]))
print(json.dumps({
    "distribution": found.distribution(found.formats["int8rows"]), "broken": found.broken, "report": made.verify().as_dict(),
    "relative": made.manifest.errors["relative_rms"], "planned": made.plan.nbytes, "left_out": len(made.plan.left_out),
    "made": sum(f.bytes for f in made.manifest.files), "aliases": dict(found.formats["int8rows"].aliases),
}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install(TINY, folder)
    return folder


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "300KB"}, {"round": "down"}])
def test_a_third_partys_format_goes_all_the_way(site: Path, glass: Path, tmp_path: Path, options: dict[str, str]) -> None:
    said = python(CONVERT, site, str(glass), str(tmp_path / "work"), json.dumps(options))
    assert said["distribution"] == "qconvd-tiny 1.0"
    assert said["broken"] == []
    assert said["planned"] == said["made"]
    assert said["report"]["sha256"] is True
    assert said["report"]["rows"] > 300
    assert 0.9 < said["report"]["worst"] <= 1
    assert 0 < said["relative"] < 0.03
    folder = tmp_path / "work/files"
    shards = list(folder.glob("*.safetensors"))
    assert (len(shards) > 1) == ("max_shard_size" in options)
    made = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    source = load_file(glass / "model.safetensors")
    linears = [name for name in source if f"{name}_scale" in made]
    assert len(linears) == 4 * 7
    for name in linears:
        scale = made[f"{name}_scale"]
        off = (made[name].float() * scale - source[name].float()).abs()
        assert made[name].dtype.itemsize == 1
        assert (off <= scale * (0.501 if options.get("round") != "down" else 1.001)).all()
    assert all((made[name] == source[name]).all() for name in source if name not in linears)


def test_its_names_and_targets_are_understood(site: Path) -> None:
    code = """
import json
from qconvd.targets import resolve_target
targets = [t for raw in ("int8rows", "i8r", {"int8rows": {"round": "down"}}) for t in resolve_target(raw)]
print(json.dumps([[t.options.round, t.names("My-Model").folder] for t in targets]))
"""
    said = python(code, site)
    assert [round_ for round_, _ in said] == ["nearest", "nearest", "down"]
    assert {folder for _, folder in said} == {"My-Model-int8rows"}


def test_a_third_partys_gguf_family_is_listed_with_who_added_it(tmp_path: Path) -> None:
    install(OLMO, tmp_path / "site")
    code = """
import json
from qconvd.plugins import plugins
print(json.dumps([[d.title, *map(list, d.rows)] for d in plugins().details("gguf")]))
"""
    ((title, *families),) = python(code, tmp_path / "site")
    assert title == "Model families"
    assert ["olmo", "OlmoForCausalLM, OLMoForCausalLM", "qconvd-olmo 1.0"] in families
    assert {(name, added) for name, _, added in families if name in ("llama", "gpt2")} == {("llama", ""), ("gpt2", "")}


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu': llama.cpp's graph for this family has SiLU built in"),
        ({"attention_bias": True}, "attention_bias is True: llama.cpp's olmo has no biases"),
        ({"clip_qkv": 8.0}, ""),
    ],
)
def test_a_third_partys_gguf_family_plans(tmp_path: Path, change: dict[str, Any], refusal: str) -> None:
    """On a folder whose weights are named as OLMo's; that llama.cpp computes with the result, tests/readers shows."""
    install(OLMO, tmp_path / "site")
    write_olmo(tmp_path / "m", change)
    code = """
import json, sys
from pathlib import Path
from qconvd.errors import QconvdError
from qconvd.checkpoints import inspect
from qconvd_gguf import families, mapping
model = inspect(Path(sys.argv[1]))
try:
    found = mapping.apply(families.family_of(model), model)
    keys = mapping.metadata(found, model.config, ("general.file_type", "u32", 1))
    print(json.dumps({"tensors": [t.name for t in found.tensors], "keys": {name: value for name, _, value in keys}}))
except QconvdError as error:
    print(json.dumps(error.as_dict()))
"""
    said = python(code, tmp_path / "site", str(tmp_path / "m"))
    if refusal:
        assert said["what"] == refusal
        return
    assert len(said["tensors"]) == 2 + 2 * 7
    assert said["keys"]["olmo.attention.clamp_kqv"] == 8.0
    assert said["keys"]["olmo.attention.layer_norm_epsilon"] == 1e-5


@pytest.mark.parametrize(("guide", "package"), [("write-a-format", TINY), ("add-a-gguf-family", OLMO)])
def test_the_guide_shows_the_package_as_it_is(guide: str, package: Path) -> None:
    """The guide holds every file of the package, so what it says was run by tests."""
    text = (ROOT / f"docs/how-to/{guide}.md").read_text()
    shown = dict(re.findall(r"`([^`\n]+)`:\n\n```\w+\n(.*?)```\n", text, flags=re.S))
    files = {str(p.relative_to(package)): p.read_text() for p in package.rglob("*.*") if p.suffix in (".py", ".toml")}
    files.pop("ruff.toml", None)
    assert shown.keys() == files.keys()
    for name, body in files.items():
        assert shown[name] == body, name


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {node.module or ""} | ({f"qconvd.{a.name}" for a in node.names} if node.module == "qconvd" else set())
    return found


@pytest.mark.parametrize("package", [*OWN, TINY / "qconvd_tiny", OLMO / "qconvd_olmo"], ids=lambda p: p.name)
def test_plugins_import_nothing_of_qconvd_but_its_api(package: Path) -> None:
    files = sorted(package.rglob("*.py"))
    assert files
    for path in files:
        private = {m for m in imports(path) if (m == "qconvd" or m.startswith("qconvd.")) and m != "qconvd.api"}
        if "qconvd.api" in imports(path):
            private.discard("qconvd")
        assert not private, f"{path} imports {', '.join(sorted(private))}"


USES = {"qconvd_gguf": {"qconvd_ggml"}, "qconvd_ggjt": {"qconvd_gguf", "qconvd_ggml"}}
"""Block kernels, families and tokenizers are there once."""


def test_only_gguf_and_ggml_use_other_plugins() -> None:
    names = {p.name for p in OWN}
    for package in OWN:
        used = {m.partition(".")[0] for path in package.rglob("*.py") for m in imports(path)} & (names - {package.name})
        assert used <= USES.get(package.name, set()), package.name


def test_the_guide_names_what_a_family_may_import() -> None:
    used = {m for p in OLMO.rglob("*.py") for m in imports(p) if m.startswith("qconvd_gguf.")}
    assert used == {f"qconvd_gguf.families.{name}" for name in ("base", "steps", "rope")}


def test_every_name_of_the_api_exists_and_is_listed() -> None:
    import qconvd.api as api

    assert sorted(set(api.__all__)) == sorted(api.__all__)
    assert all(hasattr(api, name) for name in api.__all__)
    tree = ast.parse(Path(api.__file__ or "").read_text())
    imported = {
        a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) and n.module != "__future__" for a in n.names
    }
    assert imported == set(api.__all__)


def test_scales_of_zero_rows_and_nan_do_not_escape(site: Path, tmp_path: Path) -> None:
    """The example is an example to follow: a row of zeros, a NaN and a refusal behave."""
    from safetensors.numpy import save_file

    weights: Any = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    weights[2] = 0
    folder = tmp_path / "m"
    folder.mkdir()
    save_file({"w": weights}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    said = python(CONVERT, site, str(folder), str(tmp_path / "a"), "{}")
    assert said["report"]["non_finite"] == {}
    weights[3, 3] = np.nan
    save_file({"w": weights}, folder / "model.safetensors", metadata={"format": "pt"})
    python(CONVERT, site, str(folder), str(tmp_path / "b"), "{}")
    with pytest.raises(AssertionError, match="w: has 1 NaN and 0 infinite weights, and `non_finite: refuse` is set"):
        python(CONVERT, site, str(folder), str(tmp_path / "c"), '{"non_finite": "refuse"}')
