"""What a fetch keeps beside a model's headers: which files it brought into the cache itself, and the model as links."""

from __future__ import annotations

import json
from pathlib import Path

JOURNAL = "fetched.json"
MODEL = "model"


def begun(folder: Path) -> list[str]:
    """Files that were not in the cache before this fetch began, finished or not. What is deleted afterwards is among these."""
    try:
        found = json.loads((folder / JOURNAL).read_bytes())
    except (OSError, ValueError):
        return []
    return [str(path) for path in found] if isinstance(found, list) else []
