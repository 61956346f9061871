"""`watch: - hub:`, `hub:` and `web:` in config.yaml, and every mistake in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qconvd.config import Config, WatchFolder, WatchHub, load
from qconvd.errors import ConfigError

REST = "output: ./models\nrecipes: {r: {targets: [fp16]}}\n"


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[str], Config]:
    def of(text: str) -> Config:
        (tmp_path / "config.yaml").write_text(f"{text}\n{REST}")
        return load(tmp_path / "config.yaml")

    return of


@pytest.fixture
def mistakes(loaded: Callable[[str], Config]) -> Callable[[str], list[str]]:
    def of(text: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            loaded(text)
        return [problem.partition("config.yaml:")[2] for problem in caught.value.problems]

    return of


def test_repositories_authors_and_folders_side_by_side(loaded: Callable[[str], Config], tmp_path: Path) -> None:
    found = loaded("""\
watch:
  - {hub: meta-llama/Llama-3.2-1B, recipes: r}
  - {hub: a/b@dev, recipes: [r], interval: 1h, after: delete}
  - hub: {author: org, pipeline: text-generation, licenses: mit, max_parameters: 15B, name: "*-Instruct"}
    recipes: [r]
  - {folder: ./inbox, recipes: r}""")
    one, branch, author, folder = found.watch
    assert isinstance(one, WatchHub) and isinstance(branch, WatchHub) and isinstance(author, WatchHub)
    assert (one.hub.repo, one.hub.revision, one.interval, one.after) == ("meta-llama/Llama-3.2-1B", None, 300, "keep")
    assert (branch.hub.shown, branch.interval, branch.after) == ("hub:a/b@dev", 3600, "delete")
    assert (author.hub.shown, author.hub.licenses, author.hub.max_parameters) == ("hub:org/*", ("mit",), 15_000_000_000)
    assert isinstance(folder, WatchFolder) and folder.folder == tmp_path / "inbox"
    assert found.folders == (folder,) and found.repositories == (one, branch, author)


def test_what_is_left_out(loaded: Callable[[str], Config]) -> None:
    found = loaded("")
    assert (found.hub.endpoint, found.hub.token_file, found.hub.cache) == ("https://huggingface.co", None, None)
    assert (found.hub.timeout, found.hub.fetches, found.web.listen) == (60.0, 1, "127.0.0.1:8484")


def test_a_mirror_and_files(loaded: Callable[[str], Config], tmp_path: Path) -> None:
    found = loaded(
        "hub: {endpoint: 'http://127.0.0.1:80/', token_file: ./t, cache: ~/c, timeout: 5s}\nweb: {listen: '[::1]:80'}"
    )
    assert (found.hub.endpoint, found.hub.token_file) == ("http://127.0.0.1:80", tmp_path / "t")
    assert (found.hub.cache, found.web.listen) == (Path("~/c").expanduser(), "[::1]:80")


@pytest.mark.parametrize(
    ("text", "listen"),
    [("off", None), ("'off'", None), ("null", None), ("unix:/run/q.sock", "unix:/run/q.sock"), ("'0.0.0.0:0'", "0.0.0.0:0")],
)
def test_where_to_listen(loaded: Callable[[str], Config], text: str, listen: str | None) -> None:
    assert loaded(f"web: {{listen: {text}, hosts: X.example.org}}").web.listen == listen


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("watch: [{hub: a/b/c, recipes: r}]", "watch[0].hub: 'a/b/c' is no repository of the Hub; write hub:owner/name"),
        ("watch: [{hub: {}, recipes: r}]", "watch[0].hub: write `hub: owner/name`, or `hub: {author: …}`"),
        ("watch: [{hub: {author: x, repo: a/b}, recipes: r}]", "watch[0].hub: write `hub: owner/name`"),
        ("watch: [{hub: {repo: a/b, name: x}, recipes: r}]", "watch[0].hub: `name` chooses among the models of an `author`"),
        ("watch: [{hub: {author: x, revision: y}, recipes: r}]", "watch[0].hub: `revision` belongs to one repository"),
        ("watch: [{hub: {autor: x}, recipes: r}]", "watch[0].hub.autor: there is no key 'autor' here (did you mean author?)"),
        ("watch: [{hub: a/b, recipes: r, intervall: 3}]", "watch[0].intervall: there is no key 'intervall' here (did you mean"),
        ("watch: [{hub: a/b, recipes: r, after: move}]", "watch[0].after: 'move' is none of keep, delete"),
        ("watch: [{hub: a/b, recipes: q}]", "watch[0].recipes: there is no recipe 'q'; known are r"),
        ("watch: [{hub: a/b, recipes: r, interval: 0.1s}]", "watch[0].interval: 0.1 is too little; it must be at least 1"),
        ("watch:\n- {hub: a/b, recipes: r}\n- {hub: a/b, recipes: r}", "watch[1].hub: hub:a/b is watched already (line 2)"),
        ("watch: [{fulder: x, recipes: r}]", "watch[0].fulder: there is no key 'fulder' here (did you mean folder?)"),
        ("hub: {token: hf_abcdef}", "hub.token: there is no key 'token' here (did you mean token_file?)"),
        ("hub: {token_file: hf_abcdef}", "hub.token_file: this is a token itself; put it into a file"),
        ("hub: {endpoint: 'https://u:hf_abcdef@x'}", "hub.endpoint: 'https://u:hf_(token)@x' is no address"),
        ("web: {listen: 'unix:http.sock'}", "web.listen: 'unix:http.sock' is no path of a socket; write for example unix:"),
        ("web: {hosts: ['https://x']}", "web.hosts: 'https://x' is no name of a host; write for example qconvd.example.org"),
        ("web: {listen: 8080}", "web.listen: 8080 is no address with a port; write for example 127.0.0.1:8484"),
    ],
)  # fmt: skip
def test_mistakes(mistakes: Callable[[str], list[str]], text: str, told: str) -> None:
    found = mistakes(text)
    assert [p.split(": ", 1)[1].startswith(told) for p in found].count(True) == 1, found
    assert not any("hf_abcdef" in problem for problem in found)
