"""GGML files from before GGUF, for runtimes that read nothing newer: koboldcpp, ctransformers, GPT4All-era programs.

`format.py` is the way in, `options.py` what may be said; `llama.py` makes what a GGJT 3 file holds, `classic.py` the files of
gpt2, gptj and gpt_neox, `again.py` a GGML file from another. The block kernels are qconvd_ggml's, families and tokenizers
qconvd_gguf's; the container is qconvd's own.
"""

from __future__ import annotations

from collections.abc import Iterable

from qconvd.api import Detail, Format, hookimpl


@hookimpl
def qconvd_formats() -> Iterable[Format]:
    """`ggml`, also as `ggml-q4_0` and so on."""
    from qconvd_ggjt.format import Ggml

    return (Ggml(),)


@hookimpl
def qconvd_format_details(format: str) -> Iterable[Detail]:
    """For `ggml`, the model families that such files can hold."""
    if format != "ggml":
        return ()
    rows = [
        ("llama", "LlamaForCausalLM, MistralForCausalLM and GGUF's llama, as far as the header can say it", "GGJT 3"),
        ("gpt2", "GPT2LMHeadModel", "ggml"),
        ("gptj", "GPTJForCausalLM", "ggml"),
        ("gpt_neox", "GPTNeoXForCausalLM", "ggml"),
    ]
    return (Detail("Model families", ("FAMILY", "ARCHITECTURES", "CONTAINER"), rows),)
