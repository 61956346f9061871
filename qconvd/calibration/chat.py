"""Chat templates: what a conversation looks like to a model that was trained on conversations.

Templates are Jinja and come with the model, so they run in the sandbox that transformers runs them in, with the same functions.
Source: transformers' utils/chat_template_utils.py, and the documentation of chat templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from qconvd.calibration.tokenizer import special
from qconvd.checkpoints.base import ModelInfo
from qconvd.errors import QconvdError

TODAY = datetime(2024, 7, 26)
"""The day that templates are told, so that they give the same text on any day; the one that Llama 3's falls back to."""


class ChatTemplate:
    """Writes conversations as a model expects them."""

    def __init__(self, model: ModelInfo, source: str, config: Mapping[str, Any]) -> None:
        """Raises `QconvdError` if the template cannot be parsed."""
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """`{% generation %}` marks what an assistant says, for training; here it is but its content."""

            tags = {"generation"}  # noqa: RUF012 (jinja2's own way)

            def parse(self, parser: Any) -> Any:
                line = next(parser.stream).lineno
                return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

        self._where = str(model.path)
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _raise, "strftime_now": TODAY.strftime}
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise self._failed(error) from error
        self._special = {name: token for name in config if name.endswith("_token") and (token := special(config, name))}

    def write(self, turns: Sequence[tuple[str, str]]) -> str:
        """The conversation as text, with special tokens. Raises `QconvdError` if the template does not take it."""
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            return self._template.render(messages=messages, add_generation_prompt=False, tools=None, **self._special)
        except Exception as error:  # a template may do anything wrong
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> QconvdError:
        what = f"its chat template fails: {' '.join(str(error).split())[:200]}"
        return QconvdError(what, where=self._where, fix="say `chat: false` under `calibration`, or mend the template")


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


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
