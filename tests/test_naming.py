"""What artifacts are called."""

from __future__ import annotations

import re
import unicodedata

import pytest
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from qconvd.engine.plan import NameParts
from qconvd.errors import ConfigError
from qconvd.naming import NAME_BYTES, PROFILES, SUFFIX_BYTES, check_template, collisions, hub_safe, names, repository, safe

FP16 = NameParts("fp16", "fp16")
GGUF = NameParts("gguf", "Q4_K_M", shared=True)
GPTQ = NameParts("gptq", "4bit-128g")
GGML = NameParts("ggml", "q4_0", shared=True)
MODEL = "Llama-2-13B-chat"


@pytest.mark.parametrize(
    ("profile", "parts", "folder", "stem", "repo", "branch"),
    [
        ("default", FP16, f"{MODEL}-fp16", "model", f"{MODEL}-fp16", "main"),
        ("default", NameParts("fp16", "bf16"), f"{MODEL}-bf16", "model", f"{MODEL}-bf16", "main"),
        ("default", GGUF, f"{MODEL}-GGUF", f"{MODEL}-Q4_K_M", f"{MODEL}-GGUF", "main"),
        ("default", GPTQ, f"{MODEL}-4bit-128g", "model", f"{MODEL}-4bit-128g", "main"),
        ("default", NameParts("int8", "int8"), f"{MODEL}-int8", "model", f"{MODEL}-int8", "main"),
        ("default", NameParts("int4", "int4"), f"{MODEL}-int4", "model", f"{MODEL}-int4", "main"),
        ("default", GGML, f"{MODEL}-GGML", "llama-2-13b-chat.ggmlv3.q4_0", f"{MODEL}-GGML", "main"),
        ("soulteary", GGML, f"{MODEL}-ggml-q4", f"{MODEL}.ggmlv3.q4_0", f"{MODEL}-ggml-q4", "main"),
        ("default", NameParts("awq", "4bit"), f"{MODEL}-AWQ", "model", f"{MODEL}-AWQ", "main"),
        ("default", NameParts("exl3", "2.5bpw"), f"{MODEL}-exl3-2.5bpw", "model", f"{MODEL}-exl3", "2.5bpw"),
        ("default", NameParts("mlx", "4bit-g32"), f"{MODEL}-4bit-g32", "model", f"{MODEL}-4bit-g32", "main"),
        ("default", NameParts("int8", "int8-w8a8", scheme="w8a8"), f"{MODEL}-int8-w8a8", "model", f"{MODEL}-int8-w8a8", "main"),
        ("default", NameParts("fp8", "FP8-dynamic"), f"{MODEL}-FP8-dynamic", "model", f"{MODEL}-FP8-dynamic", "main"),
        ("default", NameParts("bitsandbytes", "bnb-4bit"), f"{MODEL}-bnb-4bit", "model", f"{MODEL}-bnb-4bit", "main"),
        (
            "redhat", NameParts("int4", "int4", scheme="w4a16"),
            f"{MODEL}-quantized.w4a16", "model", f"{MODEL}-quantized.w4a16", "main",
        ),
        (
            "redhat", NameParts("int8", "int8", scheme="w8a16"),
            f"{MODEL}-quantized.w8a16", "model", f"{MODEL}-quantized.w8a16", "main",
        ),
        ("redhat", NameParts("fp8", "FP8-BLOCK"), f"{MODEL}-FP8-BLOCK", "model", f"{MODEL}-FP8-BLOCK", "main"),
        ("redhat", NameParts("bitsandbytes", "bnb-8bit"), f"{MODEL}-bnb-8bit", "model", f"{MODEL}-bnb-8bit", "main"),
        ("redhat", FP16, f"{MODEL}-fp16", "model", f"{MODEL}-fp16", "main"),
        ("default", NameParts("mine", "m1"), f"{MODEL}-m1", "model", f"{MODEL}-m1", "main"),
        ("default", NameParts("mine", "m1", shared=True), f"{MODEL}-mine", f"{MODEL}-m1", f"{MODEL}-mine", "main"),
        ("thebloke", GGUF, f"{MODEL}-GGUF", "llama-2-13b-chat.Q4_K_M", f"{MODEL}-GGUF", "main"),
        ("thebloke", GPTQ, f"{MODEL}-GPTQ-4bit-128g", "model", f"{MODEL}-GPTQ", "gptq-4bit-128g"),
        ("qwen", GPTQ, f"{MODEL}-GPTQ-Int4", "model", f"{MODEL}-GPTQ-Int4", "main"),
        ("qwen", NameParts("gptq", "8bit"), f"{MODEL}-GPTQ-Int8", "model", f"{MODEL}-GPTQ-Int8", "main"),
        ("bartowski", GGUF, f"{MODEL}-GGUF", f"{MODEL}-Q4_K_M", f"{MODEL}-GGUF", "main"),
        ("gguf-my-repo", GGUF, f"{MODEL}-Q4_K_M-GGUF", "llama-2-13b-chat-q4_k_m", f"{MODEL}-Q4_K_M-GGUF", "main"),
        ("gptq-for-llama", GPTQ, f"{MODEL}-4bit-128g", "4bit-128g", f"{MODEL}-4bit-128g", "main"),
    ],
)  # fmt: skip
def test_the_table(profile: str, parts: NameParts, folder: str, stem: str, repo: str, branch: str) -> None:
    found = names(MODEL, parts, profile)
    assert (found.folder, found.stem, found.repo, found.branch) == (folder, stem, repo, branch)


def test_a_shared_folder_keeps_a_manifest_for_each_file() -> None:
    assert names(MODEL, GGUF).manifest == f".qconvd/{MODEL}-Q4_K_M.json"
    assert names(MODEL, FP16).manifest == "qconvd.json"
    assert names(MODEL, GGUF, "gguf-my-repo").manifest == "qconvd.json"


@pytest.mark.parametrize(
    ("template", "parts", "folder", "stem"),
    [
        ("{model}-half", FP16, f"{MODEL}-half", "model"),
        ("{model:lower}.{variant:lower}", GGUF, f"{MODEL}-GGUF", "llama-2-13b-chat.q4_k_m"),
        ("{model}-ggufs/{model:upper}-{format}", GGUF, f"{MODEL}-ggufs", "LLAMA-2-13B-CHAT-gguf"),
    ],
)
def test_templates(template: str, parts: NameParts, folder: str, stem: str) -> None:
    found = names(MODEL, parts, template=template)
    assert (found.folder, found.stem) == (folder, stem)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{modl}-x",
            "the name template '{modl}-x' has an unknown field {modl} (did you mean model?)\n"
            "  fields: {model}, {variant}, {format}, {bits}, {scheme}",
        ),
        (
            "{model:title}",
            "the name template '{model:title}' wants 'title' of a field\n"
            "  write {model:lower}, {model:upper} or {variant:bare}",
        ),
        (
            "{model",
            "the name template '{model' has a brace that belongs to no field\n"
            "  fields: {model}, {variant}, {format}, {bits}, {scheme}",
        ),
        ("a/b/c", "the name template 'a/b/c' is not a name\n  write a folder's name or folder/file, e.g. {model}-{variant}"),
        ("/etc", "the name template '/etc' is not a name\n  write a folder's name or folder/file, e.g. {model}-{variant}"),
        (
            "../{model}",
            "the name template '../{model}' is not a name\n  write a folder's name or folder/file, e.g. {model}-{variant}",
        ),
        ("", "the name template '' is not a name\n  write a folder's name or folder/file, e.g. {model}-{variant}"),
    ],
)
def test_bad_templates(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        check_template(template)


def test_an_unknown_profile() -> None:
    expected = "there is no name profile 'thebloc' (did you mean thebloke?)\n  profiles: " + ", ".join(PROFILES)
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        names(MODEL, FP16, "thebloc")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b\\c", "a-b-c"),
        ("..", "model"),
        ("", "model"),
        (".qconvd", "qconvd"),
        ("-rf", "rf"),
        ("con", "con_"),
        ("NUL.txt", "NUL.txt_"),
        ("console", "console"),
        ("a\nb\x1b[31m\x7f", "ab[31m"),
        ("name. ", "name"),
        ("gpt\u202efdp", "gpt-fdp"),
        ("a\ud800b", "a-b"),
        ("模型-Ünïcode-👩‍💻", "模型-Ünïcode-👩‍💻"),
    ],
)
def test_safe_names(text: str, expected: str) -> None:
    assert safe(text) == expected


@given(st.text(max_size=400), st.sampled_from(sorted(PROFILES)), st.sampled_from([FP16, GGUF, GPTQ]))
def test_any_name_becomes_one_safe_component(model: str, profile: str, parts: NameParts) -> None:
    found = names(model, parts, profile)
    for part in (found.folder, found.stem, found.repo):
        assert part not in ("", ".", "..")
        assert "/" not in part
        assert not part.startswith((".", "-"))
        assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in part)
        assert len(part.encode()) <= NAME_BYTES - SUFFIX_BYTES
    assert len(found.manifest.partition("/")[2].encode()) <= NAME_BYTES


def test_long_names_stay_apart_and_keep_their_ending() -> None:
    long = "模" * 300
    one, other = names(f"{long}a", GGUF), names(f"{long}b", GGUF)
    assert one.stem != other.stem
    assert one.folder.endswith("-GGUF")
    assert one.stem.endswith("-Q4_K_M")


def test_collisions() -> None:
    q4, q8 = names(MODEL, GGUF), names(MODEL, NameParts("gguf", "Q8_0", shared=True))
    half = names(MODEL, FP16)
    assert collisions([("q4", q4), ("q8", q8), ("half", half)]) == []
    assert collisions([("a", half), ("b", half)]) == [("a", "b", f"{MODEL}-fp16/")]
    assert collisions([("a", q4), ("b", q4)]) == [("a", "b", f"{MODEL}-GGUF/{MODEL}-Q4_K_M")]


def test_names_that_differ_in_case_alone_collide() -> None:
    one, other = names("Model", FP16), names("model", FP16)
    assert collisions([("a", one), ("b", other)]) == [("a", "b", "model-fp16/")]


def test_a_folder_of_its_own_collides_with_a_shared_one() -> None:
    own, shared = names(MODEL, FP16, template="{model}-gguf"), names(MODEL, GGUF)
    assert collisions([("own", own), ("shared", shared)]) == [("own", "shared", f"{MODEL}-GGUF/")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama-3.1-8B", "Llama-3.1-8B"),
        ("..a--b..c-.d.", "a-b.c-d"),
        ("Qwen 2.5 (chat)", "Qwen-2.5-chat"),
        ("模型", "model"),
        ("a.git", "a"),
    ],
)
def test_a_name_is_spelt_as_the_hub_takes_it(name: str, expected: str) -> None:
    assert hub_safe(name) == expected


def test_a_long_name_keeps_its_ending_on_the_hub() -> None:
    made = hub_safe("x" * 120 + "-GGUF")
    assert len(made) == 96 and made.startswith("xxx") and made.endswith("-GGUF")
    assert made != hub_safe("x" * 121 + "-GGUF")


@given(st.text())
def test_what_the_hub_is_asked_for_it_takes(name: str) -> None:
    validate_repo_id(f"me/{hub_safe(name)}")


@pytest.mark.parametrize(
    ("parts", "profile", "template", "branch", "expected"),
    [
        (GPTQ, "thebloke", None, None, ("Llama-2-13B-chat-GPTQ", "gptq-4bit-128g")),
        (GGUF, "default", None, None, ("Llama-2-13B-chat-GGUF", "main")),
        (GGUF, "default", "{model:lower}-{format}", "{variant}", ("llama-2-13b-chat-gguf", "Q4_K_M")),
    ],
)
def test_repositories_and_branches(
    parts: NameParts, profile: str, template: str | None, branch: str | None, expected: tuple[str, str]
) -> None:
    assert repository(MODEL, parts, names(MODEL, parts, profile), template, branch) == expected


def test_a_repository_is_one_name() -> None:
    with pytest.raises(ConfigError, match="is not a name\n  write one name; `owner` is a key of its own"):
        repository(MODEL, FP16, names(MODEL, FP16), "me/{model}")
