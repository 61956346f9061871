"""GGUF files from Hugging Face checkpoints, for llama.cpp and what is built on it."""

from __future__ import annotations

from collections.abc import Iterable

from qconvd.api import Detail, Format, Rebuilder, hookimpl


@hookimpl
def qconvd_formats() -> Iterable[Format]:
    """`gguf`, also under the short names of the quantized types (`q4_0`, `q8_0`, …), and `imatrix`."""
    from qconvd_gguf.format import Gguf
    from qconvd_gguf.imatrix.format import Imatrix

    return (Gguf(), Imatrix())


@hookimpl
def qconvd_format_details(format: str) -> Iterable[Detail]:
    """For `gguf`, the model families that it knows, those of other plugins included."""
    if format != "gguf":
        return ()
    from qconvd_gguf.families import details

    return (details(),)


@hookimpl
def qconvd_rebuilders() -> Iterable[Rebuilder]:
    """GGUF and GGML files as checkpoints."""
    from qconvd_gguf.backwards.rebuild import GgufRebuilder

    return (GgufRebuilder(),)
