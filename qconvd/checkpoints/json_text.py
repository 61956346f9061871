"""JSON that a model brought along: read strictly enough that what comes out can be written again."""

from __future__ import annotations

import json
from typing import Any


def loads(text: bytes, **options: Any) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError with line and column, also for what nests too deeply.

    Python lets an escape such as `\\ud83d` stand alone. That is half of a character: no file and no message can hold it.
    """
    try:
        value = json.loads(text.decode(), **options)
        if b"\\ud" in text or b"\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it escapes half of a character (a lone surrogate)") from None
    return value
