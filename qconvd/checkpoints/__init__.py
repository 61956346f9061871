"""Models on disk: what they are, whether they are all there, and which bytes they have. No weight is read to say so.

This module is the built-in plugin that registers the readers. The control side imports it, so there is no numpy here.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

from qconvd.checkpoints.base import CheckpointReader, FileInfo, ModelInfo, TensorInfo
from qconvd.checkpoints.files import absolute, entries, is_folder, model_name, unreadable
from qconvd.checkpoints.ggml import GgmlReader
from qconvd.checkpoints.gguf import GgufReader
from qconvd.checkpoints.identity import identity
from qconvd.checkpoints.quantized.operations import Awq, Packed, Scaled
from qconvd.checkpoints.refusals import NotAModel, unclaimed
from qconvd.checkpoints.safetensors import SafetensorsReader
from qconvd.checkpoints.torch import TorchReader
from qconvd.engine.operations import Operation
from qconvd.hookspecs import hookimpl

__all__ = ["CheckpointReader", "FileInfo", "ModelInfo", "NotAModel", "TensorInfo", "identity", "inspect", "model_name"]


@hookimpl
def qconvd_checkpoint_readers() -> Iterable[CheckpointReader]:
    """The readers that come with qconvd. In a folder of several formats safetensors is what counts."""
    return (SafetensorsReader(), GgufReader(), GgmlReader(), TorchReader())


@hookimpl
def qconvd_operations() -> Iterable[Operation]:
    """The arithmetic of quantized safetensors and torch checkpoints."""
    return (Packed(), Awq(), Scaled())


def inspect(path: Path) -> ModelInfo:
    """Read the headers of the model at `path`, a folder or a lone file, with the first reader that claims it.

    Readers of plugins are asked before the built-in ones. Raises `Incomplete` if something is missing, may not be read or
    is still being written; `Unsupported` for what is recognised and refused by name; `NotAModel` if nothing here looks like
    a model; `BadCheckpoint` for everything damaged, inconsistent or hostile.
    """
    from qconvd.plugins import plugins  # not before it is needed: loading plugins asks this module for its hooks

    path = absolute(path)
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ENOENT and not path.is_symlink():
            raise NotAModel("there is nothing at this path", where=str(path)) from error
        raise unreadable(path, error) from error
    names = {e.name for e in entries(path)} if is_folder(path) else {path.name}
    for reader in plugins().readers:
        if reader.claims(path):
            return reader.inspect(path)
    raise unclaimed(path, names)
