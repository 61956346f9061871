"""Models that are recognised and refused by name, with what to do instead.

A refusal in seconds with a sentence is worth more than a failure after an hour: quantized models, adapters, diffusion models,
and weights in formats that nothing here reads.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from qconvd.checkpoints.files import CONFIG_LIMIT, is_folder, quoted, read_json
from qconvd.errors import BadCheckpoint, Incomplete, QconvdError, Unsupported


class NotAModel(BadCheckpoint):
    """Nothing at this path looks like a model."""


QUANTIZERS = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed-tensors", "fp8": "FP8",
    "fbgemm_fp8": "FP8 (FBGEMM)", "mxfp4": "MXFP4", "modelopt": "ModelOpt", "quark": "Quark", "auto-round": "AutoRound",
    "intel/auto-round": "AutoRound", "torchao": "torchao", "hqq": "HQQ", "eetq": "EETQ", "aqlm": "AQLM", "quip": "QuIP#",
    "higgs": "HIGGS", "exl2": "EXL2", "exl3": "EXL3", "vptq": "VPTQ", "spqr": "SpQR", "bitnet": "BitNet", "quanto": "Quanto",
}  # fmt: skip

# Endings of tensor names that only quantized checkpoints have (docs/reference/sources.md).
_QUANTIZED_TENSORS = {
    ".qweight": "GPTQ or AWQ", ".qzeros": "GPTQ or AWQ", ".weight_packed": "compressed-tensors", ".SCB": "bitsandbytes, 8 bits",
    ".weight.absmax": "bitsandbytes, 4 bits", ".weight_scale_inv": "FP8", ".weight_scale": "compressed-tensors or ModelOpt",
    ".q_weight": "EXL2", ".trellis": "EXL3",
}  # fmt: skip

OTHER_WEIGHTS = {
    ".onnx": "ONNX", ".h5": "Keras (.h5)", ".msgpack": "Flax (.msgpack)", ".tflite": "TensorFlow Lite", ".ckpt": "a .ckpt",
    ".nemo": "NeMo", ".ot": "rust-bert (.ot)", ".mlmodel": "Core ML", ".mlpackage": "Core ML", ".engine": "TensorRT",
    ".llamafile": "llamafile",
}  # fmt: skip

QUANTIZER_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files beside config.json by which older checkpoints say that, and how, they are quantized."""

TEXT_START = 256
"""Bytes that tell text from anything else."""

_ORIGINAL = "give qconvd the model that it was made from, in 16 or 32 bits"


def refuse_layout(folder: Path, names: Collection[str], weights: Iterable[str]) -> None:
    """Raise `Unsupported` for a diffusion pipeline or an adapter, as the folder's file names show them.

    `weights` are the names of the files that would be read as a model; an adapter beside a whole model is no reason.
    """
    if "model_index.json" in names:
        raise _diffusion(folder, "model_index.json")
    whole = [w for w in weights if not w.startswith("adapter_model.")]
    if not whole and any(n == "adapter_config.json" or n.startswith("adapter_model.") for n in names):
        raise _adapter(folder, names)


def refuse_quantized(label: str, where: str, read: str = "") -> Unsupported:
    """The error for a quantized model that is not read; `read` says what of its kind is."""
    return Unsupported(f"is already quantized ({label})", where=where, fix=f"{read}; {_ORIGINAL}" if read else _ORIGINAL)


def refuse_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise `Unsupported` if a config.json is that of a diffusion model, or names no architecture."""
    where = str(folder / "config.json")
    if _of_diffusers(config):
        raise _diffusion(folder, "config.json")
    architectures = config.get("architectures")
    if not architectures:
        fix = 'copy config.json from the original model, or add e.g. "architectures": ["LlamaForCausalLM"]'
        raise Unsupported("names no architecture", where=where, fix=fix)
    if not isinstance(architectures, list) or not all(isinstance(name, str) and name for name in architectures):
        raise BadCheckpoint(
            "`architectures` is not a list of names", where=where, fix="copy config.json from the original model"
        )


def refuse_tensors(where: str, names: Iterable[str]) -> None:
    """Raise `Unsupported` if the tensors' own names give away a quantized model, an adapter or a diffusion model."""
    for name in names:
        for ending, label in _QUANTIZED_TENSORS.items():
            if name.endswith(ending):
                what = f"is already quantized ({label}, as its tensor {quoted(name)} shows)"
                raise Unsupported(what, where=where, fix=_ORIGINAL)
        if ".lora_A." in name or ".lora_B." in name or name.startswith(("lora_unet_", "lora_te")):
            raise Unsupported(f"is a LoRA adapter, as its tensor {quoted(name)} shows", where=where, fix=_MERGE)
        if name.startswith("model.diffusion_model."):
            raise Unsupported(f"is a diffusion model, as its tensor {quoted(name)} shows", where=where, fix=_LANGUAGE)


def no_config(folder: Path, names: Collection[str]) -> Unsupported:
    """The error for weights without a config.json."""
    fix = "add the config.json of the model, with its tokenizer"
    if "params.json" in names:
        fix = "this is the layout of its makers (params.json); take the Hugging Face version of the model"
    return Unsupported("no config.json in the folder", where=str(folder), fix=fix)


def refuse_text(path: Path, start: bytes, size: int, kind: str) -> None:
    """Raise `BadCheckpoint` if a file that should be `kind` ("a GGUF file") begins as text: what a server sent instead of it.

    `start` are the file's first bytes, up to `TEXT_START`. Servers answer a download that is not allowed, or a wrong address,
    with a web page or a sentence, and `curl` without `--fail` saves that under the model's name.
    """
    fix = "download it again, signed in if need be"
    try:
        # Incremental: the last letter may be cut in two.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start[:TEXT_START]).strip()
    except UnicodeDecodeError:
        return
    if text.lower().startswith(("<!doctype", "<html", "<head", "<?xml")):
        raise BadCheckpoint(f"is a web page, not {kind}", where=str(path), fix=fix)
    if text and all(c.isprintable() or c.isspace() for c in text):
        first = text.splitlines()[0]
        raise BadCheckpoint(f"is a text of {size} bytes, not {kind}: {quoted(first)}", where=str(path), fix=fix)


def quantization(config: Mapping[str, Any]) -> str:
    """How a config.json says that the model was quantized: `GPTQ, 4 bits, group size 128`, or an empty string."""
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("quantization_config", "compression_config", "quantization"):
            found = place.get(key)
            if found and isinstance(found, Mapping):
                return _label(
                    found, "MLX" if key == "quantization" else "compressed-tensors" if key == "compression_config" else ""
                )
            if found:
                return quoted(str(found))
    return ""


def unclaimed(path: Path, names: Collection[str]) -> QconvdError:
    """The error for a path that no reader claims. `names` are the folder's entries, or the lone file's name."""
    lone = names == {path.name} and not is_folder(path)
    if not lone:
        try:
            refuse_layout(path, names, ())
        except Unsupported as error:
            return error
    for name in sorted(names):
        label = OTHER_WEIGHTS.get(Path(name).suffix.lower())
        if label:
            return Unsupported(
                f"weights in the form of {label} are not read ({name})",
                where=str(path),
                fix="give qconvd the safetensors of the same model",
            )
    if lone:
        return NotAModel("is not a model file", where=str(path), fix="models are folders with safetensors and a config.json")
    visible = [n for n in names if not n.startswith(".")]
    if not visible:
        return NotAModel("the folder is empty", where=str(path))
    if "config.json" in names:
        config = read_json(path / "config.json", CONFIG_LIMIT)
        if _of_diffusers(config):
            return _diffusion(path, "config.json")
        if "architectures" in config or "model_type" in config:
            fix = "add the model's safetensors"
            if odd := sorted(n for n in visible if n.endswith(_TORCH) and n not in _NO_WEIGHTS):
                fix = f"{fix}; if {odd[0]} holds its weights, call it pytorch_model.bin"
            return Incomplete("has a config.json but no weights yet", where=str(path), fix=fix)
    return NotAModel("holds no model: neither weights nor a model's config.json", where=str(path))


_TORCH = (".bin", ".pt", ".pth")
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "scheduler.bin", "scaler.pt")
"""What a training writes beside the model."""
_MERGE = "merge it into its base model first (with peft: merge_and_unload) and give qconvd the merged model"
_LANGUAGE = "qconvd converts language models; take a tool made for diffusion models"


def _of_diffusers(config: Mapping[str, Any]) -> bool:
    return "_class_name" in config or "_diffusers_version" in config


def _diffusion(folder: Path, file: str) -> Unsupported:
    return Unsupported("is a diffusion model", where=str(folder / file), fix=_LANGUAGE)


def _adapter(folder: Path, names: Collection[str]) -> Unsupported:
    base = ""
    if "adapter_config.json" in names:
        try:
            base = str(read_json(folder / "adapter_config.json", CONFIG_LIMIT).get("base_model_name_or_path") or "")
        except QconvdError:
            base = ""  # the refusal stands without the base model's name
    return Unsupported(
        f"is an adapter (LoRA){f' for {quoted(base)}' if base else ''}, not a whole model", where=str(folder), fix=_MERGE
    )


def _label(found: Mapping[str, Any], family: str) -> str:
    method = str(found.get("quant_method") or found.get("quant_algo") or "").lower()
    if not method and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        method = "bitsandbytes"
    parts = [QUANTIZERS.get(method, method[:40]) or family or "unknown method"]
    if parts[0] == "compressed-tensors":
        return _compressed_label(found)
    bits = (
        found.get("bits")
        or found.get("w_bit")
        or (4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else None)
    )
    group = found.get("group_size") or found.get("q_group_size")
    if isinstance(bits, (int, float)):
        parts.append(f"{bits} bits")
    if isinstance(group, int) and group > 0:
        parts.append(f"group size {group}")
    return ", ".join(parts)


def _compressed_label(found: Mapping[str, Any]) -> str:
    """`compressed-tensors pack-quantized, 4 bits, group size 128`; several groups of modules may have several bits."""
    groups = found.get("config_groups")
    weights = [g.get("weights") for g in groups.values() if isinstance(g, Mapping)] if isinstance(groups, Mapping) else []
    bits = sorted({w["num_bits"] for w in weights if isinstance(w, Mapping) and isinstance(w.get("num_bits"), int)})
    sizes = sorted({w["group_size"] for w in weights if isinstance(w, Mapping) and isinstance(w.get("group_size"), int)})
    parts = ["compressed-tensors" + (f" {str(found['format'])[:40]}" if found.get("format") else "")]
    if bits:
        parts.append(f"{' and '.join(map(str, bits))} bits")
    if any(size > 0 for size in sizes):
        parts.append(f"group size {' and '.join(str(size) for size in sizes if size > 0)}")
    return ", ".join(parts)
