"""Whether a torch file is complete, as far as its first and last bytes tell, or what it is instead.

A file of torch 1.6 or later is a zip, which ends with its end record, so it is complete when that record is there and fits
the file's length. An older one says in its pickle how long it is (tensors.py).
"""

from __future__ import annotations

import re
from pathlib import Path

from qconvd.checkpoints.files import opened, read_at
from qconvd.checkpoints.refusals import TEXT_START, NotAModel, refuse_text
from qconvd.checkpoints.torch.archive import COMMENT_LIMIT, END_SIZE, ends
from qconvd.errors import BadCheckpoint, Incomplete, Unsupported

WEIGHTS = re.compile(r"(pytorch_model|model|adapter_model|consolidated|gptq_model)[\w.-]*\.(bin|pt|pth|ckpt)")
# The magics of the formats before GGUF, as they stand in the file (little-endian u32).
_GGML = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA"}


def check_complete(path: Path) -> None:
    """Return if a zip's end record is there, or nothing can be said.

    Raises `Incomplete` if the record is missing, `Unsupported` for GGML and GGUF under torch's endings, `BadCheckpoint` for
    text and for what has a checkpoint's name and is none; `NotAModel` for anything else that has one of the endings.
    """
    with opened(path) as (descriptor, size):
        first = read_at(descriptor, 0, TEXT_START)
        tail = read_at(descriptor, max(0, size - END_SIZE - COMMENT_LIMIT), END_SIZE + COMMENT_LIMIT)
    if not first.strip(b"\0"):
        raise Incomplete("is empty, or begins with zeros", where=str(path), fix="wait for the copy to finish")
    if first[:4] in _GGML:
        what = f"is a {_GGML[first[:4]]} file under another ending"
        raise Unsupported(what, where=str(path), fix="rename it to end in .bin")
    if first[:4] == b"GGUF":
        raise Unsupported("is a GGUF file under another ending", where=str(path), fix="rename it to end in .gguf")
    if first[:2] in (b"P", b"PK"):
        if ends(tail, size) is None:
            what = f"the end record of the zip is not there ({size} bytes so far)"
            raise Incomplete(what, where=str(path), fix="wait for the copy to finish, or copy the file again")
    elif first[0] != 0x80:  # the opcode that every pickle since protocol 2 begins with
        refuse_text(path, first, size, f"a PyTorch {path.suffix} file")
        if WEIGHTS.fullmatch(path.name):
            what = "is no PyTorch checkpoint: it begins like neither a zip nor a pickle"
            raise BadCheckpoint(what, where=str(path), fix="copy or download the file again")
        raise NotAModel("is not a model file", where=str(path), fix="models are folders with safetensors and a config.json")
