"""GPTQ checkpoints: linears in 2, 3, 4 or 8 bits with a scale per group, for vLLM, ExLlamaV2, transformers and GPTQModel.

options    what a recipe may say; variants and short forms
planning   which tensors become what, sizes, config; linears, readers, config_json
solve      weights and a Hessian to codes, scales and zero points; factor, parts, kernels/; beside
pack       those as the tensors of a checkpoint
decoder    the way back, and bounds: shares nothing with solve and pack
"""

from __future__ import annotations

from collections.abc import Iterable

from qconvd.api import Detail, Finding, Format, hookimpl, kernel_findings


@hookimpl
def qconvd_formats() -> Iterable[Format]:
    """`gptq`."""
    from qconvd_gptq.format import Gptq

    return (Gptq(),)


@hookimpl
def qconvd_format_details(format: str) -> Iterable[Detail]:
    """Which readers load which combinations, for `qconvd formats gptq`."""
    if format != "gptq":
        return ()
    from qconvd_gptq.readers import details

    return details()


@hookimpl
def qconvd_findings(warm: bool) -> Iterable[Finding]:
    """Whether the solver is compiled already, for `qconvd doctor`."""
    from qconvd_gptq.kernels import CACHE, ready

    return kernel_findings("GPTQ solver", CACHE, ready if warm else None)
