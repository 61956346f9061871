"""GGUF artifacts verified: the reader agrees with the gguf library, and every legacy type decodes to what the model says."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from converted import Converted, converted
from qconvd.api import QconvdError
from qconvd.engine.manifest import ManifestFile
from qconvd.quality.parse import tensors_in
from qconvd.quality.verify import verify_path

TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]


@pytest.mark.parametrize("type_", TYPES)
def test_every_type_is_right_and_near_its_bound(glass: Path, tmp_path: Path, type_: str) -> None:
    made = converted(glass, tmp_path, "gguf", types=[type_])
    report = made.verify()
    assert report.tensors == len(made.plan.tensors)
    assert report.rows > 300
    assert report.not_checked == ()
    assert report.worst <= 1
    if type_.startswith("q"):
        assert report.worst > 0.8
    (by_hand,) = verify_path(made.folder)
    assert by_hand.sha256


@pytest.fixture
def q4_0(glass: Path, tmp_path: Path) -> Converted:
    return converted(glass, tmp_path, "gguf", types=["q4_0"])


def damaged(made: Converted, tensor: str, at: int, data: bytes) -> tuple[Path, Converted]:
    """Bytes of a tensor replaced, and a manifest that agrees with them."""
    (file,) = made.plan.files
    path = made.folder / file.path
    placed = next(p for p in file.tensors if p.tensor == tensor)
    with path.open("r+b") as opened:
        opened.seek(placed.offset + at)
        opened.write(data)
    digest = sha256(path.read_bytes()).hexdigest()
    files = (ManifestFile(file.path, file.nbytes, digest),)
    others = tuple(f for f in made.manifest.files if f.path != file.path)
    return path, replace(made, manifest=replace(made.manifest, files=files + others))


def test_a_wrong_scale_in_the_first_block(q4_0: Converted) -> None:
    path, made = damaged(q4_0, "blk.2.ffn_up.weight", 0, b"\x00\x40")
    with pytest.raises(QconvdError) as caught:
        made.verify()
    assert str(caught.value).startswith(f"{path}, tensor blk.2.ffn_up.weight: row 0, column ")


def test_a_nan_scale_in_any_block(q4_0: Converted) -> None:
    path, made = damaged(q4_0, "blk.2.ffn_up.weight", 18 * (4 * 123 + 1), b"\x01\x7e")
    with pytest.raises(QconvdError) as caught:
        made.verify()
    assert str(caught.value).startswith(f"{path}, tensor blk.2.ffn_up.weight: row 123, column 32 holds nan, the model has ")


def test_our_reader_and_the_gguf_library_agree(q4_0: Converted) -> None:
    from gguf import GGUFReader

    path = q4_0.folder / q4_0.plan.files[0].path
    theirs = [
        (t.name, t.tensor_type.name, tuple(int(n) for n in reversed(t.shape)), t.data_offset, int(t.n_bytes))
        for t in GGUFReader(path).tensors
    ]
    ours = [(t.name, t.dtype, t.shape, t.offset, t.nbytes) for t in tensors_in(path, "gguf")]
    assert ours == sorted(theirs, key=lambda t: t[3])


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (0, "ends inside its header, in the magic (0 bytes are there)"),
        (3, "ends inside its header, in the magic (3 bytes are there)"),
        (100, "ends inside its header, in the length of the value of 'general.type' (100 bytes are there)"),
        (5000, "ends inside its header, in the length of the array 'tokenizer.ggml.tokens' (5000 bytes are there)"),
    ],
)
def test_a_file_that_ends_too_soon(q4_0: Converted, keep: int, says: str) -> None:
    path = q4_0.folder / q4_0.plan.files[0].path
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(QconvdError) as caught:
        tensors_in(path, "gguf")
    assert str(caught.value).startswith(f"{path}: {says}")
