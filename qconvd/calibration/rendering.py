"""A process that writes conversations with a chat template: templates are programs that come with models.

    python -P -m qconvd.calibration.rendering

Jinja's sandbox keeps a template from reaching out, but not from running for ever or filling the memory; a process of its own
has limits for that. A line in is JSON: first {"source", "special", "seconds", "memory", "longest"}, then conversations,
[[role, content], …]. Each is answered by a line: {"text"}, {"error"}, or {"beyond"} with the name of the limit that was
reached. A template that takes more than its seconds of CPU ends the process (SIGXCPU).
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, BinaryIO

TODAY = datetime(2024, 7, 26)
"""The day that templates are told, so that they give the same text on any day; the one that Llama 3's falls back to."""


def answers(lines: BinaryIO) -> Iterator[Mapping[str, str]]:
    """An answer to each line."""
    about = json.loads(lines.readline())
    # RLIMIT_DATA, as for workers: what can be written to.
    resource.setrlimit(resource.RLIMIT_DATA, (about["memory"], about["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _may_take(about["seconds"])
    try:
        template = environment().from_string(about["source"])
    except Exception as error:  # noqa: BLE001 — a template may do anything wrong
        yield _wrong(error)
        return
    yield {"text": ""}
    while line := lines.readline():
        _may_take(about["seconds"])
        try:
            yield _written(template, json.loads(line), about["special"], about["longest"])
        except Exception as error:  # noqa: BLE001 — likewise
            yield _wrong(error)


def environment() -> Any:
    """The sandbox and the functions that transformers gives to templates (its utils/chat_template_utils.py)."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what an assistant says, for training; here it is but its content."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's own way)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise, "strftime_now": TODAY.strftime}
    return made


def _written(template: Any, turns: Sequence[Sequence[str]], special: Mapping[str, str], longest: int) -> Mapping[str, str]:
    messages = [{"role": role, "content": content} for role, content in turns]
    left = longest + 4 * sum(len(content) for _, content in turns)
    parts = []
    for part in template.generate(messages=messages, add_generation_prompt=False, tools=None, **special):
        left -= len(part)
        if left < 0:
            return {"beyond": "longest"}
        parts.append(part)
    return {"text": "".join(parts)}


def _wrong(error: Exception) -> Mapping[str, str]:
    return {"beyond": "memory"} if isinstance(error, MemoryError) else {"error": " ".join(str(error).split())[:200]}


def _may_take(seconds: int) -> None:
    """So much CPU from now on, in whole seconds."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + seconds, resource.RLIM_INFINITY))


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


if __name__ == "__main__":
    for answer in answers(sys.stdin.buffer):
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
