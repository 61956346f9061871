"""The running daemon and a real Hub server: repositories appear, change, and cannot be had."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon_kit import Home, tiny_model
from hub_server import HubServer
from qconvd import checkpoints
from qconvd.engine.manifest import read_manifest
from qconvd.sightings import read_sightings

CONFIG = """\
watch:
{watch}
output: ./models
state: ./state
recipes:
  r: {{targets: {targets}, match: {match}}}
limits: {{stop_grace: 5s, disk_reserve: 0, jobs: 1, threads: 1}}
devices: {{cuda: none}}
hub: {{endpoint: '{url}', timeout: 5s}}
{more}
"""


class HubHome(Home):
    """A home that watches a Hub and no folder."""

    def __init__(self, root: Path, server: HubServer) -> None:
        super().__init__(root)
        self.server = server
        self.cache = root / "hf" / "hub"
        self.env = {"HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

    def watch(self, *entries: str, targets: str = "[fp16]", match: str = "{}", more: str = "web: {listen: off}") -> None:
        text = "\n".join(f"  - {entry}" for entry in entries) or "  []"
        self.config.write_text(CONFIG.format(watch=text, targets=targets, match=match, url=self.server.url, more=more))

    def seen(self, words: str) -> str:
        """Wait until the daemon tells of a repository that cannot be had."""

        def told() -> str:
            return "\n".join(f"{s.path} {s.kind} {s.reason} {s.fix}" for s in read_sightings(self.state))

        self.wait(lambda: words in told(), f"a sighting of {words!r}")
        return told()


@pytest.fixture
def home(tmp_path: Path, hub_server: HubServer) -> Iterator[HubHome]:
    home = HubHome(tmp_path / "home", hub_server)
    yield home
    home.kill()


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    def made(seed: int = 1, **how: int) -> Path:
        return tiny_model(tmp_path / f"model-{seed}", seed=seed, **how)  # type: ignore[arg-type]

    return made


def end(home: Home) -> None:
    assert home.stop() == 0, home.log()
    assert "Traceback" not in home.log(), home.log()


def test_a_repository_is_fetched_converted_and_names_its_commit(home: HubHome, hub_server: HubServer, glass: Path) -> None:
    commit = hub_server.push("alice/Glass-EN", glass, texts={"README.md": "# Glass", "pytorch_model.bin": "no"})
    home.watch("{hub: alice/Glass-EN, recipes: r}", targets="[fp16, gguf: q8_0]")
    assert home.once() == 0, home.log()
    assert {"Glass-EN-fp16/model.safetensors", "Glass-EN-GGUF/Glass-EN-Q8_0.gguf"} <= set(home.files())
    manifest = read_manifest(home.output / "Glass-EN-fp16" / "qconvd.json")
    (source,) = home.sources()
    assert source.locator == "hub:alice/Glass-EN" and source.fingerprint == commit
    assert manifest.source == {
        "name": "Glass-EN", "identity": source.digest, "locator": "hub:alice/Glass-EN", "revision": commit,
    }  # fmt: skip
    assert not hub_server.log("pytorch_model.bin")
    with home.ledger() as ledger:
        kinds = [t.kind for t in ledger.tasks()]
        snapshot = ledger.snapshot_of(source.id)
    assert kinds.count("fetch") == 1 and kinds.index("plan") < kinds.index("fetch") < kinds.index("convert")
    assert snapshot and snapshot.state == "here"
    assert str(home.root) not in json.dumps(dict(manifest.source))
    assert hub_server.url not in home.log(), "the client's own lines hold signed addresses"
    before = home.files()
    hub_server.forget()
    assert home.once() == 0, home.log()
    assert home.files() == before
    assert [e["request"] for e in hub_server.log()] == ["GET /api/models/alice/Glass-EN/revision/main?expand=sha"]


def test_new_weights_are_a_new_version_and_a_new_readme_is_none(
    home: HubHome, hub_server: HubServer, model: Callable[..., Path]
) -> None:
    hub_server.push("alice/m", model(1), texts={"README.md": "1"})
    home.watch("{hub: alice/m, recipes: r, interval: 1s}")
    home.start()
    home.done(1)
    first = home.files()
    commit = hub_server.push("alice/m", texts={"README.md": "2", "LICENSE": "2"})
    home.said("what changed is no part of the model")
    home.wait(lambda: home.sources()[0].fingerprint == commit, "the newer commit to be noted")
    (source,) = home.sources()
    assert source.version == 1
    hub_server.push("alice/m", model(2))
    home.wait(lambda: [t for t in home.targets("done") if t.source == home.sources()[0].id != source.id], "the second version")
    assert home.files()["m-fp16/model.safetensors"] != first["m-fp16/model.safetensors"]
    with home.ledger() as ledger:
        assert [t.kind for t in ledger.tasks()].count("convert") == 2
    end(home)


def test_an_author_with_filters_is_one_request(home: HubHome, hub_server: HubServer, model: Callable[..., Path]) -> None:
    weights = model()
    for name, about in {
        "good-Instruct": {}, "bad-Base": {}, "bad-License-Instruct": {"license": "other"},
        "bad-Task-Instruct": {"pipeline_tag": "text-classification"}, "bad-Large-Instruct": {"parameters": 10**12},
        "bad-Unknown-Instruct": {"parameters": None}, "ours-Instruct": {"tags": ["qconvd"]},
    }.items():  # fmt: skip
        hub_server.push(f"alice/{name}", weights)
        settings = {"license": "mit", "pipeline_tag": "text-generation", "parameters": 5000, **about}
        hub_server.settings(f"alice/{name}", **settings)
    hub_server.push("bob/other-Instruct", weights)
    hub_server.forget()
    home.watch(
        '{hub: {author: alice, pipeline: text-generation, licenses: [MIT], max_parameters: 1M, name: "*-instruct"}, recipes: r}'
    )
    assert home.once() == 0, home.log()
    assert [s.locator for s in home.sources()] == ["hub:alice/good-Instruct"]
    assert len(hub_server.log("^GET /api/models[?]")) == 1
    assert not hub_server.log("bad-|ours-|other-")
    hub_server.push("alice/bad-Base", delete=("config.json",))
    hub_server.forget()
    assert home.once() == 0, home.log()
    assert len(hub_server.log()) == 1, "what is known costs the one request"


def by_recipe(home: Home) -> dict[str, set[str]]:
    """The recipes that want something of each model, by its locator."""
    with home.ledger() as ledger:
        live = {s.locator: [t for t in ledger.targets(source=s.id) if t.state != "superseded"] for s in ledger.sources()}
    return {locator: {r for t in targets for r in t.recipes} for locator, targets in live.items()}


def test_a_restart_gives_no_model_the_recipes_of_another_entry(
    home: HubHome, hub_server: HubServer, model: Callable[..., Path]
) -> None:
    weights = model()
    hub_server.push("alice/m", weights)
    hub_server.push("alice/m", model(2), branch="dev")
    for name, task in (("x-Base", "fill-mask"), ("x-Instruct", "text-generation")):
        hub_server.push(f"bob/{name}", weights)
        hub_server.settings(f"bob/{name}", pipeline_tag=task)
    home.watch(
        "{hub: alice/m, recipes: r}", "{hub: alice/m@dev, recipes: s}", "{hub: {author: bob, pipeline: fill-mask}, recipes: r}",
        "{hub: {author: bob, pipeline: text-generation}, recipes: s}",
    )  # fmt: skip
    text = home.config.read_text().replace("recipes:\n", "recipes:\n  s: {targets: [f32]}\n", 1)
    home.config.write_text(text)
    wanted = {"hub:alice/m": {"r"}, "hub:alice/m@dev": {"s"}, "hub:bob/x-Base": {"r"}, "hub:bob/x-Instruct": {"s"}}
    home.once()
    assert by_recipe(home) == wanted
    home.once()
    assert by_recipe(home) == wanted
    # A filter that lets more in counts for what is known already, too.
    home.config.write_text(text.replace("pipeline: fill-mask", "name: x-*"))
    home.once()
    assert by_recipe(home) == {**wanted, "hub:bob/x-Instruct": {"r", "s"}}


def test_what_somebody_asked_for_outlives_a_commit_and_the_end_of_a_recipe(
    home: HubHome, hub_server: HubServer, model: Callable[..., Path]
) -> None:
    hub_server.push("alice/m", model())
    home.watch("{hub: alice/m, recipes: r, interval: 1s}")
    more = home.config.read_text().replace("recipes:\n", "recipes:\n  s: {targets: [f32]}\n  u: {targets: [bf16]}\n", 1)
    home.config.write_text(more)
    hub_server.fault("GET /alice/m/resolve/.*model.safetensors", "hold", skip=1)
    home.start()
    home.wait(lambda: hub_server.held() == 1, "the fetch")
    for recipe in ("s", "u"):
        assert home.ask("add", path="hub:alice/m", recipe=recipe).state == "done"
    assert by_recipe(home) == {"hub:alice/m": {"r", "s", "u"}}
    hub_server.push("alice/m", texts={"README.md": "new"})
    home.said("what changed is no part of the model")
    assert by_recipe(home) == {"hub:alice/m": {"r", "s", "u"}}
    home.config.write_text(more.replace("  u: {targets: [bf16]}\n", ""))
    assert home.ask("reload").state == "done"
    assert home.ask("add", path="hub:alice/m", recipe="s").state == "done"
    hub_server.calm()
    end(home)


def test_what_was_fetched_of_a_version_that_was_replaced_is_deleted_too(
    home: HubHome, hub_server: HubServer, model: Callable[..., Path]
) -> None:
    first = hub_server.push("alice/m", model())
    home.watch("{hub: alice/m, recipes: r, interval: 1s, after: delete}")
    hub_server.fault("GET /alice/m/resolve/.*model.safetensors", "hold", skip=1)
    home.start()
    home.wait(lambda: hub_server.held() == 1, "the fetch")
    second = hub_server.push("alice/m", model(2))
    home.wait(lambda: home.sources()[0].version == 2, "the second version")
    hub_server.calm()
    home.done(1)
    home.said(f"{second[:12]} is done, and what was fetched of it is deleted")
    home.said(f"{first[:12]} is done, and what was fetched of it is deleted")
    assert not [p for p in home.cache.rglob("*") if p.is_file() and p.suffix != ".lock" and p.name != "CACHEDIR.TAG"]
    end(home)


def test_gated_private_and_missing_are_told_with_the_page_and_asked_once(
    home: HubHome, hub_server: HubServer, model: Callable[..., Path]
) -> None:
    hub_server.push("alice/gated", model())
    hub_server.settings("alice/gated", gated="auto")
    hub_server.push("alice/private", model(2))
    hub_server.settings("alice/private", private=True)
    home.watch(*(f"{{hub: alice/{name}, recipes: r, interval: 1s}}" for name in ("gated", "private", "none")))
    home.start()
    home.seen("hub:alice/gated refused is gated: its conditions were not accepted")
    told = home.seen("hub:alice/none")
    assert f"accept its conditions at {hub_server.url}/alice/gated" in told and "then `qconvd reload`" in told
    assert "(it was asked without a token)" in told
    assert "hub:alice/private refused is not there, or is private" in told
    hub_server.forget()
    home.wait(lambda: True, "a moment")
    assert len(hub_server.log("alice/none")) <= 1
    # The token changes: bob has accepted, and what was final is asked again.
    hub_server.settings("alice/gated", granted=["bob"])
    token = home.root / "token"
    token.write_text("hf_bob")
    home.watch("{hub: alice/gated, recipes: r, interval: 1s}", more="# token")
    text = home.config.read_text().replace("timeout: 5s", "timeout: 5s, token_file: ./token")
    home.config.write_text(text)
    assert home.ask("reload").state == "done"
    home.done(1)
    end(home)
    secrets = [p for p in home.state.rglob("*") if p.is_file() and b"hf_bob" in p.read_bytes()]
    assert not secrets and "hf_bob" not in home.log()
    assert not [p for p in home.output.rglob("*") if p.is_file() and b"hf_bob" in p.read_bytes()]


def test_what_was_refused_while_it_was_fetched_is_fetched_after_a_reload(
    home: HubHome, hub_server: HubServer, model: Callable[..., Path]
) -> None:
    hub_server.push("alice/m", model())
    hub_server.fault("HEAD .*model.safetensors", status=403, headers={"X-Error-Code": "GatedRepo"}, times=-1)
    home.watch("{hub: alice/m, recipes: r}")
    home.start()
    home.wait(lambda: home.targets("failed"), "the refusal")
    (target,) = home.targets("failed")
    assert target.error["fix"].endswith("then `qconvd retry JOB`")
    hub_server.calm()
    assert home.ask("reload").state == "done"
    home.done(1)
    end(home)


def test_what_is_refused_by_a_recipe_or_a_reader_is_not_fetched(
    home: HubHome, hub_server: HubServer, model: Callable[..., Path]
) -> None:
    hub_server.push("alice/m", model())
    hub_server.push("alice/q", model(2), texts={"quantize_config.json": "{}"})
    hub_server.push("alice/ours", model(3), texts={"qconvd.json": "{}"})
    home.watch(*(f"{{hub: alice/{n}, recipes: r}}" for n in ("m", "q", "ours")), match="{min_parameters: 1B}")
    assert home.once() == 1, "something was left"
    told = "\n".join(f"{s.path} {s.kind} {s.reason}" for s in read_sightings(home.state))
    assert "hub:alice/m unwanted the recipe r does not take it: its" in told
    assert "hub:alice/q unwanted is already quantized" in told
    assert "hub:alice/ours unwanted was made by qconvd" in told
    assert not home.targets() and not home.cache.exists()
    hub_server.forget()
    home.watch(*(f"{{hub: alice/{n}, recipes: r, interval: 1s}}" for n in ("q", "ours")))
    home.start()
    home.wait(lambda: len(hub_server.log("alice/q/revision/main[?]expand=sha$")) > 3, "some questions")
    assert len(hub_server.log("alice/q")) - len(hub_server.log("alice/q/revision/main[?]expand=sha$")) <= 2, "one look"
    assert "hub:alice/q unwanted" in home.seen("hub:alice/q")
    end(home)


def test_a_gated_model_of_an_author_is_asked_for_once_and_the_others_are_taken(
    home: HubHome, hub_server: HubServer, model: Callable[..., Path]
) -> None:
    hub_server.push("alice/gated", model(2))
    hub_server.settings("alice/gated", gated="auto")
    hub_server.push("alice/open", model())
    home.watch("{hub: {author: alice}, recipes: r, interval: 1s}")
    home.start()
    home.done(1)
    home.wait(lambda: len(hub_server.log("^GET /api/models[?]")) > 3, "some questions")
    assert len(hub_server.log("alice/gated/auth-check")) == 1
    assert f"accept its conditions at {hub_server.url}/alice/gated" in home.seen("hub:alice/gated refused is gated")
    hub_server.settings("alice/gated", gated=False)
    assert home.ask("reload").state == "done"
    home.done(2)
    home.wait(lambda: not read_sightings(home.state), "nothing to complain about")
    end(home)


def test_what_is_refused_of_an_author_is_told_until_it_changes(
    home: HubHome, hub_server: HubServer, model: Callable[..., Path]
) -> None:
    weights = model()
    hub_server.push("alice/q", weights, texts={"quantize_config.json": "{}"})
    home.watch("{hub: {author: alice}, recipes: r, interval: 1s}")
    home.start()
    home.seen("hub:alice/q unwanted is already quantized")
    hub_server.forget()
    home.wait(lambda: len(hub_server.log("^GET /api/models[?]")) >= 3, "some more questions")
    assert "hub:alice/q unwanted is already quantized" in home.seen("hub:alice/q")
    assert "can be had again" not in home.log() and not hub_server.log("alice/q")
    hub_server.push("alice/q", delete=("quantize_config.json",))
    home.said("hub:alice/q can be had again")
    home.done(1)
    end(home)


def test_a_busy_hub_is_asked_again_when_it_says_so(home: HubHome, hub_server: HubServer, model: Callable[..., Path]) -> None:
    hub_server.push("alice/m", model())
    hub_server.fault("GET /api/models/alice/m", status=429, headers={"Retry-After": "31"}, times=-1)
    home.watch("{hub: alice/m, recipes: r, interval: 1s}")
    home.start()
    told = home.seen("it asks to wait 31 s")
    assert "hub:alice/m unreadable the Hub asks for fewer requests" in told and "it is asked again by itself" in told
    asked = len(hub_server.log("GET /api/models/alice/m"))
    hub_server.calm()
    assert asked == 1
    assert home.ask("reload").state == "done"
    home.done(1)
    end(home)


def test_added_by_hand(home: HubHome, hub_server: HubServer, model: Callable[..., Path]) -> None:
    hub_server.push("alice/m", model(), branch="dev")
    home.watch()
    home.start()
    answer = home.ask("add", path="hub:alice/m@dev", recipe="r")
    assert (answer.state, answer.answer) == ("done", "job 1: 1 artifact will be made"), answer
    refused = home.ask("add", path="hub:alice/none", recipe="r")
    assert refused.state == "refused" and "is not there, or is private" in refused.answer
    home.done(1)
    assert home.sources()[0].locator == "hub:alice/m@dev"
    again = home.ask("add", path="hub:alice/m@dev", recipe="r")
    assert again.answer == "job 1: all that the recipe wants is there or on its way"
    end(home)


def test_freed_when_all_is_made_and_fetched_again_when_wanted(
    home: HubHome, hub_server: HubServer, model: Callable[..., Path]
) -> None:
    hub_server.push("alice/m", model())
    home.watch("{hub: alice/m, recipes: r, after: delete}")
    home.start()
    home.said("what was fetched of it is deleted (")
    assert not [p for p in home.cache.rglob("*") if p.is_file() and p.suffix != ".lock" and p.name != "CACHEDIR.TAG"]
    before = home.files()
    assert home.ask("reconvert", ids=["1"]).state == "done"
    home.said("what was fetched of it is deleted", 2)
    assert home.files() == before
    end(home)


def test_a_cache_that_somebody_emptied_is_filled_again(
    home: HubHome, hub_server: HubServer, model: Callable[..., Path]
) -> None:
    import shutil

    hub_server.push("alice/m", model())
    home.watch("{hub: alice/m, recipes: r}")
    assert home.once() == 0, home.log()
    shutil.rmtree(home.cache)
    home.start()
    assert home.ask("reconvert", ids=["1"]).state == "done"
    home.said("it is fetched again")
    home.wait(lambda: home.targets("done"), "the artifact")
    end(home)
    assert checkpoints.inspect(home.output / "m-fp16").parameters


def test_a_webhook_brings_the_next_question_forward(home: HubHome, hub_server: HubServer, model: Callable[..., Path]) -> None:
    import re
    import urllib.request

    hub_server.push("alice/m", model(1))
    (home.root / "secret").write_text("s3cret")
    home.watch("{hub: alice/m, recipes: r, interval: 1h}", more="web: {listen: '127.0.0.1:0'}")
    home.config.write_text(home.config.read_text().replace("timeout: 5s", "timeout: 5s, webhook_secret_file: ./secret"))
    home.start()
    home.done(1)
    address = re.search(r"listens on (http://\S+)", home.log())
    assert address
    registered = urllib.request.Request(
        f"{hub_server.url}/api/settings/webhooks",
        json.dumps({
            "url": f"{address[1]}/webhooks/hub", "secret": "s3cret", "watched": [{"type": "user", "name": "alice"}]
        }).encode(),
        {"Authorization": "Bearer hf_alice"},
    )  # fmt: skip
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(registered, timeout=10).close()
    hub_server.push("alice/m", model(2))
    home.said("a webhook names alice/m")
    home.wait(lambda: home.sources()[0].version == 2 and home.targets("done"), "the second version")
    end(home)
    assert "s3cret" not in home.log()


def test_the_next_model_is_fetched_while_one_is_converted(
    home: HubHome, hub_server: HubServer, model: Callable[..., Path]
) -> None:
    import os
    import signal

    hub_server.push("alice/a", model(1))
    home.watch("{hub: alice/a, recipes: r}", "{hub: alice/b, recipes: r, interval: 1s}")
    home.start()
    home.wait(lambda: home.sources(), "the first model")
    stopped = home.freeze("convert")
    hub_server.push("alice/b", model(2))
    assert home.ask("reload").state == "done"
    with home.ledger() as ledger:
        home.wait(lambda: [s for s in ledger.snapshots("here") if s.repo == "alice/b"], "the second one to be here")
        assert [t.kind for t in ledger.tasks("running")] == ["convert"]
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    home.done(2)
    end(home)


def test_a_server_that_lags_behind_is_not_believed_at_once_and_a_branch_that_moves_back_is(
    home: HubHome, hub_server: HubServer, model: Callable[..., Path]
) -> None:
    first = hub_server.push("alice/m", model(1))
    home.watch("{hub: alice/m, recipes: r, interval: 1s}")
    home.start()
    home.done(1)
    hub_server.push("alice/m", model(2))
    home.wait(lambda: home.sources()[0].version == 2, "the second version")
    hub_server.forget()
    hub_server.fault("GET /api/models/alice/m", "stale")

    def asked_since() -> int:
        """How many questions came after the one that got an old answer."""
        faults = [e.get("fault") for e in hub_server.log("GET /api/models/alice/m")]
        return len(faults) - faults.index("stale") - 1 if "stale" in faults else 0

    home.wait(lambda: asked_since() > 3, "some questions")
    assert home.sources()[0].version == 2
    hub_server.move("alice/m", "main", first)
    home.wait(lambda: home.sources()[0].version == 3, "the first version again")
    home.wait(lambda: [t for t in home.targets("done") if t.source == home.sources()[0].id], "its artifact")
    end(home)
