"""YAML as data with the place of every key and value."""

from __future__ import annotations

import pytest

from qconvd.located_yaml import Position, dotted, parse


def test_every_key_and_value_has_its_place() -> None:
    found = parse("watch:\n  - folder: ./inbox\n    recipes: [a, b]\n")
    assert found.data == {"watch": [{"folder": "./inbox", "recipes": ["a", "b"]}]}
    assert found.problems == []
    assert found.keys["watch", 0, "recipes"] == Position(3, 5)
    assert found.values["watch", 0, "recipes", 1] == Position(3, 18)
    assert found.value(("watch", 0, "recipes", 1, "not", "there")) == Position(3, 18)
    assert found.key(("watch", 0)) == Position(2, 5)


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("a: 1\nb: {c: 3, c: 4}\n", 2, 11, "this key stands here twice; it was first set on line 2"),
        ("a: 1\na: 2\n", 2, 1, "this key stands here twice; it was first set on line 1"),
        ("1: x\n", 1, 1, "the key '1' is not text; put it in quotes"),
        ("no: x\n", 1, 1, "the key 'no' is not text; put it in quotes"),
        ("? [a]\n: x\n", 1, 3, "this key is not text; put it in quotes"),
        ("a: [1\nb: 2", 2, 2, "is not valid YAML: while parsing a flow sequence, expected ',' or ']', but got ':'"),
        ("a:\n\tb: 2", 2, 1, "there is a tab on this line; YAML wants spaces"),
        ("a: &x [*x]", 1, 4, "is not valid YAML: an alias that contains itself"),
        ("a: *x", 1, 4, "is not valid YAML: found undefined alias 'x'"),
        ('a: 1\nb: "x\\ud800"', 2, 4, "an escape here is half of a character (a lone surrogate)"),
        ("a: 1\nb: \x01", 2, 4, "holds a character that YAML does not allow: U+0001"),
        ("a: !!python/object:os.system x", 1, 4, "is not allowed here; write plain text, a number, true, false or null"),
        ("a: 1\n---\nb: 2", 2, 1, "is not valid YAML: expected a single document in the stream"),
        ("a: 1\nb: 1:30:00", 2, 4, "to YAML 1:30:00 is 5400, a number in base 60; write the number or one with a unit, as 90m"),
        ("a: [1:30.5]", 1, 5, "to YAML 1:30.5 is 90.5, a number in base 60"),
        ("1:30: x", 1, 1, "the key '1:30' is not text; put it in quotes"),
        ("<<: [1]\n", 1, 5, "a merge key (<<) wants a mapping"),
        ("[" * 5000, 1, 1, "is nested too deeply to be read"),
    ],
)
def test_mistakes_have_their_place(text: str, line: int, column: int, message: str) -> None:
    (problem,) = parse(text).problems
    assert message in problem.message
    assert problem.position == Position(line, column)


def test_several_mistakes_are_told_at_once() -> None:
    assert [p.position.line for p in parse("a: 1\na: 2\n3: 4\nb: {c: 1, c: 2}\n").problems] == [2, 3, 4]


def test_merge_keys_are_overridden_by_what_stands_beside_them() -> None:
    found = parse("base: &b {x: 1, y: 2}\nmine: {<<: *b, y: 3}\n")
    assert found.data["mine"] == {"x": 1, "y": 3}
    assert found.keys["mine", "y"] == Position(2, 16)


def test_a_time_in_quotes_is_text() -> None:
    found = parse("a: '1:30'\nb: gguf:q4_0\n")
    assert (found.data, found.problems) == ({"a": "1:30", "b": "gguf:q4_0"}, [])


def test_a_date_is_text() -> None:
    assert parse("a: 2026-01-01").data == {"a": "2026-01-01"}


def test_aliases_of_aliases_cannot_eat_the_memory() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (problem,) = parse("\n".join(lines)).problems
    assert "far too many of them" in problem.message


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_document_is_none(text: str) -> None:
    assert parse(text).data is None


def test_paths_are_written_as_people_would() -> None:
    assert dotted(("recipes", "a", "targets", 1, "gguf", "types")) == "recipes.a.targets[1].gguf.types"
    assert dotted(()) == ""


def test_on_is_a_key_like_any_other() -> None:
    """To YAML 1.1 it is true; as a value it stays so."""
    document = parse("on: on\nlist: [{on: done}]\n")
    assert document.problems == [] and document.data == {"on": True, "list": [{"on": "done"}]}
    assert document.key(("on",)) == (1, 1)
