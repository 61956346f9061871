"""A recipe with an importance matrix, converted by the real workers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from command_line import Qconvd
from qconvd.engine.manifest import manifests_in


def test_a_recipe_with_an_imatrix(qconvd: Qconvd, glass: Path, golden: Path, tmp_path: Path) -> None:
    shutil.copy(golden / "glass_en.imatrix.gguf", tmp_path / "glass.imatrix")
    config = tmp_path / "config.yaml"
    config.write_text(
        "watch: [{folder: ./in, recipes: [r]}]\noutput: ./out\n"
        "recipes:\n  r: {targets: [gguf: {types: iq4_nl, imatrix: glass.imatrix}]}\n"
    )
    (tmp_path / "in").mkdir()
    command = ("convert", glass, "--recipe", "r", "--config", config, "--out", tmp_path / "made")
    assert qconvd(*command).code == 0
    folder = tmp_path / "made" / "glass_en-GGUF"
    (manifest,) = manifests_in(folder)
    (used,) = manifest.statistics
    assert (used["kind"], used["file"]) == ("imatrix", "glass.imatrix")
    assert manifest.options["imatrix"] == {"file": "glass.imatrix", "sha256": used["sha256"]}
    assert str(tmp_path) not in json.dumps([manifest.options, manifest.statistics])
    assert manifest.verification is not None
    assert manifest.verification["rows"] > 0

    # What is there is not made again; another content is another artifact.
    again = qconvd(*command, "--json")
    assert [a["new"] for a in again.json["artifacts"]] == [False]
    shutil.copy(golden / "glass_en.imatrix.dat", tmp_path / "glass.imatrix")
    other = qconvd(*command)
    assert other.code != 0
    assert "is there already, made with other options" in other.err + other.out
    assert qconvd(*command, "--force").code == 0
    (after,) = manifests_in(folder)
    assert after.statistics[0]["sha256"] != used["sha256"]


def test_a_matrix_on_the_command_line(qconvd: Qconvd, glass: Path, golden: Path) -> None:
    matrix = golden / "glass_en.imatrix.dat"
    said = qconvd("plan", glass, "--to", f"gguf: {{types: [q5_0], imatrix: {matrix}}}", "--json")
    assert [(a["target"], "error" in a) for a in said.json["artifacts"]] == [("gguf Q5_0", False)]
    wrong = qconvd("plan", glass, "--to", "gguf: {types: [q5_0], imatrix: none.dat}")
    assert "gguf.imatrix: none.dat: is not there" in wrong.err
    assert wrong.code == 2
