"""What `ggml` makes of a checkpoint, how it is asked for, and what it refuses in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ggml_models
import gguf_models
from converted import Converted, converted
from qconvd.api import Plan
from qconvd.checkpoints import inspect
from qconvd.checkpoints.ggml import ggml_vocabulary
from qconvd.errors import BadCheckpoint, ConfigError, Unsupported
from qconvd.plugins import plugins
from qconvd.targets import resolve_list, resolve_target


def planned(folder: Path, **options: Any) -> Plan:
    ggml = plugins().formats["ggml"]
    return ggml.plan(inspect(folder), ggml.expand(ggml.Options.model_validate({"types": ["q4_0"], **options}))[0])


def refused(folder: Path, **options: Any) -> Unsupported:
    with pytest.raises(Unsupported) as caught:
        planned(folder, **options)
    return caught.value


def edit(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def file_of(made: Converted) -> Path:
    return made.folder / made.plan.files[0].path


@pytest.mark.parametrize(
    ("raw", "labels"),
    [
        ({"ggml": "q4_0"}, ["ggml q4_0"]),
        ("ggml-q4_0", ["ggml q4_0"]),
        ({"ggml": "q4"}, ["ggml q4_0"]),
        ("ggml-q5", ["ggml q5_0"]),
        ("GGML-Q4_K_M", ["ggml q4_K_M"]),
        ({"ggml": ["q4", "q8_0"]}, ["ggml q4_0", "ggml q8_0"]),
        ({"ggml": {"types": "f16, q5_1"}}, ["ggml f16", "ggml q5_1"]),
    ],
)
def test_ways_to_ask_for_it(raw: Any, labels: list[str]) -> None:
    assert [target.label for target in resolve_target(raw)] == labels


def test_names() -> None:
    (target,) = resolve_list("ggml: q4")
    named = target.names("Chinese-Llama-2-7b")
    assert (named.folder, named.stem) == ("Chinese-Llama-2-7b-GGML", "chinese-llama-2-7b.ggmlv3.q4_0")
    named = target.names("Chinese-Llama-2-7b", "soulteary")
    assert (named.folder, named.stem) == ("Chinese-Llama-2-7b-ggml-q4", "Chinese-Llama-2-7b.ggmlv3.q4_0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ggml: q4_2", "ggml has no type 'q4_2' (did you mean q4_"),
        ("ggml: bf16", "ggml has no type 'bf16' (did you mean f16?)"),
        ("ggml: nonsense", "ggml has no type 'nonsense'; it has f32, f16, q8_0"),
        ("ggml: {types: []}", "no type is named; ggml has f32"),
    ],
)
def test_types_that_there_are_not(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_list(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["f32", "q5_1", "q4_0"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox"])
def test_files_hold_what_was_planned(family: str, kind: str, tmp_path: Path) -> None:
    made = converted(ggml_models.make(tmp_path / "m", family), tmp_path / "out", "ggml", types=[kind])
    assert made.verify().rows > 0
    model = inspect(file_of(made))
    matrix = {t.dtype for n, t in model.tensors.items() if len(t.shape) == 2 and n != "model/wpe"}
    assert matrix == {kind.upper()}
    assert {t.dtype for n, t in model.tensors.items() if len(t.shape) == 1 or n == "model/wpe"} == {"F32"}
    number = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9}[kind]
    assert model.metadata["ftype"] == number + (2000 if family != "llama" and number > 1 else 0)


def test_llamas_vocabulary_is_as_convert_py_writes_it(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    made = converted(ggml_models.make(tmp_path / "m", "llama"), tmp_path / "out", "ggml", types=["q4_0"])
    tokens = ggml_vocabulary(inspect(file_of(made)))
    library = SentencePieceProcessor(model_file=str(tmp_path / "m" / "tokenizer.model"))
    assert tokens[0][0] == " \u2047 ".encode()
    assert (tokens[1][0], tokens[2][0]) == (b"", b"")
    assert tokens[3][0] == b"\0"
    assert [len(token) for token, _ in tokens[3:259]] == [1] * 256
    for number in range(259, len(tokens)):
        assert tokens[number][0] == library.id_to_piece(number).replace("\u2581", " ").encode()
        assert tokens[number][1] == np.float32(library.get_score(number))


def test_byte_level_vocabularies_are_bytes(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    made = converted(ggml_models.make(tmp_path / "m", "gpt2"), tmp_path / "out", "ggml", types=["q4_0"])
    tokens = [token for token, _ in ggml_vocabulary(inspect(file_of(made)))]
    tokenizer = Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    ids = tokenizer.encode("Alice was tired: é 漢").ids
    assert b"".join(tokens[i] for i in ids) == "Alice was tired: é 漢".encode()
    assert tokens[-1] == b"<|endoftext|>"


def test_tied_embeddings_are_written_twice(tmp_path: Path) -> None:
    made = converted(
        ggml_models.make(tmp_path / "m", "llama", tie_word_embeddings=True), tmp_path / "o", "ggml", types=["q8_0"]
    )
    content = file_of(made).read_bytes()
    tensors = inspect(file_of(made)).tensors
    first, second = (tensors[n] for n in ("tok_embeddings.weight", "output.weight"))
    assert content[first.offset : first.offset + first.nbytes] == content[second.offset : second.offset + second.nbytes]


def test_grouped_heads_are_repeated_and_the_cost_is_told(tmp_path: Path) -> None:
    source = ggml_models.make(tmp_path / "m", "llama", num_key_value_heads=2)
    error = refused(source)
    assert error.what == (
        "the model has 2 key heads for 4 query heads (grouped-query attention), which a GGML header cannot say"
    )
    assert error.fix.startswith("say `expand_gqa: true` under ggml")
    made = converted(source, tmp_path / "out", "ggml", types=["f32"], expand_gqa=True)
    made.verify()
    plain = inspect(file_of(made))
    assert plain.config["num_key_value_heads"] == 4
    wide = plain.tensors["layers.0.attention.wv.weight"]
    content = np.frombuffer(file_of(made).read_bytes()[wide.offset : wide.offset + wide.nbytes], np.float32)
    kept = ggml_models.lively(gguf_models.weights("model.layers.0.self_attn.v_proj.weight", (32, 64)))
    assert np.array_equal(content.reshape(4, 16, 64), np.repeat(kept.reshape(2, 16, 64), 2, axis=0))
    # Half of the keys and values of two layers: 2 * 2 * 32 * 64 weights of 4 bytes.
    assert made.plan.notes[-1].startswith("expand_gqa repeats key and value heads: 32,768 bytes of this file, 4.")


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rope_theta": 500000.0}, "the rotation's base is 500000, and readers of GGML take it for 10000"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "the rotation is scaled (linear), which a GGML header cannot say",
        ),
        (
            {"rope_scaling": LLAMA3},
            "the model has llama 3's scaled rotation (rope_freqs.weight), which a GGML header cannot say",
        ),
        ({"attention_bias": True}, "the model has biases (blk.0.attn_"),
        ({"intermediate_size": 100}, "the MLP is 100 wide at a model's width of 64, which the header's n_mult cannot say"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 32}, "4 heads of 32 are not the model's width of 64, which a GGML header cannot say"),
        ({"bos_token_id": 5}, None),
        ({"bos_token_id": 5, "num_key_value_heads": 2}, None),  # not told to expand_gqa, which would not do
    ],
)
def test_what_llamas_header_cannot_say_is_refused(changes: dict[str, Any], reason: str | None, tmp_path: Path) -> None:
    source = ggml_models.make(tmp_path / "m", "llama", **changes)
    if reason is None:  # the ids of a SentencePiece file itself go before config.json
        (source / "tokenizer_config.json").write_text(json.dumps({"bos_token": "\u2581of"}))
        pieces = [p for p in ("\u2581of", "\u2581a", "er") if p.encode() in (source / "tokenizer.model").read_bytes()]
        assert pieces
        added = {"300": {"content": pieces[0], "special": True}}
        (source / "tokenizer_config.json").write_text(json.dumps({"bos_token": pieces[0], "added_tokens_decoder": added}))
        assert refused(source).what == "BOS and EOS are the tokens 300 and 2, and readers of GGML take them for 1 and 2"
        return
    assert refused(source).what.startswith(reason)


def test_experts_and_byte_level_vocabularies_are_refused(tmp_path: Path, smollm2: Path) -> None:
    mixture = gguf_models.CONFIGS["mixtral"] | dict(
        hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, head_dim=16
    )
    gguf_models.write(tmp_path / "moe", gguf_models.checkpoint(mixture), mixture)
    assert refused(tmp_path / "moe").what.startswith("the model has experts (blk.0.ffn_")
    plain = ggml_models.make(tmp_path / "m", "llama")
    (plain / "tokenizer.model").unlink()
    (plain / "tokenizer.json").write_text(ggml_models.byte_level())
    assert refused(plain).what == "the vocabulary is byte-level BPE; LLaMA's GGML readers know SentencePiece only"


def test_an_architecture_without_readers_is_refused(tmp_path: Path) -> None:
    config = ggml_models.LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    gguf_models.write(tmp_path / "m", gguf_models.checkpoint(config), config)
    error = refused(tmp_path / "m")
    assert error.what == "Qwen2ForCausalLM has no form in GGML that readers know"
    assert error.fix == "llama, gpt2, gptj and gpt_neox have; take gguf for this model"


def test_what_readers_must_be_told_is_a_warning(tmp_path: Path) -> None:
    source = ggml_models.make(tmp_path / "m", "llama", rms_norm_eps=1e-5, max_position_embeddings=4096)
    assert planned(source).notes == (
        "the header cannot say that the norms' epsilon is 1e-05: readers compute with 5e-06 unless they are told",
        "the header cannot say that the context is 4096 tokens: readers must be told",
    )
    assert planned(ggml_models.make(tmp_path / "plain", "llama")).notes == ()


def test_llama_2_70bs_grouping_is_what_readers_know(tmp_path: Path) -> None:
    source = ggml_models.make(
        tmp_path / "m", "llama", num_hidden_layers=80, hidden_size=128, num_attention_heads=64, num_key_value_heads=8,
        head_dim=2, intermediate_size=448,
    )  # fmt: skip
    plan = planned(source)
    assert plan.notes[-1] == "readers must be told of grouped-query attention: n_gqa 8"
    numbers = {key: value for key, _, value in plan.container.metadata}["numbers"]
    # llama.cpp of July 2023 multiplies by 1.3 where it takes a model for Llama 2 70B.
    assert -(-int(1.3 * (8 * 128 // 3)) // numbers[2]) * numbers[2] == 448


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gpt2", {"activation_function": "relu"}, "the activation is relu; readers of gpt2 files compute GELU"),
        ("gpt2", {"layer_norm_epsilon": 1e-6}, "the norms' epsilon is 1e-06; readers of gpt2 files compute with 1e-05"),
        (
            "gpt_neox",
            {"rotary_emb_base": 50000},
            "the rotation has the base 50000 or is scaled; readers of gpt_neox files take",
        ),
        ("gptj", {"n_inner": 100}, "the MLP is 100 wide; readers of gptj files take it for 4 times 64"),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx is True; readers of gpt2 files divide attention by the root of the head's width",
        ),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False; readers of gpt2 files divide attention"),
        ("gpt2", {"n_head": 3}, "3 heads do not divide the model's width of 64, as readers of GGML need it"),
        ("gptj", {"n_head": 5}, "5 heads do not divide the model's width of 64, as readers of GGML need it"),
        ("gpt_neox", {"num_attention_heads": 7}, "7 heads do not divide the model's width of 64, as readers of GGML need it"),
    ],
)
def test_what_the_classic_readers_do_not_compute_is_refused(
    family: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert refused(edit(ggml_models.make(tmp_path / "m", family), **changes)).what.startswith(reason)


def test_weights_that_config_json_contradicts_are_refused(tmp_path: Path) -> None:
    source = edit(ggml_models.make(tmp_path / "m", "gpt2"), n_positions=128, n_ctx=128)
    with pytest.raises(BadCheckpoint) as caught:
        planned(source)
    assert caught.value.what == "tensor 'model/wpe' has the shape 256 x 64, and the rest of the model makes it 128 x 64"
    assert caught.value.fix == "take config.json and weights from one revision of the model"


@pytest.mark.parametrize(("family", "first", "last"), [("gpt_neox", "gpt_neox.embed_in.weight", "embed_out.weight"),
                                                       ("gptj", "transformer.wte.weight", "lm_head.weight")])  # fmt: skip
def test_tied_embeddings_of_the_classic_families_are_written_twice(family: str, first: str, last: str, tmp_path: Path) -> None:
    source = ggml_models.make(tmp_path / "m", family)
    tensors = load_file(source / "model.safetensors")
    del tensors[last]
    save_file(tensors, source / "model.safetensors")
    error = refused(source)
    assert error.what == f"the model lacks {last}"
    made = converted(edit(source, tie_word_embeddings=True), tmp_path / "out", "ggml", types=["q8_0"])
    made.verify()
    content, held = file_of(made).read_bytes(), inspect(file_of(made)).tensors
    a, b = (content[held[n].offset : held[n].offset + held[n].nbytes] for n in (first, last))
    assert a == b


def test_an_output_layer_of_its_own_is_written(tmp_path: Path) -> None:
    source = ggml_models.make(tmp_path / "m", "gpt2")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"][::-1].copy()
    save_file(tensors, source / "model.safetensors")
    made = converted(edit(source, tie_word_embeddings=False), tmp_path / "out", "ggml", types=["f32"])
    made.verify()
    held = inspect(file_of(made))
    assert (list(held.tensors)[-3], held.config["tie_word_embeddings"]) == ("model/lm_head", False)


def test_rows_that_blocks_do_not_divide(tmp_path: Path) -> None:
    llama = ggml_models.make(tmp_path / "l", "llama", intermediate_size=200)
    assert planned(llama).notes == (
        "2 of 21 tensors of the q4_0 file are F16 because rows of 200 weights are no multiple of Q4_0's block of 32: "
        "layers.0.feed_forward.w2.weight and 1 more",
    )
    gpt2 = ggml_models.make(tmp_path / "g", "gpt2", n_embd=40)
    error = refused(gpt2)
    assert error.what == "rows of 40 weights are no multiple of Q4_0's block of 32"
    assert error.fix == "gpt2 readers take all matrices for one type: choose f16 or f32"


def test_k_types_need_rows_of_256_and_llama(tmp_path: Path) -> None:
    error = refused(ggml_models.make(tmp_path / "l", "llama"), types=["q4_K_M"])
    assert error.what == "K types need rows of a multiple of 256 weights, and these have 64"
    error = refused(ggml_models.make(tmp_path / "g", "gpt2"), types=["q4_K_M"])
    assert error.what == "readers of gpt2 files know no K types"


def test_k_types_are_mixed_as_llama_quantize_does(tmp_path: Path) -> None:
    source = ggml_models.make(tmp_path / "m", "llama", hidden_size=256, head_dim=64, intermediate_size=768)
    made = converted(source, tmp_path / "out", "ggml", types=["q4_K_M"])
    made.verify()
    model = inspect(file_of(made))
    types = {n: t.dtype for n, t in model.tensors.items() if len(t.shape) == 2}
    assert types["output.weight"] == "Q6_K"
    assert set(types.values()) == {"Q4_K", "Q6_K"}
    assert model.metadata["ftype"] == 15
