"""Which files of a repository make the model, whether the repository is ours, and when its content counts as another one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence

from qconvd.checkpoints.base import SIDE_FILE_LIMIT
from qconvd.checkpoints.files import INDEX_LIMIT, is_hidden, is_side_file
from qconvd.checkpoints.ggml import ENDINGS as GGML_ENDINGS
from qconvd.checkpoints.ggml import is_magic
from qconvd.checkpoints.shards import SAFETENSORS
from qconvd.checkpoints.torch import NAMING as TORCH
from qconvd.checkpoints.torch.complete import WEIGHTS
from qconvd.engine.manifest import MARK, OWN_NAME, SHARED_FOLDER
from qconvd.errors import BadCheckpoint, Unsupported
from qconvd.hub.address import SCHEME
from qconvd.hub.client import RemoteFile, RemoteModel

TELLING = frozenset({"model_index.json", "quantize_config.json", "quant_config.json", "adapter_config.json", "params.json"})
"""Small files that no conversion reads, and by which a reader knows what it will not convert."""
_DOCUMENTS = re.compile(r"README\.md|(LICEN[CS]E|COPYING|NOTICE|USE_POLICY)[\w.-]*")
_INDEXES = (SAFETENSORS.index_ending, TORCH.index_ending)
_PICKLES = re.compile(r".+\.(bin|pt|pth|ckpt)")


def is_ours(model: RemoteModel) -> bool:
    """Whether qconvd published this: by a manifest among its files, or by the tag on its card."""
    paths = [f.path for f in model.files]
    manifests = OWN_NAME in paths or any(p.startswith(f"{SHARED_FOLDER}/") and p.endswith(".json") for p in paths)
    return manifests or MARK in model.tags


def visible(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Files of the repository's top folder that a reader would see."""
    return [f for f in files if "/" not in f.path and not is_hidden(f.path)]


def beside(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """What is fetched before anything is decided: config, tokenizer, templates, card, licence, indexes.

    Raises `BadCheckpoint` for one that is absurdly large.
    """
    found = []
    for file in files:
        index = "/" not in file.path and file.path.endswith(_INDEXES) and not is_hidden(file.path)
        if not (index or file.path in TELLING or (is_side_file(file.path) and not is_hidden(file.path))):
            continue
        limit = INDEX_LIMIT if index else SIDE_FILE_LIMIT
        if file.size > limit:
            raise BadCheckpoint(f"{file.size} bytes are too many for a {file.path}", where=file.path)
        found.append(file)
    return found


def refuse_unread(where: str, names: Sequence[str], begins: Callable[[str], bytes]) -> None:
    """Raise `Unsupported` where there are no weights but GGML files, whose tensors are known only from record to record, or
    pickles under names that no model's weights have. `begins` gives a file's first bytes.
    """
    if any(n.lower().endswith((".safetensors", ".gguf")) or WEIGHTS.fullmatch(n) for n in names):
        return
    ggml = sorted(n for n in names if n.lower().endswith(GGML_ENDINGS) and is_magic(begins(n)))
    if ggml:
        more = f", {len(ggml)} of them" if len(ggml) > 1 else ""
        repo = where.removeprefix(SCHEME).partition("@")[0]
        fix = f"fetch one with `hf download {repo} {ggml[0]} --local-dir .`, and give qconvd the file"
        raise Unsupported(f"has its weights as GGML files ({ggml[0]}{more}), which are not read over the network", where=where,
                          fix=fix)  # fmt: skip
    if pickles := sorted(n for n in names if _PICKLES.fullmatch(n)):
        more = f" and {len(pickles) - 1} more" if len(pickles) > 1 else ""
        what = f"has no weights but {pickles[0]}{more}; of torch's files pytorch_model*.bin, model*.pt and the like are read"
        raise Unsupported(what, where=where, fix="take a repository with the model's safetensors")


def digest(files: Iterable[RemoteFile]) -> str:
    """The content as `hub:…`: paths, sizes and hashes of what a conversion reads. Card and licence are no part of it."""
    found = hashlib.sha256(b"qconvd hub digest 1")
    for file in sorted(files, key=lambda f: f.path):
        if not _DOCUMENTS.fullmatch(file.path):
            found.update(f"\0{file.path}\0{file.size}\0{file.content}".encode())
    return f"hub:{found.hexdigest()}"
