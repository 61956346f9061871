"""How a model on the Hub is written: `hub:owner/name`, or `hub:owner/name@revision` for a branch, a tag or a commit."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qconvd.errors import QconvdError

SCHEME = "hub:"
MAIN = "main"
# https://huggingface.co/docs/huggingface_hub/package_reference/utilities#huggingface_hub.utils.validate_repo_id
_REPO = re.compile(r"(?!.*(?:--|\.\.))[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII)
_PAGE = re.compile(r"https?:/+huggingface\.co/([^/]+/[^/]+)(?:/tree/([^/]+))?/?")
_REVISION = re.compile(r"(?!.*\.\.)[\w][\w./+-]{0,254}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Address:
    """A repository and which revision of it is meant."""

    repo: str
    revision: str = MAIN

    @property
    def locator(self) -> str:
        """As the ledger has it, and as people write it."""
        return f"{SCHEME}{self.repo}" + (f"@{self.revision}" if self.revision != MAIN else "")

    @property
    def name(self) -> str:
        """The model's name: that of the repository without its owner."""
        return self.repo.partition("/")[2]

    @property
    def owner(self) -> str:
        return self.repo.partition("/")[0]


def is_address(text: str) -> bool:
    """Whether a text names something on the Hub, and no path."""
    return text.startswith(SCHEME)


def of_page(text: str) -> Address | None:
    """The repository whose page on huggingface.co a text is the address of; None if it is none. Slashes may be collapsed."""
    found = _PAGE.fullmatch(text)
    return parse(f"{found[1]}@{found[2]}" if found[2] else found[1]) if found else None


def parse(text: str) -> Address:
    """The address that a person wrote, with or without `hub:`. Raises `QconvdError`."""
    repo, at, revision = text.removeprefix(SCHEME).partition("@")
    repo = repo.removeprefix("https://huggingface.co/").rstrip("/")
    if not _REPO.fullmatch(repo) or repo.endswith(".git"):
        fix = "write hub:owner/name, e.g. hub:HuggingFaceTB/SmolLM2-135M-Instruct, or hub:owner/name@revision"
        raise QconvdError(f"{text!r} is no repository of the Hub", fix=fix)
    if at and not _REVISION.fullmatch(revision):
        raise QconvdError(f"{revision!r} is no revision", where=f"{SCHEME}{repo}", fix="a branch, a tag or a commit's id")
    return Address(repo, revision or MAIN)
