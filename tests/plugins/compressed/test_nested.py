"""The nearest of the 256 numbers that blocks' largest are stored as."""

from __future__ import annotations

import numpy as np

from qconvd_compressed.nested import closest
from qconvd_compressed.tables import dynamic


def test_the_nearest_is_found_around_every_border() -> None:
    numbers = dynamic()
    middles = (numbers[:-1] + numbers[1:]) / np.float32(2)
    around = [middles, numbers, np.nextafter(middles, np.float32(-2)), np.nextafter(middles, np.float32(2))]
    upper = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    for x in (np.concatenate(around), upper[np.abs(upper) <= 1], np.nextafter(upper[np.abs(upper) <= 1], np.float32(0))):
        # Of two that are as near, the lower one.
        assert (closest(x) == np.searchsorted(middles, x)).all()


def test_no_two_borders_share_the_upper_half_of_their_bits() -> None:
    """Which is why one comparison is enough."""
    numbers = dynamic()
    middles = (numbers[:-1] + numbers[1:]) / np.float32(2)
    assert len(np.unique(middles.view(np.uint32) >> np.uint32(16))) == len(middles) == 255
