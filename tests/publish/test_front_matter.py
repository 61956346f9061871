"""The YAML of a card: what is ours is brought up to date, what a person wrote stays to the letter."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from qconvd.errors import QconvdError
from qconvd.publish.front_matter import read, split, update

CARD = "---\nlicense: mit\n---\n\n# Title\n---\nrest\n"


def test_a_card_is_parted_at_its_first_two_fences() -> None:
    assert split(CARD) == ("license: mit\n", "\n# Title\n---\nrest\n")
    assert split("# Title\n---\nno: head\n---\n") == ("", "# Title\n---\nno: head\n---\n")
    assert split("---\nnever closed\n") == ("", "---\nnever closed\n")


@pytest.mark.parametrize(
    ("there", "wanted", "last", "expected"),
    [
        ("", {"a": 1, "b": [2]}, {}, "a: 1\nb:\n- 2\n"),
        ("a: 1\n", {"a": 2}, {"a": 1}, "a: 2\n"),
        ("a: 5\n", {"a": 2}, {"a": 1}, "a: 5\n"),  # changed by hand
        ("a: 5\n", {"a": 2}, {}, "a: 5\n"),  # there before us
        ("b: 1\n", {"a": 2, "b": 1}, {"a": 2, "b": 1}, "b: 1\n"),  # removed by hand
        ("a: 1\nb: 1\n", {"b": 1}, {"a": 1, "b": 1}, "b: 1\n"),  # not ours to say any more
        ("a: 1\nb: 1\n", {"b": 1}, {"b": 1}, "a: 1\nb: 1\n"),  # never was
        ("a: 1", {"a": 1, "b": 2}, {"a": 1}, "a: 1\nb: 2\n"),
        ("{a: 1, b: 2}\n", {"a": 3}, {"a": 1}, "a: 3\nb: 2\n"),
    ],
)
def test_a_key_is_ours_while_its_value_is(there: str, wanted: dict[str, Any], last: dict[str, Any], expected: str) -> None:
    assert update(there, wanted, last, "README.md") == expected
    assert update(expected, wanted, wanted, "README.md") == expected


def test_items_of_lists_are_ours_one_by_one() -> None:
    there = "tags: [gguf, theirs]\n"  # `old` was removed by hand, `theirs` was added
    made = update(there, {"tags": ["gguf", "old", "new"]}, {"tags": ["gguf", "old", "gone"]}, "README.md")
    assert yaml.safe_load(made) == {"tags": ["gguf", "theirs", "new"]}


def test_comments_order_and_spelling_of_other_keys_stay() -> None:
    there = (
        "# ours since May\nlicense:   'mit'   # really\nmodel-index:\n  - name: x\n    results: []\n\n"
        "# what it is for\ntags:\n  - a\nlanguage:\n- en\nwidget:\n- text: |\n    hello\n\n    you\n"
    )
    made = update(there, {"tags": ["a", "b"], "language": ["en"], "new": "x"}, {"tags": ["a"], "language": ["en"]}, "README.md")
    assert made == there.replace("tags:\n  - a\n", "tags:\n- a\n- b\n") + "new: x\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a: [1\n",
            "README.md:3:1: the card's metadata is not YAML: expected ',' or ']', but got '<stream end>'\n"
            "  mend the card by hand",
        ),
        ("- a\n", "README.md: the card's metadata is no mapping of keys\n  mend the card by hand"),
        ("x: 2023-99-99\n", "README.md: the card's metadata is not YAML: it cannot be read\n  mend the card by hand"),
        ("x: " + "[" * 5000, "README.md: the card's metadata is not YAML: it cannot be read\n  mend the card by hand"),
    ],
)
def test_yaml_that_cannot_be_read_is_told_with_its_place(text: str, said: str) -> None:
    with pytest.raises(QconvdError) as caught:
        read(text, "README.md")
    assert str(caught.value) == said
