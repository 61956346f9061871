"""Rounding and candidates where a short cut stands for what ggml does."""

from __future__ import annotations

import itertools

import numpy as np

from qconvd_ggml import iq4
from qconvd_ggml.kernels import encode


def test_q8_0_rounds_halves_away_from_zero_and_nothing_else() -> None:
    halves = np.arange(0.5, 127, dtype=np.float32)
    near = np.concatenate([np.nextafter(halves, np.float32(0)), halves, np.nextafter(halves, np.float32(127))])
    # With a largest weight of 127 the scale is 1 and weights are levels.
    values = np.resize(np.concatenate([near, -near]), (26, 31))
    x = np.hstack([np.full((26, 1), 127, np.float32), values])
    levels = encode("Q8_0", x, "F32")[0].reshape(-1, 34)[:, 3:].view(np.int8)
    # In float64, where adding a half is exact.
    expected = np.sign(values) * np.floor(np.abs(values.astype(np.float64)) + 0.5)
    assert np.array_equal(levels, expected)


def test_no_weight_meets_two_borders_of_iq4_as_its_scale_is_tried() -> None:
    borders = [float(b) for b in iq4._THRESHOLDS]
    apart = [max(a / b, b / a) for a, b in itertools.pairwise(borders) if a * b > 0]
    assert len(apart) == 13
    assert min(apart) > 1.2 > (127 + iq4._TRIES) / (127 - iq4._TRIES)
