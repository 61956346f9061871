"""Repositories whose only weights are torch files: known from their ends and their pickles, and refused as on the disk."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from checkpoint_files import CONFIG
from command_line import called_in
from hub_server import HubServer
from qconvd import checkpoints
from qconvd.errors import QconvdError
from qconvd.hub.address import Address
from qconvd.hub.client import Hub
from qconvd.hub.heads import Found, look
from torch_files import PROTO, STOP, archive, number, saved, state, storage, stream, tensor, text, write

A = Address("alice/m")


def found(server: HubServer, tmp_path: Path) -> Found:
    return look(Hub(server.url, None, 5.0), A, tmp_path / "hub")


@pytest.mark.parametrize(("new", "shards"), [(True, 1), (True, 3), (False, 1), (False, 2)])
def test_the_heads_are_the_model_to_a_reader(
    hub_server: HubServer, glass: Path, tmp_path: Path, new: bool, shards: int
) -> None:
    folder = saved(glass, tmp_path / "m", new=new, shards=shards, tied="lm_head.weight")
    hub_server.push("alice/m", folder, texts={"training_args.bin": "x", "optimizer.pt": "y", "model.onnx": "z"})
    hub_server.forget()
    seen, local = found(hub_server, tmp_path), checkpoints.inspect(folder)
    assert (seen.model.kind, seen.model.parameters, seen.model.notes) == ("torch", local.parameters, local.notes)
    assert seen.model.tensors == local.tensors
    assert {f.path for f in seen.files} == {f.path for f in local.files}
    weights = sum(p.stat().st_size for p in folder.glob("*.bin"))
    assert sum(e["sent"] for e in hub_server.log("resolve.*[.]bin$")) < min(weights, shards * (160 << 10))
    assert len(hub_server.log("resolve.*[.]bin$")) <= 4 * shards
    hub_server.forget()
    assert found(hub_server, tmp_path).model.tensors == local.tensors
    assert not hub_server.log("resolve"), "the heads are there"


@pytest.mark.parametrize("new", [True, False])
def test_pickles_that_are_longer_than_what_is_asked_for_at_first(hub_server: HubServer, tmp_path: Path, new: bool) -> None:
    weights = {f"layers.{i}.{'x' * 90}": torch.zeros(2, 3) for i in range(3000)}
    (tmp_path / "m").mkdir()
    torch.save(weights, tmp_path / "m" / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    (tmp_path / "m" / "config.json").write_text(json.dumps(CONFIG))
    hub_server.push("alice/m", tmp_path / "m")
    assert found(hub_server, tmp_path).model.tensors == checkpoints.inspect(tmp_path / "m").tensors


def test_it_is_converted_like_a_folder(
    hub_server: HubServer, glass: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub_server.url)
    qconvd = called_in(tmp_path, monkeypatch, capsys)
    folder = saved(glass, tmp_path / "Glass", shards=2)
    hub_server.push("alice/Glass", folder)
    done = qconvd("convert", "hub:alice/Glass", "--to", "bf16", "--out", "out")
    assert done.code == 0, done.err
    assert qconvd("convert", folder, "--to", "bf16", "--out", "local").code == 0
    ours, theirs = (next((tmp_path / out).glob("*/model.safetensors")) for out in ("out", "local"))
    assert ours.read_bytes() == theirs.read_bytes()


HOSTILE: dict[str, bytes] = {
    "a zip that asks": archive(PROTO + b"cos\nsystem\n" + STOP),
    "a stream that asks": stream(PROTO + b"cos\nsystem\n" + STOP),
    "a bare pickle": pickle.dumps(os.getcwd, protocol=2),
    "another opcode": archive(PROTO + b"(ios\nsystem\n" + STOP),
    "compressed": archive(members={"data/1": bytes(1 << 20)}, method=8),
    "two pickles": archive(members={"../other/data.pkl": state()}, root="archive/"),
    "out of it": archive(members={"../../evil": b"x"}),
    "training": archive(state({"model": state()[2:-1], "optimizer": b"}"})),
    "a storage too short": archive(state({"w": tensor(stored=storage(numel=13))})),
    "a stream that is cut": stream()[:-10],
    "a stream with more": stream() + b"more",
    "a huge storage": stream(state({"w": tensor((1 << 60,), stored=storage(numel=1 << 60))})),
    "a long text": archive(PROTO + b"X\xff\xff\xff\x7f"),
    "a number": archive(PROTO + number(1 << 90) + text("x") + STOP),
    "a web page": b"<!doctype html><p>not found",
    "nothing known": b"\x01\x02\x03\x04" * 100,
    "an end alone": b"PK" + archive()[-22:],
    "a cut zip": archive()[:-30],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_refused_on_the_disk_is_refused_before_it_is_fetched(hub_server: HubServer, tmp_path: Path, case: str) -> None:
    """With the same words, and the address in the place of the folder."""
    folder = write(tmp_path / "m", HOSTILE[case])
    hub_server.push("alice/m", folder)
    with pytest.raises(QconvdError) as here:
        checkpoints.inspect(folder)
    with pytest.raises(QconvdError) as there:
        found(hub_server, tmp_path)
    assert (type(there.value), there.value.what) == (type(here.value), here.value.what)
    assert there.value.where == here.value.where.replace(str(folder), "hub:alice/m")


def test_what_the_headers_do_not_show_is_refused_when_it_is_here(
    hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A storage's own header names another member, which nothing but the whole file tells."""
    far = {"data/1": bytes(200 << 10), "data/2": bytes(48), "data/3": bytes(200 << 10)}
    whole = archive(state({"model.layers.0.w": tensor(stored=storage("2"))}), far)
    at = whole.index(b"archive/data/2")
    hub_server.push("alice/m", write(tmp_path / "m", whole[:at] + b"archive/data/9" + whole[at + 14 :]))
    assert found(hub_server, tmp_path).model.kind == "torch"
    monkeypatch.setenv("HF_ENDPOINT", hub_server.url)
    done = called_in(tmp_path, monkeypatch, capsys)("convert", "hub:alice/m", "--to", "bf16", "--out", "out")
    assert done.code != 0
    assert "has a directory that does not fit its member 'archive/data/2'" in " ".join((done.out + done.err).split())
    assert not list((tmp_path / "out").glob("*/model.safetensors"))


def test_gguf_and_safetensors_come_first_and_other_pickles_are_no_model(
    hub_server: HubServer, glass: Path, tmp_path: Path
) -> None:
    hub_server.push("alice/m", saved(glass, tmp_path / "m"), texts={"README.md": "#"})
    assert found(hub_server, tmp_path).model.kind == "torch"
    hub_server.push("alice/m", glass)
    seen = found(hub_server, tmp_path)
    assert seen.model.kind == "safetensors" and "pytorch_model.bin" not in {f.path for f in seen.files}
    hub_server.push("alice/m", texts={"weights.pth": "x", "z.ckpt": "y"}, delete=("model.safetensors", "pytorch_model.bin"))
    with pytest.raises(QconvdError) as caught:
        found(hub_server, tmp_path)
    assert str(caught.value) == (
        "hub:alice/m: has no weights but weights.pth and 1 more; of torch's files pytorch_model*.bin, model*.pt and the like "
        "are read\n  take a repository with the model's safetensors"
    )
