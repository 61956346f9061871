"""Artifacts that other people's readers are asked to open: how they are told apart, and what the readers are asked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

TEXT = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or twice "
    "she had peeped into the book her sister was reading, but it had no pictures or conversations in it."
)
"""What readers are asked about."""


def digest(folder: Path) -> str:
    """SHA-256 of all that a reader sees of it: the files of weights, and what the config says of them.

    `meta` is left out: no reader decides by it, except that GPTQModel knows files that GPTQModel wrote; and it names versions.
    """
    made = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        made.update(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    made.update(json.dumps({k: v for k, v in config.items() if k != "meta"}, sort_keys=True).encode())
    return made.hexdigest()


def tokens(model: Path) -> list[int]:
    """The ids of TEXT."""
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(model / "tokenizer.json")).encode(TEXT).ids)
