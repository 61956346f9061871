"""GGML files as sources: to GGUF, to safetensors, to other GGML; and GGUF to GGML. What keeps its type keeps its bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import ggml_files
import ggml_models
import gguf_files
from converted import Converted, converted
from ggml_files import GGJT, llama, llama_tensors, write
from qconvd.api import Plan
from qconvd.checkpoints import inspect
from qconvd.checkpoints.ggml import ggml_vocabulary
from qconvd.errors import BadCheckpoint, Unsupported
from qconvd.plugins import plugins

FAMILIES = ["llama", "gpt2", "gpt_neox"]


def file_of(made: Converted) -> Path:
    return made.folder / made.plan.files[0].path


def planned(path: Path, form: str, **options: Any) -> Plan:
    fmt = plugins().formats[form]
    return fmt.plan(inspect(path), fmt.Options.model_validate(options))


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A family, its checkpoint, and the Q5_0 GGML file of it."""
    out = tmp_path_factory.mktemp(request.param)
    source = ggml_models.make(out / "m", request.param)
    made = converted(source, out / "ggml", "ggml", types=["q5_0"])
    return request.param, source, file_of(made).rename(out / "model.ggmlv3.q5_0.bin")


def test_gguf_of_the_same_type_has_the_same_blocks(both: tuple[str, Path, Path], tmp_path: Path) -> None:
    family, source, ggml = both
    made = converted(ggml, tmp_path / "a", "gguf", types=["Q5_0"])
    made.verify()
    direct = converted(source, tmp_path / "b", "gguf", types=["Q5_0"], pure=True, pre=None if family == "llama" else "gpt-2")
    ours, theirs = gguf_files.tensors(file_of(made)), gguf_files.tensors(file_of(direct))
    if family == "gpt2":  # the old format keeps positions in F32, and so does the new one
        assert ours["position_embd.weight"][0] == "F32"
    assert ours == theirs
    assert file_of(made).stat().st_size == made.plan.files[0].nbytes


def test_gguf_says_of_the_model_what_the_checkpoint_says(both: tuple[str, Path, Path], tmp_path: Path) -> None:
    family, source, ggml = both
    made = converted(ggml, tmp_path / "a", "gguf", types=["Q5_0"])
    direct = converted(source, tmp_path / "b", "gguf", types=["Q5_0"], pre=None if family == "llama" else "gpt-2")
    ours, theirs = gguf_files.metadata(file_of(made)), gguf_files.metadata(file_of(direct))
    arch = {"gpt_neox": "gptneox"}.get(family, family)
    same = [key for key in theirs if key.startswith(arch) or key in ("tokenizer.ggml.model", "tokenizer.ggml.scores")]
    assert {key: ours.get(key) for key in same} == {key: theirs[key] for key in same}
    if family == "llama":
        assert ours["tokenizer.ggml.tokens"] == theirs["tokenizer.ggml.tokens"]
        assert ours["tokenizer.ggml.token_type"] == theirs["tokenizer.ggml.token_type"]
    else:
        assert ours["tokenizer.ggml.merges"] == theirs["tokenizer.ggml.merges"]


def test_safetensors_hold_the_decoded_blocks_under_the_checkpoints_names(both: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, source, ggml = both
    made = converted(ggml, tmp_path / "a", "fp16", dtype="f32")
    made.verify()
    ours, theirs = load_file(made.folder / "model.safetensors"), load_file(source / "model.safetensors")
    assert {n: x.shape for n, x in ours.items()} == {n: x.shape for n, x in theirs.items()}
    for name, x in theirs.items():
        # Q5_0's step is a sixteenth of a block's largest weight.
        assert np.abs(ours[name] - x).max() <= np.abs(x).max() / 15, name
    assert made.plan.notes[-1] == "the weights were rounded to Q5_0 before: these are the rounded values, not the original's"


def test_the_tokenizer_is_rebuilt(both: tuple[str, Path, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    family, source, ggml = both
    made = converted(ggml, tmp_path / "a", "fp16")
    text = "Alice  was beginning\nto get very tired: é 漢 "
    ours = AutoTokenizer.from_pretrained(made.folder)
    assert ours.decode(ours(text)["input_ids"], skip_special_tokens=True) == text
    if family == "llama":
        from sentencepiece import SentencePieceProcessor

        library = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
        assert ours(text)["input_ids"] == [1, *library.encode(text)]
        rebuilt = SentencePieceProcessor(model_file=str(made.folder / "tokenizer.model"))
        assert rebuilt.encode(text) == library.encode(text)
    else:
        from tokenizers import Tokenizer

        assert ours(text)["input_ids"] == Tokenizer.from_file(str(source / "tokenizer.json")).encode(text).ids


def test_another_type_is_made_only_when_it_is_allowed(both: tuple[str, Path, Path], tmp_path: Path) -> None:
    family, _, ggml = both
    with pytest.raises(Unsupported) as caught:
        planned(ggml, "ggml", types=["q4_0"])
    assert "is quantized already (Q5_0), and Q4_0 made from it is worse than from the original" in caught.value.what
    assert caught.value.fix.endswith("or say `allow_requantize: true` under ggml")
    made = converted(ggml, tmp_path / "a", "ggml", types=["q4_0"], allow_requantize=True)
    made.verify()
    again = inspect(file_of(made))
    assert ggml_vocabulary(again) == ggml_vocabulary(inspect(ggml))
    assert list(again.tensors) == list(inspect(ggml).tensors)
    same = converted(ggml, tmp_path / "b", "ggml", types=["q5_0"])
    assert file_of(same).read_bytes() == ggml.read_bytes(), family


def test_gptj_goes_to_safetensors_and_not_to_gguf(tmp_path: Path) -> None:
    source = ggml_models.make(tmp_path / "m", "gptj")
    ggml = file_of(converted(source, tmp_path / "g", "ggml", types=["f32"]))
    made = converted(ggml, tmp_path / "a", "fp16", dtype="f32")
    ours, theirs = load_file(made.folder / "model.safetensors"), load_file(source / "model.safetensors")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((made.folder / "config.json").read_text())["rotary_dim"] == 8
    with pytest.raises(Unsupported) as caught:
        planned(ggml, "gguf", types=["F16"])
    assert (caught.value.what, caught.value.fix) == (
        "is a gptj model, which llama.cpp does not run",
        "make safetensors of it: fp16",
    )


def test_gguf_becomes_ggml_with_the_same_blocks(tmp_path: Path) -> None:
    source = ggml_models.make(tmp_path / "m", "llama")
    gguf = file_of(converted(source, tmp_path / "g", "gguf", types=["Q8_0"]))
    made = converted(gguf, tmp_path / "a", "ggml", types=["q8_0"])
    made.verify()
    direct = converted(source, tmp_path / "b", "ggml", types=["q8_0"])
    assert file_of(made).read_bytes() == file_of(direct).read_bytes()


@pytest.mark.parametrize(
    ("said", "beside", "notes"),
    [
        ({}, None, ["eps 5e-06, context_length 2048, rope_theta 10000: a GGML header does not say this, it is taken as old "
                    "readers took it; the target may say otherwise"]),
        ({"eps": 1e-5}, {"max_position_embeddings": 4096},
         ["eps 1e-05: a GGML header does not say this, it is taken from the recipe",
          "context_length 4096: a GGML header does not say this, it is taken from config.json",
          "rope_theta 10000: a GGML header does not say this, it is taken as old readers took it; the target may say "
          "otherwise"]),
        ({"rope_theta": 26000.0, "context_length": 16384, "eps": 1e-6}, None,
         ["eps 1e-06, context_length 16384, rope_theta 26000: a GGML header does not say this, it is taken from the recipe"]),
    ],
)  # fmt: skip
def test_what_the_header_does_not_say_is_taken_from_somewhere_and_told(
    said: dict[str, Any], beside: dict[str, Any] | None, notes: list[str], tmp_path: Path
) -> None:
    write(tmp_path / "m" / "x.bin", llama())
    if beside:
        (tmp_path / "m" / "config.json").write_text(json.dumps(beside))
    plan = planned(tmp_path / "m", "gguf", types=["F16"], **said)
    assert list(plan.notes) == notes
    keys = {key: value for key, _, value in plan.container.metadata}
    assert keys["llama.attention.layer_norm_rms_epsilon"] == said.get("eps", 5e-6)
    assert keys["llama.context_length"] == said.get("context_length", (beside or {}).get("max_position_embeddings", 2048))
    assert keys["llama.rope.freq_base"] == said.get("rope_theta", 10000.0)
    config = next(f for f in planned(tmp_path / "m", "fp16", **said).side_files if f.path == "config.json")
    assert json.loads(config.text or "")["rms_norm_eps"] == said.get("eps", 5e-6)


def test_llama_2_is_known_by_its_name_or_its_grouped_heads(tmp_path: Path) -> None:
    path = write(tmp_path / "llama-2-13b-chat.ggmlv3.q4_0.bin", llama())
    assert "eps 1e-05, context_length 4096, rope_theta 10000" in planned(path, "gguf", types=["F16"]).notes[0]


def test_grouped_heads_are_told_from_the_tensors_and_gqa_is_held_against_them(tmp_path: Path) -> None:
    path = write(tmp_path / "x.bin", llama(tensors=llama_tensors(kv=32)))
    plan = planned(path, "gguf", types=["F16"], gqa=2)
    assert {k: v for k, _, v in plan.container.metadata}["llama.attention.head_count_kv"] == 2
    assert plan.notes[-1] == "grouped-query attention (2 query heads for a key head) is told from the tensors' shapes"
    with pytest.raises(Unsupported) as caught:
        planned(path, "gguf", types=["F16"], gqa=8)
    assert caught.value.what == "gqa is said to be 8, but 4 query heads have 2 key heads: it is 2"


def test_older_forms_are_read_and_written_as_the_last_one(tmp_path: Path) -> None:
    old = write(tmp_path / "x.bin", llama(ggml_files.GGMF, 1))
    made = converted(old, tmp_path / "a", "ggml", types=["f16"])
    assert made.plan.notes == ("the source is GGMF 1; what is made of it is GGJT 3",)
    assert file_of(made).read_bytes() == llama(GGJT, 3)


def test_a_file_without_scores_says_what_that_means(tmp_path: Path) -> None:
    path = write(tmp_path / "x.bin", llama(ggml_files.GGML, 0))
    notes = planned(path, "gguf", types=["F16"]).notes
    assert notes[-1] == "the file has no scores, so that readers cut texts into other tokens than the model's tokenizer"


def test_a_vocabulary_whose_merges_cannot_be_told_needs_the_tokenizer(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    tokens = [bytes([b]) for b in range(256)] + [random.integers(97, 122, 9, np.uint8).tobytes() for _ in range(100)] + [b"ab"]
    write(tmp_path / "m" / "x.bin", ggml_files.gpt2(tokens))
    with pytest.raises(Unsupported) as caught:
        planned(tmp_path / "m", "gguf", types=["F16"])
    assert caught.value.what == ("the merges of its vocabulary cannot be told: 100 of 357 tokens are no two earlier ones")
    assert caught.value.fix == "put the model's tokenizer.json beside the file, in a folder"


def test_a_vocabulary_that_is_no_text_needs_the_tokenizer(tmp_path: Path) -> None:
    tokens = [*ggml_files.llama_tokens()[:-1], (b"\xff\xfe", 0.0)]
    with pytest.raises(BadCheckpoint) as caught:
        planned(write(tmp_path / "x.bin", llama(tokens=tokens)), "gguf", types=["F16"])
    assert (caught.value.what, caught.value.fix) == ("token 299 is no text", "put the model's tokenizer beside the file")


def test_vectors_in_halves_become_whole_ones(tmp_path: Path) -> None:
    halves = {name: ("F16", shape) for name, (_, shape) in llama_tensors().items()}
    old = write(tmp_path / "x.bin", llama(tensors=halves))
    made = converted(old, tmp_path / "a", "ggml", types=["f16"])
    made.verify()
    assert inspect(file_of(made)).tensors["norm.weight"].dtype == "F32"


def test_a_number_that_does_not_say_the_mlps_width_is_mended(tmp_path: Path) -> None:
    """Readers compute the width from n_mult and refuse tensors of another."""
    numbers = [ggml_files.VOCAB, 64, 7, 4, 2, 16, 1]
    made = converted(write(tmp_path / "x.bin", llama(numbers=numbers)), tmp_path / "a", "ggml", types=["f16"])
    n_mult = inspect(file_of(made)).metadata["n_mult"]
    assert -(-(8 * 64 // 3) // n_mult) * n_mult == 192


@pytest.mark.parametrize("kind", ["Q4_0", "F16"])
def test_grouped_heads_of_a_ggml_are_repeated_block_by_block(kind: str, tmp_path: Path) -> None:
    ggml = write(tmp_path / "x.bin", llama(matrix=kind, tensors=llama_tensors(kind, kv=32)))
    plain = planned(ggml, "ggml", types=[kind])
    assert plain.notes == ("readers must be told of grouped-query attention: n_gqa 2",)
    made = converted(ggml, tmp_path / "a", "ggml", types=[kind], expand_gqa=True)
    made.verify()
    ours, theirs = tensors_of(file_of(made)), tensors_of(ggml)
    for name, data in theirs.items():
        if name.endswith(("wk.weight", "wv.weight")):  # of two heads each comes twice
            half = len(data) // 2
            data = data[:half] * 2 + data[half:] * 2
        assert ours[name] == data, name
    assert made.plan.notes[-1].startswith("expand_gqa repeats key and value heads: ")


def test_grouped_heads_of_a_gguf_are_repeated_block_by_block(tmp_path: Path) -> None:
    """Nothing is rounded a second time."""
    source = ggml_models.make(tmp_path / "m", "llama", num_key_value_heads=2)
    gguf = file_of(converted(source, tmp_path / "g", "gguf", types=["Q4_0"], pure=True))
    made = converted(gguf, tmp_path / "a", "ggml", types=["q4_0"], expand_gqa=True)
    direct = converted(source, tmp_path / "b", "ggml", types=["q4_0"], expand_gqa=True)
    assert file_of(made).read_bytes() == file_of(direct).read_bytes()


def tensors_of(path: Path) -> dict[str, bytes]:
    content = path.read_bytes()
    return {t.name: content[t.offset : t.offset + t.nbytes] for t in inspect(path).tensors.values()}
