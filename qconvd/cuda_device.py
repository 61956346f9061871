"""The GPU of a worker, for plugins with kernels for one."""

from __future__ import annotations

from typing import Any

from qconvd.errors import Unsupported


def cuda_device() -> Any:
    """torch's device for the GPU that this process may see. Raises `Unsupported` if torch is missing or sees none."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise Unsupported(
            "a GPU is used through torch, and torch is not installed", fix="pip install 'qconvd[cuda]', or say device: cpu"
        ) from error
    if not torch.cuda.is_available():
        built = "is built without CUDA" if torch.version.cuda is None else f"is built for CUDA {torch.version.cuda}"
        raise Unsupported(
            f"torch {torch.__version__} sees no GPU; it {built}",
            fix="install a torch that fits the GPU's driver, or say device: cpu",
        )
    return torch.device("cuda")
