"""Torch checkpoints (`pytorch_model.bin`, `.pt`, `.pth`), read without torch and without running their pickles.

In the order of the work: complete.py (is all of it there), archive.py (the zip) and stream.py (the bytes of a pickle),
machine.py (the pickle, interpreted) with values.py (all that it may speak of), state.py (which of it are the weights),
tensors.py (where their bytes are).
"""

from __future__ import annotations

import re
from pathlib import Path

from qconvd.checkpoints.base import ModelInfo
from qconvd.checkpoints.files import CONFIG_LIMIT, entries, is_folder, is_hidden, is_temporary, is_there, read_json
from qconvd.checkpoints.folder import Tensors, folder_model
from qconvd.checkpoints.quantized import packing
from qconvd.checkpoints.refusals import no_config, refuse_config, refuse_layout
from qconvd.checkpoints.shards import Naming, choose_shards
from qconvd.checkpoints.torch.complete import WEIGHTS, check_complete
from qconvd.checkpoints.torch.tensors import Found, read_tensors
from qconvd.errors import QconvdError, Unsupported

ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
NAMING = Naming("torch", "pytorch_model.bin", ".bin.index.json", WEIGHTS)
_EMBEDDINGS = re.compile(r"embed|wte|shared")


class TorchReader:
    """Folders that hold torch's own files and a config.json, as transformers wrote them before safetensors."""

    name = "torch"

    def claims(self, path: Path) -> bool:
        """Whether the path is named like a torch checkpoint, or is a folder that holds one or an index of them."""
        if path.name.endswith(ENDINGS) and not is_folder(path):
            return True
        return any(WEIGHTS.fullmatch(name) or name == NAMING.index for name in _visible(path))

    def inspect(self, path: Path) -> ModelInfo:
        """Read config.json, the index and every file's pickle.

        Raises `Incomplete` for missing shards or bytes, `Unsupported` for adapters, diffusion models, training states and
        pickles that ask for more than weights, `BadCheckpoint` for everything that contradicts itself.
        """
        if not is_folder(path):
            raise _lone(path)
        names = _visible(path)
        refuse_layout(path, names, [n for n in names if WEIGHTS.fullmatch(n)])
        index, shards = choose_shards(path, names, NAMING)
        if "config.json" not in names:
            raise no_config(path, names)
        config = read_json(path / "config.json", CONFIG_LIMIT)
        packed = packing(path, config, names)
        refuse_config(path, config)
        found = {shard: _read(path, shard) for shard in shards}
        tied = config.get("tie_word_embeddings") is True
        parts, notes = {}, []
        for shard, tensors in found.items():
            copies = _copies(tensors) if tied else {}
            parts[shard] = Tensors(
                {name: one for name, (one, _) in tensors.items() if name not in copies},
                {name: one for name, (_, one) in tensors.items() if name not in copies},
            )
            notes += [f"{copy} is {name}, as config.json ties them, and not written twice" for copy, name in copies.items()]
            index = {name: file for name, file in index.items() if name not in copies or file != shard}
        return folder_model(path, self.name, packed.config if packed else config, index, parts, packed, notes=tuple(notes))


def _read(folder: Path, file: str) -> Found:
    check_complete(folder / file)
    if file.endswith(".ckpt"):
        fix = "save the model with transformers, model.save_pretrained(folder), or take its safetensors"
        raise Unsupported("PyTorch .ckpt files hold whole training runs, and are not read", where=str(folder / file), fix=fix)
    return read_tensors(folder, file)


def _copies(tensors: Found) -> dict[str, str]:
    """Names of the same bytes as the embeddings, which come first in a state dict: what a model ties to them."""
    first: dict[object, str] = {}
    copies = {}
    for name, (stored, tensor) in tensors.items():
        known = first.setdefault((stored.offset, stored.nbytes, tensor.dtype, tensor.shape), name)
        if known != name and stored.nbytes and _EMBEDDINGS.search(known):
            copies[name] = known
    return copies


def _lone(path: Path) -> QconvdError:
    _read(path.parent, path.name)  # a broken, half-copied or hostile file has better reasons
    if is_there(path.parent / "config.json"):
        if not WEIGHTS.fullmatch(path.name):
            fix = f"call it pytorch_model.bin if it holds the model's weights, and give qconvd the folder: {path.parent}"
            return Unsupported("is not called as a model's weights are", where=str(path), fix=fix)
        return Unsupported("is one file of a model", where=str(path), fix=f"give qconvd the folder: {path.parent}")
    fix = "put it with the config.json and tokenizer of its model into a folder of their own, and give qconvd that"
    return Unsupported(f"no config.json goes with a lone {path.suffix} file", where=str(path), fix=fix)


def _visible(folder: Path) -> list[str]:
    try:
        return [e.name for e in entries(folder) if e.kind != "folder" and not is_hidden(e.name) and not is_temporary(e.name)]
    except QconvdError:
        return []
