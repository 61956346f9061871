"""What README and docs write after `--to`, and in recipes, is what the command line and a config take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from qconvd.targets import resolve_list, resolve_target

ROOT = Path(__file__).parents[1]
OWN_FORMAT = ROOT / "docs" / "how-to" / "write-a-format.md"
"""Its commands name the format that the page writes; the tests of that package run them."""
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if page != OWN_FORMAT]
TO = re.compile(r"""--to (?:"([^"\n]+)"|'([^'\n]+)'|([\w:,.-]+))""")
YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def written() -> list[tuple[str, str]]:
    """(page, what stands after `--to`), of lines that are commands."""
    return [
        (str(page.relative_to(ROOT)), next(filter(None, found.groups())))
        for page in PAGES
        for line in page.read_text().splitlines()
        if line.lstrip().startswith("qconvd ")
        for found in TO.finditer(line)
    ]


@pytest.mark.parametrize(("page", "text"), written())
def test_what_a_page_writes_after_to(page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"[\w.-]+\.gguf", text):
        Path(name).touch()
    assert resolve_list(text), page


def test_there_are_such_lines() -> None:
    assert {"README.md", "docs/how-to/convert-what-you-have.md"} <= {page for page, _ in written()}


def test_the_recipe_of_the_page_on_what_one_has() -> None:
    (text,) = YAML.findall((ROOT / "docs" / "how-to" / "convert-what-you-have.md").read_text())
    labels = [target.label for raw in yaml.safe_load(text)["targets"] for target in resolve_target(raw)]
    assert labels == ["int8", "int4-64g", "bnb-4bit", "gguf Q8_0", "gguf Q4_K_M"]
