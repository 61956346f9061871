"""Functions for compiled code that are written in LLVM's own language."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types


def emitting(count: int, emit: Callable[..., None]) -> Any:
    """What a function with `intrinsic` around it returns: it takes `count` addresses and numbers and gives nothing.

    `emit(builder, *arguments)` writes its code.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        emit(builder, *arguments)
        return context.get_dummy_value()

    return types.void(*[types.intp] * count), generate
