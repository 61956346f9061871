"""Importance matrices: llama-quantize's values in both formats, and nothing that a damaged or hostile file could do."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imatrix_files import chunks, write_dat, write_gguf
from qconvd.errors import BadCheckpoint, QconvdError
from qconvd.statistics import open_imatrix, open_statistics

NAME = "blk.0.ffn_down.weight"


def values(path: Path, name: str = NAME) -> list[float]:
    file = open_imatrix(path)
    try:
        return list(map(float, file.mean_square(name)))
    finally:
        file.close()


def test_sums_are_divided_by_counts_in_float32(tmp_path: Path) -> None:
    sums = np.array([[1, 2, 3, 1e-30]], np.float32)
    found = values(write_gguf(tmp_path / "x", {NAME: (sums, [3])}))
    assert found == list(map(float, sums[0] / np.float32(3)))


def test_each_expert_has_its_count_and_unused_ones_count_alike(tmp_path: Path) -> None:
    sums = [[2, 4], [7, 9], [9, 12], [5, 5]]
    path = write_gguf(tmp_path / "x", {NAME: (sums, [2, 0, 3, -1])})
    assert values(path) == [1, 2, 1, 1, 3, 4, 1, 1]
    file = open_imatrix(path)
    assert (file.unused(NAME), file.entries[NAME].values, file.entries[NAME].counted) == (2, 8, 4)
    file.close()


def test_counts_are_rounded_half_away_from_zero(tmp_path: Path) -> None:
    assert values(write_gguf(tmp_path / "x", {NAME: ([[3], [6], [4]], [2.5, 1.49, 0.4])})) == [1, 6, 1]


def test_the_metadata_says_what_it_was_made_from(tmp_path: Path) -> None:
    keys = {"imatrix.datasets": ["wiki.txt", "code.txt"], "imatrix.chunk_count": 120, "imatrix.chunk_size": 512}
    file = open_imatrix(write_gguf(tmp_path / "x", {NAME: ([[1]], [1])}, keys))
    assert (file.datasets, file.chunks) == (("wiki.txt", "code.txt"), 120)
    file.close()


def test_the_older_format(tmp_path: Path) -> None:
    entries: dict[str, Any] = {NAME: (4, [2, 6]), "blk.1.attn_q.weight": (0, [3, 5])}
    path = write_dat(tmp_path / "x.dat", entries, chunks(17, "wiki.train.raw"))
    assert (values(path), values(path, "blk.1.attn_q.weight")) == ([0.5, 1.5], [3, 5])
    file = open_imatrix(path)
    assert (file.datasets, file.chunks, list(file.entries)) == (("wiki.train.raw",), 17, list(entries))
    file.close()
    for trailer, said in ((b"", (0, ())), (struct.pack("<i", 5), (5, ())), (struct.pack("<ii", 5, 1 << 30), (5, ()))):
        file = open_imatrix(write_dat(path, entries, trailer))
        assert (file.chunks, file.datasets) == said
        file.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b""), "ends before its entries do"),
        (lambda p: p.write_bytes(b"PK\3\4" * 20), "it begins with neither GGUF nor a count of entries (67324752)"),
        (lambda p: write_dat(p, {}), "nor a count of entries (0)"),
        (lambda p: p.write_bytes(struct.pack("<ii", 1, 1 << 30)), "the name of entry 1 claims 1073741824 bytes"),
        (lambda p: p.write_bytes(struct.pack("<ii", 1, -1)), "the name of entry 1 claims -1 bytes"),
        (lambda p: p.write_bytes(struct.pack("<ii1sii", 1, 1, b"x", 1, 1 << 30)), "ends inside the values of 'x'"),
        (lambda p: p.write_bytes(struct.pack("<ii1sii", 1, 1, b"x", 1, 0)), "claims 0 values of 'x'"),
        (lambda p: p.write_bytes(struct.pack("<ii1siifi1siif", 2, 1, b"x", 1, 1, 1, 1, b"x", 1, 1, 1)), "has 'x' twice"),
        (lambda p: write_gguf(p, {}), "no tensor is called *.in_sum2"),
        (lambda p: write_gguf(p, {NAME: ([[1]], [1])}, {}), "lacks the metadata imatrix.datasets, imatrix.chunk_count"),
        (lambda p: write_gguf(p, {NAME: ([[1, 2, 3]], [1, 2])}), "has 3 sums for 2 counts of 'blk.0.ffn_down.weight'"),
    ],
)
def test_files_that_are_none(tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / "x"
    make(path)
    with pytest.raises(BadCheckpoint) as caught:
        open_imatrix(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_sums_without_counts_and_other_types(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "x", {NAME: ([[1.0, 2.0]], [1])}).read_bytes()
    (tmp_path / "x").write_bytes(whole.replace(b".counts", b".countz"))
    with pytest.raises(BadCheckpoint, match=r"has sums or counts of 'blk.0.ffn_down.weight', but not both"):
        open_imatrix(tmp_path / "x")
    name = f"{NAME}.counts".encode()
    at = whole.index(name) + len(name) + 4 + 16
    (tmp_path / "x").write_bytes(whole[:at] + struct.pack("<I", 26) + whole[at + 4 :])  # I32 is as wide
    with pytest.raises(BadCheckpoint, match=r"sums and counts of 'blk.0.ffn_down.weight' are F32 and I32, not F32"):
        open_imatrix(tmp_path / "x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_values_that_are_no_mean_squares(tmp_path: Path, bad: float) -> None:
    for path in (
        write_gguf(tmp_path / "x", {NAME: ([[1, bad]], [1])}),
        write_dat(tmp_path / "y", {NAME: (1, [1, bad])}),
    ):
        with pytest.raises(BadCheckpoint, match=rf"says {bad} of column 1 of 'blk.0.ffn_down.weight', which is no mean square"):
            values(path)


def test_sums_and_counts_as_they_stand_in_the_file(tmp_path: Path) -> None:
    file = open_imatrix(write_gguf(tmp_path / "x", {NAME: ([[2, 4], [0, 0], [9, 12]], [2, 0, 3])}))
    assert file.square_sums(NAME).tolist() == [[2, 4, 2], [0, 0, 0], [9, 12, 3]]
    file.close()
    file = open_imatrix(write_dat(tmp_path / "x.dat", {NAME: (4, [2, 6])}))
    assert file.square_sums(NAME).tolist() == [[2, 6, 4]]
    file.close()
    file = open_imatrix(write_gguf(tmp_path / "y", {NAME: ([[2, -4]], [1])}))
    with pytest.raises(BadCheckpoint, match=r"says -4.0 of column 1 of 'blk.0.ffn_down.weight', which is no sum of squares"):
        file.square_sums(NAME)
    file.close()


def test_a_file_that_changed_is_told(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x", {NAME: ([[1]], [1])})
    file = open_imatrix(path)
    assert file.is_unchanged()
    open_statistics("imatrix", path, file.sha256).close()
    with path.open("ab") as more:
        more.write(b"\0" * 32)
    assert not file.is_unchanged()
    file.close()
    write_gguf(path, {NAME: ([[2]], [1])})
    with pytest.raises(QconvdError, match=r"x: changed since the recipe was read\n  reload the daemon \(SIGHUP"):
        open_statistics("imatrix", path, file.sha256)
    with pytest.raises(QconvdError, match="nothing reads statistics of the kind 'hessian'"):
        open_statistics("hessian", path, file.sha256)


def mutations(whole: bytes, count: int, seed: int) -> list[bytes]:
    dice = random.Random(seed)
    made = []
    for _ in range(count):
        copy = bytearray(whole)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(copy))
            match dice.randrange(4):
                case 0:
                    copy[at] ^= 1 << dice.randrange(8)
                case 1:
                    size = dice.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1])
                    copy[at : at + 8] = size.to_bytes(8, "little")
                case 2:
                    del copy[at : at + dice.randint(1, 40)]
                case _:
                    copy[at:at] = copy[at : at + dice.randint(1, 40)]
            copy = copy or bytearray(b"x")
        made.append(bytes(copy))
    return made


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_damaged_files_are_refused_in_words(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "gguf":
        write_gguf(path, {NAME: ([[1, 2, 3, 4]], [1]), "output.weight": ([[1, 2], [3, 4]], [1, 2])})
    else:
        write_dat(path, {NAME: (1, [1, 2, 3, 4]), "output.weight": (2, [1, 2])}, chunks(1, "x"))
    refused = 0
    for content in mutations(path.read_bytes(), 1500, seed=len(kind)):
        path.write_bytes(content)
        try:
            file = open_imatrix(path)
            try:
                for name, entry in file.entries.items():
                    assert len(file.mean_square(name)) == entry.values
                    assert 0 <= file.unused(name) <= entry.counted
            finally:
                file.close()
        except QconvdError as error:
            refused += 1
            assert len(str(error)) < 2000
    assert refused > 500


def test_a_sparse_file_of_absurd_claims_costs_no_memory(tmp_path: Path) -> None:
    """4 GiB of values that lie in a hole of the file: they are there, but only an array that is asked for is read."""
    path = tmp_path / "x"
    path.write_bytes(struct.pack("<ii1sii", 1, 1, b"x", 1, 1 << 30))
    os.truncate(path, 4 * (1 << 30) + 100)
    script = f"""
import resource, pathlib
from qconvd.statistics.imatrix_dat import DatImatrix
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert DatImatrix(pathlib.Path({str(path)!r})).entries["x"].values == 1 << 30
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 16  # MiB


def test_names_are_read_without_numpy(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x", {NAME: ([[1]], [1])})
    script = f"""
import sys, pathlib, qconvd.statistics
print(len(qconvd.statistics.open_imatrix(pathlib.Path({str(path)!r})).entries), "numpy" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["1", "False"]
