"""Files that a recipe names beside the model, such as an importance matrix: part of what is made, so their content counts.

In config.yaml such an option is a path. Once read it is the path and the SHA-256 of what lies there, so that another content
makes another artifact, and a worker can tell a file that changed since.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo

from qconvd.checkpoints.files import opened, read_at
from qconvd.errors import QconvdError

AUTO = "auto"
BLOCK = 1 << 20
_known: dict[tuple[int, int, int, int], str] = {}


class NamedFile(BaseModel):
    """A file as it was when the recipe was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    sha256: str


def sha256_of(descriptor: int) -> str:
    """The SHA-256 of an open file, in hex. Not read again by this process while its size and time stay."""
    status = os.fstat(descriptor)
    seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if seen not in _known:
        digest = hashlib.sha256()
        at = 0
        while block := read_at(descriptor, at, BLOCK):
            digest.update(block)
            at += len(block)
        _known[seen] = digest.hexdigest()
    return _known[seen]


def _named(value: Any, info: ValidationInfo) -> Any:
    """A path of the recipe, relative to the config file; what was read before is taken as it is."""
    if isinstance(value, NamedFile | Mapping) or value is None:
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"{value!r} is not a path; write for example ./model-imatrix.gguf")
    try:
        place = Path((info.context or {}).get("folder", Path.cwd())) / Path(value).expanduser()
        path = Path(os.path.abspath(place))  # noqa: PTH100 (resolve would follow symlinks)
        with opened(path) as (descriptor, _):
            return NamedFile(path=str(path), sha256=sha256_of(descriptor))
    except RuntimeError:
        raise ValueError(f"the home folder in {value!r} is not known; write the whole path") from None
    except QconvdError as error:
        raise ValueError(f"{value}: {error.what}") from error


def _named_or_auto(value: Any, info: ValidationInfo) -> Any:
    return value if value == AUTO else _named(value, info)


InputFile: TypeAlias = Annotated[NamedFile, BeforeValidator(_named, json_schema_input_type=str)]
"""For a format's options: a file that the recipe names by its path."""
FileOrAuto: TypeAlias = Annotated[NamedFile | Literal["auto"], BeforeValidator(_named_or_auto, json_schema_input_type=str)]
"""As `InputFile`, or `auto`: what is in it is found while converting."""
