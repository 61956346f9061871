"""Sizes, durations and counts as people write them."""

from __future__ import annotations

import re

import pytest

from qconvd.quantities import count, duration, show_count, show_duration, show_size, size, write_duration, write_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20GiB", 20 * 2**30),
        ("5 GB", 5 * 10**9),
        ("512M", 512 * 2**20),
        ("1.5 tib", 3 * 2**39),
        ("1_000", 1000),
        ("7 b", 7),
        (" 3kB ", 3000),
        (4096, 4096),
        ("9007199254740993", 9007199254740993),
        ("8388609TiB", 8388609 * 2**40),
    ],
)
def test_sizes(text: str | int, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("30s", 30), ("2h", 7200), ("1h30m", 5400), ("500ms", 0.5), ("1 d 2 h", 93600), (2, 2), ("1.5", 1.5)]
)
def test_durations(text: str | float, expected: float) -> None:
    assert duration(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("70B", 70 * 10**9), ("1.5b", 1_500_000_000), ("135M", 135_000_000), (10, 10)])
def test_counts(text: str | int, expected: int) -> None:
    assert count(text) == expected


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (size, "lots", "'lots' is not a size; write for example 20GiB, 5 GB or 512MiB"),
        (size, "20 Gx", "'Gx' in '20 Gx' is not a unit of size; write for example 20GiB, 5 GB or 512MiB"),
        (size, "-1", "'-1' is not a size; write for example 20GiB, 5 GB or 512MiB"),
        (size, "1.2.3", "'1.2.3' is not a size; write for example 20GiB, 5 GB or 512MiB"),
        (size, True, "True is not a size; write for example 20GiB, 5 GB or 512MiB"),
        (size, None, "None is not a size; write for example 20GiB, 5 GB or 512MiB"),
        (size, float("nan"), "nan is not a size; write for example 20GiB, 5 GB or 512MiB"),
        (size, "9" * 400 + ".5GiB", f"'{'9' * 55}…' is not a size; write for example 20GiB, 5 GB or 512MiB"),
        (duration, "9" * 400 + "w", f"'{'9' * 55}…' is not a duration; write for example 30s, 5m or 2h"),
        (duration, "soon", "'soon' is not a duration; write for example 30s, 5m or 2h"),
        (duration, "1h 30", "'1h 30' is not a duration; write for example 30s, 5m or 2h"),
        (duration, -2, "-2 is not a duration; write for example 30s, 5m or 2h"),
        (count, "7Q", "'Q' in '7Q' is not a unit of number of parameters; write for example 70B, 1.5B or 135M"),
    ],
)
def test_what_is_none_says_so(parse, text, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(text)


@pytest.mark.parametrize(
    ("nbytes", "shown"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (269060552, "256.6 MiB"), (3 * 2**30, "3.00 GiB")]
)
def test_sizes_are_shown(nbytes: int, shown: str) -> None:
    assert show_size(nbytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.25, "0.2s"), (45, "45s"), (125, "2m 05s"), (59.6, "1m 00s"), (3725, "1h 02m"), (273600, "3d 4h")]
)
def test_durations_are_shown(seconds: float, shown: str) -> None:
    assert show_duration(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"), [(999, "999"), (134515008, "134.5M"), (1_240_000_000, "1.24B"), (852608, "852.6K")]
)
def test_counts_are_shown(number: int, shown: str) -> None:
    assert show_count(number) == shown


@pytest.mark.parametrize("text", ["20GiB", "1.5MiB", "7 B", "1023 B"])
def test_what_is_shown_can_be_read_again(text: str) -> None:
    assert size(show_size(size(text))) == size(text)


@pytest.mark.parametrize(
    ("nbytes", "written"),
    [(0, "0"), (1, "1"), (1500, "1500"), (2000, "2kB"), (1 << 20, "1MiB"), (5_000_000_000, "5GB"), (3 << 40, "3TiB")],
)
def test_sizes_are_written_short_and_exact(nbytes: int, written: str) -> None:
    assert write_size(nbytes) == written
    assert size(written) == nbytes


@pytest.mark.parametrize(("seconds", "written"), [(60.0, "60s"), (0.5, "0.5s")])
def test_durations_are_written_short_and_exact(seconds: float, written: str) -> None:
    assert write_duration(seconds) == written
    assert duration(written) == seconds
