"""What a refusal asks for in a recipe's words, as it is written after `--to`."""

from __future__ import annotations

import pytest

from qconvd.cli.spelled import spelled
from qconvd.errors import QconvdError
from qconvd.targets import resolve_list


@pytest.mark.parametrize(
    ("target", "fix", "written"),
    [
        ("q4_k_m", "say `allow_requantize: true` under gguf", "--to 'gguf: {types: [Q4_K_M], allow_requantize: true}'"),
        ("ggml-q4_0", "say `expand_gqa: true` under ggml, which repeats", "--to 'ggml: {types: [q4_0], expand_gqa: true}'"),
        ("ggml-q4_0", "say `allow_requantize: true` under gguf", ""),  # another format's
        ("q4_k_m", "say `no_such_key: true` under gguf", ""),
        ("fp16", "take the model that it was made from", ""),
    ],
)
def test_the_target_with_what_is_asked_for(target: str, fix: str, written: str) -> None:
    (one,) = resolve_list(target)
    assert spelled(one, QconvdError("is quantized already", fix=fix)) == written
