"""Torch checkpoints: files that torch itself wrote, read without it, become the same artifacts as safetensors."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import gguf_files
from checkpoint_files import CONFIG, data
from converted import converted
from qconvd.checkpoints import identity, inspect
from qconvd.engine.evaluate import rows
from qconvd.engine.expr import Read
from qconvd.engine.source import Source
from qconvd.errors import BadCheckpoint, Incomplete, Unsupported
from qconvd.intake import look
from torch_files import archive, saved, state, storage, stream, tensor, write


def test_glass_in_both_formats_becomes_the_same_files(glass: Path, tmp_path: Path) -> None:
    for new in (True, False):
        source = saved(glass, tmp_path / str(new) / "glass_en", new=new, tied="lm_head.weight")
        model = inspect(source)
        assert (model.kind, model.architecture, len(model.tensors)) == ("torch", "LlamaForCausalLM", 38)
        assert model.notes == ("lm_head.weight is model.embed_tokens.weight, as config.json ties them, and not written twice",)
        for format, options in (("fp16", {"dtype": "bf16"}), ("gguf", {"types": ["F16"]})):
            ours = converted(source, tmp_path / f"{new}-{format}", format, **options)
            theirs = converted(glass, tmp_path / f"{new}-{format}-safetensors", format, **options)
            assert ours.verify().sha256
            for file in (f.path for f in theirs.manifest.files):
                if format == "fp16" and file == "model.safetensors" and not new:
                    # The older format has the storages in another order, and fp16 writes in the order in which it reads.
                    one, two = load_file(ours.folder / file), load_file(theirs.folder / file)
                    assert one.keys() == two.keys()
                    assert all(torch.equal(one[name], two[name]) for name in one)
                else:
                    same = (ours.folder / file).read_bytes() == (theirs.folder / file).read_bytes()
                    assert same, (new, file)


def test_smollm2_in_shards_becomes_llama_cpps_own_gguf(smollm2: Path, golden: Path, tmp_path: Path) -> None:
    """Every tensor of the file that llama.cpp's converter makes of the safetensors, in its order."""
    source = saved(smollm2, tmp_path / smollm2.name, shards=3, tied="lm_head.weight")
    (made,) = converted(source, tmp_path / "ours", "gguf", types=["BF16"]).folder.glob("*.gguf")
    with gzip.open(golden / "smollm2_gguf.json.gz") as file:
        record = json.load(file)["types"]["BF16"]
    found = gguf_files.tensors(made)
    same = list(found.items()) == list(record["tensors"].items())
    assert same


@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
def test_every_type_and_view(tmp_path: Path, new: bool) -> None:
    dice = torch.Generator().manual_seed(3)
    base = torch.randn(6, 8, generator=dice)
    cube = torch.randn(2, 3, 4, generator=dice)
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    weights: dict[str, Any] = {str(k).removeprefix("torch."): (base * 9).to(k) for k in (*kinds, torch.uint8, torch.bool)}
    weights |= {"float8": base.to(torch.float8_e4m3fn), "uint16": torch.arange(6).to(torch.uint16)}
    weights |= {
        "turned": base.t(), "rows": base[2:5], "row": base[3], "square": base[:, :6].contiguous().t(),
        "last first": cube.permute(2, 0, 1), "middle": cube.transpose(1, 2), "swapped": cube.transpose(0, 1),
        "one": torch.tensor(2.5), "none": torch.zeros(0, 4), "thin": base[:, :1].contiguous().t(), "again": base,
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }  # fmt: skip
    torch.save(weights, tmp_path / "x.bin", _use_new_zipfile_serialization=new)
    model = inspect(write(tmp_path / "m", (tmp_path / "x.bin").read_bytes()))
    assert model.tensors.keys() == weights.keys()
    with Source(model) as source:
        for name, wanted in weights.items():
            info = model.tensors[name]
            assert info.shape == tuple(wanted.shape), name
            total = info.rows
            if not wanted.numel():
                continue
            plain = wanted.detach().contiguous()
            raw = (
                plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.dtype != torch.bool else plain.numpy().tobytes()
            )
            assert rows(Read.of(info), 0, total, source, {}).tobytes() == raw, name
            half = rows(Read.of(info), total // 2, total, source, {})
            assert half.tobytes() == raw[len(raw) // total * (total // 2) :], name
    assert model.weight_bytes == sum(t.nbytes for t in model.stored.values())


def test_what_transformers_saves_with_attributes(tmp_path: Path) -> None:
    """A state dict of a module has `_metadata`, and a parameter may have attributes of its own."""
    layer = torch.nn.Linear(4, 3)
    layer.weight._is_hf_initialized = True  # type: ignore[assignment]
    torch.save(layer.state_dict(), tmp_path / "a.bin")
    torch.save(dict(layer.named_parameters()), tmp_path / "b.bin")
    for name in ("a", "b"):
        model = inspect(write(tmp_path / name, (tmp_path / f"{name}.bin").read_bytes()))
        assert {n: t.shape for n, t in model.tensors.items()} == {"weight": (3, 4), "bias": (3,)}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(tmp_path: Path, protocol: int) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "x.bin", pickle_protocol=protocol)
    assert inspect(write(tmp_path / "m", (tmp_path / "x.bin").read_bytes())).tensors["w"].nbytes == 12


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module"])
def test_state_dicts_under_a_usual_name(glass: Path, tmp_path: Path, key: str) -> None:
    model = inspect(saved(glass, tmp_path / "m", wrap=key))
    assert "model.embed_tokens.weight" in model.tensors


def test_names_of_data_parallel(tmp_path: Path) -> None:
    model = inspect(write(tmp_path / "m", archive(state({"module.a.w": tensor(), "module.b": tensor((4,))}))))
    assert list(model.tensors) == ["a.w", "b"]


def test_tied_tensors_stay_where_the_config_does_not_tie_them(tmp_path: Path) -> None:
    pickle = state({"model.embed_tokens.weight": tensor(), "lm_head.weight": tensor(), "other.weight": tensor()})
    for said, names in ((True, 1), (False, 3), (None, 3)):
        folder = write(tmp_path / str(said), archive(pickle), config=CONFIG | {"tie_word_embeddings": said})
        assert len(inspect(folder).tensors) == names


def test_safetensors_beside_it_win_and_that_is_told(glass: Path, tmp_path: Path) -> None:
    folder = saved(glass, tmp_path / "both", shards=2)
    os.link(glass / "model.safetensors", folder / "model.safetensors")
    model = inspect(folder)
    assert model.kind == "safetensors"
    assert model.notes == ("pytorch_model-00001-of-00002.bin and 1 more beside the safetensors: the safetensors are read",)


@pytest.mark.parametrize("names", [("model.pt",), ("pytorch_model.bin", "model.pt"), ("model-00001-of-00001.pth",)])
def test_which_file_is_the_model(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write(tmp_path / "m", archive(), name)
    (tmp_path / "m" / "training_args.bin").write_bytes(b"\x80\x02cos\nsystem\n.")
    (tmp_path / "m" / "optimizer.pt").write_bytes(b"\x80\x02cos\nsystem\n.")
    assert {t.file for t in inspect(tmp_path / "m").tensors.values()} == {names[0]}


def test_two_models_in_a_folder(tmp_path: Path) -> None:
    for name in ("model.pt", "model_b.pt"):
        write(tmp_path / "m", archive(), name)
    with pytest.raises(BadCheckpoint, match=r"the same tensor 'w' is in model\.pt and in model_b\.pt"):
        inspect(tmp_path / "m")


def test_half_copied_files_are_waited_for(tmp_path: Path) -> None:
    for whole in (archive(), stream()):
        for part in (whole[: len(whole) // 2], whole[:-1], whole[:-30]):
            found = look(write(tmp_path / "m", part))
            assert found.state == "incomplete", found.reason
        assert look(write(tmp_path / "m", whole)).state == "complete"
    cut = stream()[:-10]
    with pytest.raises(Incomplete) as caught:
        inspect(write(tmp_path / "m", cut))
    assert caught.value.what == f"{len(cut)} of {len(stream())} bytes are there"
    early = stream()[:150]
    with pytest.raises(Incomplete, match=r"ends inside its pickle \(150 bytes so far\)"):
        inspect(write(tmp_path / "m", early))


def test_bytes_that_are_not_written_yet(tmp_path: Path) -> None:
    whole = archive()
    at = whole.index(b"\x80\x02")
    with pytest.raises(Incomplete, match="zeros where its pickle should be"):
        inspect(write(tmp_path / "m", whole[:at] + bytes(len(state())) + whole[at + len(state()) :]))
    header = whole.rindex(b"PK\3\4")
    with pytest.raises(Incomplete, match="zeros where 'archive/data/0' should be"):
        inspect(write(tmp_path / "m", whole[:header] + bytes(40) + whole[header + 40 :]))


@pytest.mark.parametrize("make", [archive, stream])
def test_every_beginning_of_a_file_is_waited_for(tmp_path: Path, make: Any) -> None:
    """Copied bit by bit: no step of it is taken for the model, nor for a damaged one."""
    whole = make()
    for size in range(len(whole)):
        found = look(write(tmp_path / "m", whole[:size]))
        assert found.state == "incomplete", (size, found.reason)


def test_a_stream_that_is_filled_from_front_to_back_is_waited_for(tmp_path: Path) -> None:
    """By a downloader that gives the file its length first; zeros in the last storage may be the model's own."""
    whole = stream()
    reasons = set()
    for size in range(len(whole) - 48 - 7):
        found = look(write(tmp_path / "m", whole[:size] + bytes(len(whole) - size)))
        assert found.state == "incomplete", (size, found.reason)
        reasons.add(found.reason.partition(": ")[2])
    assert f"has zeros from byte {whole.index(b'e.') + 1} on, inside its pickle, which is not written yet" in reasons
    assert "has zeros where its storage '0' should begin, which is not written yet" in reasons


def test_the_digest_changes_with_every_weight_and_name(tmp_path: Path) -> None:
    whole = archive()
    at = whole.index(b"archive/data/0") + len("archive/data/0") + 5
    other = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    named = archive(state({"v": tensor()}))
    behind = []  # the pickle, behind the weights
    for name in ("w", "v"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("archive/data/0", data(48))
            file.writestr("archive/data.pkl", state({name: tensor()}))
        behind.append(buffer.getvalue())
    contents = (whole, other, named, *behind)
    digests = {identity(inspect(write(tmp_path / str(i), content))) for i, content in enumerate(contents)}
    assert len(digests) == 5
    assert identity(inspect(write(tmp_path / "again", whole))) in digests


def test_a_storage_is_read_once_for_all_that_view_it(tmp_path: Path) -> None:
    views = {"a": tensor((2, 4)), "b": tensor((4,), offset=8), "c": tensor((4, 3), (1, 4))}
    model = inspect(write(tmp_path / "m", archive(state(views))))
    starts = {name: t.offset for name, t in model.tensors.items()}
    assert starts["b"] == starts["a"] + 32 and starts["c"] == starts["a"]
    with Source(model) as source:
        whole = rows(Read("a", "F32", (2, 4)), 0, 2, source, {})
        turned = rows(Read.of(model.tensors["c"]), 0, 4, source, {})
    np.testing.assert_array_equal(turned[:, :2].T, whole)


def test_no_torch_is_imported(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", archive())
    script = f"""
import sys
import zipfile
from pathlib import Path
from qconvd.intake import look
assert look(Path({str(folder)!r})).state == "complete"
print([m for m in ("torch", "numpy", "pickle") if m in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_older_views_of_storages(tmp_path: Path) -> None:
    """Before torch 0.4 a storage could be a view of another."""
    from torch_files import PERSID, number, text, tuple_of

    view = tuple_of(text("v"), number(4), number(8))
    stored = tuple_of(text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), number(12), view) + PERSID
    model = inspect(write(tmp_path / "m", stream(state({"whole": tensor(), "w": tensor((8,), stored=stored)}))))
    assert model.tensors["w"].offset == model.tensors["whole"].offset + 16


def test_a_lone_file_needs_its_folder(tmp_path: Path) -> None:
    lone = tmp_path / "lone.pt"
    lone.write_bytes(archive())
    with pytest.raises(Unsupported, match=r"no config\.json goes with a lone \.pt file"):
        inspect(lone)
    folder = write(tmp_path / "m", archive())
    with pytest.raises(Unsupported) as caught:
        inspect(folder / "pytorch_model.bin")
    assert (caught.value.what, caught.value.fix) == ("is one file of a model", f"give qconvd the folder: {folder}")
    (folder / "config.json").unlink()
    with pytest.raises(Unsupported, match=r"no config\.json in the folder"):
        inspect(folder)
    (folder / "params.json").write_text("{}")
    with pytest.raises(Unsupported, match="layout of its makers"):
        inspect(folder)


def test_an_index_and_its_shards_must_agree(tmp_path: Path) -> None:
    write(tmp_path / "m", archive())
    index = tmp_path / "m" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "pytorch_model.bin", "x": "pytorch_model.bin"}}))
    assert look(tmp_path / "m").reason == "pytorch_model.bin: has no tensor 'x', though the index says so"
    index.write_text(json.dumps({"weight_map": {"w": "../pytorch_model.bin"}}))
    assert "points outside the folder" in look(tmp_path / "m").reason
    index.write_text(json.dumps({"weight_map": {"w": "evil.safetensors"}}))
    assert look(tmp_path / "m").reason == "pytorch_model.bin.index.json: names no torch file for tensor 'w'"


def test_other_types(tmp_path: Path) -> None:
    for kind, torchs in (("ComplexFloatStorage", "complex64"), ("QInt8Storage", "qint8")):
        found = look(write(tmp_path / "m", archive(state({"w": tensor(stored=storage(kind=kind))}))))
        assert found.state == "refused"
        assert found.reason.endswith(f"has weights of torch's type {torchs}, which is not read")
