"""Models on the Hub, known from their headers: what is asked for, what is chosen, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

import ggml_files
from daemon_kit import tiny_model
from hub_server import HubServer
from qconvd import checkpoints
from qconvd.errors import BadCheckpoint, HubBusy, HubRefused, OutOfSpace, QconvdError, Unsupported
from qconvd.hub import heads
from qconvd.hub.address import Address
from qconvd.hub.client import Hub
from qconvd.hub.heads import Found, look
from qconvd.hub.selection import digest, is_ours

A = Address("alice/m")


@pytest.fixture
def hub(hub_server: HubServer) -> Hub:
    return Hub(hub_server.url, None, 5.0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "m", width=64)


def found(hub: Hub, tmp_path: Path, address: Address = A, **how: bool) -> Found:
    return look(hub, address, tmp_path / "hub", **how)


def test_the_heads_are_the_model_to_a_reader(hub: Hub, hub_server: HubServer, glass: Path, tmp_path: Path) -> None:
    commit = hub_server.push("alice/Glass-EN", glass, texts={"README.md": "# Glass", "train.py": "x", "notes/a.txt": "y"})
    hub_server.forget()
    seen = found(hub, tmp_path, Address("alice/Glass-EN"))
    local = checkpoints.inspect(glass)
    assert (seen.model.name, seen.model.parameters, seen.remote.commit) == ("Glass-EN", local.parameters, commit)
    assert seen.model.tensors == local.tensors and seen.model.config == local.config
    assert {f.path for f in seen.files} == {f.path for f in local.files} | {"README.md"}
    assert seen.nbytes == sum(f.size for f in seen.files)
    heads = tmp_path / "hub" / commit / "heads"
    assert (heads / "tokenizer.json").read_bytes() == (glass / "tokenizer.json").read_bytes()
    weights = (heads / "model.safetensors").stat()
    assert weights.st_size == (glass / "model.safetensors").stat().st_size and weights.st_blocks * 512 < weights.st_size / 4
    sent = {e["request"].rpartition("/")[2]: e["sent"] for e in hub_server.log("resolve")}
    assert sent["model.safetensors"] <= 64 << 10 and "train.py" not in sent
    hub_server.forget()
    found(hub, tmp_path, Address("alice/Glass-EN"))
    assert not hub_server.log("resolve"), "the heads are there"


def test_a_long_header_is_read_in_two(hub: Hub, hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.push("alice/m", tiny_model(tmp_path / "deep", layers=80))
    assert len(found(hub, tmp_path).model.tensors) == 2 + 80 * 9
    assert len(hub_server.log("resolve.*safetensors")) == 2


def test_only_what_is_needed_is_chosen(hub: Hub, hub_server: HubServer, model: Path, tmp_path: Path) -> None:
    for name in (
        "consolidated.safetensors",
        "pytorch_model.bin",
        "model.onnx",
        "tf_model.h5",
        "model-q8_0.gguf",
        "adapter_model.bin",
    ):
        shutil.copy(model / "model.safetensors", model / name)
    (model / "onnx").mkdir()
    shutil.copy(model / "config.json", model / "onnx" / "config.json")
    hub_server.push("alice/m", model)
    assert [f.path for f in found(hub, tmp_path).files] == ["config.json", "model.safetensors"]


def test_shards_by_their_index(hub: Hub, hub_server: HubServer, glass: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "sharded"
    shutil.copytree(glass, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in halves.items():
        save_file({n: tensors[n] for n in held}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: f for f, held in halves.items() for n in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub_server.push("alice/m", folder)
    seen = found(hub, tmp_path)
    assert {*halves, "model.safetensors.index.json"} <= {f.path for f in seen.files}
    assert seen.model.parameters == checkpoints.inspect(glass).parameters
    hub_server.push("alice/m", delete=("model-00002-of-00002.safetensors",))
    with pytest.raises(BadCheckpoint, match="1 of 2 shards are missing") as caught:
        found(hub, tmp_path)
    assert caught.value.where == "hub:alice/m"


def test_gguf_where_that_is_what_the_repository_has(hub: Hub, hub_server: HubServer, glass: Path, tmp_path: Path) -> None:
    from converted import converted

    (made,) = converted(glass, tmp_path / "out", "gguf", types=["q8_0"]).folder.glob("*.gguf")
    hub_server.push("alice/m", texts={"README.md": "# GGUF"})
    shutil.copy(made, tmp_path / "m-Q8_0.gguf")
    folder = tmp_path / "gguf"
    folder.mkdir()
    shutil.move(tmp_path / "m-Q8_0.gguf", folder)
    hub_server.push("alice/m", folder)
    seen = found(hub, tmp_path)
    assert seen.model.kind == "gguf" and seen.model.tensors == checkpoints.inspect(folder).tensors
    assert [f.path for f in seen.files] == ["README.md", "m-Q8_0.gguf"]
    shutil.copy(made, folder / "m-Q4_0.gguf")
    hub_server.push("alice/m", folder)
    with pytest.raises(Unsupported, match="holds 2 GGUF models") as caught:
        found(hub, tmp_path)
    assert "original's safetensors" in caught.value.fix


def refusal(hub: Hub, tmp_path: Path) -> QconvdError:
    with pytest.raises(QconvdError) as caught:
        found(hub, tmp_path)
    assert caught.value.where.startswith("hub:alice/m") and str(tmp_path) not in str(caught.value)
    return caught.value


def test_what_is_refused_by_name(hub: Hub, hub_server: HubServer, model: Path, tmp_path: Path) -> None:
    hub_server.push("alice/m", texts={"config.json": (model / "config.json").read_text(), "pytorch_model.bin": "x"})
    assert refusal(hub, tmp_path).what == "is a text of 1 bytes, not a PyTorch .bin file: 'x'"
    hub_server.push("alice/m", model, delete=("pytorch_model.bin",), texts={"model_index.json": "{}"})
    assert refusal(hub, tmp_path).what == "is a diffusion model"
    hub_server.push("alice/m", model, delete=("model_index.json",), texts={"quantize_config.json": "{}"})
    assert "already quantized" in refusal(hub, tmp_path).what
    hub_server.push("alice/m", delete=("quantize_config.json", "model.safetensors"), texts={"adapter_model.safetensors": "x"})
    assert "is an adapter (LoRA)" in refusal(hub, tmp_path).what
    hub_server.push("alice/m", delete=("adapter_model.safetensors", "config.json"))
    assert "holds no model" in refusal(hub, tmp_path).what or "empty" in refusal(hub, tmp_path).what


def test_ggml_is_told_from_pickles_and_to_be_fetched(hub: Hub, hub_server: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "g"
    for name in ("llama-7b.ggmlv3.q4_0.bin", "llama-7b.ggmlv3.q8_0.bin"):
        ggml_files.write(folder / name, ggml_files.llama())
    hub_server.push("alice/m", folder, texts={"other.bin": "x", "empty.bin": ""})
    hub_server.forget()
    said = refusal(hub, tmp_path)
    assert said.what == (
        "has its weights as GGML files (llama-7b.ggmlv3.q4_0.bin, 2 of them), which are not read over the network"
    )
    assert said.where == "hub:alice/m"
    assert said.fix == "fetch one with `hf download alice/m llama-7b.ggmlv3.q4_0.bin --local-dir .`, and give qconvd the file"
    assert {e["sent"] for e in hub_server.log("resolve")} <= {1, 4}, "four bytes of each are enough"
    hub_server.push("alice/m", delete=("llama-7b.ggmlv3.q8_0.bin", "other.bin"))
    assert refusal(hub, tmp_path).what == (
        "has its weights as GGML files (llama-7b.ggmlv3.q4_0.bin), which are not read over the network"
    )


def test_what_is_hostile(hub: Hub, hub_server: HubServer, model: Path, tmp_path: Path) -> None:
    hub_server.push("alice/m", model, texts={"model.safetensors": "<!doctype html>"})
    assert "is a web page" in refusal(hub, tmp_path).what
    index = {"weight_map": {"a": "../../etc/passwd.safetensors"}}
    hub_server.push("alice/m", model, texts={"model.safetensors.index.json": json.dumps(index)}, delete=("model.safetensors",))
    hub_server.push("alice/m", delete=("model.safetensors",), texts={"other.safetensors": "x"})
    assert "points outside the folder" in refusal(hub, tmp_path).what


def test_headers_and_sizes_that_lie(hub: Hub, hub_server: HubServer, model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    for header in (2**60, 2**64 - 1, 0):
        weights.write_bytes(header.to_bytes(8, "little") + b"{}" * 1000)
        hub_server.push("alice/m", model)
        assert isinstance(refusal(hub, tmp_path), BadCheckpoint)
    weights.write_bytes(b"")
    hub_server.push("alice/m", model)
    assert isinstance(refusal(hub, tmp_path), BadCheckpoint)
    shutil.rmtree(model)
    tiny_model(model, width=64)
    config = (model / "config.json").read_bytes()
    oid = hashlib.sha1(b"blob %d\0" % len(config) + config, usedforsecurity=False).hexdigest()
    for size, said in ((2**62, "its name or size cannot be kept"), (0, "")):
        commit = hub_server.push("alice/m", model)
        listed = {"id": "alice/m", "sha": commit, "siblings": [
            {"rfilename": "config.json", "size": len(config), "blobId": oid},
            {"rfilename": "model.safetensors", "size": size, "blobId": "0" * 40, "lfs": {
                "sha256": "0" * 64, "size": size, "pointerSize": 134}},
        ]}  # fmt: skip
        hub_server.fault("GET /api/models/alice/m.*blobs", status=200, body=json.dumps(listed))
        assert said in refusal(hub, tmp_path).what


def test_heads_that_a_power_failure_spoilt_are_made_anew(hub: Hub, hub_server: HubServer, model: Path, tmp_path: Path) -> None:
    commit = hub_server.push("alice/m", model)
    place = tmp_path / "hub" / commit / "heads"
    sound = found(hub, tmp_path)
    for name in ("config.json", "model.safetensors"):
        for size in (0, (place / name).stat().st_size):
            (place / name).write_bytes(bytes(size))
            assert found(hub, tmp_path).model.tensors == sound.model.tensors
    (place / "config.json").unlink()
    assert found(hub, tmp_path).model.config == sound.model.config


def test_a_full_disk_of_the_state_folder_is_no_defect(
    hub: Hub, hub_server: HubServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    commit = hub_server.push("alice/m", model)
    with monkeypatch.context() as patched, pytest.raises(OutOfSpace, match="the disk of the state folder is full"):
        patched.setattr(heads, "write_whole", full)
        found(hub, tmp_path)
    assert not (tmp_path / "hub" / commit / "heads").exists()
    assert found(hub, tmp_path).model.parameters


def test_what_we_published_is_no_source(hub: Hub, hub_server: HubServer, model: Path, tmp_path: Path) -> None:
    hub_server.push("alice/m", model, texts={"qconvd.json": "{}"})
    assert refusal(hub, tmp_path).what == "was made by qconvd: it carries a manifest or the tag"
    assert found(hub, tmp_path, ours=True).model.name == "m"
    hub_server.push("alice/m", delete=("qconvd.json",), texts={".qconvd/m-Q8_0.json": "{}"})
    assert is_ours(hub.listed("alice/m", "main"))
    hub_server.push("alice/m", delete=(".qconvd/m-Q8_0.json",))
    assert not is_ours(hub.listed("alice/m", "main"))
    hub_server.settings("alice/m", tags=["gguf", "qconvd"])
    assert is_ours(hub.listed("alice/m", "main"))


def test_gated_before_anything_is_read(hub: Hub, hub_server: HubServer, model: Path, tmp_path: Path) -> None:
    hub_server.push("alice/m", model)
    hub_server.settings("alice/m", gated="auto")
    with pytest.raises(HubRefused, match="is gated"):
        found(hub, tmp_path)
    assert not hub_server.log("resolve")


def test_the_digest_follows_weights_config_and_tokenizer(hub: Hub, hub_server: HubServer, model: Path, tmp_path: Path) -> None:
    hub_server.push("alice/m", model, texts={"README.md": "1", "LICENSE": "1", "tokenizer_config.json": "{}"})
    first = found(hub, tmp_path)
    hub_server.push("alice/m", texts={"README.md": "2", "LICENSE": "2", "train.py": "2", ".gitattributes": "2"})
    second = found(hub, tmp_path)
    assert second.remote.commit != first.remote.commit and second.digest == first.digest
    digests = {first.digest}
    config = (model / "config.json").read_text() + " "
    for changed in ({"tokenizer_config.json": '{"a": 1}'}, {"chat_template.jinja": "x"}, {"config.json": config}):
        hub_server.push("alice/m", texts=changed)
        digests.add(found(hub, tmp_path).digest)
    hub_server.push("alice/m", tiny_model(tmp_path / "other", width=64, seed=2))
    digests.add(found(hub, tmp_path).digest)
    assert len(digests) == 5 and digest(first.files) == first.digest


def test_a_failure_on_the_way_leaves_nothing_half(hub: Hub, hub_server: HubServer, model: Path, tmp_path: Path) -> None:
    commit = hub_server.push("alice/m", model)
    hub_server.fault("GET .*model.safetensors", status=503)
    with pytest.raises(HubBusy, match=r"is busy \(HTTP 503\) while reading model\.safetensors"):
        found(hub, tmp_path)
    assert not (tmp_path / "hub" / commit / "heads").exists()
    assert found(hub, tmp_path).model.parameters


def test_a_side_file_that_is_not_what_is_listed(hub: Hub, hub_server: HubServer, model: Path, tmp_path: Path) -> None:
    hub_server.push("alice/m", model)
    hub_server.fault("GET .*config.json", "flip")
    with pytest.raises(HubBusy, match=r"config\.json arrives with another content than the Hub lists"):
        found(hub, tmp_path)
    assert found(hub, tmp_path).model.architecture == "LlamaForCausalLM"


def test_a_moved_branch_is_read_as_of_one_commit(hub: Hub, hub_server: HubServer, model: Path, tmp_path: Path) -> None:
    first = hub_server.push("alice/m", model)
    hub_server.push("alice/m", texts={"config.json": "{}"})
    hub_server.fault("GET /api/models/alice/m", "stale")
    seen = found(hub, tmp_path)
    assert seen.remote.commit == first and seen.model.config["model_type"] == "llama"
