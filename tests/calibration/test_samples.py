"""Samples: the model's own tokens, its own beginning of a text, and the same for the same seed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import calibration_kit as kit
import models
from qconvd import checkpoints
from qconvd.calibration.chat import chat_template
from qconvd.calibration.rendering import TODAY
from qconvd.calibration.samples import tokens
from qconvd.calibration.tokenizer import tokenizer
from qconvd.checkpoints import ModelInfo
from qconvd.errors import QconvdError


@pytest.fixture
def model(tmp_path: Path) -> ModelInfo:
    return kit.family(tmp_path, "llama")


@pytest.fixture(scope="module")
def smollm2() -> ModelInfo:
    return checkpoints.inspect(models.cached("SmolLM2-135M-Instruct", models.make_smollm2))


def with_bos(model: ModelInfo, **config: Any) -> ModelInfo:
    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    tokenizer.save(str(model.path / "tokenizer.json"))
    (model.path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", **config}))
    return checkpoints.inspect(model.path)


def text(model: ModelInfo, ids: np.ndarray) -> str:
    return Tokenizer.from_file(str(model.path / "tokenizer.json")).decode(ids.tolist(), skip_special_tokens=False)


def test_samples_are_windows_of_the_text_and_never_the_same_twice(model: ModelInfo) -> None:
    spec = kit.spec_of(model, samples=20, length=30)
    found = tokens(model, spec)
    assert found.shape == (20, 30) and found.dtype == np.int64
    whole = Path(spec.text).read_text()
    windows = [text(model, row) for row in found]
    assert all(window in whole for window in windows) and len(set(windows)) == 20


def test_a_long_text_is_tokenized_in_parts(model: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = kit.spec_of(model, samples=20, length=30)
    monkeypatch.setattr("qconvd.calibration.samples.SEGMENT", 500)
    monkeypatch.setattr("qconvd.calibration.samples.LEAST", 4000)
    looked_at = Path(spec.text).read_text()[: 20 * 30 * 16]
    assert all(text(model, row) in looked_at for row in tokens(model, spec))


def test_the_seed_decides(model: ModelInfo) -> None:
    first, again, other = (tokens(model, kit.spec_of(model, samples=9, seed=seed)) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_every_sample_begins_as_a_text_begins(model: ModelInfo) -> None:
    model = with_bos(model)
    found = tokens(model, kit.spec_of(model, samples=9))
    assert (found[:, 0] == 258).all() and (found[:, 1:] != 258).all()


@pytest.mark.parametrize(("config", "start"), [({}, (258,)), ({"add_bos_token": False}, ()), ({"add_bos_token": True}, (258,))])
def test_the_config_may_say_otherwise(model: ModelInfo, config: dict[str, Any], start: tuple[int, ...]) -> None:
    assert tokenizer(with_bos(model, **config)).start == start


def test_short_documents_are_put_together(model: ModelInfo, tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps({"text": f"note {i:03}."}) + "\n" for i in range(60)))
    model = with_bos(model)
    spec = kit.spec_of(model, text=path, samples=20, length=25)
    joined = "".join(text(model, row[1:]) for row in tokens(model, spec))
    assert joined.count("<s>note ") > 20  # each begins as a text begins


def test_tokens_are_those_of_transformers(smollm2: ModelInfo) -> None:
    plain = "Straße, 東京 and def f(x):\n\treturn x  # <|im_start|>user\nHi<|im_end|>"
    wanted = AutoTokenizer.from_pretrained(smollm2.path).encode(plain, add_special_tokens=False)
    assert list(tokenizer(smollm2).ids(plain)) == wanted


def test_a_sentencepiece_model_alone(model: ModelInfo) -> None:
    made = io.BytesIO()
    words = iter(kit.small_text(model.path.parent).read_text().splitlines())
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=words, model_writer=made, vocab_size=150, minloglevel=2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model.path / name).unlink()
    (model.path / "tokenizer.model").write_bytes(made.getvalue())
    model = checkpoints.inspect(model.path)
    ours = tokenizer(model)
    reference = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    assert ours.start == (reference.bos_id(),)
    assert list(ours.ids("some words")) == reference.encode("some words")
    assert list(ours.ids("some</s>words")) == [*reference.encode("some"), reference.eos_id(), *reference.encode("words")]
    assert (tokens(model, kit.spec_of(model))[:, 0] == reference.bos_id()).all()


def test_a_broken_tokenizer_is_named(model: ModelInfo) -> None:
    (model.path / "tokenizer.json").write_text("{}")
    with pytest.raises(QconvdError, match="its tokenizer cannot be read: "):
        tokenizer(checkpoints.inspect(model.path))


def test_templates_give_what_transformers_gives(smollm2: ModelInfo) -> None:
    turns = [("system", "Be brief."), ("user", "Hi {there}"), ("assistant", "Hello")]
    messages = [{"role": role, "content": content} for role, content in turns]
    wanted = AutoTokenizer.from_pretrained(smollm2.path).apply_chat_template(messages, tokenize=False)
    template = chat_template(smollm2)
    assert template is not None and template.write(turns) == wanted


def chatty(model: ModelInfo, template: str) -> ModelInfo:
    (model.path / "chat_template.jinja").write_text(template)
    return checkpoints.inspect(model.path)


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{% generation %}{{ m.content }}{% endgeneration %}</s>{% endfor %}"


def test_conversations_go_through_the_template(model: ModelInfo, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "How are you today?"}, {"role": "assistant", "content": "Very well, thank you."}]
    path = tmp_path / "chat.jsonl"
    path.write_text((json.dumps({"messages": turns}) + "\n") * 20)
    spec = kit.spec_of(chatty(model, TEMPLATE), text=path, samples=2, length=100)
    seen = "".join(text(model, row) for row in tokens(checkpoints.inspect(model.path), spec))
    assert "<user>How are you today?</s><assistant>Very well, thank you.</s>" in seen
    plain = kit.spec_of(model, text=path, samples=2, length=100, chat=False)
    assert "<user>" not in "".join(text(model, row) for row in tokens(checkpoints.inspect(model.path), plain))


def test_of_plain_text_a_quarter_becomes_conversations(model: ModelInfo, tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i:03} " + "word " * 100}) + "\n" for i in range(40)))
    spec = kit.spec_of(chatty(model, TEMPLATE), text=path, samples=200, length=100)
    seen = "".join(text(model, row) for row in tokens(checkpoints.inspect(model.path), spec))
    assert 8 <= seen.count("<assistant>") <= 10


def test_a_template_is_told_the_same_day_every_day_and_may_not_reach_out(model: ModelInfo) -> None:
    template = chat_template(chatty(model, "{{ strftime_now('%d %b %Y') }} {{ messages | tojson }}"))
    assert template is not None and template.write([("user", "é")]) == f'{TODAY:%d %b %Y} [{{"role": "user", "content": "é"}}]'
    hostile = chat_template(chatty(model, "{{ ''.__class__.__mro__[1].__subclasses__() }}"))
    assert hostile is not None
    with pytest.raises(QconvdError, match="its chat template fails: access to attribute '__class__'"):
        hostile.write([("user", "x")])


def test_a_template_that_refuses_is_an_error_only_if_it_was_asked_for(model: ModelInfo) -> None:
    model = chatty(model, "{{ raise_exception('no roles please') }}")
    assert tokens(model, kit.spec_of(model)).shape == (3, 24)
    with pytest.raises(QconvdError, match="its chat template fails: no roles please"):
        tokens(model, kit.spec_of(model, chat=True))


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (ENDLESS, "takes more than 1 s for one conversation"),
        ("{% for a in range(9999) %}" + "x" * 999 + "{% endfor %}", "writes more than 1,048,576 characters beside those of "),
        ("{% set x = 'long' * 999999999 %}{{ x | length }}", "takes more than 256.0 MiB of memory"),
        ("{{ 'long' * 999999999 }}", "takes more than 256.0 MiB of memory"),
        ("{{ messages | tojson(indent=999999999) }}", "takes more than 256.0 MiB of memory"),
    ],
)
def test_a_template_that_would_never_end_or_fill_the_memory(
    model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, what: str
) -> None:
    """Also where a template that only fails would be passed over."""
    monkeypatch.setattr("qconvd.calibration.chat.SECONDS", 1)
    monkeypatch.setattr("qconvd.calibration.chat.MEMORY", 256 << 20)
    model = chatty(model, template)
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "How are you today?"}]}) + "\n")
    with pytest.raises(QconvdError) as caught:
        tokens(model, kit.spec_of(model, text=path))
    assert caught.value.what.startswith(f"its chat template {what}")
    assert (caught.value.where, caught.value.fix) == (
        str(model.path),
        "say `chat: false` under `calibration`, or mend the template",
    )


def test_the_limits_are_for_each_conversation(model: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qconvd.calibration.chat.LONGEST", 100)
    template = chat_template(chatty(model, TEMPLATE))
    assert template is not None
    for length in (10, 1000, 10):
        assert template.write([("user", "é" * length)]) == f"<user>{'é' * length}</s>"


def test_no_template_where_one_is_wanted(model: ModelInfo) -> None:
    with pytest.raises(QconvdError, match="has no chat template, and `chat: true` is set"):
        tokens(model, kit.spec_of(model, chat=True))
