"""Commands that look and change nothing: plan, inspect, check, formats, schema, doctor; and init."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from command_line import Qconvd
from qconvd import rates
from qconvd.config import load

CONFIG = """\
watch: [{folder: ./inbox, recipes: [everyday, small], after: move}]
output: ./models
recipes:
  everyday: {targets: [fp16, {q4_0: {device: cpu}}]}
  small: {match: {max_parameters: 1K, names: "tiny*", architectures: [GPT2LMHeadModel]}, targets: [q8_0]}
"""


@pytest.fixture
def config(qconvd: Qconvd) -> Path:
    Path("config.yaml").write_text(CONFIG)
    return Path("config.yaml")


@pytest.fixture
def nothing_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine nothing was converted yet."""
    monkeypatch.setenv("QCONVD_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.usefixtures("nothing_done")
def test_plan(qconvd: Qconvd, glass: Path) -> None:
    said = qconvd("plan", glass, "--to", "fp16,q8_0")
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0] == "glass_en: LlamaForCausalLM, 852.6K parameters, 1.6 MiB"
    assert lines[2].split() == ["TARGET", "SIZE", "BYTES", "BITS/WEIGHT", "MEMORY"]
    assert lines[4] == "  glass_en-fp16/"
    assert lines[6] == "  glass_en-GGUF/glass_en-Q8_0.gguf"
    assert "4 of 38 tensors of the Q8_0 file are F16" in said.out
    assert "2 of 2 can be made" in lines[-3]
    assert re.fullmatch(r"One pass makes all of them, with [\d.]+ [MG]iB of memory \(threads: \d+\)\.", lines[-2])
    assert lines[-1] == "How long it takes to convert is known after the first time here."
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("memory", ["2GiB", "384MiB"])
def test_plan_prices_for_the_limits_of_the_config(qconvd: Qconvd, glass: Path, config: Path, memory: str) -> None:
    config.write_text(CONFIG + f"limits: {{threads: 6, jobs: 2, memory: {memory}}}\n")
    said = qconvd("plan", glass, "--recipe", "small")
    assert "It is made in one pass, with 384.0 MiB of memory (threads: 3).\n" in said.out


@pytest.mark.usefixtures("nothing_done")
def test_plan_says_how_long_it_takes_going_by_what_was_done_before(qconvd: Qconvd, glass: Path) -> None:
    rates.note_conversion(["fp16"], 100_000_000, 100)
    rates.note_conversion(["gguf Q8_0"], 100_000_000, 300)
    assert qconvd("plan", glass, "--to", "fp16,q8_0").out.endswith(
        "About 3.4s to convert, going by what was done here before.\n"
    )
    rates.note_conversion(["f32"], 100_000_000, 1)
    assert "About 1s to convert, going" in qconvd("plan", glass, "--to", "f32").out
    data = qconvd("plan", glass, "--to", "q8_0", "--json").json
    assert data["seconds"] == {"convert": pytest.approx(2.56, abs=0.01)}
    assert qconvd("plan", glass, "--to", "q4_0", "--json").json["seconds"] == {"convert": None}


def test_plan_says_what_the_scheduler_would(qconvd: Qconvd, glass: Path, config: Path) -> None:
    config.write_text(CONFIG + "limits: {memory: 350MiB}\n")
    said = qconvd("plan", glass, "--recipe", "small")
    assert said.code == 3
    assert (
        "gguf Q8_0 cannot be made: needs 384.0 MiB of memory; limits.memory allows 350.0 MiB\n"
        "  raise limits.memory, or give convert a larger --memory\n"
    ) in said.out


def test_plan_says_once_what_is_true_of_several_targets(qconvd: Qconvd, glass: Path) -> None:
    lines = qconvd("plan", glass, "--to", "q8_0,q4_0").out.splitlines()
    assert [line for line in lines if line.endswith(":")] == ["gguf Q8_0:", "gguf Q8_0, gguf Q4_0:", "gguf Q4_0:"]
    assert sum("the tokenizer has no byte tokens" in line for line in lines) == 1


def test_plan_says_once_what_it_takes_seconds_for(qconvd: Qconvd, glass: Path) -> None:
    few = "calibration: {samples: 2, length: 64}"
    said = qconvd("plan", glass, "--to", f"gptq: {{group_size: [32, 64], {few}}}")
    assert said.code == 0
    assert said.err == (
        "finding out how text goes through the model, for calibration; loading torch for that takes some seconds\n"
    )
    assert qconvd("plan", glass, "--to", f"gptq: {{group_size: 32, {few}}}", "--json").err == ""


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_two_targets_that_would_be_called_the_same_are_told_before_anything_is_made(
    qconvd: Qconvd, glass: Path, command: str
) -> None:
    both = "gptq: {method: rtn, group_size: 32}, gptq: {method: rtn, group_size: 32, mse: true}"
    said = qconvd(command, glass, "--to", both)
    assert (said.code, said.out) == (3, "")
    assert said.err == (
        "qconvd: gptq 4bit-32g-rtn and gptq 4bit-32g-rtn would both be called <model>-4bit-32g-rtn/\n"
        "  give one of them a `name:`, e.g. "
        """--to 'gptq: {group_size: [32], mse: 2.4, method: rtn, name: '"'"'{model}-{variant}-2'"'"'}'\n"""
    )
    named = both.replace("mse: true", "mse: true, name: '{model}-{variant}-mse'")
    assert qconvd("plan", glass, "--to", named).code == 0


def test_targets_may_be_given_one_by_one(qconvd: Qconvd, glass: Path) -> None:
    said = qconvd("plan", glass, "--to", "int8,fp16", "--to", "gguf: {types: [q4_0, q8_0]}", "--json")
    assert [a["target"] for a in said.json["artifacts"]] == ["int8", "fp16", "gguf Q4_0", "gguf Q8_0"]
    twice = qconvd("plan", glass, "--to", "int8", "--to", "int8")
    assert twice.code == 2 and "--to: the target int8 is given twice" in twice.err.replace("\n", " ")


def test_names_of_a_profile_can_be_seen_before(qconvd: Qconvd, glass: Path) -> None:
    assert "glass_en-quantized.w8a16/" in qconvd("plan", glass, "--to", "int8", "--names", "redhat").out
    said = qconvd("plan", glass, "--to", "int8", "--names", "nobody")
    assert said.code == 2 and "--names: there is no profile 'nobody'; there are default" in said.err


def test_plan_for_scripts_is_exact(qconvd: Qconvd, glass: Path) -> None:
    said = qconvd("plan", glass, "--to", "fp16,q8_0", "--name", "other", "--json")
    half, q8 = said.json["artifacts"]
    assert said.json["memory"] == max(half["memory"], q8["memory"]) >= 384 << 20
    assert said.json["threads"] >= 1
    assert said.json["parameters"] == 852608
    assert half["bytes"] == sum(f["bytes"] for f in half["files"])
    assert {f["path"] for f in half["files"]} == {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert (q8["artifact"], q8["format"]) == ("other-GGUF/other-Q8_0.gguf", "gguf")
    first = q8["left_out"][0]
    assert (first["tensor"], first["became"]) == ("blk.0.ffn_down.weight", "F16")


def test_plan_reads_no_weights(qconvd: Qconvd, glass: Path, tmp_path: Path) -> None:
    """A model whose weights are a hole in the file plans as the real one does."""
    shutil.copytree(glass, tmp_path / "glass_en")
    weights = tmp_path / "glass_en" / "model.safetensors"
    size = weights.stat().st_size
    head = weights.read_bytes()[: 8 + int.from_bytes(weights.read_bytes()[:8], "little")]
    weights.chmod(0o644)
    weights.write_bytes(head)
    os.truncate(weights, size)
    assert qconvd("plan", tmp_path / "glass_en", "--to", "q8_0").out == qconvd("plan", glass, "--to", "q8_0").out


def test_plan_of_what_cannot_be_made(qconvd: Qconvd, glass: Path, tmp_path: Path) -> None:
    shutil.copytree(glass, tmp_path / "odd")
    (tmp_path / "odd" / "config.json").write_text('{"architectures": ["OddForCausalLM"], "model_type": "odd"}')
    said = qconvd("plan", tmp_path / "odd", "--to", "fp16,q8_0")
    assert said.code == 3
    assert "gguf Q8_0 cannot be made: " in said.out
    assert "OddForCausalLM" in said.out
    assert "1 of 2 can be made" in said.out
    alone = qconvd("plan", tmp_path / "odd", "--to", "q8_0").out
    assert re.match(r"odd: [^\n]*\n\ngguf Q8_0 cannot be made: ", alone)


def test_plan_by_recipe(qconvd: Qconvd, glass: Path, config: Path) -> None:
    said = qconvd("plan", glass)
    assert said.code == 0
    reason = "its architecture LlamaForCausalLM is none of GPT2LMHeadModel"
    assert f"The recipe small does not take this model: {reason}." in said.out
    assert "glass_en-Q4_0.gguf" in said.out
    assert "glass_en-Q8_0.gguf" not in said.out
    assert "glass_en-Q8_0.gguf" in qconvd("plan", glass, "--recipe", "small").out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--to", "fp61"], 2, "--to: there is no format 'fp61' (did you mean fp16?)"),
        (["--to", ""], 2, "--to: no target is given"),
        (["--to", "q4_0,q4"], 2, "--to: the target gguf Q4_0 is given twice"),
        (["--to", "fp16", "--recipe", "everyday"], 2, "give --to or --recipe, not both"),
        (["--recipe", "evryday"], 3, "there is no recipe 'evryday' (did you mean everyday?)\n  its recipes: everyday, small"),
    ],
)
def test_plan_refuses(qconvd: Qconvd, glass: Path, config: Path, arguments: list[str], code: int, message: str) -> None:
    said = qconvd("plan", glass, *arguments)
    assert said.code == code
    assert message in said.err


def test_inspect(qconvd: Qconvd, glass: Path) -> None:
    said = qconvd("inspect", glass, "--tensors")
    assert said.code == 0
    assert "parameters         852.6K in 38 tensors" in said.out
    assert "weights            1.6 MiB (F16)" in said.out
    assert "model.layers.0.mlp.down_proj.weight" in said.out
    data = qconvd("inspect", glass, "--json").json
    assert (data["architecture"], data["parameters"], data["weights_by_type"]) == ("LlamaForCausalLM", 852608, {"F16": 852608})


def test_what_a_model_says_cannot_steer_the_terminal(qconvd: Qconvd, glass: Path, tmp_path: Path) -> None:
    shutil.copytree(glass, tmp_path / "bad")
    (tmp_path / "bad" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "\\u001b[2Jx"}')
    assert "\x1b" not in qconvd("inspect", tmp_path / "bad").out


def test_check(qconvd: Qconvd, config: Path, tmp_path: Path) -> None:
    said = qconvd("check")
    assert said.code == 0
    assert f"{tmp_path}/config.yaml is right." in said.out
    assert f"A model dropped into {tmp_path}/inbox (not there yet) becomes:" in said.out
    assert "MODEL-GGUF/MODEL-Q4_0.*" in said.out
    assert "DEVICE" in said.out
    config.write_text(CONFIG.replace("{q4_0: {device: cpu}}", "q4_0"))
    assert "DEVICE" not in qconvd("check").out
    assert "Then the model is moved to .qconvd-done/ there." in said.out
    limits = "the architecture GPT2LMHeadModel, a name like tiny*, at most 1.0K parameters"
    assert f"The recipe small is only for models with {limits}." in said.out
    assert qconvd("check", "--json").json["recipes"]["small"] == [{"format": "gguf", "options": {"types": ["Q8_0"]}}]


def test_check_says_where_artifacts_are_published(qconvd: Qconvd, config: Path, tmp_path: Path) -> None:
    more = "targets: [q8_0], publish: [{hub: {owner: me}}, {folder: ./out}], confirm: true, dry_run: true}"
    config.write_text(CONFIG.replace("targets: [q8_0]}", more))
    places = ["me/MODEL-GGUF", f"{tmp_path}/out/MODEL-GGUF"]
    assert qconvd("check", "--json").json["publish"] == {"everyday": [], "small": places}
    said = f"The recipe small publishes to {', '.join(places)}, when `qconvd publish JOB` says so (a dry run: nothing is)."
    assert said in " ".join(qconvd("check").out.split())


def test_check_says_which_hub_and_whose_token_but_not_the_token(
    qconvd: Qconvd, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nobody"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "the Hub" not in qconvd("check").out
    config.write_text(CONFIG.replace("targets: [q8_0]}", "targets: [q8_0], publish: [{hub: {owner: me}}]}"))
    assert "https://huggingface.co, without a token: only public models, and nothing is published" in qconvd("check").out
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    said = qconvd("check").out
    assert "https://huggingface.co, with the token from $HF_TOKEN" in said and "hf_secret" not in said
    config.write_text(f"{config.read_text()}hub: {{token_file: ./none}}\n")
    assert f"WRONG: the Hub's token cannot be read from {tmp_path}/none" in qconvd("check").out


@pytest.mark.parametrize(
    ("web", "page"),
    [
        ("{}", "http://127.0.0.1:8484, for this machine only"),
        ("{listen: off}", "off"),
        ("{listen: 'unix:/run/qconvd/http.sock'}", "unix:/run/qconvd/http.sock, for this machine only"),
        (
            "{listen: '0.0.0.0:8484'}",
            "http://0.0.0.0:8484, without a token: of other machines only webhooks are heard; name a file in `web.token_file`",
        ),
        ("{listen: '0.0.0.0:8484', token_file: ./secret}", "http://0.0.0.0:8484, with the token from {}/secret"),
        ("{token_file: ./none}", "http://127.0.0.1:8484, WRONG: the status page's token cannot be read from {}/none: "),
    ],
)
def test_check_says_where_the_page_is_and_for_whom(qconvd: Qconvd, config: Path, tmp_path: Path, web: str, page: str) -> None:
    (tmp_path / "secret").write_text("very-secret-token\n")
    config.write_text(f"{CONFIG}web: {web}\n")
    said = qconvd("check")
    assert f"\npage       {page.format(tmp_path)}" in said.out
    assert "very-secret" not in said.out


def test_check_takes_the_config_from_the_environment(qconvd: Qconvd, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.rename("other.yaml")
    monkeypatch.setenv("QCONVD_CONFIG", "other.yaml")
    assert "other.yaml is right." in qconvd("check").out


def test_formats(qconvd: Qconvd) -> None:
    said = qconvd("formats")
    assert said.code == 0
    lines = said.out.splitlines()
    at = lines.index("fp16     safetensors in float16, bfloat16 or float32")
    assert lines[at + 1 : at + 4] == [
        "         short: bf16, f32",
        "         options: dtype, on_overflow, keep, max_shard_size, gqa, eps,",
        "                  context_length, rope_theta",
    ]
    assert "         options: types (required), expand_gqa, allow_requantize" in lines
    assert lines[-3:] == [
        "Each also takes device, name and non_finite.",
        "`qconvd formats FORMAT` says what a format's options mean, how to write them,",
        "and which models it can be made from.",
    ]
    assert all(len(line) <= 80 for line in lines)
    assert len(lines) < 60
    data = qconvd("formats", "--json").json
    assert {f["name"] for f in data["formats"]} >= {"fp16", "gguf"}
    assert data["broken"] == []


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("fp16", ["  on_overflow     report, refuse, clamp  (default report)", "  max_shard_size  size  (default 5GB)",
                  "  keep            list of text  (optional)", "In a recipe:          - fp16: {dtype: bf16}"]),
        ("ggml", ["On the command line:  --to 'ggml: {types: [q8_0, q4_0], expand_gqa: true}'"]),
        ("nf4", ["On the command line:  --to 'int4: {container: bitsandbytes}'"]),
    ],
)  # fmt: skip
def test_the_options_of_a_format_and_how_they_are_written(qconvd: Qconvd, name: str, lines: list[str]) -> None:
    said = qconvd("formats", name).out.splitlines()
    assert [line for line in lines if line not in said] == []
    assert all(len(line) <= 80 for line in said if "--to" not in line)


@pytest.mark.parametrize("name", ["gguf", "q8_0"])
def test_one_format_and_the_models_that_it_is_made_from(qconvd: Qconvd, name: str) -> None:
    said = qconvd("formats", name)
    assert said.code == 0
    assert "fp16: " not in said.out
    assert "(required)" in said.out
    families = said.out.partition("Model families:\n")[2].splitlines()
    assert families[0].split() == ["FAMILY", "ARCHITECTURES", "ADDED", "BY"]
    assert ["gpt2", "GPT2LMHeadModel"] in [line.split() for line in families]
    (about,) = qconvd("formats", name, "--json").json["formats"]
    assert ["gpt2", "GPT2LMHeadModel", ""] in about["details"][0]["rows"]


def test_a_format_that_is_not_there(qconvd: Qconvd) -> None:
    said = qconvd("formats", "ggfu")
    assert (said.code, said.out) == (3, "")
    there = "fp16, fp8, ggml, gguf, gptq, imatrix, int4, int8"
    assert said.err == f"qconvd: there is no format 'ggfu' (did you mean gguf?)\n  there are: {there}\n"


def test_schema(qconvd: Qconvd) -> None:
    assert qconvd("schema").json["title"] == "qconvd configuration"


def test_init_writes_a_config_that_is_right(qconvd: Qconvd, tmp_path: Path) -> None:
    said = qconvd("init", "new place")
    assert said.code == 0
    run = "`qconvd run --config 'new place/config.yaml'`"
    assert said.out == f"Wrote new place/config.yaml. Next: {run}, and drop a model into new place/inbox.\n"
    assert qconvd("init").out == "Wrote config.yaml. Next: `qconvd run`, and drop a model into inbox.\n"
    found = load(tmp_path / "new place" / "config.yaml")
    assert found.watch[0].folder.is_dir()
    assert found.limits.threads is not None


def test_init_overwrites_nothing(qconvd: Qconvd) -> None:
    Path("config.yaml").write_text("mine")
    said = qconvd("init")
    assert said.code == 3
    assert said.err == (
        "qconvd: config.yaml: is there already and is left as it is\n  `qconvd check` looks at it; move it away to begin anew\n"
    )
    assert Path("config.yaml").read_text() == "mine"


def test_init_where_nothing_can_be_written(qconvd: Qconvd) -> None:
    Path("file").touch()
    said = qconvd("init", "file/x")
    assert (said.code, said.err) == (3, "qconvd: file/x/config.yaml: cannot be written: Not a directory\n")


def test_doctor(qconvd: Qconvd, config: Path, tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    said = qconvd("doctor", "--json")
    findings = {f["what"]: f for f in said.json}
    assert said.code == 0
    assert findings["config"]["found"] == "config.yaml"
    assert findings["watched"]["state"] == "good"
    assert findings["watch inbox"]["found"] == f"{tmp_path}/inbox can be watched"
    assert findings["output"]["found"].endswith("is not there yet; it will be made")
    assert {"CPU", "memory", "formats", "GGUF kernels", "inotify", "disk", "state"} <= findings.keys()


def test_doctor_looks_for_what_calibration_needs_if_a_recipe_calibrates(
    qconvd: Qconvd, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "calibration" not in {f["what"] for f in qconvd("doctor", "--json").json}
    for target, state in (("gptq", "good"), ("gguf: {types: [iq4_xs], imatrix: auto}", "good"), ("gptq: 4bit-rtn", "")):
        config.write_text(CONFIG.replace("targets: [q8_0]", f"targets: [{target}]"))
        assert [f["state"] for f in qconvd("doctor", "--json").json if f["what"] == "calibration"] == [state] * bool(state)
    config.write_text(CONFIG.replace("targets: [q8_0]", "targets: [gptq]"))
    monkeypatch.setattr("qconvd.examination.LIBRARIES", ("torch", "no_such_library"))
    said = qconvd("doctor")
    assert said.code == 1
    assert "the recipe small calibrates, and no_such_library is not installed" in " ".join(said.out.split())
    assert "calibration: pip install 'qconvd[calibration]'" in said.out


def test_doctor_finds_what_is_bad(qconvd: Qconvd) -> None:
    Path("models").touch()
    Path("config.yaml").write_text("output: ./models\nrecipes: {r: {targets: [fp16]}}\nlimits: {disk_reserve: 9000TiB}\n")
    findings = {f["what"]: f for f in qconvd("doctor", "--json").json}
    assert findings["output"]["found"].endswith("/models is no folder")
    said = qconvd("doctor")
    assert said.code == 1
    assert "disk: make room, set a lower `limits.disk_reserve`, or choose another `output:`" in said.out
    Path("config.yaml").write_text("outptu: ./models\n")
    said = qconvd("doctor")
    assert said.code == 1
    assert "config: config.yaml:1:1: outptu: there is no key 'outptu' here (did you mean output?)" in " ".join(said.out.split())
