"""The plugin manager: what is found, what happens to a broken one, who claims which name, and what may be imported."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import qconvd
from installed import describe, python
from qconvd.api import QconvdError, hookimpl
from qconvd.plugins import BrokenPlugin, Plugins, container, plugins

HEAVY = (
    "numpy", "numba", "torch", "triton", "transformers", "tokenizers", "sentencepiece", "safetensors", "gguf",
    "huggingface_hub", "jinja2",
)  # fmt: skip
WORKER = (
    "qconvd.worker", "qconvd.stopping", "qconvd.fetching", "qconvd.tasks", "qconvd.quality", "qconvd.engine", "qconvd.publish",
    "qconvd.__main__", "qconvd.calibration",
)  # fmt: skip
"""What runs in a worker's process and may import anything. Of these, the control side uses only what is listed below."""
CONTROL = (
    *(
        f"qconvd.engine.{name}"
        for name in ("manifest", "plan", "expr", "operations", "durable", "commit", "working_memory", "calibration_cost")
    ),
    "qconvd.calibration.options",
    "qconvd.calibration.context",
    "qconvd.calibration.sources",
)
HOOK = "from qconvd.api import hookimpl\n@hookimpl\ndef qconvd_formats():\n    "
CALL = "import qconvd_bad; list(qconvd_bad.qconvd_formats())"
LOAD = """
import json, logging
logging.basicConfig(level="ERROR")
from dataclasses import astuple
from qconvd.plugins import Plugins
from qconvd.errors import QconvdError
try:
    found = Plugins()
    print(json.dumps({"formats": list(found.formats), "broken": [astuple(b) for b in found.broken]}))
except QconvdError as error:
    print(json.dumps(error.as_dict()))
"""


def plugin(site: Path, name: str, code: str) -> None:
    """An installed distribution `qconvd-NAME` 2.0 of one module."""
    (site / f"qconvd_{name}.py").write_text(code)
    describe(site, f"qconvd-{name}", "2.0", {name: f"qconvd_{name}"})


def format_called(name: str) -> str:
    return f"""
from qconvd.api import hookimpl
class Some:
    name = "{name}"
@hookimpl
def qconvd_formats():
    return [Some()]
"""


def test_the_built_in_containers_and_formats_are_plugins_like_others() -> None:
    found = plugins()
    assert found.broken == []
    assert {"safetensors", "gguf"} <= found.containers.keys()
    assert {"fp16", "gguf"} <= found.formats.keys()
    assert found.distribution(found.formats["fp16"]).startswith("qconvd ")
    assert found.distribution(found.containers["safetensors"]) == "qconvd"


@pytest.mark.parametrize(
    ("code", "reason", "shows"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'", "import qconvd_bad"),
        ("def f(:", "SyntaxError: ", "import qconvd_bad"),
        ("raise SystemExit('I leave')", "SystemExit: I leave", "import qconvd_bad"),
        ("1 / 0", "ZeroDivisionError: division by zero", "import qconvd_bad"),
        (HOOK + "import no_such_module", "ModuleNotFoundError: No module", CALL),
        (HOOK + "return 3", "TypeError: 'int' object is not iterable", CALL),
    ],
)
def test_a_broken_plugin_is_named_and_skipped_and_the_others_work(tmp_path: Path, code: str, reason: str, shows: str) -> None:
    plugin(tmp_path, "bad", code)
    plugin(tmp_path, "good", format_called("good"))
    said = python(LOAD, tmp_path)
    assert {"fp16", "good", "gguf"} <= set(said["formats"])
    ((name, distribution, why, told),) = said["broken"]
    assert (name, distribution) == ("bad", "qconvd-bad 2.0")
    assert why.startswith(reason)
    assert told == shows
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=False)
    assert reason.removeprefix("SystemExit: ") in done.stderr, "the code that is told shows what is wrong"


def test_doctor_names_the_module_of_a_broken_plugin(tmp_path: Path) -> None:
    """The entry point's name (`bad`) is nothing that could be imported."""
    plugin(tmp_path, "bad", "1 / 0")
    code = """
import json
from qconvd.examination import examine
print(json.dumps([[f.what, f.state, f.found, f.fix] for f in examine(None) if f.what.startswith("plugin ")]))
"""
    assert python(code, tmp_path) == [
        [
            "plugin bad",
            "bad",
            "cannot be loaded: ZeroDivisionError: division by zero",
            "`python -c 'import qconvd_bad'` shows where it fails; `pip uninstall qconvd-bad` if it is not wanted",
        ]
    ]


def test_a_plugin_that_leaves_on_import_takes_nobody_with_it(tmp_path: Path) -> None:
    plugin(tmp_path, "bad", "raise SystemExit('I leave')")
    said = python(LOAD, tmp_path)
    assert {"fp16", "gguf"} <= set(said["formats"])
    assert [reason for _, _, reason, *_ in said["broken"]] == ["SystemExit: I leave"]


def test_a_broken_plugin_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    @hookimpl
    def qconvd_formats() -> Any:
        raise RuntimeError("no licence")

    with caplog.at_level(logging.WARNING):
        found = Plugins([("mine", module("mine", qconvd_formats))])
    assert found.broken == [BrokenPlugin("mine", "mine", "RuntimeError: no licence")]
    assert "plugin mine (mine) is skipped: RuntimeError: no licence" in caplog.text


def test_a_misspelt_hook_is_an_error(tmp_path: Path) -> None:
    plugin(tmp_path, "typo", format_called("x").replace("qconvd_formats", "qconvd_fromats"))
    said = python(LOAD, tmp_path)
    assert said["what"].startswith("a plugin implements a hook that does not exist: unknown hook 'qconvd_fromats' in plugin ")
    assert "qconvd_typo" in said["what"]
    assert said["fix"] == "the hooks are in qconvd/hookspecs.py"


def test_a_hook_with_unknown_arguments_is_an_error(tmp_path: Path) -> None:
    plugin(tmp_path, "args", format_called("x").replace("qconvd_formats()", "qconvd_formats(surprise)"))
    said = python(LOAD, tmp_path)
    assert said["what"].startswith("a hook has arguments that qconvd does not know: ")
    assert said["where"] == "plugin args (qconvd-args 2.0)"


def test_two_plugins_that_claim_one_name_are_both_named(tmp_path: Path) -> None:
    plugin(tmp_path, "one", format_called("same"))
    plugin(tmp_path, "two", format_called("same"))
    said = python(LOAD, tmp_path)
    assert said["what"] == "two plugins claim the format 'same': qconvd-one 2.0 and qconvd-two 2.0"
    assert said["fix"] == "uninstall one of them"


def test_a_format_without_a_name_is_told_with_who_gives_it(tmp_path: Path) -> None:
    plugin(tmp_path, "nameless", "from qconvd.api import hookimpl\n@hookimpl\ndef qconvd_formats():\n    return [object()]\n")
    said = python(LOAD, tmp_path)
    assert said["what"].startswith("a plugin gives a format without `name`: <object object at ")
    assert (said["where"], said["fix"]) == ("qconvd-nameless 2.0", "uninstall it, or ask its author")


def test_a_plugin_may_not_take_a_built_in_name(tmp_path: Path) -> None:
    plugin(tmp_path, "thief", format_called("fp16"))
    said = python(LOAD, tmp_path)
    assert said["what"].startswith("two plugins claim the format 'fp16': qconvd ")
    assert said["what"].endswith(" and qconvd-thief 2.0")


def test_an_unknown_container_is_told_with_the_known_ones() -> None:
    with pytest.raises(QconvdError) as caught:
        container("zip")
    assert str(caught.value).startswith("no plugin provides the container 'zip'\n  known containers: ")
    assert "safetensors" in str(caught.value)


def test_events_reach_plugins_and_their_errors_go_no_further(caplog: pytest.LogCaptureFixture) -> None:
    heard = []

    @hookimpl
    def qconvd_task_event(event: dict[str, Any]) -> None:
        heard.append(event)
        raise RuntimeError("deaf")

    found = Plugins([("left", module("left", qconvd_task_event)), ("right", module("right", qconvd_task_event))])
    found.notify({"event": "done"})
    assert heard == [{"event": "done"}] * 2, "one that fails keeps nothing from the other"
    assert "the plugin left failed on an event" in caplog.text
    assert "deaf" in caplog.text


def test_a_plugin_that_fails_to_examine_itself_is_named_and_the_others_speak() -> None:
    @hookimpl
    def qconvd_findings() -> list[Any]:
        raise RuntimeError("no mirror")

    found = Plugins([("vain", module("vain", qconvd_findings))])
    assert found.findings(warm=False), "those of the built-in plugins"
    assert [(b.name, b.reason) for b in found.broken] == [("vain", "RuntimeError: no mirror")]


def test_loading_the_plugins_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, json, qconvd.plugins; qconvd.plugins.plugins(); print(json.dumps(sorted(sys.modules)))"
    loaded = set(python(code, tmp_path))
    assert not loaded & set(HEAVY)
    assert "qconvd_fp16" in loaded


def test_the_control_side_imports_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import importlib, json, sys
for name in {control_side()!r}:
    importlib.import_module(name)
from qconvd.targets import resolve_target
for raw in ("fp16", "bf16", {{"gguf": ["q8_0", "q4_0"]}}):
    for target in resolve_target(raw):
        target.names("My-Model")
for fmt in importlib.import_module("qconvd.plugins").plugins().formats.values():
    fmt.Options.model_json_schema()
print(json.dumps(sorted(sys.modules)))
"""
    loaded = set(python(code, tmp_path))
    assert loaded & set(HEAVY) == {"jinja2"}, "the pages are made with it, by a daemon that serves them"
    assert {"qconvd.daemon", "qconvd.config", "qconvd.intake", "qconvd.scheduler", "qconvd.cli"} <= loaded
    without = code.replace(repr(control_side()), repr([name for name in control_side() if not name.startswith("qconvd.web.")]))
    assert not set(python(without, tmp_path)) & set(HEAVY)


def control_side() -> list[str]:
    """Every module of the package that does not belong to the worker."""
    root = Path(qconvd.__file__ or "").parent
    names = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not any(name == w or name.startswith(f"{w}.") for w in WORKER):
            names.append(name)
    return [*names, *CONTROL]


def module(name: str, *hooks: Any) -> types.ModuleType:
    """A plugin module made in place."""
    made = types.ModuleType(name)
    for hook in hooks:
        setattr(made, hook.__name__, hook)
    assert name not in sys.modules
    return made
