"""Tables and sentences as they stand on a page of 80 columns."""

from __future__ import annotations

import pytest

from qconvd.cli import output

LONG = "gguf does not know the architecture OddForCausalLM, and it is not the only one that it has never heard of"


def test_sentences_stand_beside_a_row_or_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(1, "tiny", "done"), (20, "a-model-with-a-long-name", "failed"), (3, "x", "waiting"), (4, "y", "done")]
    output.table(("JOB", "MODEL", "STATE"), rows, right=(0,), sentences=[["short"], [LONG], ["one", "two"], [""]])
    assert (
        capsys.readouterr().out
        == """\
JOB  MODEL                     STATE
  1  tiny                      done     short
 20  a-model-with-a-long-name  failed
    gguf does not know the architecture OddForCausalLM, and it is not the only
    one that it has never heard of
  3  x                         waiting
    one
    two
  4  y                         done
"""
    )


def test_a_row_with_sentences_is_one_line_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a-very-long-name-" * 10
    output.table(("JOB", "MODEL", "STATE"), [(1, f"{name}\n{name}", "failed")], sentences=[["why"]])
    assert capsys.readouterr().out.splitlines()[1:] == [f"1    {name} {name}  failed", "    why"]


def test_wide_letters_count_twice(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("MODEL", "STATE"), [("模型", "done"), ("model", "done")], sentences=[["a"], ["b"]])
    assert capsys.readouterr().out.splitlines()[1:] == ["模型   done   a", "model  done   b"]


def test_a_sentence_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("MODEL",), [("m",)], sentences=[["\x1b[2Jbad"]])
    assert "\x1b" not in capsys.readouterr().out
