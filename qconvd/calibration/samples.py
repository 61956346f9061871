"""Tokens to run through a model: from text by its own tokenizer, cut into samples, chosen by a seed.

A document is cut into samples one after the other; what is left of each at its end is put together with others' to more
samples. Every sample begins as the model begins a text (BOS, if it has one). Of these, `samples` are chosen at random: they are
spread over all of the text, and none is chosen twice.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from qconvd.calibration.chat import Boundless, ChatTemplate, chat_template
from qconvd.calibration.sources import SEGMENT, Document, digest, documents, shown
from qconvd.calibration.tokenizer import Tokenizer, tokenizer
from qconvd.checkpoints.base import ModelInfo
from qconvd.engine.plan import CalibrationSpec
from qconvd.errors import QconvdError

CHARACTERS = 16
"""Characters of text that are looked at for every token that is needed; a token is about four."""
LEAST = 1 << 20
"""Characters that are looked at anyway: a small text is used as a whole."""
CHAT_SHARE = 4
"""One plain document in this many is put into a conversation, if `chat: auto` and the model has a template."""
QUESTION = 240
"""Characters at the beginning of a plain text that the user is made to say."""


def tokens(model: ModelInfo, spec: CalibrationSpec) -> NDArray[np.int64]:
    """(samples, length) ids of tokens. Raises `QconvdError` for a text that changed, is too short, or cannot be tokenized."""
    _check_unchanged(spec)
    made = tokenizer(model)
    body = spec.length - len(made.start)
    pieces, rest = [], list[int]()
    total = 0
    for text in _texts(model, spec):
        ids = _ids(made, text[: _wanted(spec)])
        if tuple(ids[: len(made.start)]) == made.start:  # a chat template writes it itself
            ids = ids[len(made.start) :]
        total += len(ids)
        whole = len(ids) // body * body
        pieces += [ids[at : at + body] for at in range(0, whole, body)]
        rest += [*made.start, *ids[whole:]] if rest else ids[whole:]
    _check_unchanged(spec)  # also while it was read
    pieces += [rest[at : at + body] for at in range(0, len(rest) // body * body, body)]
    if len(pieces) < spec.samples:
        raise _too_short(spec, total, len(pieces))
    # By random() alone, which Python promises not to change between versions.
    order = random.Random(spec.seed)
    chosen = sorted(range(len(pieces)), key=lambda _: order.random())[: spec.samples]
    found = np.array([[*made.start, *pieces[i]] for i in chosen], np.int64)
    _check_vocabulary(model, found)
    return found


def _check_unchanged(spec: CalibrationSpec) -> None:
    """Raise `QconvdError` if the text is not what it was planned with. While its size and time stay, it is not read again."""
    if digest(spec.text) != spec.sha256:
        fix = "`qconvd reconvert JOB` plans anew, or run the command again"
        raise QconvdError("the calibration text changed since it was planned with", where=shown(spec.text), fix=fix)


def _texts(model: ModelInfo, spec: CalibrationSpec) -> Iterator[str]:
    """Documents as the model is to see them."""
    template = chat_template(model) if spec.chat is not False else None
    if spec.chat is True and template is None:
        raise QconvdError(
            "has no chat template, and `chat: true` is set", where=str(model.path), fix="say `chat: auto` or `chat: false`"
        )
    for number, document in enumerate(_chosen(spec)):
        if template is None:
            yield document.text
        elif document.turns:
            yield _written(template, document.turns, document.text, spec)
        elif spec.chat is True or number % CHAT_SHARE == CHAT_SHARE - 1:
            yield _written(template, _as_turns(document.text), document.text, spec)
        else:
            yield document.text


def _written(template: ChatTemplate, turns: Sequence[tuple[str, str]], plain: str, spec: CalibrationSpec) -> str:
    try:
        return template.write(turns)
    except Boundless:
        raise
    except QconvdError:
        if spec.chat is True:
            raise
        return plain  # a template may refuse a system turn, or two of one role


def _as_turns(text: str) -> list[tuple[str, str]]:
    """A plain text as a conversation: how it begins, and how it goes on."""
    end = text.rfind(" ", 1, QUESTION) if len(text) > QUESTION else len(text) // 2
    return [("user", text[:end].strip() or text), ("assistant", text[end:].strip() or text)]


def _chosen(spec: CalibrationSpec) -> list[Document]:
    """So many documents that there is text enough, at random, in the order of the text; memory is bounded by what is chosen."""
    wanted = _wanted(spec)
    order = random.Random(spec.seed)
    kept: list[tuple[float, int, Document]] = []
    held = 0
    for number, document in enumerate(documents(spec.text)):
        if not document.text.strip():
            continue
        heapq.heappush(kept, (-order.random(), number, document))
        held += len(document.text)
        while held - len(kept[0][2].text) >= wanted:
            held -= len(heapq.heappop(kept)[2].text)
    return [document for _, _, document in sorted(kept, key=lambda k: k[1])]


def _wanted(spec: CalibrationSpec) -> int:
    """Characters of text that are looked at."""
    return max(LEAST, spec.samples * spec.length * CHARACTERS)


def _ids(made: Tokenizer, text: str) -> list[int]:
    """Tokenizers take a hundred times a text's size in memory, so a long one is handed over in parts."""
    if len(text) <= 2 * SEGMENT:
        return list(made.ids(text))
    return [i for at in range(0, len(text), SEGMENT) for i in made.ids(text[at : at + SEGMENT])]


def _too_short(spec: CalibrationSpec, total: int, samples: int) -> QconvdError:
    need = spec.samples * spec.length
    return QconvdError(
        f"the calibration text is too short: it has {total} tokens, which make {samples} samples of {spec.length}; "
        f"{spec.samples} of them ({need} tokens) are asked for",
        where=shown(spec.text),
        fix="name a longer text under `calibration`, or ask for fewer or shorter samples",
    )


def _check_vocabulary(model: ModelInfo, found: NDArray[np.int64]) -> None:
    text = model.config.get("text_config") or model.config
    size = text.get("vocab_size")
    if isinstance(size, int) and int(found.max()) >= size:
        what = f"its tokenizer gives the token {int(found.max())}, and the model has {size}"
        raise QconvdError(what, where=str(model.path), fix="use the tokenizer that belongs to this model")
