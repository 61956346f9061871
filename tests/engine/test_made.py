"""Tensors of a model that are computed from what lies in its files: formats see them like all others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qconvd.engine.evaluate import rows
from qconvd.engine.expr import Affine, Cast, Dequantize, Read, Stack, Transpose, dequantized
from qconvd.engine.source import Source
from qconvd.errors import BadCheckpoint
from tiny import raw_model


def test_a_turned_tensor_is_read_as_the_model_means_it(tmp_path: Path) -> None:
    plain = raw_model(tmp_path, {"model.safetensors": {"w": ("F32", (6, 8)), "v": ("F16", (4,))}})
    info = plain.tensors["w"]
    turned = replace(info, shape=(8, 6), made=Transpose(Read("w", "F32", (6, 8))))
    model = replace(plain, tensors={**plain.tensors, "w": turned}, stored_as=plain.tensors)
    assert (model.stored["w"], plain.stored["w"]) == (info, info)
    assert model.weight_bytes == plain.weight_bytes
    with Source(model) as source:
        whole = rows(Read.of(info), 0, 6, source, {})
        np.testing.assert_array_equal(rows(Read.of(model.tensors["w"]), 2, 5, source, {}), whole.T[2:5])
        with pytest.raises(BadCheckpoint, match=r"the plan wants w as F32 \(8, 6\), the model has F32 \(6, 8\)"):
            rows(Read("w", "F32", (8, 6)), 0, 1, source, {})


def test_what_was_quantized_once_is_known_through_everything_that_is_made_of_it() -> None:
    read = Read("q", "I32", (4, 8))
    packed = Dequantize((read,), "any", (4, 8))
    assert dequantized(Stack((Affine(Cast(packed, "F16")), Cast(read, "F32"))))
    assert not dequantized(Transpose(read))
