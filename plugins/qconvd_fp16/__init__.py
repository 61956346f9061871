"""Plain casts: a model's weights as float16, bfloat16 or float32 safetensors, with everything beside them."""

from __future__ import annotations

from collections.abc import Iterable

from qconvd.api import Finding, Format, converts_halves, hookimpl, kernel_findings


@hookimpl
def qconvd_formats() -> Iterable[Format]:
    """`fp16`, also under the short names `bf16` and `f32`."""
    from qconvd_fp16.format import PlainCast

    return (PlainCast(),)


@hookimpl
def qconvd_findings(warm: bool) -> Iterable[Finding]:
    """Whether the kernel that casts large models is compiled already, for `qconvd doctor`."""
    from qconvd_fp16.kernels import CACHE, ready

    return kernel_findings("fp16 kernel", CACHE, ready if warm else None) if converts_halves() else ()
