"""How models on the Hub are written."""

from __future__ import annotations

import pytest

from qconvd.errors import QconvdError
from qconvd.hub.address import Address, is_address, parse


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("hub:meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B", "main"),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B", "main"),
        ("hub:a/b@main", "a/b", "main"),
        ("hub:a/b@refs/pr/1", "a/b", "refs/pr/1"),
        ("hub:https://huggingface.co/a/b", "a/b", "main"),
    ],
)
def test_addresses(text: str, repo: str, revision: str) -> None:
    assert parse(text) == Address(repo, revision)


def test_a_locator_names_a_revision_only_where_it_is_not_main() -> None:
    assert (Address("a/b").locator, Address("a/b", "v2").locator) == ("hub:a/b", "hub:a/b@v2")
    assert (Address("a/b").name, Address("a/b").owner) == ("b", "a")


@pytest.mark.parametrize(
    "text", ["hub:", "hub:name", "hub:a/b/c", "hub:../x", "hub:a/b--c", "hub:a/..", "hub:a/b.git", "hub:a b/c"]
)
def test_what_is_no_repository(text: str) -> None:
    with pytest.raises(QconvdError, match="is no repository of the Hub") as caught:
        parse(text)
    assert "write hub:owner/name" in caught.value.fix


@pytest.mark.parametrize("revision", ["../x", "a b", "a..b"])
def test_what_is_no_revision(revision: str) -> None:
    with pytest.raises(QconvdError, match="is no revision") as caught:
        parse(f"hub:a/b@{revision}")
    assert caught.value.where == "hub:a/b"


def test_paths_are_no_addresses() -> None:
    assert is_address("hub:a/b") and not is_address("./a/b") and not is_address("a/b")
