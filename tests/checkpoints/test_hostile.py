"""Thousands of damaged headers: nothing but QconvdErrors comes out, and no claim of a header costs memory or time."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint_files import ARRAY, STRING, TENSORS, gguf, header_of, key, safetensors, text, whole_gguf
from damage import LARGE, scattered
from qconvd.checkpoints import gguf as gguf_reader
from qconvd.checkpoints import safetensors as safetensors_reader
from qconvd.errors import QconvdError


def json_mutations(count: int, seed: int) -> list[bytes]:
    """Safetensors whose header is good JSON with bad values, which flipped bytes seldom make."""
    dice = random.Random(seed)
    values = [
        None,
        True,
        -1,
        0.5,
        1e308,
        "F32",
        "",
        [],
        [[]],
        {},
        {"a": 1},
        [0, 1],
        [-1, 5],
        [1, 0],
        "\ud800",
        *LARGE,
        2**70,
        10**400,
    ]
    made = []
    for _ in range(count):
        header, size = header_of(TENSORS)
        entry = header[dice.choice(list(TENSORS))]
        match dice.randrange(4):
            case 0:
                header[dice.choice([*TENSORS, "new", "__metadata__", "\ud800"])] = dice.choice(values)
            case 1:
                entry[dice.choice(["dtype", "shape", "data_offsets", "more"])] = dice.choice(values)
            case 2:
                field = dice.choice(["shape", "data_offsets"])
                entry[field] = [dice.choice(values) for _ in range(dice.randrange(40))]
            case _:
                entry[dice.choice(["shape", "data_offsets"])][dice.randrange(1)] = dice.choice(values)
        made.append(safetensors(json.dumps(header).encode(), size))
    return made


def survive(folder: Path, contents: list[bytes], read: object) -> int:
    """How many were refused; anything but a QconvdError fails the test."""
    path = folder / "x"
    refused = 0
    for content in contents:
        path.write_bytes(content)
        try:
            read(folder, "x")  # type: ignore[operator]
        except QconvdError as error:
            refused += 1
            assert error.what
            assert len(str(error)) < 2000
    return refused


def test_damaged_safetensors(tmp_path: Path) -> None:
    whole = safetensors(*header_of(TENSORS))
    contents = scattered(whole, len(whole) - 240, 3000, seed=1)
    assert survive(tmp_path, contents, safetensors_reader.read_header) > 2000


def test_wrong_values_in_safetensors(tmp_path: Path) -> None:
    assert survive(tmp_path, json_mutations(3000, seed=2), safetensors_reader.read_header) > 2500


def test_damaged_gguf(tmp_path: Path) -> None:
    whole = whole_gguf()
    contents = scattered(whole, 120, 1500, seed=3) + scattered(whole, len(whole) - 140, 3000, seed=4)
    assert survive(tmp_path, contents, gguf_reader.read_header) > 2000


@pytest.mark.parametrize(
    ("reader", "content"),
    [
        ("safetensors", (90_000_000).to_bytes(8, "little") + b"{"),
        ("safetensors", safetensors(b'{"a":' + b"[],[]," * 8_000_000 + b"0}", 0)),
        ("safetensors", safetensors(b'{"a":' + b"[" * 3_900_000, 0)),
        ("gguf", gguf([key("a", STRING, (60 << 20).to_bytes(8, "little"))])),
        ("gguf", gguf(counts=(100_000, 4096))),
        ("gguf", gguf([key("a", ARRAY, STRING.to_bytes(4, "little") + (7_000_000).to_bytes(8, "little"))])),
        ("gguf", gguf([], [text("a") + b"\xff" * 40])),
    ],
    ids=["absent header", "many values", "deep", "absent string", "absent tensors", "absent array", "axes"],
)
def test_claims_cost_no_memory(tmp_path: Path, reader: str, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    script = f"""
import resource, sys
from pathlib import Path
from qconvd.checkpoints.{reader} import read_header
from qconvd.errors import QconvdError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_header(Path({str(tmp_path)!r}), "x")
except QconvdError:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""

    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, preexec_fn=limits)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < len(content) * 3 / (1 << 20) + 64  # MiB


def test_the_control_side_stays_light() -> None:
    script = (
        "import sys, qconvd.intake; print([m for m in ('numpy', 'torch', 'safetensors', 'gguf', 'numba') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
