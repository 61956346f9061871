"""Safetensors: what is right is read as safetensors' own library reads it; every lie has its message."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from checkpoint_files import (
    TENSORS,
    header_of,
    safetensors,
    write_index,
    write_model,
    write_safetensors,
    write_sharded,
)
from qconvd.checkpoints import inspect
from qconvd.checkpoints.safetensors import HEADER_LIMIT, SafetensorsReader, read_header
from qconvd.errors import BadCheckpoint, Incomplete, QconvdError, Unsupported


def bad(folder: Path, content: bytes, kind: type[QconvdError] = BadCheckpoint) -> str:
    (folder / "x.safetensors").write_bytes(content)
    with pytest.raises(kind) as caught:
        read_header(folder, "x.safetensors")
    assert type(caught.value) is kind
    assert caught.value.where == str(folder / "x.safetensors")
    return caught.value.what


def with_(name: str, **changes: Any) -> bytes:
    """The right file, except for what one tensor's entry says."""
    header, size = header_of(TENSORS)
    header[name] |= changes
    return safetensors(header, size)


def test_reads_what_the_library_reads(glass: Path) -> None:
    from safetensors import safe_open

    model = SafetensorsReader().inspect(glass)
    with safe_open(glass / "model.safetensors", "numpy") as theirs:
        names = set(theirs.keys())
        assert names == set(model.tensors)
        raw = (glass / "model.safetensors").read_bytes()
        for name in names:
            ours, array = model.tensors[name], theirs.get_tensor(name)
            assert ours.shape == array.shape
            assert raw[ours.offset : ours.offset + ours.nbytes] == array.tobytes()
    assert model.architecture == "LlamaForCausalLM"
    assert model.name == glass.name
    assert {f.path: f.role for f in model.files}["model.safetensors"] == "weights"
    assert model.metadata.get("format") == "pt"


def test_sizes_and_places(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors")
    header = read_header(tmp_path, "x.safetensors").tensors
    start = (tmp_path / "x.safetensors").stat().st_size - 128 - 96 - 16
    assert [(t.name, t.dtype, t.shape, t.offset - start, t.nbytes) for t in header.values()] == [
        ("a.weight", "F32", (4, 8), 0, 128),
        ("b.weight", "BF16", (3, 16), 128, 96),
        ("norm", "F16", (8,), 224, 16),
    ]


def test_scalars_empty_tensors_and_no_metadata_are_right(tmp_path: Path) -> None:
    header, size = header_of({"scalar": ("F32", []), "none": ("F16", [0, 4])})
    (tmp_path / "x.safetensors").write_bytes(safetensors(header, size))
    tensors = read_header(tmp_path, "x.safetensors").tensors
    assert (tensors["scalar"].shape, tensors["scalar"].nbytes) == ((), 4)
    assert (tensors["none"].shape, tensors["none"].nbytes) == ((0, 4), 0)


@pytest.mark.parametrize("cut", [1, 100, 239])
def test_truncated_data(tmp_path: Path, cut: int) -> None:
    header, size = header_of(TENSORS)
    whole = safetensors(header, size)
    assert bad(tmp_path, whole[:-cut], Incomplete) == f"{len(whole) - cut} of {len(whole)} bytes are there"


def test_truncated_header(tmp_path: Path) -> None:
    whole = safetensors(*header_of(TENSORS))
    length = int.from_bytes(whole[:8], "little")
    assert bad(tmp_path, whole[:50], Incomplete) == f"ends inside its header: 50 of at least {length + 8} bytes are there"
    assert bad(tmp_path, whole[:8], Incomplete) == f"ends inside its header: 8 of at least {length + 8} bytes are there"
    assert bad(tmp_path, whole[:3], Incomplete) == "3 of 8 bytes are there"
    assert bad(tmp_path, b"", Incomplete) == "0 of 8 bytes are there"


def test_a_header_larger_than_the_file(tmp_path: Path) -> None:
    content = (5000).to_bytes(8, "little") + b"nothing that a header begins with"
    assert bad(tmp_path, content) == f"claims a header of 5000 bytes, more than the file's {len(content)}"


def test_a_header_larger_than_safetensors_allows(tmp_path: Path) -> None:
    content = (HEADER_LIMIT + 1).to_bytes(8, "little") + b"{}"
    assert bad(tmp_path, content) == "claims a header of 100000001 bytes; safetensors allows 100000000"
    assert "allows" in bad(tmp_path, b"\xff" * 64)


def test_reserved_but_not_written(tmp_path: Path) -> None:
    assert bad(tmp_path, bytes(10_000), Incomplete) == "begins with zeros: its header is not written yet"
    whole = bytearray(safetensors(*header_of(TENSORS)))
    whole[60:90] = bytes(30)
    assert bad(tmp_path, bytes(whole), Incomplete) == "has zeros in its header, which is not written yet"


def test_a_login_page_instead_of_a_model(tmp_path: Path) -> None:
    assert bad(tmp_path, b"<!DOCTYPE html><html>sign in</html>".ljust(500)) == "is a web page, not a safetensors file"
    assert bad(tmp_path, b"\xef\xbb\xbf\n <html>" + "é".encode() * 300) == "is a web page, not a safetensors file"
    said = b'{"error":"Unauthorized"}'
    assert bad(tmp_path, said) == f"is a text of 24 bytes, not a safetensors file: {said.decode()!r}"


def test_headers_that_are_not_json(tmp_path: Path) -> None:
    assert bad(tmp_path, safetensors(b'["a"]', 0)) == "has no JSON header"
    assert bad(tmp_path, safetensors(b'{"a": }', 0)).startswith("has a header that is not valid JSON: Expecting value")
    assert "codec can't decode" in bad(tmp_path, safetensors(b'{"\xff": 1}', 0))
    assert bad(tmp_path, safetensors(b'{"a":' + b"[" * 200_000, 0)).startswith("has a header that is not valid JSON")
    assert "digits" in bad(tmp_path, safetensors(b'{"a": ' + b"9" * 5000 + b"}", 0))
    many = b'{"a":[' + b"0," * 4_000_001 + b"0]}"
    assert bad(tmp_path, safetensors(many, 0)) == "has a header that is not sensible JSON: more than 4000000 values"


def test_a_name_twice(tmp_path: Path) -> None:
    header, size = header_of({"a": ("F32", [2])})
    text = json.dumps(header)[:-1] + "," + json.dumps(header)[1:]
    assert bad(tmp_path, safetensors(text.encode(), size)) == "has 'a' twice in its header"


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    text = b'{"\\ud800": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
    assert "is not valid JSON: it escapes half of a character (a lone surrogate)" in bad(tmp_path, safetensors(text, 1))


@pytest.mark.parametrize("metadata", [["pt"], {"format": 1}, "pt", None])
def test_metadata_that_is_not_text(tmp_path: Path, metadata: Any) -> None:
    header, size = header_of(TENSORS)
    assert bad(tmp_path, safetensors({"__metadata__": metadata, **header}, size)) == "has __metadata__ that is not text by text"


@pytest.mark.parametrize(
    "entry", [None, [], "F32", {"dtype": "F32", "shape": [2]}, {"shape": [], "data_offsets": [0, 1], "type": "U8"}]
)
def test_entries_that_describe_no_tensor(tmp_path: Path, entry: Any) -> None:
    assert bad(tmp_path, safetensors({"a": entry}, 8)) == "tensor 'a' is not described by dtype, shape and data_offsets"


def test_unknown_dtype(tmp_path: Path) -> None:
    assert bad(tmp_path, with_("norm", dtype="F17")) == "tensor 'norm' has the unknown dtype 'F17'"
    assert bad(tmp_path, with_("norm", dtype=["F16"])) == "tensor 'norm' has the unknown dtype \"['F16']\""
    assert bad(tmp_path, with_("norm", dtype="F4"), Unsupported) == "tensor 'norm' is stored as F4, which is not read"


@pytest.mark.parametrize("shape", [8, [-8], [8.0], ["8"], [True], [1 << 63], [1] * 33, None])
def test_shapes_that_are_none(tmp_path: Path, shape: Any) -> None:
    assert bad(tmp_path, with_("norm", shape=shape)) == "tensor 'norm' has a shape that is not a list of sizes"


@pytest.mark.parametrize("offsets", [[-16, 0], [240, 224], [224], [224, 240, 250], [224.0, 240], [0, 1 << 64], "0-16", {}])
def test_offsets_that_are_none(tmp_path: Path, offsets: Any) -> None:
    what = bad(tmp_path, with_("norm", data_offsets=offsets))
    assert what == "tensor 'norm' has data_offsets that are not a start and an end"


def test_a_shape_that_does_not_fit_its_bytes(tmp_path: Path) -> None:
    assert bad(tmp_path, with_("norm", shape=[4, 3])) == "tensor 'norm' is 4 x 3 in F16, 24 bytes, but has 16"
    assert bad(tmp_path, with_("norm", shape=[1 << 62, 0])) == "tensor 'norm' claims an absurd size"
    assert bad(tmp_path, with_("norm", shape=[(1 << 62) + 1] * 32)) == "tensor 'norm' claims an absurd size"


def test_overlapping_tensors(tmp_path: Path) -> None:
    assert bad(tmp_path, with_("b.weight", data_offsets=[124, 220])) == "has tensors that overlap: 'a.weight' and 'b.weight'"
    assert bad(tmp_path, with_("b.weight", data_offsets=[0, 96])) == "has tensors that overlap: 'b.weight' and 'a.weight'"


def test_gaps_and_bytes_that_no_tensor_has(tmp_path: Path) -> None:
    assert bad(tmp_path, with_("norm", data_offsets=[230, 246])) == "has a gap of 6 bytes before tensor 'norm'"
    header, size = header_of(TENSORS)
    assert bad(tmp_path, safetensors(header, size + 5)) == "has 5 bytes more than its header describes"


def test_a_folder_in_place_of_the_weights(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").mkdir()
    with pytest.raises(BadCheckpoint, match=r"model.safetensors: is a folder where a file should be"):
        inspect(model)


def test_a_fifo_in_place_of_the_weights_does_not_block(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=r"is not a regular file where a file should be"):
        inspect(model)


def test_shards_with_and_without_an_index(tmp_path: Path) -> None:
    for index in (True, False):
        model = inspect(write_sharded(tmp_path / f"m{index}", index=index))
        assert len(model.tensors) == 6
        assert model.tensors["layers.2.b"].file == "model-00002-of-00003.safetensors"


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard(tmp_path: Path, index: bool) -> None:
    model = write_sharded(tmp_path / "m", index=index)
    (model / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(Incomplete) as caught:
        inspect(model)
    assert caught.value.what == "1 of 3 shards are missing: model-00002-of-00003.safetensors"
    assert caught.value.where == str(model)


def test_many_missing_shards_are_counted(tmp_path: Path) -> None:
    model = write_sharded(tmp_path / "m", count=6)
    for i in range(2, 7):
        (model / f"model-{i:05}-of-00006.safetensors").unlink()
    with pytest.raises(Incomplete, match=r"5 of 6 shards are missing: model-00002.*, model-00003.*, model-00004.* and 2 more"):
        inspect(model)


def test_a_truncated_shard(tmp_path: Path) -> None:
    model = write_sharded(tmp_path / "m")
    shard = model / "model-00003-of-00003.safetensors"
    whole = shard.stat().st_size
    os.truncate(shard, whole - 10)
    with pytest.raises(Incomplete, match=f"model-00003-of-00003.safetensors: {whole - 10} of {whole} bytes are there"):
        inspect(model)


@pytest.mark.parametrize("place", ["../other/model.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors",
                                   ".hidden.safetensors", "a\0.safetensors"])  # fmt: skip
def test_an_index_that_points_outside_the_folder(tmp_path: Path, place: str) -> None:
    write_model(tmp_path / "other")
    model = write_sharded(tmp_path / "m")
    write_index(model, {"a.weight": place})
    with pytest.raises(BadCheckpoint) as caught:
        inspect(model)
    assert caught.value.what == f"points outside the folder: tensor 'a.weight' is said to be in {place!r}"
    assert caught.value.where == str(model / "model.safetensors.index.json")


@pytest.mark.parametrize(
    ("weight_map", "what"),
    [
        (None, "has no weight_map"),
        ({}, "has no weight_map"),
        (["a"], "has no weight_map"),
        ({"a": 5}, "names no safetensors file for tensor 'a'"),
        ({"a": "pytorch_model.bin"}, "names no safetensors file for tensor 'a'"),
    ],
)
def test_an_index_that_is_none(tmp_path: Path, weight_map: Any, what: str) -> None:
    model = write_sharded(tmp_path / "m")
    write_index(model, weight_map)
    with pytest.raises(BadCheckpoint) as caught:
        inspect(model)
    assert caught.value.what == what


def test_an_index_that_names_a_tensor_twice(tmp_path: Path) -> None:
    model = write_sharded(tmp_path / "m")
    index = model / "model.safetensors.index.json"
    name, shard = next(iter(json.loads(index.read_text())["weight_map"].items()))
    index.write_text(index.read_text().replace('"weight_map": {', f'"weight_map": {{"{name}": "{shard}", '))
    with pytest.raises(BadCheckpoint) as caught:
        inspect(model)
    assert (caught.value.what, caught.value.where) == (f"has {name!r} twice", str(index))


def test_an_index_that_is_not_json(tmp_path: Path) -> None:
    model = write_sharded(tmp_path / "m")
    (model / "model.safetensors.index.json").write_text("{")
    with pytest.raises(BadCheckpoint, match=r"index.json: is not valid JSON: .* line 1 column 2"):
        inspect(model)
    (model / "model.safetensors.index.json").write_text("")
    with pytest.raises(Incomplete, match=r"index.json: is empty"):
        inspect(model)
    (model / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(BadCheckpoint, match=r"holds a list where a JSON object should be"):
        inspect(model)


def test_index_and_shards_that_disagree(tmp_path: Path) -> None:
    model = write_sharded(tmp_path / "m")
    right = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    write_index(model, right | {"lm_head": "model-00001-of-00003.safetensors"})
    with pytest.raises(
        BadCheckpoint, match=r"model-00001-of-00003.safetensors: has no tensor 'lm_head', though the index says so"
    ):
        inspect(model)
    write_index(model, right | {"layers.1.a": "model-00002-of-00003.safetensors"})
    with pytest.raises(BadCheckpoint, match=r"model-00002-of-00003.safetensors: has no tensor 'layers.1.a'"):
        inspect(model)
    write_index(model, {k: v for k, v in right.items() if k != "layers.3.b"})
    with pytest.raises(BadCheckpoint, match=r"has the tensor 'layers.3.b', which the index does not name"):
        inspect(model)


@pytest.mark.parametrize("index", [True, False])
def test_one_tensor_in_two_shards(tmp_path: Path, index: bool) -> None:
    model = write_sharded(tmp_path / "m", index=index)
    (model / "model-00002-of-00003.safetensors").write_bytes((model / "model-00001-of-00003.safetensors").read_bytes())
    with pytest.raises(BadCheckpoint) as caught:
        inspect(model)
    both = "model-00001-of-00003.safetensors and in model-00002-of-00003.safetensors"
    assert caught.value.what == f"the same tensor 'layers.1.a' is in {both}"


def test_two_models_in_one_folder(tmp_path: Path) -> None:
    model = write_sharded(tmp_path / "m")
    write_safetensors(model / "model.safetensors")
    with pytest.raises(Unsupported, match=r"holds more than one model: model.safetensors and model-00001-of-00003.safetensors"):
        inspect(model)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").unlink()
    write_safetensors(model / "other-00001-of-00001.safetensors")
    with pytest.raises(Unsupported, match=r"holds more than one model"):
        inspect(model)


def test_any_safetensors_will_do_without_an_index(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    (model / "model.safetensors").rename(model / "llama-7b.safetensors")
    write_safetensors(model / "extra.safetensors", {"more": ("F16", [2])})
    assert set(inspect(model).tensors) == {*TENSORS, "more"}


def test_a_variant_with_an_index_of_its_own(tmp_path: Path) -> None:
    model = write_sharded(tmp_path / "m", count=1)
    (model / "model.safetensors.index.json").rename(model / "model.fp16.safetensors.index.json")
    assert len(inspect(model).tensors) == 2


def test_the_makers_own_files_beside_the_model_are_ignored(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    write_safetensors(model / "consolidated.safetensors")
    (model / "original").mkdir()
    write_safetensors(model / "original" / "model.safetensors")
    for name in ("pytorch_model.bin", "model.gguf", "tf_model.h5", "flax_model.msgpack", "model.onnx", "modeling_x.py"):
        (model / name).write_bytes(b"x")
    (model / "adapter_config.json").write_text("{}")
    (model / ".DS_Store").write_bytes(b"x")
    found = {f.path: f.role for f in inspect(model).files}
    assert {p for p, role in found.items() if role == "weights"} == {"model.safetensors"}
    assert {p for p, role in found.items() if role == "side"} == {"config.json", "tokenizer.json"}
    assert ".DS_Store" not in found
    (model / "model.safetensors").rename(model / "weights.safetensors")
    assert {f.path for f in inspect(model).files if f.role == "weights"} == {"weights.safetensors"}


def test_side_files(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    names = ["generation_config.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt",
             "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
             "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "LICENSE", "LICENSE.txt",
             "NOTICE", "USE_POLICY.md", "README.md", "tekken.json", "qwen.tiktoken", "modules.json",
             "1_Pooling/config.json", "additional_chat_templates/tools.jinja"]  # fmt: skip
    others = ["quant.txt", "configuration_llama.py", "training_args.bin", "trainer_state.json", "x.jpg", "onnx/config.json"]
    for name in (*names, *others):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("x")
    info = inspect(model)
    assert {f.path for f in info.files if f.role == "side"} == {*names, "config.json", "tokenizer.json"}
    assert info.has("chat_template.jinja")
    assert not info.has("chat_template.md")


def test_a_lone_file_has_no_config(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "lone.safetensors")
    with pytest.raises(Unsupported) as caught:
        inspect(tmp_path / "lone.safetensors")
    assert caught.value.what == "no config.json goes with a lone .safetensors file"
    assert "into a folder of their own" in caught.value.fix
    model = write_model(tmp_path / "m")
    with pytest.raises(Unsupported) as caught:
        inspect(model / "model.safetensors")
    assert caught.value.fix == f"give qconvd the folder: {model}"


def test_a_folder_without_config(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    (model / "config.json").unlink()
    with pytest.raises(Unsupported, match=r"no config.json in the folder"):
        inspect(model)
    (model / "params.json").write_text("{}")
    with pytest.raises(Unsupported, match=r"layout of its makers \(params.json\)"):
        inspect(model)


def test_configs_that_are_none(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    for text, what in [
        ('{"a": 1,}', "is not valid JSON: .* line 1 column"),
        ('{"a": "\\ud800"}', r"is not valid JSON: it escapes half of a character \(a lone surrogate\)"),
        ("[1]", "holds a list where a JSON object should be"),
        ('{"model_type": "llama"}', "config.json: names no architecture\n.*LlamaForCausalLM"),
        ('{"architectures": []}', "names no architecture"),
        ('{"architectures": "Llama"}', "`architectures` is not a list of names"),
        ('{"architectures": [1]}', "`architectures` is not a list of names"),
    ]:
        (model / "config.json").write_text(text)
        with pytest.raises(QconvdError, match=what):
            inspect(model)
    with (model / "config.json").open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(BadCheckpoint, match=r"17825792 bytes are too many for a config.json"):
        inspect(model)


def test_infinity_in_a_config_is_read(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    (model / "config.json").write_text('{"architectures": ["Mamba2ForCausalLM"], "time_step_limit": [0.0, Infinity]}')
    assert inspect(model).config["time_step_limit"][1] == float("inf")


def test_no_tensors_at_all(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    (model / "model.safetensors").write_bytes(safetensors({}, 0))
    with pytest.raises(BadCheckpoint, match=r"the model holds no tensors"):
        inspect(model)


def test_symlinks_are_followed_as_the_hub_cache_needs(tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--Name-7B"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    real = write_model(tmp_path / "real")
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(real.iterdir())):
        (blobs / f"hash{i}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/hash{i}")
    model = inspect(snapshot)
    assert model.name == "Name-7B"
    assert {f.path: f.size for f in model.files} == {f.name: f.stat().st_size for f in real.iterdir()}
    (blobs / "hash1").unlink()
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/gone")
    with pytest.raises(Incomplete, match=r"model.safetensors: is a symlink to a file that is not there"):
        inspect(snapshot)


def test_symlinks_that_leave_a_git_work_tree_are_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    secret = tmp_path / "secret"
    secret.write_text("x")
    (model / "README.md").symlink_to(secret)
    assert inspect(model).has("README.md")
    (model / ".git").mkdir()
    with pytest.raises(BadCheckpoint, match=f"README.md: is a symlink that leaves the git work tree .to {secret}."):
        inspect(model)
    (model / "README.md").unlink()
    (model / "README.md").symlink_to("config.json")
    assert inspect(model).has("README.md")


def test_a_link_to_itself(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(Incomplete, match=r"model.safetensors: cannot be read: Too many levels of symbolic links"):
        inspect(model)


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_model(tmp_path / "here"))
    model = inspect(Path())
    assert (model.path, model.name) == (tmp_path / "here", "here")


def test_a_symlinked_folder_keeps_the_links_name(tmp_path: Path) -> None:
    (tmp_path / "nice-name").symlink_to(write_model(tmp_path / "0123abcd"))
    assert inspect(tmp_path / "nice-name").name == "nice-name"
