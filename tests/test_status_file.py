"""The file for the person who only drops models into a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from qconvd import status_file
from qconvd.status_file import ArtifactStatus, ModelStatus

STATUS = ModelStatus(
    "Llama",
    Path("/inbox/Llama"),
    "failed",
    "1 of 3 artifacts is made.",
    "rename one of the two models",
    (
        ArtifactStatus("fp16", "done", nbytes=1 << 20, place="Llama-fp16/", notes=("x is F16 because y", "z is dropped")),
        ArtifactStatus("gguf Q4_0", "waiting", notes=("z is dropped",)),
        ArtifactStatus("gguf Q8_0", "failed", "the disk is full"),
    ),
)
TEXT = """\
Llama: failed

  1 of 3 artifacts is made.

What to do:
  rename one of the two models

Artifacts:
  fp16      done           1.0 MiB  Llama-fp16/
  gguf Q4_0 waiting
  gguf Q8_0 failed
    the disk is full

Worth knowing:
  fp16: x is F16 because y
  fp16, gguf Q4_0: z is dropped

Source: /inbox/Llama

This file is written by qconvd and follows the model; it is safe to delete.
"""


def test_a_status_reads_as_sentences() -> None:
    assert status_file.text([STATUS]) == TEXT


def test_long_notes_are_broken_between_words() -> None:
    note = "model.layers.0.mlp.down_proj.weight, model.layers.1.mlp.down_proj.weight are stored as F16: 341 inputs do not fit"
    artifact = ArtifactStatus("int8", "done", notes=(note,))
    text = status_file.text([ModelStatus("Llama", Path("/inbox/Llama"), "done", "Made.", "", (artifact,))])
    assert text.partition("Worth knowing:\n")[2].partition("\n\n")[0].splitlines() == [
        "  int8: model.layers.0.mlp.down_proj.weight, model.layers.1.mlp.down_proj.weight are stored as F16:",
        "    341 inputs do not fit",
    ]


def test_models_of_one_name_share_a_file() -> None:
    other = ModelStatus("Llama", Path("/second/Llama"), "waiting", "shard 2 of 3 is missing.")
    text = status_file.text([STATUS, other])
    assert text.count("Llama: ") == 2
    assert text.count(status_file.SIGNATURE) == 1


def test_it_is_written_whole_and_only_when_it_says_something_new(tmp_path: Path) -> None:
    path = status_file.path_of(tmp_path, "Llama")
    status_file.write(path, [STATUS])
    assert path == tmp_path / "Llama.status.txt"
    assert path.read_text() == TEXT
    before = path.stat().st_ino
    status_file.write(path, [STATUS])
    assert path.stat().st_ino == before
    assert status_file.written(tmp_path) == {path}
    assert [p.name for p in (tmp_path / ".qconvd").iterdir()] == [], "no draft is left"


def test_only_ours_are_removed(tmp_path: Path) -> None:
    ours = tmp_path / "ours.status.txt"
    status_file.write(ours, [STATUS])
    (tmp_path / "theirs.status.txt").write_text("my own notes")
    assert status_file.written(tmp_path) == {ours}
    for name in ("ours", "theirs", "never"):
        status_file.remove(tmp_path / f"{name}.status.txt")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["theirs.status.txt"]


def test_an_output_that_is_not_there_holds_no_status(tmp_path: Path) -> None:
    assert status_file.written(tmp_path / "nothing") == set()


def test_a_name_that_no_file_can_have_is_cut_short_or_mended(tmp_path: Path) -> None:
    long = status_file.path_of(tmp_path, "x" * 250)
    assert len(long.name.encode()) <= 255
    assert long != status_file.path_of(tmp_path, "x" * 249 + "y"), "what is cut off is told apart by a hash"
    status_file.write(long, [STATUS])
    assert status_file.path_of(tmp_path, "two\nlines\x1b[31m").name == "twolines[31m.status.txt"
    assert status_file.path_of(tmp_path, "../up").name == "up.status.txt"


def test_words_of_every_script_survive_a_locale_without_them(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from qconvd import status_file as s;"
        "m = s.ModelStatus('m', Path('/inbox/m'), 'refused', '\\u65e5\\u672c');"
        "s.write(Path('m.status.txt'), [m]); assert '\\u65e5\\u672c' in Path('m.status.txt').read_text('utf-8')"
    )
    ascii_only = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **ascii_only}, check=True)
