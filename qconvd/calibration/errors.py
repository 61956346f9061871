"""Refusals that several parts of calibration share."""

from __future__ import annotations

from qconvd.checkpoints.base import ModelInfo
from qconvd.errors import QconvdError, Unsupported

ELSE = "choose a format that needs no calibration"


def not_installed(error: ModuleNotFoundError) -> QconvdError:
    """For `import torch` and `import transformers`, which are an optional part."""
    return QconvdError(
        f"calibration runs models through torch and transformers, and {(error.name or '').partition('.')[0]} is not installed",
        fix="pip install 'qconvd[calibration]'",
    )


def unsupported(model: ModelInfo, what: str, fix: str = ELSE) -> Unsupported:
    return Unsupported(what, where=str(model.path), fix=fix)
