"""Tokenizers in GGUF: what is written, what is refused, and that llama.cpp cuts text as the original does."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

import gguf_models
from gguf_files import converted, planned
from gguf_readers import Llama
from qconvd.checkpoints import inspect
from qconvd.errors import BadCheckpoint, QconvdError, Unsupported
from qconvd_gguf.options import GgufOptions
from qconvd_gguf.planning import plan
from qconvd_gguf.tokenizer import sentencepiece_model

SENTENCES = [
    "the quick brown fox jumps over the lazy dog", "the cat sat on the mat and the rat ran", "größer, schöner, weiter",
    "Once upon a time there was a girl", "there and back again, and then some more of the same", "  two  spaces  here ",
    "def main(): return 42", "the theatre, the others, another mother", "running jumping sitting hearing there",
] * 3  # fmt: skip
HARD = "There is another   thing: größer than 漢字 🙂\n\tdef f(x): return x<y>"


def metadata(folder: Path, **options: Any) -> dict[str, Any]:
    return {key: value for key, _, value in planned(folder, "F32", **options).container.metadata}


def bpe(**changes: Any) -> dict[str, Any]:
    """A byte-level tokenizer.json that knows 256 bytes and two merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocab = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))} | {"th": 256, "the": 257}
    model = dict(type="BPE", vocab=vocab, merges=[["t", "h"], ["th", "e"]], unk_token=None, byte_fallback=False)
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    data = dict(version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=None, pre_tokenizer=level)
    return data | dict(post_processor=None, decoder=level, model=model) | changes


def added(number: int, text: str, *, special: bool = False, normalized: bool = False) -> dict[str, Any]:
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=normalized, special=special)
    return {"id": number, "content": text} | flags


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny Llama with a byte-level tokenizer; embeddings have 264 rows."""
    folder = gguf_models.tiny(tmp_path / "model", 264)
    save(folder, bpe())
    return folder


def save(folder: Path, tokenizer: dict[str, Any], **settings: Any) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_an_unknown_pre_tokenizer_is_refused_with_its_hash_and_the_option(model: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        metadata(model)
    text = str(caught.value)
    assert str(model / "tokenizer.json") in text
    assert "none that llama.cpp is known to have (check hash " in text
    assert "gguf: {types: [q8_0], pre: llama-bpe}" in text


def test_the_tokenizer_is_read_once_for_all_files_of_a_model(model: Path) -> None:
    found = inspect(model)

    def tokens(dtype: str, pre: str) -> list[str]:
        made = plan(found, GgufOptions.model_validate({"types": [dtype], "pre": pre}))
        (values,) = (value for key, _, value in made.container.metadata if key == "tokenizer.ggml.tokens")
        assert f"tokenizer.ggml.pre is {pre} because the options say so, not because it was recognised" in made.notes
        return list(values)

    first = tokens("F32", "gpt-2")
    save(model, bpe(added_tokens=[added(258, "<new>")]))
    assert tokens("BF16", "gpt-2") == first
    assert "<new>" in tokens("F32", "qwen2"), "other options are looked at anew"


def test_the_option_names_the_pre_tokenizer_and_is_noted(model: Path) -> None:
    plan = planned(model, "F32", pre="gpt-2")
    assert ("tokenizer.ggml.pre", "str", "gpt-2") in plan.container.metadata
    assert "tokenizer.ggml.pre is gpt-2 because the options say so, not because it was recognised" in plan.notes


def test_a_known_pre_tokenizer_is_recognised_also_where_bos_is_added_by_the_settings(smollm2: Path, tmp_path: Path) -> None:
    """The hash is over the ids with special tokens, and a template that adds one would change it."""
    folder = gguf_models.tiny(tmp_path / "model", 49152)
    data = json.loads((smollm2 / "tokenizer.json").read_text())
    template = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    data["post_processor"] = {
        "type": "TemplateProcessing", "single": template, "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }  # fmt: skip
    save(folder, data, bos_token="<|im_start|>")
    keys = metadata(folder)
    assert keys["tokenizer.ggml.pre"] == "smollm"
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.bos_token_id"] == 1


def test_types_of_tokens_and_unused_ids(model: Path) -> None:
    more = [
        added(258, "<s>", special=True),
        added(259, "<|turn|>"),
        added(260, "\u2581word"),
        added(261, "plain", normalized=True),
    ]
    save(model, bpe(added_tokens=more))
    keys = metadata(model, pre="gpt-2")
    assert keys["tokenizer.ggml.tokens"][256:] == ["th", "the", "<s>", "<|turn|>", " word", "plain", "[PAD262]", "[PAD263]"]
    assert keys["tokenizer.ggml.token_type"][256:] == [1, 1, 3, 3, 4, 4, 5, 5]
    assert keys["tokenizer.ggml.merges"] == ["t h", "th e"]


def test_merges_in_the_old_form_and_with_spaces(model: Path) -> None:
    old = bpe()
    old["model"] = old["model"] | {"merges": ["t h", "th e"]}
    save(model, old)
    assert metadata(model, pre="gpt-2")["tokenizer.ggml.merges"] == ["t h", "th e"]
    spaced = bpe()
    spaced["model"]["vocab"] |= {"a b": 258, "a ": 259, " ": 260}
    spaced["model"]["merges"] = [["a", " "], ["a ", "b"]]
    save(model, spaced)
    assert metadata(model, pre="gpt-2")["tokenizer.ggml.merges"] == ["a Ġ", "aĠ b"]


def test_special_tokens_come_from_the_tokenizer_first_and_from_the_config_second(tmp_path: Path) -> None:
    folder = gguf_models.tiny(tmp_path / "model", 264, bos_token_id=7, eos_token_id=[8, 9], pad_token_id=5, unk_token_id=9999)
    more = [added(258, "<s>", special=True), added(259, "</s>", special=True)]
    save(
        folder, bpe(added_tokens=more), bos_token={"content": "<s>"}, eos_token="</s>", add_bos_token=True, add_eos_token=False
    )
    keys = metadata(folder, pre="gpt-2")
    found = {k.removeprefix("tokenizer.ggml."): v for k, v in keys.items() if k.endswith(("_token_id", "_token"))}
    assert found == {
        "bos_token_id": 258,
        "eos_token_id": 259,
        "padding_token_id": 5,
        "add_bos_token": True,
        "add_eos_token": False,
    }


def test_chat_templates(model: Path) -> None:
    save(model, bpe(), chat_template=[{"name": "default", "template": "D"}, {"name": "tool use", "template": "T"}])
    keys = metadata(model, pre="gpt-2")
    assert keys["tokenizer.chat_template"] == "D"
    assert keys["tokenizer.chat_templates"] == ["tool_use"]
    assert keys["tokenizer.chat_template.tool_use"] == "T"
    save(model, bpe())
    (model / "chat_template.jinja").write_text("ünï {{ messages }}")
    assert metadata(model, pre="gpt-2")["tokenizer.chat_template"] == "ünï {{ messages }}"
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.json").write_text(json.dumps({"chat_template": "J"}))
    assert metadata(model, pre="gpt-2")["tokenizer.chat_template"] == "J"


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _too_large(folder: Path) -> None:
    save(folder, bpe(added_tokens=[added(264, "<s>", special=True)]))


def _wordpiece(folder: Path) -> None:
    save(folder, bpe(model={"type": "WordPiece", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}))


def _word_level(folder: Path) -> None:
    save(folder, bpe(model={"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}))


def _other_mark(folder: Path) -> None:
    data = wordpiece(cased=False)
    data["model"]["continuing_subword_prefix"] = "@@"
    save(folder, data)


def _bad_scores(folder: Path) -> None:
    save(folder, bpe(model={"type": "Unigram", "unk_id": 0, "vocab": ["<unk>"]}))


def _bad_charsmap(folder: Path) -> None:
    table = {"type": "Precompiled", "precompiled_charsmap": "#"}
    save(folder, bpe(model={"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]]}, normalizer=table))


def _other_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece("char"))


def _characters(folder: Path) -> None:
    save(folder, bpe(pre_tokenizer=None, decoder=None))


def _no_merges(folder: Path) -> None:
    data = bpe()
    data["model"]["merges"] = []
    save(folder, data)


def _broken(folder: Path) -> None:
    save(folder, bpe(normalizer={"type": "Nonsense"}))


def _no_object(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("[1]")


def _bad_template(folder: Path) -> None:
    save(folder, bpe(), chat_template=[{"name": "default"}])


def _no_model(folder: Path) -> None:
    save(folder, bpe(model=[1]))


def _bad_added(folder: Path) -> None:
    save(folder, bpe(added_tokens=[{"id": "x", "content": "y"}]))


def _bad_extra(folder: Path) -> None:
    (folder / "added_tokens.json").write_text('{"x": -1}')


def _bad_decoder(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"x": {"content": "y"}}}))


def _negative(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"-1": added(-1, "x")}}))


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (_no_model, Unsupported, "tokenizers of the kind none are not supported"),
        (_bad_added, BadCheckpoint, "the tokenizers library cannot read it: "),
        (_bad_extra, BadCheckpoint, "added_tokens.json: holds something else than token ids"),
        (_bad_decoder, BadCheckpoint, "an added token of the tokenizer makes no sense: ValueError"),
        (_negative, BadCheckpoint, "an added token of the tokenizer has a negative id"),
        (_no_tokenizer, Unsupported, "the model has no tokenizer that gguf can read"),
        (_too_large, Unsupported, "the tokenizer has a token 264, but the embeddings have 264 rows"),
        (_word_level, Unsupported, "tokenizers of the kind WordLevel are not supported"),
        (_wordpiece, Unsupported, "a WordPiece tokenizer that cuts words by ByteLevel is not supported"),
        (_other_mark, Unsupported, "the tokenizer marks the inside of words with '@@', llama.cpp knows ## only"),
        (_bad_scores, BadCheckpoint, "the vocabulary is no list of pieces and scores"),
        (_bad_charsmap, BadCheckpoint, "the tokenizers library cannot read it: "),
        (_other_sentencepiece, Unsupported, "SentencePiece models of the kind char are not supported"),
        (_characters, Unsupported, "the tokenizer neither works on bytes nor writes spaces as ▁"),
        (_no_merges, BadCheckpoint, "the tokenizer has no merges"),
        (_broken, BadCheckpoint, "the tokenizers library cannot read it: "),
        (_no_object, BadCheckpoint, "tokenizer_config.json: is no JSON object"),
        (_bad_template, BadCheckpoint, "a chat template lacks its name or its text"),
    ],
)
def test_refusals(model: Path, spoil: Any, kind: type[QconvdError], message: str) -> None:
    spoil(model)
    with pytest.raises(kind) as caught:
        metadata(model, pre="gpt-2")
    assert message in str(caught.value)
    assert str(model) in str(caught.value)


def sentencepiece(kind: str, **more: Any) -> bytes:
    """A small SentencePiece model with byte fallback, trained here."""
    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=written, model_type=kind, vocab_size=380, hard_vocab_limit=False,
        minloglevel=2, **({"byte_fallback": True} | more),
    )  # fmt: skip
    return written.getvalue()


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_bpe_is_cut_alike_by_llama_cpp(tmp_path: Path, prefix: bool) -> None:
    from sentencepiece import SentencePieceProcessor

    data = sentencepiece("bpe", add_dummy_prefix=prefix, remove_extra_whitespaces=False, normalization_rule_name="identity")
    processor = SentencePieceProcessor(model_proto=data)
    size = processor.get_piece_size()
    folder = gguf_models.tiny(tmp_path / "model", size + 3, bos_token_id=1, eos_token_id=2)
    (folder / "tokenizer.model").write_bytes(data)
    (folder / "added_tokens.json").write_text(json.dumps({"<|extra|>": size, "beyond": size + 99}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {str(size + 1): added(size + 1, "<tool>", special=True)}})
    )
    plan = planned(folder, "F32")
    keys = {key: value for key, _, value in plan.container.metadata}
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.tokens"][size:] == ["<|extra|>", "<tool>", f"[PAD{size + 2}]"]
    assert keys["tokenizer.ggml.token_type"][:5] == [2, 3, 3, 6, 6]
    assert keys["tokenizer.ggml.token_type"][size:] == [4, 3, 5]
    assert keys.get("tokenizer.ggml.add_space_prefix", True) is prefix
    assert any("the rest is left out" in note for note in plan.notes)
    llama = Llama(converted(folder, ["F32"], tmp_path / "out")["F32"])
    for text in (*SENTENCES, HARD):
        assert llama.tokens(text) == processor.encode(text), text


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_sentencepiece_unigram_is_cut_alike_by_llama_cpp(tmp_path: Path, rule: str) -> None:
    from sentencepiece import SentencePieceProcessor

    data = sentencepiece("unigram", normalization_rule_name=rule, byte_fallback=False)
    processor = SentencePieceProcessor(model_proto=data)
    size = processor.get_piece_size()
    folder = gguf_models.tiny(tmp_path / "model", size + 2, eos_token_id=2)
    (folder / "spiece.model").write_bytes(data)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {str(size): added(size, "<extra_id_0>", special=True)}})
    )
    keys = metadata(folder)
    assert keys["tokenizer.ggml.model"] == "t5"
    assert keys["tokenizer.ggml.tokens"][size:] == ["<extra_id_0>", f"[PAD{size + 1}]"]
    assert keys["tokenizer.ggml.token_type"][size:] == [3, 5]
    assert keys["tokenizer.ggml.remove_extra_whitespaces"] is True
    assert ("tokenizer.ggml.precompiled_charsmap" in keys) is (rule == "nmt_nfkc")
    llama = Llama(converted(folder, ["F32"], tmp_path / "out")["F32"])
    for text in (*SENTENCES, HARD, "\uff46\uff55\uff4c\uff4c \u2460 \ufb01ne"):
        assert llama.tokens(text) == processor.encode(text), text


@pytest.mark.parametrize("prefix", [True, False])
def test_a_unigram_tokenizer_json_is_cut_alike_by_llama_cpp(tmp_path: Path, prefix: bool) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    data = sentencepiece("unigram", byte_fallback=False)
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if prefix else "never")
    tokenizer.decoder = decoders.Metaspace()
    table = sentencepiece_model.load(data, "").charsmap
    tokenizer.normalizer = normalizers.Sequence([normalizers.Precompiled(table), normalizers.Replace(Regex(" {2,}"), " ")])
    trainer = trainers.UnigramTrainer(
        vocab_size=200, unk_token="<unk>", special_tokens=["<s>", "</s>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    size = tokenizer.get_vocab_size()
    folder = gguf_models.tiny(tmp_path / "model", size)
    pair = [*sequence("A"), special("</s>"), special("</s>"), *sequence("B", 1), special("</s>")]
    save(
        folder,
        json.loads(tokenizer.to_str())
        | {"post_processor": template([special("<s>"), *sequence("A"), special("</s>")], [special("<s>"), *pair])},
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    keys = metadata(folder)
    assert keys["tokenizer.ggml.token_type"][:3] == [3, 3, 2]
    assert keys["tokenizer.ggml.add_space_prefix"] is prefix
    assert keys["tokenizer.ggml.remove_extra_whitespaces"] is prefix
    # An array (9) of bytes (0), packed in the plan already.
    packed = base64.b64decode(keys["tokenizer.ggml.precompiled_charsmap"])
    assert packed == struct.pack("<IIQ", 9, 0, len(table)) + table
    assert flags(keys) == {"bos": True, "eos": True, "sep": True}
    llama = Llama(converted(folder, ["F32"], tmp_path / "out")["F32"])
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = (*SENTENCES, HARD)
    for text in (t.strip() for t in texts if prefix or "  " not in t.strip()):
        assert llama.tokens(text, special=True) == original.encode(text).ids, text
    assert any("several spaces" in note for note in planned(folder, "F32").notes) is not prefix


def template(single: list[dict[str, Any]], pair: list[dict[str, Any]]) -> dict[str, Any]:
    ids = {"<s>": 0, "</s>": 1, "[CLS]": 1, "[SEP]": 2}
    known = {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in ids.items()}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known}


def special(text: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": text, "type_id": 0}}


def sequence(name: str, type_id: int = 0) -> list[dict[str, Any]]:
    return [{"Sequence": {"id": name, "type_id": type_id}}]


def flags(keys: dict[str, Any]) -> dict[str, bool]:
    """Which special tokens readers are told to add."""
    pattern = re.compile("tokenizer.ggml.add_(.*)_token")
    return {found[1]: value for key, value in keys.items() if (found := pattern.fullmatch(key))}


def test_a_token_that_follows_every_text_is_eos_and_the_named_eos_ends_turns(model: Path) -> None:
    more = [added(258, "<s>", special=True), added(259, "</s>", special=True), added(260, "<end>", special=True)]
    known = {t["content"]: {"id": t["content"], "ids": [t["id"]], "tokens": [t["content"]]} for t in more}
    single = [special("<s>"), *sequence("A"), special("<end>")]
    pair = [*single, *sequence("B", 1), special("<end>")]
    after = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known}
    save(model, bpe(added_tokens=more, post_processor=after), eos_token="</s>")
    keys = metadata(model, pre="gpt-2")
    found = {k.removeprefix("tokenizer.ggml."): v for k, v in keys.items() if k.endswith("token_id")}
    assert found == {"bos_token_id": 258, "eos_token_id": 260, "eot_token_id": 259}
    assert flags(keys) == {"bos": True, "eos": True, "sep": False}


def test_a_byte_level_post_processor_adds_nothing_and_says_so(model: Path) -> None:
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    save(model, bpe(post_processor={"type": "Sequence", "processors": [level]}))
    assert flags(metadata(model, pre="gpt-2")) == {"bos": False, "eos": False}


def test_a_separator_between_two_texts_without_eos_is_added(model: Path) -> None:
    sep = added(258, "<sep>", special=True)
    pair = [*sequence("A"), special("<sep>"), *sequence("B", 1)]
    known = {"<sep>": {"id": "<sep>", "ids": [258], "tokens": ["<sep>"]}}
    between = {"type": "TemplateProcessing", "single": sequence("A"), "pair": pair, "special_tokens": known}
    save(model, bpe(added_tokens=[sep], post_processor=between), sep_token="<sep>")
    keys = metadata(model, pre="gpt-2")
    assert flags(keys) == {"bos": False, "sep": True}
    assert keys["tokenizer.ggml.seperator_token_id"] == 258


@pytest.mark.parametrize(
    ("normalizer", "said"),
    [
        ({"type": "Lowercase"}, {"lowercase": True}),
        ({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]}, {"strip_accents": True}),
        (
            dict(type="BertNormalizer", clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=False),
            {"lowercase": False},
        ),
        (None, {}),
    ],
)
def test_what_a_tokenizer_normalizes_is_told(model: Path, normalizer: Any, said: dict[str, bool]) -> None:
    save(model, bpe(normalizer=normalizer))
    keys = metadata(model, pre="gpt-2")
    prefix = "tokenizer.ggml.normalizer."
    assert {k.removeprefix(prefix): v for k, v in keys.items() if k.startswith(prefix)} == said


def wordpiece(*, cased: bool) -> dict[str, Any]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased, strip_accents=False if cased else None)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator([*SENTENCES, "Größer und Kleiner", "cafe 漢字"], trainer)
    pair = [special("[CLS]"), *sequence("A"), special("[SEP]"), *sequence("B", 1), special("[SEP]")]
    return json.loads(tokenizer.to_str()) | {"post_processor": template(pair[:3], pair)}


@pytest.mark.parametrize("cased", [False, True])
def test_wordpiece_is_cut_alike_by_llama_cpp(tmp_path: Path, cased: bool) -> None:
    from tokenizers import Tokenizer

    folder = gguf_models.tiny(tmp_path / "model", 310)
    names = dict(cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]")
    save(folder, wordpiece(cased=cased), **names)
    keys = metadata(folder)
    assert keys["tokenizer.ggml.model"] == "bert"
    assert keys["tokenizer.ggml.pre"] == "default"
    assert keys["tokenizer.ggml.tokens"][:5] == ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    ids = {k.removeprefix("tokenizer.ggml."): v for k, v in keys.items() if k.endswith("token_id")}
    assert ids == {
        "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 3, "seperator_token_id": 2, "padding_token_id": 0,
        "mask_token_id": 4,
    }  # fmt: skip
    assert flags(keys) == {"bos": True, "eos": True, "sep": False}
    assert keys["tokenizer.ggml.normalizer.lowercase"] is not cased
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if cased:
        # cyllama's llama.cpp is older than these keys: tests/readers compares embeddings of cased text in a newer one.
        assert keys["tokenizer.ggml.normalizer.strip_accents"] is False
        assert any("lower-case" in note for note in planned(folder, "F32").notes)
        return
    llama = Llama(converted(folder, ["F32"], tmp_path / "out")["F32"])
    for text in (*SENTENCES, HARD, "Café größer, ÉCOLE! the-cat 漢字 naïve"):
        assert llama.tokens(text, special=True) == original.encode(text).ids, text


def test_a_tokenizer_model_of_another_kind_gives_way_to_tokenizer_json(model: Path) -> None:
    (model / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert metadata(model, pre="gpt-2")["tokenizer.ggml.model"] == "gpt2"


@pytest.mark.parametrize("scheme", ["first", "never", "llama 2", "gemma"])
def test_bpe_with_spaces_as_underlines_is_cut_alike_by_llama_cpp(tmp_path: Path, scheme: str) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    underlines = normalizers.Replace(" ", "\u2581")
    if scheme == "llama 2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), underlines])
    elif scheme == "gemma":
        tokenizer.normalizer = underlines
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    folder = gguf_models.tiny(tmp_path / "model", tokenizer.get_vocab_size())
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][:2]
    save(folder, data, bos_token="<s>", unk_token="<unk>")
    keys = metadata(folder)
    assert keys["tokenizer.ggml.token_type"][:4] == [2, 3, 6, 6]
    assert keys["tokenizer.ggml.add_space_prefix"] is (scheme in ("first", "llama 2"))
    llama = Llama(converted(folder, ["F32"], tmp_path / "out")["F32"])
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # Metaspace puts no space before a text that has one; llama.cpp, like SentencePiece and the other two, always does.
    texts = (*SENTENCES, HARD)
    for text in texts if scheme in ("llama 2", "gemma") else (t.lstrip() for t in texts):
        assert llama.tokens(text) == original.encode(text, add_special_tokens=False).ids, text


def test_the_alphabet_tokenizer_of_glass_warns_of_what_llama_cpp_cannot_do(glass: Path, tmp_path: Path) -> None:
    folder = tmp_path / "glass"
    shutil.copytree(glass, folder)
    notes = planned(folder, "F16").notes
    assert any("no byte tokens" in note for note in notes)
    assert any("(NFC)" in note for note in notes)
