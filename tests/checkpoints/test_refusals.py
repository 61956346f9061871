"""What is recognised and refused by name: quantized models, adapters, diffusion models, and other formats."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from checkpoint_files import CONFIG, data, gguf, header_of, safetensors, write_model
from qconvd.checkpoints import NotAModel, inspect
from qconvd.checkpoints.torch import check_complete
from qconvd.checkpoints.torch.tensors import read_tensors
from qconvd.errors import BadCheckpoint, Incomplete, QconvdError, Unsupported
from torch_files import archive, state, tensor

AGAIN = "download it again, signed in if need be"


def refused(path: Path, kind: type[QconvdError] = Unsupported) -> QconvdError:
    with pytest.raises(kind) as caught:
        inspect(path)
    assert type(caught.value) is kind
    return caught.value


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"quant_method": "gptq", "bits": 5, "group_size": 128}, "GPTQ, 5 bits, group size 128"),
        ({"quant_method": "auto-round", "bits": 4, "group_size": -1}, "AutoRound, 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, "bitsandbytes, 4 bits"),
        ({"load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors, of no format"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "FP8"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"quant_method": "exl3", "bits": 2.5}, "EXL3, 2.5 bits"),
        ({"quant_method": "brand-new"}, "brand-new"),
        ({"config_groups": {}}, "unknown method"),
    ],
)
def test_quantized_by_config(tmp_path: Path, config: dict[str, Any], label: str) -> None:
    model = write_model(tmp_path / "m", CONFIG | {"quantization_config": config})
    error = refused(model)
    assert error.what == f"is already quantized ({label})"
    assert error.where == str(model / "config.json")
    assert error.fix.endswith("give qconvd the model that it was made from, in 16 or 32 bits")


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX, 4 bits, group size 64"),
        ({"compression_config": {"format": "x"}}, "compressed-tensors x, x"),
        ({"text_config": {"quantization_config": {"quant_method": "hqq", "bits": 4}}}, "HQQ, 4 bits"),
        ({"quantization_config": "int4"}, "'int4'"),
    ],
)
def test_quantized_by_other_keys(tmp_path: Path, config: dict[str, Any], label: str) -> None:
    assert refused(write_model(tmp_path / "m", CONFIG | config)).what == f"is already quantized ({label})"


def test_a_diffusion_models_own_files_are_recognised_by_their_config(tmp_path: Path) -> None:
    """Parts of a pipeline, whose weights no reader claims by their name."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.30"}')
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"PK")
    error = refused(tmp_path / "unet")
    assert (error.what, error.where) == ("is a diffusion model", str(tmp_path / "unet" / "config.json"))


def test_an_empty_quantization_config_is_none(tmp_path: Path) -> None:
    assert inspect(write_model(tmp_path / "m", CONFIG | {"quantization_config": None, "text_config": {}})).tensors


def test_quantized_by_a_file_beside_it(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    (model / "quantize_config.json").write_text("{}")
    assert refused(model).what == "is already quantized (GPTQ)"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (
            "model.layers.0.q_proj.qweight",
            "is already quantized (GPTQ or AWQ, as its tensor 'model.layers.0.q_proj.qweight' shows)",
        ),
        ("x.weight_packed", "is already quantized (compressed-tensors, as its tensor 'x.weight_packed' shows)"),
        ("x.SCB", "is already quantized (bitsandbytes, 8 bits, as its tensor 'x.SCB' shows)"),
        ("x.weight_scale_inv", "is already quantized (FP8, as its tensor 'x.weight_scale_inv' shows)"),
        ("base_model.model.q.lora_A.weight", "is a LoRA adapter, as its tensor 'base_model.model.q.lora_A.weight' shows"),
        ("model.diffusion_model.in.weight", "is a diffusion model, as its tensor 'model.diffusion_model.in.weight' shows"),
    ],
)
def test_given_away_by_its_tensors(tmp_path: Path, name: str, what: str) -> None:
    model = write_model(tmp_path / "m")
    header, size = header_of({name: ("F16", [4])})
    (model / "model.safetensors").write_bytes(safetensors(header, size))
    assert refused(model).what == what


def test_adapters(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/Base-7B"}))
    error = refused(folder)
    assert error.what == "is an adapter (LoRA) for 'owner/Base-7B', not a whole model"
    assert "merge_and_unload" in error.fix
    header, size = header_of({"q.lora_A.weight": ("F16", [4])})
    (folder / "adapter_model.safetensors").write_bytes(safetensors(header, size))
    assert "for 'owner/Base-7B'" in refused(folder).what
    (folder / "adapter_config.json").write_text("broken")
    assert refused(folder).what == "is an adapter (LoRA), not a whole model"
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert refused(folder).what == "is an adapter (LoRA), not a whole model"


def test_diffusion(tmp_path: Path) -> None:
    folder = tmp_path / "sd"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    error = refused(folder)
    assert error.what == "is a diffusion model"
    assert error.where == str(folder / "model_index.json")
    unet = write_model(tmp_path / "unet", {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.30"})
    assert refused(unet).what == "is a diffusion model"


@pytest.mark.parametrize(
    ("file", "form"), [("model.onnx", "ONNX"), ("tf_model.h5", "Keras (.h5)"), ("x.msgpack", "Flax (.msgpack)")]
)
def test_other_formats(tmp_path: Path, file: str, form: str) -> None:
    (tmp_path / file).write_bytes(b"x")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert refused(tmp_path).what == f"weights in the form of {form} are not read ({file})"
    assert refused(tmp_path / file).what == f"weights in the form of {form} are not read ({file})"


def test_not_a_model(tmp_path: Path) -> None:
    assert refused(tmp_path, NotAModel).what == "the folder is empty"
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "config.json").write_text('{"port": 8080}')
    assert refused(tmp_path, NotAModel).what == "holds no model: neither weights nor a model's config.json"
    assert refused(tmp_path / "notes.txt", NotAModel).what == "is not a model file"
    assert refused(tmp_path / "nothing", NotAModel).what == "there is nothing at this path"


def test_config_before_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert refused(tmp_path, Incomplete).what == "has a config.json but no weights yet"


def test_torch_zips(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    whole = archive(members={"data/1": data(3000)})
    path.write_bytes(whole)
    assert refused(path).what == "no config.json goes with a lone .bin file"
    for cut in (1, 21, 100, 2000):
        path.write_bytes(whole[:-cut])
        assert refused(path, Incomplete).what == f"the end record of the zip is not there ({len(whole) - cut} bytes so far)"
    path.write_bytes(whole[:50] + whole[-22:])  # an end record whose directory is not there
    assert "end record" in refused(path, Incomplete).what
    path.write_bytes(b"")
    assert refused(path, Incomplete).what == "is empty, or begins with zeros"


@pytest.mark.parametrize(
    ("content", "what", "fix"),
    [
        (b"<!DOCTYPE html><html>sign in</html>", "is a web page, not a PyTorch .bin file", AGAIN),
        (b"Entry not found\n", "is a text of 16 bytes, not a PyTorch .bin file: 'Entry not found'", AGAIN),
        ("Zugriff verweigert: für 'm' fehlt die Anmeldung\n".encode() * 9,
         "is a text of 441 bytes, not a PyTorch .bin file: \"Zugriff verweigert: für 'm' fehlt die Anmeldung\"", AGAIN),
        (b"\1\2\3\4 whatever this is", "is no PyTorch checkpoint: it begins like neither a zip nor a pickle",
         "copy or download the file again"),
    ],
    ids=["page", "sentence", "a letter cut in two", "noise"],
)  # fmt: skip
def test_what_has_a_checkpoints_name_and_is_none_is_refused(tmp_path: Path, content: bytes, what: str, fix: str) -> None:
    """With these names it is no file that has nothing to do with a model: who dropped it must be told."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    error = refused(tmp_path, BadCheckpoint)
    assert (error.what, error.fix) == (what, fix)
    assert error.where == str(tmp_path / "pytorch_model.bin")


def test_a_git_lfs_pointer_under_torchs_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4242\n")
    error = refused(tmp_path, Incomplete)
    assert error.what == "is a Git LFS pointer, not the file itself"
    assert error.fix == f"run `git lfs pull` in {tmp_path}"


def test_a_zip_with_a_comment(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    buffer = io.BytesIO(archive())
    with zipfile.ZipFile(buffer, "a") as file:
        file.comment = b"made by PK\5\6 somebody"
    path.write_bytes(buffer.getvalue())
    check_complete(path)
    assert read_tensors(tmp_path, "x.pt").keys() == {"w"}


def test_torch_folders(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(archive())
    shards = {"w": "pytorch_model-00001-of-00002.bin", "v": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    assert refused(tmp_path, Incomplete).what == "1 of 2 shards are missing: pytorch_model-00002-of-00002.bin"
    second = archive(state({"v": tensor()}))
    (tmp_path / "pytorch_model-00002-of-00002.bin").write_bytes(second[:-5])
    assert "end record" in refused(tmp_path, Incomplete).what
    (tmp_path / "pytorch_model-00002-of-00002.bin").write_bytes(second)
    assert inspect(tmp_path).tensors.keys() == {"w", "v"}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": {"quant_method": "hqq"}}))
    assert refused(tmp_path).what == "is already quantized (HQQ)"
    (tmp_path / "config.json").unlink()
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    assert refused(tmp_path, BadCheckpoint).what == "has no weight_map"


def test_older_files_under_torchs_endings(tmp_path: Path) -> None:
    path = tmp_path / "ggml-model-q4_0.bin"
    path.write_bytes(struct.pack("<II", 0x67676A74, 3) + data(100))
    assert refused(path, BadCheckpoint).what == "has a header that is no LLaMA model's"
    other = tmp_path / "ggml-model-q4_0.pt"
    other.write_bytes(path.read_bytes())
    assert refused(other).what == "is a GGJT file under another ending"
    path.write_bytes(gguf())
    assert refused(path).what == "is a GGUF file under another ending"
    path.write_bytes(b"firmware\1\2\3")
    assert refused(path, NotAModel).what == "is not a model file"
