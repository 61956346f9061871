"""The peer: a safetensors Llama to one GGUF type with the `gguf` package's own numpy quantizers and its own writer.

It streams tensor by tensor (`use_temp_file`), as that package's users do to keep memory down. Tokenizer data is left out,
which favours the peer by about a second.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def main(model: Path, out: Path, kind: str) -> None:
    config = json.loads((model / "config.json").read_text())
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    target = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(out, "llama", use_temp_file=True)
    writer.add_block_count(config["num_hidden_layers"])
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open has keys() only)
                bits = file.get_tensor(name).view(dtype=__import__("torch").int16).numpy().view(np.uint16)
                weights = (bits.astype(np.uint32) << 16).view(np.float32)
                new, rope = rename(name)
                if rope:
                    n = heads if rope == "q" else groups
                    weights = weights.reshape(n, 2, weights.shape[0] // n // 2, -1).swapaxes(1, 2).reshape(weights.shape)
                use = gguf.GGMLQuantizationType.F32 if weights.ndim == 1 else target
                writer.add_tensor(new, gguf.quantize(weights, use), raw_dtype=use)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rename(name: str) -> tuple[str, str]:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight", ""
    if name == "model.norm.weight":
        return "output_norm.weight", ""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    assert match, name
    kind = NAMES[match[2]]
    return f"blk.{match[1]}.{kind}.weight", {"attn_q": "q", "attn_k": "k"}.get(kind, "")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
