"""Plain casts: a model's weights as float16, bfloat16 or float32 safetensors, with everything beside them."""

from __future__ import annotations

from collections.abc import Iterable

from qconvd.api import Format, hookimpl


@hookimpl
def qconvd_formats() -> Iterable[Format]:
    """`fp16`, also under the short names `bf16` and `f32`."""
    from qconvd_fp16.format import PlainCast

    return (PlainCast(),)
