"""Cards of real artifacts, read as the Hub's own library reads them, and what becomes of what people wrote into them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from converted import converted
from qconvd.engine.manifest import Manifest
from qconvd.errors import QconvdError
from qconvd.plugins import plugins
from qconvd.publish import modelcard
from qconvd.publish.modelcard import Card, card, compose, render
from qconvd.publish.upstream import Upstream, upstream
from qconvd_gguf.advice import ADVICE
from qconvd_gguf.file_types import FILE_TYPES

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROMPT = "{% for m in messages %}```{{ m.content }}```<!-- qconvd:end -->{% endfor %}"
UPSTREAM = """---
license: other
license_name: glass-1
license_link: LICENSE
language: [en, no]
pipeline_tag: text-generation
library_name: transformers
tags: [fairy-tales, onnx, Safetensors, "base_model:finetune:x/y"]
---
# Glass | A story
A long description that is not copied.
"""


@pytest.fixture(scope="module")
def model(glass: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upstream") / "glass_en"
    shutil.copytree(glass, folder)
    (folder / "README.md").write_text(UPSTREAM)
    (folder / "chat_template.jinja").write_text(PROMPT)
    return folder


@pytest.fixture(scope="module")
def ggufs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    return [made(model, tmp_path_factory.mktemp(name), "gguf", name, types=[name]) for name in ("Q4_0", "Q8_0")]


def made(model: Path, out: Path, form: str, variant: str, **options: object) -> Manifest:
    manifest = converted(model, out, form, **options).manifest
    files = tuple(replace(f, path=f.path.replace("glass_en.gguf", f"glass_en-{variant}.gguf")) for f in manifest.files)
    return replace(
        manifest, artifact=f"glass_en-{variant}", files=files, extra={"variant": variant}, recipe="everyday",
        source={"name": "glass_en", "identity": "sha256:1234"}, verification={"rows": 12},
    )  # fmt: skip


@pytest.fixture
def described(model: Path, ggufs: list[Manifest]) -> Card:
    about = upstream(model, "glass_en", locator="hub:carroll/glass_en", revision=COMMIT)
    return card(about, ggufs, title="glass_en-GGUF", repo="me/glass_en-GGUF", by="me")


def test_the_metadata_is_what_the_hub_reads(described: Card) -> None:
    data = ModelCard(compose(*render(described))).data.to_dict()
    assert data == {
        "base_model": "carroll/glass_en",
        "base_model_relation": "quantized",
        "quantized_by": "me",
        "library_name": "gguf",
        "license": "other",
        "license_name": "glass-1",
        "license_link": "https://huggingface.co/carroll/glass_en/blob/main/LICENSE",
        "language": ["en", "no"],
        "pipeline_tag": "text-generation",
        "tags": ["fairy-tales", "gguf", "qconvd"],
    }


def test_the_body_says_what_there_is_and_how_to_run_it(described: Card, ggufs: list[Manifest]) -> None:
    body, _ = render(described)
    rows = [line for line in body.splitlines() if line.startswith("| [")]
    sizes = {m.artifact: m.files[0].bytes for m in ggufs}
    assert [re.split(r" *\| *", row)[2] for row in rows] == ["Q8_0", "Q4_0"], "the largest first"
    bits = 8 * sizes["glass_en-Q8_0"] / ggufs[1].errors["weights"]
    error = f"{100 * ggufs[1].errors['relative_rms']:.2g} %"
    assert rows[0] == (
        f"| [glass_en-Q8_0.gguf](./glass_en-Q8_0.gguf) | Q8_0 | {bits:.2f} | 1.0 MiB | 261.0 MiB | {error} "
        "| not measured | as good as 16 bits in use, half the size |"
    )
    assert "llama-cli -hf me/glass_en-GGUF:Q4_0\n" in body
    assert "ollama run hf.co/me/glass_en-GGUF:Q4_0\n" in body
    assert "vllm" not in body.lower() and "from_pretrained" not in body, "they do not load GGUF"
    assert f"[{COMMIT}](https://huggingface.co/carroll/glass_en/tree/{COMMIT})" in body
    assert "[carroll/glass_en](https://huggingface.co/carroll/glass_en)" in body
    assert "A long description" not in body, "linked, not copied"
    assert "- Recipe: everyday\n" in body and "- Made with: qconvd " in body and "sha256:1234" in body
    assert "Q8_0 (12 rows against the source)" in body


def test_nobody_is_sent_to_the_smallest_file_first(described: Card) -> None:
    large, small = described.rows
    tiny = replace(small, type="IQ1_S", bits_per_weight=1.6, nbytes=1)
    body, _ = render(replace(described, rows=(large, small, tiny)))
    assert "-hf me/glass_en-GGUF:Q4_0\n" in body and "Any other type of the table may be named instead." in body
    body, _ = render(replace(described, rows=(tiny,)))
    assert "-hf me/glass_en-GGUF:IQ1_S\n" in body and "Any other" not in body


def test_a_file_on_a_branch_is_downloaded_first(described: Card) -> None:
    body, _ = render(replace(described, revision="four"))
    fetch = "hf download me/glass_en-GGUF glass_en-Q4_0.gguf --revision four --local-dir ."
    assert f"```sh\n{fetch}\nllama-cli -m glass_en-Q4_0.gguf\n```" in body
    assert "hf download" not in render(replace(described, revision="four", repo=""))[0]


def test_without_a_prompt_template_there_is_no_hole(described: Card) -> None:
    assert "\n\n\n" not in render(replace(described, model=replace(described.model, prompt="")))[0]


def test_a_prompt_template_stands_in_a_fence_that_it_cannot_close(described: Card) -> None:
    text = compose(*render(described))
    assert "````jinja\n{% for m in messages %}```{{ m.content }}```" in text
    assert text.count(modelcard.END) == 1, "a model's text is no marker"
    assert compose(*render(described), text) == text


def test_safetensors_are_for_transformers_and_vllm_at_their_revision(model: Path, tmp_path: Path) -> None:
    manifest = made(model, tmp_path, "fp16", "fp16")
    body, metadata = render(card(upstream(model, "glass_en"), [manifest], title="g", repo="me/g", revision="v1"))
    assert 'AutoModelForCausalLM.from_pretrained("me/g", revision="v1")' in body
    assert "vllm serve me/g --revision v1" in body
    assert "llama-cli" not in body and "llama.cpp: through its converter, convert_hf_to_gguf.py." in body
    assert metadata["library_name"] == "transformers"
    assert "base_model" not in metadata, "nobody knows where it came from"
    assert "- Commit: not known" in body


def test_what_needs_something_beside_it_is_shown_with_that_said(model: Path, tmp_path: Path) -> None:
    gptq = made(model, tmp_path, "gptq", "4bit-32g", bits=4, group_size=32, method="rtn")
    body, _ = render(card(upstream(model, "glass_en"), [gptq], title="g", repo="me/g"))
    for line in (
        "vllm serve me/g",
        'from_pretrained("me/g")',
        'GPTQModel.load("me/g")',
        "transformers: with gptqmodel and optimum",
    ):
        assert line in body
    assert "Also loads with ExLlamaV2." in body


def test_what_was_calibrated_says_on_what_and_what_for(model: Path, tmp_path: Path) -> None:
    gptq = made(model, tmp_path, "gptq", "4bit-32g", bits=4, group_size=32, method="rtn")
    linears = {name: {"output_error": 1.0, "nearest_error": worse} for name, worse in (("a", 2), ("b", 4), ("c", 5), ("d", 0))}
    about = {"text": "default", "samples": 8, "length": 64, "linears": linears}
    rows = [replace(gptq, calibration=about), replace(gptq, calibration={"text": "a|b.txt", "samples": 1, "length": 16})]
    body, _ = render(card(upstream(model, "glass_en"), rows, title="g", repo="me/g"))
    said = [line for line in body.splitlines() if "calibrated" in line]
    assert said == [
        "4bit-32g was calibrated on 8 x 64 tokens of the text that comes with qconvd: its linears' outputs are off by 25% of "
        "what rounding to nearest gives (squared; median of 3).",
        r"4bit-32g was calibrated on 1 x 16 tokens of a\|b.txt.",
    ]
    body, _ = render(card(upstream(model, "glass_en"), [gptq], title="g", repo="me/g"))
    assert "calibrated" not in body


def test_a_card_says_that_the_model_was_quantized_before(ggufs: list[Manifest]) -> None:
    quantized = [replace(m, source={**m.source, "quantization": "GPTQ, 4 bits"}) for m in ggufs]
    body, _ = render(card(Upstream("glass_en"), quantized, title="g"))
    assert body.count("- The model was quantized before: GPTQ, 4 bits. These files hold its rounded weights") == 1
    assert "\n\n\n" not in body
    assert "quantized before" not in render(card(Upstream("glass_en"), ggufs, title="g"))[0]


def test_what_is_missing_is_called_not_measured(ggufs: list[Manifest]) -> None:
    bare = [replace(m, errors={}, verification=None, versions={}) for m in ggufs[:1]]
    body, _ = render(card(Upstream("glass_en"), bare, title="g"))
    (row,) = [line for line in body.splitlines() if line.startswith("| glass_en-Q4_0")]
    assert re.split(r" *\| *", row)[3:8] == ["not measured", "805.9 KiB", "not measured", "not measured", "not measured"]
    assert "Q4_0 (not verified)" in body


def test_of_a_file_without_weights_nothing_is_missing(described: Card, ggufs: list[Manifest]) -> None:
    """An importance matrix beside the models: nobody is told to run it."""
    (file,) = ggufs[0].files
    matrix = replace(
        ggufs[0], artifact="glass_en-imatrix", format="imatrix", files=(replace(file, path="glass_en-imatrix.gguf"),),
        errors={"weights": 0, "relative_rms": None}, loads_with=(), extra={"variant": "imatrix"},
    )  # fmt: skip
    both = card(described.model, [ggufs[1], matrix], title="g", repo="me/g")
    body, metadata = render(both)
    (row,) = [line for line in body.splitlines() if line.startswith("| [glass_en-imatrix.gguf]")]
    assert re.split(r" *\| *", row)[2:-1] == [
        "imatrix", "", "805.9 KiB", "", "", "", "no model: for `llama-quantize --imatrix`, to make other types",
    ]  # fmt: skip
    assert "-hf me/g:Q8_0" in body and "g:imatrix" not in body and "Any other" not in body
    assert metadata["library_name"] == "gguf" and "imatrix" in metadata["tags"]


def test_a_file_in_parts_is_not_offered_to_ollama(described: Card, model: Path, tmp_path: Path) -> None:
    split = made(model, tmp_path, "gguf", "F16", types=["F16"], split_max_tensors=10)
    assert len(split.files) > 1
    body, _ = render(card(described.model, [split], title="g", repo="me/g"))
    assert "ollama" not in body and "llama-cli -hf me/g:F16" in body
    assert f"and {len(split.files) - 1} more" in body


def test_embedders_are_not_chatted_with(ggufs: list[Manifest]) -> None:
    about = Upstream("e", card={"pipeline_tag": "feature-extraction"})
    body, _ = render(card(about, ggufs, title="e", repo="me/e"))
    assert "llama-embedding -hf me/e:Q4_0" in body and "ollama run" not in body


def test_what_people_wrote_stays(described: Card, ggufs: list[Manifest]) -> None:
    text = compose(*render(described))
    head, _, body = text.removeprefix("---\n").partition("---\n")
    edited = (
        f"---\nthumbnail: x.png  # mine\n{head.replace('license: other', 'license: mit')}---\nHello!\n{body}\nThanks to all.\n"
    )
    fewer = card(described.model, ggufs[:1], title="glass_en-GGUF", repo="me/glass_en-GGUF", by="me")
    again = compose(*render(fewer), edited)
    assert again.startswith("---\nthumbnail: x.png  # mine\n") and again.endswith("\nThanks to all.\n")
    assert "---\nHello!\n" in again
    assert yaml.safe_load(again.split("---\n")[1])["license"] == "mit"
    assert "Q8_0" not in again, "our part is new"
    assert compose(*render(fewer), again) == again


def test_a_card_that_we_have_never_touched_gets_our_part_at_its_end(described: Card) -> None:
    text = compose(*render(described), "---\nlicense: mit\ntags: [mine]\n---\n# My card\n")
    assert "---\n# My card\n\n<!-- qconvd:begin " in text
    data = yaml.safe_load(text.split("---\n")[1])
    assert data["license"] == "mit" and data["tags"] == ["mine", "fairy-tales", "gguf", "qconvd"]


@pytest.mark.parametrize(
    "damage", ["<!-- qconvd:begin {} -->\nbody", "body\n<!-- qconvd:end -->", "X<!-- qconvd:end -->X<!-- qconvd:begin "]
)
def test_lost_markers_are_no_licence_to_guess(damage: str) -> None:
    with pytest.raises(QconvdError) as caught:
        compose("new", {}, damage)
    assert str(caught.value) == (
        "README.md: the card has lost one of qconvd's two markers, so nobody can tell what in it was written by hand\n"
        "  put <!-- qconvd:begin --> and <!-- qconvd:end --> around the part that qconvd may replace, or remove both"
    )


def test_a_template_may_extend_ours_and_add_keys(described: Card, tmp_path: Path) -> None:
    mine = tmp_path / "mine.md.j2"
    mine.write_text(
        '---\nthumbnail: y.png\n---\n{% extends "card.md.j2" %}{% block introduction %}# {{ card.title }} of ACME{% endblock %}'
    )
    # What stands before `extends` is printed before what it extends.
    body, metadata = render(described, mine)
    assert body.startswith("# glass_en-GGUF of ACME") and "## Files" in body
    assert metadata["thumbnail"] == "y.png" and metadata["license"] == "other"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\n{% if %}", "{}:2: the template of the card is wrong: Expected an expression, got 'end of statement block'"),
        ("{{ card.nothing }}", "{}:1: the template of the card is wrong: 'qconvd.publish.modelcard.Card object' has no"
         " attribute 'nothing'\n  docs/how-to/publish.md lists what a template may use"),
        ("a\n{{ 1 // 0 }}", "{}:2: the template of the card is wrong: ZeroDivisionError: integer division or modulo by zero\n"
         "  docs/how-to/publish.md lists what a template may use"),
        ('{% extends "other" %}', "{}: other: there is no such template of a card\n  mend `card:` in the recipe"),
    ],
)  # fmt: skip
def test_a_wrong_template_is_told_with_its_place(described: Card, tmp_path: Path, text: str, said: str) -> None:
    mine = tmp_path / "mine.md.j2"
    mine.write_text(text)
    with pytest.raises(QconvdError) as caught:
        render(described, mine)
    assert str(caught.value) == said.format(mine)


def test_a_template_that_has_the_name_of_ours_extends_ours(described: Card, tmp_path: Path) -> None:
    template = tmp_path / "card.md.j2"
    (tmp_path / "greeting.j2").write_text("Made by ACME.")
    template.write_text('{% extends "card.md.j2" %}{% block introduction %}{% include "greeting.j2" %}\n{% endblock %}')
    body, _ = render(described, template)
    introduction, _, rest = body.partition("## Files")
    assert introduction.strip() == "Made by ACME."
    assert rest == render(described)[0].partition("## Files")[2]


def test_a_template_that_is_not_there(described: Card, tmp_path: Path) -> None:
    with pytest.raises(QconvdError, match="mine: there is no such template of a card"):
        render(described, tmp_path / "mine")


def test_the_hubs_cache_says_where_a_model_came_from(glass: Path, tmp_path: Path) -> None:
    folder = tmp_path / f"models--carroll--glass-en/snapshots/{COMMIT}"
    shutil.copytree(glass, folder)
    found = upstream(folder, "glass-en")
    assert (found.repo, found.commit) == ("carroll/glass-en", COMMIT)


def test_of_several_prompt_templates_the_default_one_is_shown(tmp_path: Path) -> None:
    held = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": held}))
    assert upstream(tmp_path, "m").prompt == "D"


def test_a_gguf_says_itself_what_it_is(model: Path, tmp_path: Path) -> None:
    made = converted(model, tmp_path, "gguf", types=["Q8_0"])
    found = upstream(next(made.folder.glob("*.gguf")), "glass_en")
    assert found.prompt == PROMPT
    assert found.card["license"] == "other" and found.card["license_name"] == "glass-1"


def test_a_damaged_model_says_nothing(tmp_path: Path) -> None:
    for name in ("README.md", "config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(b"---\n{[\n---\n\xff")
    assert upstream(tmp_path, "m") == Upstream("m")
    assert upstream(tmp_path / "gone", "m") == Upstream("m")


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in pairwise("abcdefghij"))
"""A list that has a billion entries once it is written out."""


@pytest.mark.parametrize(
    "said",
    [
        "license: {a: 1}", "license: 2024-01-01", "license: [1, {a: b}]", 'license: "mit\\n---\\nx"', 'license: "\\ud800"',
        "license: &a [*a]", "pipeline_tag: [x]", "library_name: {a: b}", "tags: [null, {a: b}]", "language: {a: b}",
        f"{BOMB}tags: *j", f"{BOMB}license: *j", f"{BOMB}language: *j", f"license: {'x' * 1001}",
        "tags: [a]\nversion: 2023-99-99", "tags: [a]\nx: 0b_", "tags: [a]\nx: !!int ''", f"tags: [a]\nx: {'[' * 5000}",
    ],
)  # fmt: skip
def test_a_card_that_says_nonsense_spoils_nothing(tmp_path: Path, said: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{said}\n---\n")
    about = upstream(tmp_path, "m")
    text = compose(*render(card(about, [], title="m", repo="me/m")))
    assert yaml.safe_load(text.split("---\n")[1]) == {"library_name": "transformers", "tags": ["qconvd"]}
    assert compose(*render(card(about, [], title="m", repo="me/m")), text) == text


def test_licences_and_norwegian_are_carried(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [mit, apache-2.0]\nlanguage: no\ntags: [x, 1]\n---\n")
    assert upstream(tmp_path, "m").card == {"license": ["mit", "apache-2.0"], "language": "no", "tags": ["x"]}


def test_every_type_of_the_built_in_formats_has_its_advice() -> None:
    assert set(ADVICE) == set(FILE_TYPES)
    assert all(plugins().formats["fp16"].advice(dtype) for dtype in ("fp16", "bf16", "f32"))  # type: ignore[attr-defined]
