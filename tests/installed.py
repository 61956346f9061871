"""Packages put on a path as pip would: their modules, and a dist-info that says their name and entry points."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def install(project: Path, site: Path) -> None:
    """The modules of a project, and what a build of its pyproject.toml would say of it."""
    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    package = about["name"].replace("-", "_")
    shutil.copytree(project / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    describe(site, about["name"], about["version"], about["entry-points"]["qconvd"])


def describe(site: Path, name: str, version: str, entries: Mapping[str, str]) -> None:
    """A dist-info folder with entry points in the group `qconvd`."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[qconvd]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()))


def python(code: str, site: Path, *arguments: str) -> Any:
    """What a fresh interpreter that has `site` installed prints: JSON on its last line. Its errors fail the caller."""
    path = [str(site), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
