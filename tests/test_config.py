"""config.yaml: what is right becomes typed data, what is wrong is told at once, each with its place."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from qconvd import config as configuration
from qconvd.checkpoints.base import ModelInfo, TensorInfo
from qconvd.config import Config, load, resolve_target
from qconvd.destinations import places
from qconvd.errors import ConfigError

ROOT = Path(__file__).parent.parent
MINIMAL = "output: ./models\nrecipes: {r: {targets: [fp16]}}\n"

Load = Callable[[str], Config]


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Write a config.yaml and load it from its folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Config:
        Path("config.yaml").write_text(text)
        return load(Path("config.yaml"))

    return write


@pytest.fixture
def mistakes(loaded: Load) -> Callable[[str], list[str]]:
    def of(text: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            loaded(text)
        assert str(caught.value) == "\n".join(caught.value.problems)
        return list(caught.value.problems)

    return of


def test_the_example_in_the_root_is_right() -> None:
    found = load(ROOT / "config.yaml")
    assert [t.label for t in found.recipes["everyday"].targets] == ["fp16", "gguf Q8_0", "gguf Q4_0"]
    assert found.watch[0].folder == ROOT / "inbox"
    assert (found.output, found.state) == (ROOT / "models", ROOT / "state")
    assert found.path == ROOT / "config.yaml"


def test_every_commented_line_of_the_example_is_right(tmp_path: Path) -> None:
    """Uncommented, the example must still load: nobody tests comments otherwise."""
    lines = []
    for line in (ROOT / "config.yaml").read_text().splitlines():
        body = line.lstrip().removeprefix("# ")
        # What looks like a key or an item is one; the rest is prose.
        is_code = line.lstrip().startswith("# ") and (
            body.split(":")[0].strip().replace("_", "").isalnum() or body.startswith("- ")
        )
        prose = ":" in body and body.split(":", 1)[1].strip().endswith(".")
        lines.append(line.replace("# ", "", 1) if is_code and not prose else line)
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    (tmp_path / "model-imatrix.gguf").write_bytes(b"only its content's hash is wanted here")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("so is its")
    found = load(tmp_path / "config.yaml")
    assert found.limits.memory == 16 * 2**30
    assert found.limits.jobs == 2
    assert found.watch[0].settle == 2.0
    assert found.recipes["everyday"].match.max_parameters == 70 * 10**9
    assert len(found.recipes["everyday"].targets) == 14
    assert [d.hub is not None for d in found.recipes["everyday"].publish] == [True, False]
    assert found.recipes["everyday"].confirm and found.recipes["everyday"].dry_run
    assert [n.name for n in found.notify] == ["webhook slack-url", "mail me@example.org", "command tell.sh"]


def test_what_is_left_out_has_its_default(loaded: Load) -> None:
    found = loaded(MINIMAL)
    assert found.watch == ()
    assert found.state == Path.cwd() / "state"
    assert found.limits.stop_grace == 10.0
    assert found.limits.disk_reserve == 2**30
    assert found.devices.cuda == "auto"
    assert found.names == "default"


def test_a_full_one(loaded: Load) -> None:
    found = loaded("""
watch:
  - {folder: ~/in, recipes: r, after: move, settle: 500ms, poll: always, interval: 1h}
output: /srv/models
state: ../elsewhere
recipes:
  r:
    match: {architectures: LlamaForCausalLM, names: ["*-Instruct"], min_parameters: 1M, max_parameters: 1.5B}
    targets: [q4_0]
limits: {memory: 20GiB, threads: 4, jobs: 2, stop_grace: 1m, disk_reserve: 5 GB}
devices: {cpu: false, cuda: [GPU-1], cuda_reserve: 0}
names: thebloke
""")
    watch = found.watch[0]
    assert (watch.folder, watch.recipes) == (Path("~/in").expanduser(), ("r",))
    assert (watch.after, watch.settle, watch.poll, watch.interval) == ("move", 0.5, "always", 3600.0)
    assert found.output == Path("/srv/models")
    assert found.state == Path.cwd().parent / "elsewhere"
    assert (found.limits.memory, found.limits.stop_grace, found.limits.disk_reserve) == (20 * 2**30, 60.0, 5 * 10**9)
    assert (found.devices.cpu, found.devices.cuda, found.devices.cuda_reserve) == (False, ("GPU-1",), 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("outptu: x\n", ["1:1: outptu: there is no key 'outptu' here (did you mean output?)"]),
        (
            "zzz: x\n",
            [
                "1:1: zzz: there is no key 'zzz' here; "
                "known are watch, output, state, recipes, limits, devices, keep, hub, web, log, notify, names"
            ],
        ),
        ("limits: {thread: 3}\n", ["1:10: limits.thread: there is no key 'thread' here (did you mean threads?)"]),
        (
            "limits: {memory: lots, jobs: 0, threads: many}\n",
            [
                "1:18: limits.memory: 'lots' is not a size; write for example 20GiB, 5 GB or 512MiB",
                "1:30: limits.jobs: 0 is too little; it must be at least 1",
                "1:42: limits.threads: 'many' is not a whole number",
            ],
        ),
        ("limits: {threads: yes}\n", ["1:19: limits.threads: true is not a number"]),
        ("limits: {jobs: 100000}\n", ["1:16: limits.jobs: 100000 is too much; it may be 65536 at most"]),
        (
            "watch: [{folder: ./in, recipes: [r], interval: 1ms}]\n",
            ["1:48: watch[0].interval: 0.001 is too little; it must be at least 0.1"],
        ),
        (
            "limits: {memory: 1:30:00, stop_grace: 1:30}\n",
            [
                f"1:{column}: limits.{key} to YAML {value}, a number in base 60; write the number or one with a unit, as 90m"
                for column, key, value in ((18, "memory:", "1:30:00 is 5400"), (39, "stop_grace:", "1:30 is 90"))
            ],
        ),
        (
            "limits: {quiet_hours: [22-7, '25:00-26:00', '22:00-22:00', 5]}\n",
            [
                "1:24: limits.quiet_hours[0]: '22-7' is no time of day; write for example 22:00-07:00",
                "1:30: limits.quiet_hours[1]: '25:00-26:00' names a time that no day has; write for example 22:00-07:00",
                "1:45: limits.quiet_hours[2]: '22:00-22:00' begins when it ends; `qconvd pause` pauses for longer",
                "1:60: limits.quiet_hours[3]: 5 is no time of day; write for example 22:00-07:00",
            ],
        ),
        ("limits: {disk: {low: 20GB, high: 10GB}}\n", ["1:34: limits.disk.high: 10GB is less than `low`, 20GB"]),
        ("limits: {disk: {high: 10GB}}\n", ["1:16: limits.disk.low: this key is missing"]),
        ("limits: 5\n", ["1:9: limits: this must be a mapping of keys, not 5"]),
        ("limits:\n", ["1:8: limits: this must be a mapping of keys, not nothing"]),
        ("names: theblok\n", ["1:8: names: there is no name profile 'theblok' (did you mean thebloke?)"]),
        (
            "devices: {cuda: atuo}\n",
            ["1:17: devices.cuda: 'atuo' is neither auto nor none nor a list of GPU UUIDs (did you mean auto?)"],
        ),
        (
            "devices: {cuda: [0]}\n",
            ["1:17: devices.cuda: 0 is not a GPU's UUID; `nvidia-smi -L` shows them (numbers change when a GPU fails)"],
        ),
        ("devices: {cpu: perhaps}\n", ["1:16: devices.cpu: 'perhaps' is neither true nor false"]),
        (
            "watch: [{folder: ./in, recipes: [r], after: kep, settle: soon}]\n",
            [
                "1:45: watch[0].after: 'kep' is none of keep, move, delete (did you mean keep?)",
                "1:58: watch[0].settle: 'soon' is not a duration; write for example 30s, 5m or 2h",
            ],
        ),
        ("watch: [{folder: ./in}]\n", ["1:9: watch[0].recipes: this key is missing"]),
        ("watch: [{folder: ./in, recipes: []}]\n", ["1:33: watch[0].recipes: this is empty; name at least one"]),
        ("watch: ./in\n", ["1:8: watch: this must be a list, not './in'"]),
        (
            "watch: [{folder: 5, recipes: r}]\n",
            ["1:18: watch[0].folder: 5 is not a path; write for example ./inbox or /srv/models"],
        ),
        (
            "watch: [{folder: ./in, recipes: [rr, x]}]\n",
            [
                "1:34: watch[0].recipes[0]: there is no recipe 'rr' (did you mean r?)",
                "1:38: watch[0].recipes[1]: there is no recipe 'x'; known are r",
            ],
        ),
    ],
)
def test_mistakes(mistakes: Callable[[str], list[str]], text: str, expected: list[str]) -> None:
    assert mistakes(text + MINIMAL) == [f"config.yaml:{line}" for line in expected]


def test_a_match_that_nothing_can_fit(mistakes: Callable[[str], list[str]]) -> None:
    text = "recipes: {r: {targets: [fp16], match: {min_parameters: 1B, max_parameters: %s}}}\noutput: ./models\n"
    assert mistakes(text % "70M") == [
        "config.yaml:1:76: recipes.r.match.max_parameters: 70.0M is less than min_parameters, 1.00B: no model fits both"
    ]
    assert mistakes(text % "bee")[0].startswith("config.yaml:1:76: recipes.r.match.max_parameters: 'bee' is not a number of")


TARGETS = [
    ("fp61", "", "there is no format 'fp61' (did you mean fp16?)"),
    ("{ggufs: q8_0}", ".ggufs", "there is no format 'ggufs' (did you mean gguf?)"),
    ("12", "", "a target is a name (fp16) or a format with its options (gguf: q8_0), not a number"),
    ("{}", "", "a target is a name (fp16) or a format with its options (gguf: q8_0), not a mapping"),
    (
        "{fp16: {}, gguf: q8_0}", "",
        "a target has one format, but here are 2 keys: fp16, gguf; options belong below the format's name",
    ),
    ("{fp16: {dtyp: bf16}}", ".fp16.dtyp", "there is no key 'dtyp' here (did you mean dtype?)"),
    ("{fp16: {on_overflow: clmp}}", ".fp16.on_overflow", "'clmp' is none of report, refuse, clamp (did you mean clamp?)"),
    ("{fp16: {device: gpu}}", ".fp16.device", "'gpu' is none of auto, cpu, cuda (did you mean cuda?)"),
    ("{fp16: 3}", ".fp16", "fp16 knows no type '3', only fp16, bf16, f32"),
    ("{fp16: 3.5}", ".fp16", "the options of fp16 are text or a mapping, not a number"),
    ("{fp16: fp8}", ".fp16", "fp16 knows no type 'fp8', only fp16, bf16, f32"),
    ("{q4_0: {types: [q8_0]}}", ".q4_0.types", "'q4_0' already says types; write 'gguf' with its options instead"),
    ("{gguf: []}", ".gguf", "the list is empty; name at least one"),
    ("gguf", "", "gguf alone says no types; write for example `gguf: {types: [q8_0, q4_k_m]}`"),
    (
        "{gguf: {pure: true}}", ".gguf.types",
        "this key is missing (Types to make, one file each, as llama-quantize calls them, e.g. `[q8_0, q4_k_m]`)",
    ),
    ("{gguf: {type: q8_0}}", ".gguf.type", "there is no key 'type' here (did you mean types?)"),
    ("awq", "", "there is no format 'awq'; there are fp16, fp8, ggml, gguf, gptq, imatrix, int4, int8"),
    ("safetensors", "", "there is no format 'safetensors' (did you mean fp16?)"),
    ("bnb", "", "there is no format 'bnb' (did you mean bnb-4bit?)"),
    (
        "bitsandbytes", "",
        "there is no format 'bitsandbytes' (did you mean int4: bitsandbytes or int8: bitsandbytes?)",
    ),
    ("F16", "", "there is no format 'F16' (did you mean ggml: F16 or gguf: F16?)"),
    (
        "{fp16: {name: '{modl}'}}", ".fp16.name",
        "the name template '{modl}' has an unknown field {modl} (did you mean model?). "
        "fields: {model}, {variant}, {format}, {bits}, {scheme}",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("target", "path", "message"), TARGETS)
def test_mistakes_in_targets(mistakes: Callable[[str], list[str]], target: str, path: str, message: str) -> None:
    (line,) = mistakes(f"output: ./models\nrecipes: {{r: {{targets: [bf16, {target}]}}}}\n")
    place, _, rest = line.partition(": ")
    assert rest == f"recipes.r.targets[1]{path}: {message}"
    assert place.startswith("config.yaml:2:")


def test_an_unknown_gguf_type_is_told_with_those_there_are(mistakes: Callable[[str], list[str]]) -> None:
    (line,) = mistakes("output: ./models\nrecipes: {r: {targets: [{gguf: {types: [q8_0, q9]}}]}}\n")
    assert line.startswith("config.yaml:2:40: recipes.r.targets[0].gguf.types: gguf has no type 'q9'")


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(mistakes: Callable[[str], list[str]]) -> None:
    found = mistakes("""\
watch:
  - folder: ./in
    recipe: [r]
output: ./in/out
recipes:
  r: {targets: [fp16, fp16, fp61]}
  r: {targets: []}
  s: {}
limits: {memory: x}
""")
    assert found == [
        "config.yaml:3:5: watch[0].recipe: there is no key 'recipe' here (did you mean recipes?)",
        "config.yaml:4:9: output: ./in/out lies inside the watched folder ./in (line 2); what qconvd writes there would be "
        "taken for models, so choose a folder outside of it",
        "config.yaml:6:23: recipes.r.targets[1]: fp16 stands in this recipe twice; first on line 6",
        "config.yaml:6:29: recipes.r.targets[2]: there is no format 'fp61' (did you mean fp16?)",
        "config.yaml:7:3: recipes.r: this key stands here twice; it was first set on line 6",
        "config.yaml:8:6: recipes.s.targets: this key is missing",
        "config.yaml:9:18: limits.memory: 'x' is not a size; write for example 20GiB, 5 GB or 512MiB",
    ]


def test_one_target_in_two_spellings_is_there_twice(mistakes: Callable[[str], list[str]]) -> None:
    text = "output: ./models\nrecipes:\n  r:\n    targets:\n      - q8_0\n      - gguf: {types: [q4_0, Q8_0]}\n"
    assert mistakes(text) == ["config.yaml:6:9: recipes.r.targets[1]: gguf Q8_0 stands in this recipe twice; first on line 5"]


def test_the_device_makes_no_other_target(mistakes: Callable[[str], list[str]]) -> None:
    found = mistakes("output: ./models\nrecipes: {r: {targets: [q8_0, {q8_0: {device: cuda}}]}}\n")
    assert found == ["config.yaml:2:31: recipes.r.targets[1]: gguf Q8_0 stands in this recipe twice; first on line 2"]


def test_a_device_that_a_format_has_no_kernels_for(mistakes: Callable[[str], list[str]]) -> None:
    found = mistakes("output: ./models\nrecipes: {r: {targets: [int4: {device: cuda, group_size: 32}]}}\n")
    assert found == [
        "config.yaml:2:40: recipes.r.targets[0].int4.device: int4 has no kernels for a GPU; leave `device` out, or say `cpu`"
    ]


def test_names_that_clash(mistakes: Callable[[str], list[str]]) -> None:
    found = mistakes("output: ./models\nrecipes: {r: {targets: [fp16, {fp16: {on_overflow: clamp}}]}}\n")
    assert found == [
        "config.yaml:2:24: recipes.r.targets: fp16 and fp16 would both be called <model>-fp16/; "
        "give one of them a `name:`, e.g. name: '{model}-{variant}-2'"
    ]


def test_names_that_clash_between_recipes_of_one_folder(mistakes: Callable[[str], list[str]]) -> None:
    found = mistakes("""\
watch: [{folder: ./in, recipes: [a, b]}]
output: ./models
recipes:
  a: {targets: [q4_0]}
  b: {targets: [q4_0, {q4_0: {pure: true}}]}
""")
    remedy = "; give one of them a `name:`, e.g. name: '{model}-{variant}-2'"
    assert [line.partition(": ")[2].removesuffix(remedy) for line in found] == [
        "recipes.b.targets: gguf Q4_0 and gguf Q4_0 of the recipe a would both be called <model>-GGUF/<model>-Q4_0",
        "recipes.b.targets: gguf Q4_0 and gguf Q4_0 would both be called <model>-GGUF/<model>-Q4_0",
    ]


def test_a_name_of_its_own_ends_the_clash(loaded: Load) -> None:
    found = loaded("output: ./m\nrecipes: {r: {targets: [fp16, {fp16: {on_overflow: clamp, name: '{model}-clamped'}}]}}\n")
    assert [t.names("X").folder for t in found.recipes["r"].targets] == ["X-fp16", "X-clamped"]


def test_recipes_that_no_folder_uses_together_may_share_names(loaded: Load) -> None:
    loaded("output: ./m\nrecipes: {a: {targets: [fp16]}, b: {targets: [{fp16: {on_overflow: clamp}}]}}\n")


@pytest.mark.parametrize(
    ("watch", "output", "state", "message"),
    [
        ("./in", "./in", "./s", "output: ./in is the watched folder ./in (line 1)"),
        ("./in", "./in/sub/out", "./s", "output: ./in/sub/out lies inside the watched folder ./in (line 1)"),
        ("./link", "./in/out", "./s", "output: ./in/out lies inside the watched folder ./link (line 1)"),
        ("./in", "./link/out", "./s", "output: ./link/out lies inside the watched folder ./in (line 1)"),
        ("./in", "./out", "./in/s", "state: ./in/s lies inside the watched folder ./in (line 1)"),
        ("./out/in", "./out", "./s", "watch[0].folder: ./out/in lies inside the output folder ./out (line 2)"),
        ("./s/in", "./out", "./s", "watch[0].folder: ./s/in lies inside the state folder ./s (line 3)"),
    ],
)
def test_outputs_and_watched_folders_stay_apart(
    mistakes: Callable[[str], list[str]], watch: str, output: str, state: str, message: str
) -> None:
    Path("in").mkdir()
    Path("link").symlink_to("in")
    recipes = "recipes: {r: {targets: [fp16]}}"
    (line,) = mistakes(f"watch: [{{folder: {watch}, recipes: r}}]\noutput: {output}\nstate: {state}\n{recipes}\n")
    assert line.partition(": ")[2].startswith(f"{message}; ")


def test_a_folder_is_watched_once(mistakes: Callable[[str], list[str]]) -> None:
    found = mistakes(
        "watch:\n  - {folder: ./in, recipes: r}\n  - {folder: in/, recipes: r}\n  - {folder: ./in/more, recipes: r}\n" + MINIMAL
    )
    assert found == [
        "config.yaml:3:14: watch[1].folder: in/ is the same folder as ./in (line 2); list each folder once",
        "config.yaml:4:14: watch[2].folder: ./in/more and ./in (line 2) lie inside one another; list each folder once",
        "config.yaml:4:14: watch[2].folder: ./in/more and in/ (line 3) lie inside one another; list each folder once",
    ]


@pytest.mark.parametrize(
    ("publish", "expected"),
    [
        ("[{}]", "publish[0]: a destination is either `hub: {owner: …}` or `folder: …`"),
        ("[{hub: {owner: me}, folder: ./x}]", "publish[0]: a destination is either `hub: {owner: …}` or `folder: …`"),
        ("[{hub: {}}]", "publish[0].hub.owner: this key is missing"),
        ("[{hub: {owner: me, privat: true}}]", "publish[0].hub.privat: there is no key 'privat' here (did you mean private?)"),
        ("[{hub: {owner: me/x}}]", "publish[0].hub.owner: 'me/x' is no name of a user or an organisation on the Hub"),
        ("[{hub: {owner: me--x}}]", "publish[0].hub.owner: 'me--x' is no name of a user or an organisation on the Hub"),
        (
            "[{hub: {owner: me, repo: '{mdel}'}}]",
            "publish[0].hub.repo: the name template '{mdel}' has an unknown field {mdel} (did you mean model?). "
            "fields: {model}, {variant}, {format}, {bits}, {scheme}",
        ),
        (
            "[{hub: {owner: me, repo: 'a/b'}}]",
            "publish[0].hub.repo: the name template 'a/b' is not a name; write one, e.g. {model}-{variant}",
        ),
        (
            "[{hub: {owner: me, base_model: x}}]",
            "publish[0].hub.base_model: 'x' is no repository; write for example meta-llama/{model}",
        ),
        ("[{hub: {owner: me, commit: all}}]", "publish[0].hub.commit: 'all' is none of together, each"),
        (
            "[{folder: ./m/x}]",
            "publish[0].folder: {here}/m/x and the output {here}/m lie inside one another; choose a folder outside of it",
        ),
        (
            "[{hub: {owner: me, repo: '{model}'}}]",
            "publish[0]: bf16 and fp16 would both be published as me/<model>; let `repo:` or `revision:` hold {variant}",
        ),
        ("[{hub: {owner: me}}]\n    card: ./none", "card: there is no such file"),
    ],
)
def test_where_nothing_can_be_published(mistakes: Callable[[str], list[str]], publish: str, expected: str) -> None:
    (line,) = mistakes(f"output: ./m\nrecipes:\n  r:\n    targets: [fp16, bf16]\n    publish: {publish}\n")
    assert line.split(": ", 1)[1] == "recipes.r." + expected.replace("{here}", str(Path.cwd()))


def test_recipes_that_are_used_together_do_not_publish_over_one_another(mistakes: Callable[[str], list[str]]) -> None:
    text = """
watch: [{folder: ./in, recipes: [a, b]}]
output: ./m
recipes:
  a: {targets: [fp16], publish: [{hub: {owner: me, repo: "{model}"}}]}
  b: {targets: [fp16], publish: [{hub: {owner: me, repo: "{model}"}}]}
  c: {targets: [bf16], publish: [{hub: {owner: me, repo: "{model}"}}]}
"""
    assert mistakes(text.replace("[a, b]", "[a, c]")) == [
        "config.yaml:7:34: recipes.c.publish[0]: bf16 and fp16 of the recipe a would both be published as me/<model>; "
        "let `repo:` or `revision:` hold {variant}"
    ]


def test_a_folder_that_is_watched_is_not_published_to(mistakes: Callable[[str], list[str]]) -> None:
    text = "watch: [{folder: ./in, recipes: r}]\noutput: ./m\nrecipes: {r: {targets: [fp16], publish: [{folder: ./in}]}}\n"
    (line,) = mistakes(text)
    here = Path.cwd()
    assert line.endswith(
        f"publish[0].folder: {here}/in and the watched folder {here}/in lie inside one another; choose a folder outside of it"
    )


def test_places_follow_the_names(loaded: Load) -> None:
    found = loaded("""
output: ./m
names: thebloke
recipes:
  r:
    targets: [fp16, q8_0]
    publish:
      - hub: {owner: me}
      - hub: {owner: us, repo: "{model}-{format:upper}", revision: "{variant}", private: true, base_model: "ai/{model}"}
      - folder: ./out
    confirm: true
""")
    recipe = found.recipes["r"]
    shown = [[p.shown for p in places(recipe, t, "Größe 1B", found.names)] for t in recipe.targets]
    assert shown == [
        ["me/Groe-1B-fp16", "us/Groe-1B-FP16 at fp16", f"{Path.cwd()}/out/Größe 1B-fp16"],
        ["me/Groe-1B-GGUF", "us/Groe-1B-GGUF at Q8_0", f"{Path.cwd()}/out/Größe 1B-GGUF"],
    ]
    first, second, _ = places(recipe, recipe.targets[0], "X", found.names)
    assert first.options == {
        "card": "", "confirm": True, "dry_run": False, "private": None, "commit": "together", "base_model": ""
    }  # fmt: skip
    assert second.options["base_model"] == "ai/X" and second.options["private"] is True


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "config.yaml:1:1: is empty; `qconvd init` writes one for this machine"),
        (b"- a\n", "config.yaml:1:1: is no mapping of keys like `watch:` and `recipes:`"),
        (b"a: [1\nb: 2", "config.yaml:2:2: is not valid YAML: while parsing a flow sequence, expected ',' or ']', but got ':'"),
        (b"output: x\nb: \xff\n", "config.yaml:2: is not UTF-8 text\n  save it as UTF-8"),
        (b"#" * (1 << 20) + b"\n", "config.yaml: is too large for a config (over 1 MiB)"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(Path("config.yaml"))
    assert str(caught.value) == message


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load(tmp_path / "c.yaml").output == tmp_path / "models"


def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(Path("config.yaml"))
    assert str(caught.value) == "config.yaml: cannot be read: No such file or directory\n  `qconvd init` writes a config"


def test_where_the_config_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QCONVD_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    with pytest.raises(
        ConfigError, match=r"^there is no config file\n  looked for config\.yaml, .*xdg/qconvd/config\.yaml, /etc/"
    ):
        configuration.find()
    (tmp_path / "xdg" / "qconvd").mkdir(parents=True)
    (tmp_path / "xdg" / "qconvd" / "config.yaml").touch()
    assert configuration.find() == tmp_path / "xdg" / "qconvd" / "config.yaml"
    Path("config.yaml").touch()
    assert configuration.find() == Path("config.yaml")
    Path("other.yaml").touch()
    monkeypatch.setenv("QCONVD_CONFIG", "other.yaml")
    assert configuration.find() == Path("other.yaml")
    monkeypatch.setenv("QCONVD_CONFIG", "gone.yaml")
    with pytest.raises(ConfigError, match=r"^\$QCONVD_CONFIG=gone\.yaml: there is no such file"):
        configuration.find()


FIND = """
import os
from pathlib import Path
from qconvd import config
from qconvd.errors import ConfigError
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for find in (config.find, lambda: config.load(Path("closed.yaml"))):
    try:
        print(find())
    except ConfigError as error:
        print(error)
"""


def test_a_config_that_is_not_for_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where the service's config is, and where this user's would be; pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "xdg" / "qconvd").mkdir(parents=True)
        (home / "xdg" / "qconvd" / "config.yaml").touch()
        (home / "closed.yaml").touch(mode=0)
        home.chmod(0o755)
        (home / "xdg" / "qconvd").chmod(0)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))
        monkeypatch.delenv("QCONVD_CONFIG", raising=False)
        done = subprocess.run([sys.executable, "-c", FIND], capture_output=True, text=True, check=False, cwd=home)
        (home / "xdg" / "qconvd").chmod(0o700)
    fix = "  read it as root or a member of its group, name another, or ask a running daemon: --url http://127.0.0.1:8484\n"
    assert done.stdout == (
        f"{home}/xdg/qconvd/config.yaml: cannot be read: Permission denied\n{fix}"
        f"closed.yaml: cannot be read: Permission denied\n{fix}"
    ), done.stderr


@pytest.mark.parametrize(
    ("raw", "labels"),
    [
        ("fp16", ["fp16"]),
        ("bf16", ["bf16"]),
        ("Q4_0", ["gguf Q4_0"]),
        ("q4", ["gguf Q4_0"]),
        ("q5", ["gguf Q5_0"]),
        ({"gguf": "q8_0"}, ["gguf Q8_0"]),
        ({"gguf": ["q8_0", "q4"]}, ["gguf Q8_0", "gguf Q4_0"]),
        ({"gguf": {"types": ["q8_0", "q5_1"]}}, ["gguf Q8_0", "gguf Q5_1"]),
        ({"q4_0": {"device": "cpu"}}, ["gguf Q4_0"]),
        ({"fp16": None}, ["fp16"]),
        ("nf4", ["bnb-4bit"]),
        ({"int4": "fp4"}, ["bnb-4bit-fp4"]),
        ({"int4": {"group_size": 64}}, ["int4-64g"]),
        ("fp8", ["FP8-dynamic"]),
        ("gptq-4bit-128g", ["gptq 4bit-128g"]),
        ("ggml-q4_0", ["ggml q4_0"]),
    ],
)
def test_short_and_long_targets(raw: object, labels: list[str]) -> None:
    assert [t.label for t in resolve_target(raw)] == labels


def test_spellings_of_one_target_have_one_digest() -> None:
    spellings = ["q4_0", "q4", {"gguf": "Q4_0"}, {"gguf": {"types": ["q4_0"]}}, {"gguf": {"types": ["Q4_0"], "device": "cpu"}}]
    assert len({resolve_target(raw)[0].digest for raw in spellings}) == 1


def test_a_target_alone_tells_its_mistakes() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_target({"fp16": {"dtyp": 1, "device": "x"}})
    assert set(caught.value.problems) == {
        "fp16.dtyp: there is no key 'dtyp' here (did you mean dtype?)", "fp16.device: 'x' is none of auto, cpu, cuda"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("match", "reason"),
    [
        ("{}", ""),
        ("{architectures: [Llama*], names: [TINY*], min_parameters: 10, max_parameters: 10}", ""),
        ("{architectures: [GPT2LMHeadModel]}", "its architecture LlamaForCausalLM is none of GPT2LMHeadModel"),
        ("{names: ['*-Instruct', 'x']}", "its name tiny-model fits none of *-Instruct, x"),
        ("{containers: [gguf, SafeTensors]}", ""),
        ("{containers: gguf}", "its weights come as safetensors, not as gguf"),
        ("{min_parameters: 1K}", "its 10 parameters are fewer than 1.0K"),
        ("{max_parameters: 9}", "its 10 parameters are more than 9"),
    ],
)
def test_which_models_a_recipe_takes(loaded: Load, match: str, reason: str) -> None:
    tensors = {"w": TensorInfo("w", "F16", (2, 5), "model.safetensors", 0, 20)}
    model = ModelInfo(Path("/x"), "tiny-model", "safetensors", tensors, [], {"architectures": ["LlamaForCausalLM"]})
    recipe = loaded(f"output: ./m\nrecipes: {{r: {{match: {match}, targets: [fp16]}}}}\n").recipes["r"]
    assert recipe.match.why_not(model) == reason
