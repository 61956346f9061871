"""The generated pages are those in docs/."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import Qconvd
from qconvd.cli.exits import MEANING, Exit
from qconvd.cli.reference import commands, main, pages

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["cli.md", "config.md", "naming.md", "config.schema.json"])
def test_the_pages_are_current(name: str) -> None:
    assert (ROOT / "docs" / "reference" / name).read_text() == pages()[name], "run `make docs`"


def test_every_command_and_exit_code_is_there() -> None:
    page = pages()["cli.md"]
    for name, _ in commands():
        assert f"## qconvd {name}\n" in page
    assert "## qconvd service install\n" in page
    for code in Exit:
        assert f"| {int(code)} | {MEANING[code]} |" in page
    assert "| `--config`, `-c` `FILE` |" in page
    assert "| `--device` `auto\\|cpu\\|cuda` |" in page


@pytest.mark.parametrize(
    ("command", "written"),
    [("init", "[DIR]"), ("formats", "[FORMAT]"), ("pause", "[REASON]"), ("notify test", "[NAME]"), ("retry", "JOB...")],
)
def test_arguments_are_written_once(qconvd: Qconvd, command: str, written: str) -> None:
    usage = qconvd(*command.split(), "--help").out.splitlines()[0]
    assert usage.replace("{JOB}", "JOB").endswith(f"{command} [OPTIONS] {written}"), usage
    assert f"| `{written}` |" in pages()["cli.md"]


def test_the_pages_can_be_written_elsewhere(tmp_path: Path) -> None:
    main(tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(pages())


def test_the_schema_knows_every_target() -> None:
    target = json.loads(pages()["config.schema.json"])["$defs"]["Target"]
    short, long = target["anyOf"]
    assert {"fp16", "bf16", "q4_0", "q4"} <= set(short["enum"])
    assert long["properties"]["gguf"]["anyOf"][1] == {"$ref": "#/$defs/GgufOptions"}


def test_the_example_names_the_schema() -> None:
    first = (ROOT / "config.yaml").read_text().splitlines()[0]
    path = first.removeprefix("# yaml-language-server: $schema=")
    assert json.loads((ROOT / path).read_text())["title"] == "qconvd configuration"
