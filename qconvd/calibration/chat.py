"""Chat templates: what a conversation looks like to a model that was trained on conversations.

Templates are Jinja and come with the model, so they run in a process with limits (`rendering.py`).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from qconvd.calibration.tokenizer import special
from qconvd.checkpoints.base import ModelInfo
from qconvd.errors import QconvdError
from qconvd.quantities import show_size

SECONDS = 10
"""CPU that one conversation may take; it takes a thousandth of one."""
MEMORY = 1 << 30
"""Bytes that the process may take: a line of .jsonl has 16 MiB, and four bytes a character."""
LONGEST = 1 << 20
"""Characters that a template may write beside four times those of the conversation."""
FIX = "say `chat: false` under `calibration`, or mend the template"


class Boundless(QconvdError):
    """A template that takes more than any conversation needs: trying the next one would take as much."""


class ChatTemplate:
    """Writes conversations as a model expects them."""

    def __init__(self, model: ModelInfo, source: str, config: Mapping[str, Any]) -> None:
        """Raises `QconvdError` if the template cannot be parsed."""
        self._where = str(model.path)
        tokens = {name: token for name in config if name.endswith("_token") and (token := special(config, name))}
        # In a session of its own, for what stops a worker would look like a template that fails; it ends with its input.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "qconvd.calibration.rendering"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        weakref.finalize(self, _end, self._process)
        self._asked({"source": source, "special": tokens, "seconds": SECONDS, "memory": MEMORY, "longest": LONGEST})

    def write(self, turns: Sequence[tuple[str, str]]) -> str:
        """The conversation as text, with special tokens.

        Raises `QconvdError` if the template does not take it, and `Boundless` if that would take too long or too much.
        """
        return self._asked(turns)

    def _asked(self, about: Any) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = b""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(about).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        answer = json.loads(line) if line.endswith(b"\n") else {"beyond": self._how_it_ended()}
        if "beyond" in answer:
            said = {
                "longest": f"writes more than {LONGEST:,} characters beside those of the conversation",
                "memory": f"takes more than {show_size(MEMORY)} of memory",
                "seconds": f"takes more than {SECONDS} s for one conversation",
            }
            what = said.get(answer["beyond"], f"ends the process that it runs in ({answer['beyond']})")
            raise Boundless(f"its chat template {what}", where=self._where, fix=FIX)
        if "error" in answer:
            raise QconvdError(f"its chat template fails: {answer['error']}", where=self._where, fix=FIX)
        return str(answer["text"])

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        return "seconds" if code == -signal.SIGXCPU else f"exit code {code}"


def chat_template(model: ModelInfo) -> ChatTemplate | None:
    """The model's template, if it has one."""
    config = model.read_json("tokenizer_config.json") if model.has("tokenizer_config.json") else {}
    config = config if isinstance(config, Mapping) else {}
    source = config.get("chat_template")
    if model.has("chat_template.jinja"):
        source = model.read_bytes("chat_template.jinja").decode(errors="replace")
    elif isinstance(source, list):  # several, each with a name
        named = {t.get("name"): t.get("template") for t in source if isinstance(t, Mapping)}
        source = named.get("default")
    return ChatTemplate(model, source, config) if isinstance(source, str) and source else None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # what was not written any more
            if pipe is not None:
                pipe.close()
