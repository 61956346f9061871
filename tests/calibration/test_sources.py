"""Calibration text: files, folders, conversations, datasets of the Hub cache, and what comes with qconvd."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qconvd.calibration.options import CalibrationOptions
from qconvd.calibration.sources import BUNDLED, SEGMENT, Document, digest, documents
from qconvd.errors import QconvdError


def lines(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_a_text_is_read_in_pieces_that_end_with_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "".join(f"line {i} äöü\n" for i in range(20_000))
    path.write_text(text)
    found = [d.text for d in documents(str(path))]
    assert len(found) > 3 and "".join(found) == text
    assert all(part.endswith("\n") and len(part) < SEGMENT + 100 for part in found)


def test_a_text_without_lines_is_read_in_pieces_too(tmp_path: Path) -> None:
    text = "no end of line " * 20_000
    (tmp_path / "a.txt").write_text(text)
    path = lines(tmp_path / "a.jsonl", {"text": text})
    for found in (list(documents(str(tmp_path / "a.txt"))), list(documents(str(path)))):
        assert "".join(d.text for d in found) == text
        assert all(len(d.text) <= 2 * SEGMENT for d in found)


def test_halves_of_characters_are_no_obstacle(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "a\ud800b"}
    path = lines(tmp_path / "a.jsonl", {"text": "a\ud800b"}, {"messages": [turn]})
    assert [d.text for d in documents(str(path))] == ["a?b", "a?b"]


def test_a_files_name_may_be_no_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("text")
    assert len(digest(str(tmp_path))) == 64
    assert [d.text for d in documents(str(tmp_path))] == ["text"]


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Ein Text.\n", "utf-16")
    with pytest.raises(QconvdError) as caught:
        list(documents(str(path)))
    assert str(caught.value) == f"{path}: is no text: it has zero bytes\n  name a text in UTF-8"


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qconvd.calibration.sources.LINE_LIMIT", 1024)
    path = lines(tmp_path / "a.jsonl", {"text": "fine"}, {"text": "x" * 1024})
    with pytest.raises(QconvdError) as caught:
        list(documents(str(path)))
    assert (caught.value.what, caught.value.where) == ("is longer than 1.0 KiB", f"{path}, line 2")


def test_fields_of_json_lines(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}]
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    path = lines(tmp_path / "a.jsonl", {"text": "one"}, {"content": "two"}, {"messages": turns}, {"conversations": shared})
    spoken = Document("Hi\n\nHello", (("user", "Hi"), ("assistant", "Hello")))
    assert list(documents(str(path))) == [Document("one"), Document("two"), spoken, spoken]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"text": ', "is not valid JSON: "),
        ("[1]", "holds a list, not an object"),
        ('{"prompt": "x"}', "has no text that is known: its fields are prompt"),
        ('{"messages": [{"role": "user"}]}', "has a turn without role and content"),
    ],
)
def test_lines_that_are_none_are_named(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(QconvdError) as caught:
        list(documents(str(path)))
    assert caught.value.what.startswith(what) and caught.value.where == f"{path}, line 3"


def test_a_folder_is_read_in_the_order_of_names_and_its_digest_knows_them(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("second\n")
    (tmp_path / "a.txt").write_text("first\n")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d.txt").write_text("third\n")
    (tmp_path / "e.bin").write_text("no text")
    assert [d.text for d in documents(str(tmp_path))] == ["first\n", "second\n", "third\n"]
    before = digest(str(tmp_path))
    (tmp_path / "e.bin").write_text("still none")
    assert digest(str(tmp_path)) == before
    (tmp_path / "b.md").rename(tmp_path / "z.md")
    assert digest(str(tmp_path)) != before


def test_of_a_single_file_the_content_and_the_ending_count(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("{}\n")
    (tmp_path / "b.txt").write_text("{}\n")
    (tmp_path / "a.jsonl").write_text("{}\n")
    first, second, other = (digest(str(tmp_path / name)) for name in ("a.txt", "b.txt", "a.jsonl"))
    assert first == second != other


def test_a_dataset_is_taken_from_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    text = "hub:datasets/owner/name"
    with pytest.raises(QconvdError) as caught:
        digest(text)
    assert caught.value.what == "the dataset owner/name is not in the Hub cache"
    assert caught.value.fix == "download it once: hf download --repo-type dataset owner/name"
    folder = tmp_path / "datasets--owner--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    with pytest.raises(QconvdError, match="the dataset owner/name is only partly in the Hub cache"):
        digest(text)
    snapshot = folder / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    lines(snapshot / "train.jsonl", {"text": "from the Hub"})
    assert list(documents(text)) == [Document("from the Hub")]
    assert CalibrationOptions(text=text).text == "hub:datasets/owner/name@abc123"
    (folder / "refs" / "main").write_text("def456")
    assert list(documents("hub:datasets/owner/name@abc123")) == [Document("from the Hub")]
    with pytest.raises(QconvdError) as caught:
        digest("hub:datasets/owner/name@v2")
    assert caught.value.what == "the revision v2 of owner/name is only partly in the Hub cache"
    assert caught.value.fix == "download it once: hf download --repo-type dataset owner/name --revision v2"
    (folder / "refs" / "main").write_text("abc123")
    (snapshot / "more.parquet").write_bytes(b"PAR1")
    with pytest.raises(QconvdError, match="is Parquet, which is read with pyarrow, and that is not installed"):
        list(documents(text))


def test_the_text_that_comes_with_qconvd_is_varied_and_of_a_known_origin() -> None:
    found = "".join(d.text for d in documents("default"))
    assert 350_000 < len(found) < 450_000
    for part in ("Miss Woodhouse", "sqlite3_", "prototype", "def ", "Präambel", "序言", "Jesús"):
        assert part in found, part
    origin = (BUNDLED / "ORIGIN.md").read_text()
    for path in BUNDLED.glob("*.txt"):
        assert f"| {path.name} |" in origin or path.name.startswith("rights_")


def test_options_take_paths_relative_to_the_config(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("text")
    made = CalibrationOptions.model_validate({"text": "./my.txt"}, context={"folder": tmp_path})
    assert made.place == str(tmp_path / "my.txt")
    (tmp_path / "my.txt").unlink()  # what the ledger keeps is read without it
    assert CalibrationOptions.model_validate(made.model_dump()) == made
    assert CalibrationOptions().place == "default"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": "hub:owner/name"}, "'hub:owner/name' is no dataset; write hub:datasets/owner/name"),
        ({"text": " "}, "' ' is no text; write `default`, a path, or hub:datasets/owner/name"),
        (
            {"text": "/nowhere/a.txt"},
            "/nowhere/a.txt: there is no calibration text here; name a file or folder that is there as `text` under "
            "`calibration`, or hub:datasets/owner/name",
        ),
        ({"text": "hub:datasets/o/n"}, "the dataset o/n is not in the Hub cache; download it once: hf download --repo-type"),
        ({"samples": 0}, "greater than 0"),
        ({"length": 8}, "greater than or equal to 16"),
        ({"chat": "maybe"}, "auto"),
        ({"sample": 3}, "Extra inputs are not permitted"),
    ],
)
def test_options_that_make_no_sense(
    given: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="validation error") as caught:
        CalibrationOptions.model_validate(given)
    assert said in str(caught.value)
