"""Built-in containers, registered as any plugin registers its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qconvd.hookspecs import hookimpl

if TYPE_CHECKING:
    from qconvd.containers.base import Container


@hookimpl
def qconvd_containers() -> Iterable[Container]:
    """safetensors, GGUF and GGML. Imported here, not above: `containers.base` must not pull in its own implementations."""
    from qconvd.containers.ggml import GgmlContainer
    from qconvd.containers.gguf import GgufContainer
    from qconvd.containers.safetensors import SafetensorsContainer

    return (SafetensorsContainer(), GgufContainer(), GgmlContainer())
