"""Small models of the families that GGML files hold, each with a tokenizer that its readers know."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

import gguf_models

VOCAB = 512
LLAMA = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=64, num_attention_heads=4, num_key_value_heads=4,
    head_dim=16, intermediate_size=192, num_hidden_layers=2, max_position_embeddings=2048, rms_norm_eps=5e-6,
    rope_theta=10000.0, hidden_act="silu", attention_bias=False, mlp_bias=False, tie_word_embeddings=False, vocab_size=VOCAB,
    bos_token_id=1, eos_token_id=2, torch_dtype="float32",
)  # fmt: skip
GPT2 = dict(
    architectures=["GPT2LMHeadModel"], model_type="gpt2", n_embd=64, n_head=4, n_layer=2, n_positions=256, n_ctx=256,
    layer_norm_epsilon=1e-5, activation_function="gelu_new", vocab_size=VOCAB, torch_dtype="float32",
    bos_token_id=VOCAB - 1, eos_token_id=VOCAB - 1,
)  # fmt: skip
GPTJ = dict(
    architectures=["GPTJForCausalLM"], model_type="gptj", n_embd=64, n_head=4, n_layer=2, n_positions=256, rotary_dim=8,
    layer_norm_epsilon=1e-5, activation_function="gelu_new", vocab_size=VOCAB, tie_word_embeddings=False,
    torch_dtype="float32", bos_token_id=VOCAB - 1, eos_token_id=VOCAB - 1,
)  # fmt: skip
NEOX = dict(
    architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox", hidden_size=64, num_attention_heads=4, num_hidden_layers=2,
    intermediate_size=256, max_position_embeddings=256, rotary_pct=0.5, rotary_emb_base=10000, layer_norm_eps=1e-5,
    hidden_act="gelu", use_parallel_residual=True, tie_word_embeddings=False, vocab_size=VOCAB, torch_dtype="float32",
    bos_token_id=VOCAB - 1, eos_token_id=VOCAB - 1,
)  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {"llama": LLAMA, "gpt2": GPT2, "gptj": GPTJ, "gpt_neox": NEOX}
TEXT = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or twice "
    "she had peeped into the book her sister was reading, but it had no pictures or conversations in it.\n"
) * 3


def make(out: Path, family: str, spread: float = 5.0, **changes: Any) -> Path:
    """A checkpoint in float32 whose weights depend on the tensors' names alone, `spread` times as lively as usual."""
    config = {k: v for k, v in (CONFIGS[family] | changes).items() if v is not None}
    tensors = {name: lively(gguf_models.weights(name, shape), spread) for name, shape in shapes(config).items()}
    gguf_models.write(out, tensors, config)
    if family == "llama":
        (out / "tokenizer.model").write_bytes(sentencepiece())
    else:
        (out / "tokenizer.json").write_text(byte_level())
    (out / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return out


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    if config["model_type"] == "gptj":
        return _gptj(config)
    if config["model_type"] == "gpt_neox":
        return _neox(config)
    return gguf_models.shapes(config)


def sentencepiece(size: int = VOCAB) -> bytes:
    """A SentencePiece BPE model with byte tokens, unk 0, BOS 1 and EOS 2, as LLaMA's."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()), model_writer=out, vocab_size=size, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
        character_coverage=1.0, max_sentencepiece_length=16,
    )  # fmt: skip
    return _filled(out.getvalue(), size)


def _filled(model: bytes, size: int) -> bytes:
    from sentencepiece import SentencePieceProcessor

    found = SentencePieceProcessor(model_proto=model).get_piece_size()
    # Rarely used pieces, so that the vocabulary is as large as the embeddings whatever the text holds.
    extra = b""
    for number in range(size - found):
        piece = f"\u2581xq{number}".encode()
        body = b"\x0a" + bytes([len(piece)]) + piece + b"\x15" + np.float32(-9000 - number).tobytes()
        extra += b"\x0a" + bytes([len(body)]) + body
    return model + extra


def byte_level() -> str:
    """Byte-level BPE in which ids count merges, and one special token at the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    vocab = json.loads(tokenizer.to_str())
    vocab["added_tokens"] = [
        {"id": VOCAB - 1, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
    ]  # fmt: skip
    return json.dumps(vocab)


def lively(x: np.ndarray, spread: float = 5.0) -> np.ndarray:
    """Wider matrices: with small weights, a wrong rotation would hardly show in the logits, with large ones rounding does."""
    return x * np.float32(spread) if x.ndim >= 2 else x


def _gptj(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d, v = c["n_embd"], c["vocab_size"]
    found: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (v, d), "lm_head.weight": (v, d), "lm_head.bias": (v,)}
    for i in range(c["n_layer"]):
        layer = f"transformer.h.{i}."
        found |= {f"{layer}attn.{name}_proj.weight": (d, d) for name in ("q", "k", "v", "out")}
        found |= {layer + "mlp.fc_in.weight": (4 * d, d), layer + "mlp.fc_in.bias": (4 * d,)}
        found |= {layer + "mlp.fc_out.weight": (d, 4 * d), layer + "mlp.fc_out.bias": (d,)}
        found |= {layer + "ln_1.weight": (d,), layer + "ln_1.bias": (d,)}
    return found | {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,)}


def _neox(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d, v, f = c["hidden_size"], c["vocab_size"], c["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in.weight": (v, d), "embed_out.weight": (v, d)}
    linears = {"attention.query_key_value": (3 * d, d), "attention.dense": (d, d), "mlp.dense_h_to_4h": (f, d),
               "mlp.dense_4h_to_h": (d, f)}  # fmt: skip
    for i in range(c["num_hidden_layers"]):
        layer = f"gpt_neox.layers.{i}."
        for name, shape in linears.items():
            found |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        for name in ("input_layernorm", "post_attention_layernorm"):
            found |= {f"{layer}{name}.weight": (d,), f"{layer}{name}.bias": (d,)}
    return found | {"gpt_neox.final_layer_norm.weight": (d,), "gpt_neox.final_layer_norm.bias": (d,)}
