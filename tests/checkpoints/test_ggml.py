"""GGML files as sources: every form that there was is read or refused by name, and a file is whole when its tensors are."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

import ggml_files
from ggml_files import GGJT, GGLA, GGMF, WIDTH, gpt2, llama, llama_tensors, llama_tokens, write
from qconvd.checkpoints import inspect
from qconvd.checkpoints.ggml import ggml_vocabulary, read_file
from qconvd.errors import BadCheckpoint, Incomplete, QconvdError, Unsupported

TOKENS = [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize(("magic", "version", "label"), [(GGJT, 1, "GGJT 1"), (GGJT, 2, "GGJT 2"), (GGJT, 3, "GGJT 3"),
                                                         (GGMF, 1, "GGMF 1"), (ggml_files.GGML, 0, "GGML")])  # fmt: skip
def test_every_form_of_llamas_files_is_read(tmp_path: Path, magic: int, version: int, label: str) -> None:
    model = inspect(write(tmp_path / "llama-7b.ggmlv3.f16.bin", llama(magic, version)))
    assert (model.kind, model.name, model.metadata["container"]) == ("ggml", "llama-7b", label)
    assert model.architecture == "LlamaForCausalLM"
    wanted = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 192}
    assert {key: model.config[key] for key in wanted} == wanted
    assert {n: (t.dtype, t.shape) for n, t in model.tensors.items()} == llama_tensors()
    content = (tmp_path / "llama-7b.ggmlv3.f16.bin").read_bytes()
    for seed, tensor in enumerate(model.tensors.values()):
        assert content[tensor.offset : tensor.offset + tensor.nbytes] == ggml_files.data(tensor.dtype, tensor.nbytes, seed)
        assert magic != GGJT or tensor.offset % 32 == 0
    scored = [(token, score if magic != ggml_files.GGML else 0.0) for token, score in llama_tokens()]
    assert ggml_vocabulary(model) == scored


def test_a_gpt2_file_is_told_from_the_other_families_of_its_magic(tmp_path: Path) -> None:
    model = inspect(write(tmp_path / "x.bin", gpt2(TOKENS)))
    assert model.architecture == "GPT2LMHeadModel"
    assert (model.config["n_embd"], model.config["n_positions"], model.config["tie_word_embeddings"]) == (WIDTH, 32, True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (llama(GGJT, 1, "Q4_0"), "is Q4_0 in GGJT 1, which are not the blocks of today"),
        (llama(GGJT, 2, "Q4_0"), "is Q4_0 in GGJT 2, which are not the blocks of today"),
        (llama(GGMF, 1, "Q5_0"), "is Q5_0 in GGMF 1, which are not the blocks of today"),
        (gpt2(TOKENS, 2, "Q4_0"), "is Q4_0 in GGML with blocks of version 0, which are not the blocks of today"),
        (gpt2(TOKENS, 1002, "Q4_0"), "is Q4_0 in GGML with blocks of version 1, which are not the blocks of today"),
        (struct.pack("<II", GGLA, 1) + bytes(100), "is an adapter (LoRA) for GGML files, not a whole model"),
        (struct.pack("<II", GGJT, 4) + bytes(100), "is GGJT version 4, which no reader knows"),
        (struct.pack("<8I", ggml_files.GGML, 9, 9, 9, 9, 9, 9, 9) + bytes(100), "of none of the families that are read"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(Unsupported) as caught:
        inspect(write(tmp_path / "x.bin", content))
    assert reason in caught.value.what


def test_blocks_that_are_those_of_today_are_read_from_older_files(tmp_path: Path) -> None:
    assert read_file(tmp_path, write(tmp_path / "v2.bin", llama(GGJT, 2, "Q5_1")).name).kind.version == 2
    assert read_file(tmp_path, write(tmp_path / "q.bin", gpt2(TOKENS, 2002, "Q4_0")).name).kind.version == 2


def test_a_file_is_whole_only_with_the_last_byte_of_its_last_tensor(tmp_path: Path) -> None:
    whole = llama()
    path = tmp_path / "x.bin"
    for end in (*range(4, len(whole), 997), len(whole) - 1):
        write(path, whole[:end])
        with pytest.raises(Incomplete):
            inspect(path)
    inspect(write(path, whole))


def test_a_copy_that_ends_where_a_tensor_ends_is_not_whole(tmp_path: Path) -> None:
    tensors = llama_tensors()
    last = list(tensors)[-1]
    short = {name: entry for name, entry in tensors.items() if name != last}
    with pytest.raises(Incomplete) as caught:
        inspect(write(tmp_path / "x.bin", llama(tensors=short)))
    assert caught.value.what == f"1 of the 21 tensors of its 2 layers are missing: {last}"


def test_reserved_room_behind_what_is_written_is_not_whole(tmp_path: Path) -> None:
    whole = llama()
    place = read_file(tmp_path, write(tmp_path / "whole.bin", whole).name).records[5][0]
    with pytest.raises(Incomplete) as caught:
        inspect(write(tmp_path / "x.bin", whole[:place] + bytes(len(whole) - place)))
    assert "nothing is written yet where the next tensor should be" in caught.value.what


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"norm.weight": ("F32", (WIDTH,)), "a" * 2000: ("F32", (1,))}, "which is none"),
        (llama_tensors() | {"tok_embeddings.weight": ("Q4_0", (2, 48))}, "no multiple of Q4_0's block of 32"),
    ],
)
def test_records_that_lie_are_refused(tmp_path: Path, tensors: ggml_files.Tensors, reason: str) -> None:
    with pytest.raises(BadCheckpoint) as caught:
        inspect(write(tmp_path / "x.bin", llama(tensors=tensors)))
    assert reason in caught.value.what


def parts(count: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """A share of the columns of every matrix, as the larger models came in the spring of 2023."""
    return {n: (kind, (*s[:-1], s[-1] // count) if len(s) > 1 else s) for n, (kind, s) in llama_tensors().items()}


@pytest.mark.parametrize(
    ("tensors", "numbers", "reason"),
    [
        ({"layers.1.attention.wo.weight": ("F16", (32, 64))}, None,
         "tensor 'layers.1.attention.wo.weight' has the shape 32 x 64, and the rest of the model makes it 64 x 64"),
        ({"layers.1.feed_forward.w3.weight": ("F16", (96, 64))}, None,
         "tensor 'layers.1.feed_forward.w3.weight' has the shape 96 x 64, and the rest of the model makes it 192 x 64"),
        ({"norm.weight": ("F32", (1, 64))}, None, "tensor 'norm.weight' has 2 axes, not 1"),
        ({"output.weight": ("F16", (299, 64))}, None,
         "tensor 'output.weight' has the shape 299 x 64, and the rest of the model makes it 300 x 64"),
        ({"extra.weight": ("F32", (4,))}, None, "llama has no tensor 'extra.weight' in a file of 2 layers"),
        ({}, (300, 64, 192, 4, 1, 16, 1), "llama has no tensor 'layers.1.attention.wq.weight' in a file of 1 layers"),
        ({"layers.0.attention.wk.weight": ("F16", (24, 64)), "layers.0.attention.wv.weight": ("F16", (24, 64)),
          "layers.1.attention.wk.weight": ("F16", (24, 64)), "layers.1.attention.wv.weight": ("F16", (24, 64))}, None,
         "its keys have 24 rows, which 4 heads of a model 64 wide cannot share"),
        (parts(2), None, "is one of 2 files that make up a model: its embeddings have 32 of 64 columns"),
    ],
)  # fmt: skip
def test_tensors_that_the_header_contradicts_are_refused(
    tensors: ggml_files.Tensors, numbers: tuple[int, ...] | None, reason: str, tmp_path: Path
) -> None:
    with pytest.raises((BadCheckpoint, Unsupported)) as caught:
        inspect(write(tmp_path / "x.bin", llama(tensors=llama_tensors() | dict(tensors), numbers=numbers)))
    assert caught.value.what == reason
    assert caught.value.fix


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("value", [0, 3, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF])
def test_absurd_numbers_of_a_header_are_refused(tmp_path: Path, number: int, value: int) -> None:
    whole = bytearray(llama())
    struct.pack_into("<I", whole, 8 + 4 * number, value)
    if number == 2 and value <= 3:  # n_mult, which the tensors say better
        inspect(write(tmp_path / "x.bin", bytes(whole)))
        return
    with pytest.raises(QconvdError) as caught:
        inspect(write(tmp_path / "x.bin", bytes(whole)))
    missing = number == 4 and value == 3
    assert ("tensors of its 3 layers are missing" if missing else "has a header that is no LLaMA model's") in caught.value.what


@pytest.mark.parametrize("rest", [b"\0", bytes(12), bytes(4096), b"x" * 100])
def test_bytes_behind_the_last_tensor_are_none_of_the_model(tmp_path: Path, rest: bytes) -> None:
    whole = llama()
    with pytest.raises(BadCheckpoint) as caught:
        inspect(write(tmp_path / "x.bin", whole + rest))
    assert caught.value.what == f"has {len(rest)} bytes behind its last tensor, which readers take for one more"
    assert caught.value.fix.endswith(f"of a right file the first {len(whole)} bytes are all")
    # Of gpt2 an output layer of its own may still come.
    with pytest.raises(QconvdError):
        inspect(write(tmp_path / "y.bin", gpt2(TOKENS) + rest))


def test_a_folder_is_a_model_with_its_config_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "Llama-2-7B-GGML" / "ggml-model-f16.bin", llama())
    config = {"rms_norm_eps": 1e-5, "hidden_size": 64, "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "Llama-2-7B-GGML" / "config.json").write_text(json.dumps(config))
    model = inspect(tmp_path / "Llama-2-7B-GGML")
    assert (model.name, model.kind, model.config["rms_norm_eps"]) == ("Llama-2-7B", "ggml", 1e-5)
    assert {(f.path, f.role) for f in model.files} == {("ggml-model-f16.bin", "weights"), ("config.json", "side")}


def test_the_config_of_another_model_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m" / "x.bin", llama())
    (tmp_path / "m" / "config.json").write_text(json.dumps({"hidden_size": 4096}))
    with pytest.raises(BadCheckpoint) as caught:
        inspect(tmp_path / "m")
    assert caught.value.what == "says hidden_size 4096, but the GGML file beside it has 64"


def test_a_folder_of_several_models_is_refused(tmp_path: Path) -> None:
    for name in ("a.q4_0.bin", "a.q8_0.bin"):
        write(tmp_path / "m" / name, llama())
    with pytest.raises(Unsupported) as caught:
        inspect(tmp_path / "m")
    assert caught.value.what == "the folder holds 2 GGML models: a.q4_0.bin, a.q8_0.bin"


def test_other_bin_files_stay_torchs(tmp_path: Path) -> None:
    with pytest.raises(QconvdError) as caught:
        inspect(write(tmp_path / "pytorch_model.bin", b"\x80\x02" + b"\xff" * 50))
    assert "its pickle has the opcode" in caught.value.what


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("llama-2-13b-chat.ggmlv3.q4_0.bin", "llama-2-13b-chat"), ("vicuna.ggmlv3.q4_K_M.bin", "vicuna"),
        ("Chinese-Llama-2-7b.ggmlv3.q4_0.bin", "Chinese-Llama-2-7b"), ("pygmalion-6b.bin", "pygmalion-6b"),
    ],
)  # fmt: skip
def test_what_only_says_the_type_is_no_part_of_the_name(tmp_path: Path, file: str, name: str) -> None:
    assert inspect(write(tmp_path / file, llama())).name == name
