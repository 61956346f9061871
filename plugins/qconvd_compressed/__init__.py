"""Linears in 8 or 4 bits without calibration: `int8`, `int4` and `fp8`, as compressed-tensors and bitsandbytes store them.

options     what a recipe may say; short forms, names; schemes: how a linear is stored
planning    which tensors become what, sizes; stored: the tensors of one linear; config_json, readers
encoder     weights to bytes: kernels/, nested (bitsandbytes' double quantization), tables
decoder     the way back, and bounds: share nothing with the encoder
"""

from __future__ import annotations

from collections.abc import Iterable

from qconvd.api import Detail, Finding, Format, hookimpl, kernel_findings


@hookimpl
def qconvd_formats() -> Iterable[Format]:
    """`int8`, `int4`, `fp8`."""
    from qconvd_compressed.formats import Fp8, Int4, Int8

    return (Int8(), Int4(), Fp8())


@hookimpl
def qconvd_format_details(format: str) -> Iterable[Detail]:
    """What each container stores and who reads it, for `qconvd formats int8`."""
    from qconvd_compressed.readers import details

    return details(format)


@hookimpl
def qconvd_findings(warm: bool) -> Iterable[Finding]:
    """Whether the kernels are compiled already, for `qconvd doctor`."""
    from qconvd_compressed.kernels import CACHE, ready

    return kernel_findings("int8, int4 and fp8 kernels", CACHE, ready if warm else None)
