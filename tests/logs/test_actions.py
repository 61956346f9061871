"""Every line that qconvd logs says what happened, in a word that docs/reference/logging.md explains."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import get_args

import pytest

from qconvd.ledger.records import TargetState
from qconvd.logs import about

ROOT = Path(__file__).parents[2]
CALLS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
SOURCES = {str(p.relative_to(ROOT)): p for p in sorted((ROOT / "qconvd").rglob("*.py"))}


def table(heading: str) -> set[str]:
    """The words in the first column of a table of the page."""
    page = (ROOT / "docs" / "reference" / "logging.md").read_text()
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))


def log_calls(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
            of = node.func.value
            if (isinstance(of, ast.Name) and of.id in ("log", "logger", "logging")) or "getLogger" in ast.unparse(of):
                yield node


def extras(call: ast.Call) -> dict[str | None, list[ast.expr]]:
    """What stands in a call's `extra`, by its key; what is unpacked into it has none."""
    found: dict[str | None, list[ast.expr]] = {}
    given = next((k.value for k in call.keywords if k.arg == "extra"), None)
    if isinstance(given, ast.Dict):
        for key, value in zip(given.keys, given.values, strict=True):
            found.setdefault(key.value if isinstance(key, ast.Constant) else None, []).append(value)  # type: ignore[arg-type]
    return found


def patterns(value: ast.expr) -> Iterator[str]:
    """The actions that an expression can be, with `*` for what is only known when it runs."""
    if isinstance(value, ast.IfExp):
        yield from patterns(value.body)
        yield from patterns(value.orelse)
    elif isinstance(value, ast.JoinedStr):
        yield "".join(str(v.value) if isinstance(v, ast.Constant) else "*" for v in value.values)
    elif isinstance(value, ast.Constant):
        yield str(value.value)
    else:
        yield ""


CALLS_OF = {name: list(log_calls(ast.parse(path.read_text()))) for name, path in SOURCES.items()}


@pytest.mark.parametrize("name", [name for name, calls in CALLS_OF.items() if calls])
def test_every_line_has_an_action_and_fields_that_are_explained(name: str) -> None:
    actions, fields = table("Actions"), table("Fields")
    for call in CALLS_OF[name]:
        where = f"{name}:{call.lineno}"
        given = extras(call)
        found = [p for value in given.get("action", []) for p in patterns(value)]
        assert found, f"{where}: the line has no action"
        for pattern in found:
            assert [a for a in actions if fnmatchcase(a, pattern)], f"{where}: docs/reference/logging.md has no {pattern!r}"
        assert {k for k in given if k is not None} <= fields, f"{where}: docs/reference/logging.md does not explain all fields"
        unpacked = [ast.unparse(value).partition("(")[0] for value in given.get(None, [])]
        assert set(unpacked) <= {n for n in vars(about) if n.startswith("about_")}, f"{where}: {unpacked}"


def test_every_action_that_is_explained_is_logged() -> None:
    logged = {p for calls in CALLS_OF.values() for c in calls for v in extras(c).get("action", []) for p in patterns(v)}
    assert [a for a in table("Actions") if not any(fnmatchcase(a, p) for p in logged)] == []
    assert all(re.fullmatch(r"[a-z]+\.[a-z_]+", a) for a in table("Actions"))


def test_every_state_of_an_artifact_is_an_action() -> None:
    assert {f"target.{state}" for state in get_args(TargetState)} == {a for a in table("Actions") if a.startswith("target.")}


def test_what_the_helpers_add_is_explained() -> None:
    tree = ast.parse(Path(about.__file__).read_text())
    keys = {k.value for d in ast.walk(tree) if isinstance(d, ast.Dict) for k in d.keys if isinstance(k, ast.Constant)}
    assert {"model", "jobs", "task", "device"} <= keys <= table("Fields")


def test_no_field_is_called_what_the_standard_library_does_not_let_pass() -> None:
    base = {"time", "level", "logger", "message", "exception"}
    record = logging.getLogger("test").makeRecord(
        "test", 20, __file__, 1, "", (), None, extra=dict.fromkeys(table("Fields") - base)
    )
    assert record.levelno == 20


def test_modules_take_their_logger_by_their_own_name() -> None:
    for name, path in SOURCES.items():
        text = path.read_text()
        if CALLS_OF[name] and "log = " in text:
            assert "logging.getLogger(__name__)" in text, name
