"""The whole loop: a commit on the Hub is fetched, converted by three recipes, published, downloaded again and run by others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from daemon_kit import Home, tiny_model
from gguf_readers import Llama, generated, mean_kl, reference
from hub_server import HubServer
from qconvd.quality.verify import verify_path

pytestmark = pytest.mark.readers
CARD = "---\nlicense: apache-2.0\nlanguage: en\npipeline_tag: text-generation\n---\n# Glass\nTrained on Alice.\n"
TEXT = "Alice was beginning to get very tired of sitting by her sister on the bank,"
CONFIG = """\
watch:
  - hub: carroll/glass-en
    recipes: [half, four, eight]
    interval: 1s
output: ./models
state: ./state
recipes:
  half: {{targets: [fp16], publish: &where [{{hub: {{owner: alice}}}}]}}
  four: {{targets: [q4_0], publish: *where}}
  eight: {{targets: [q8_0], publish: *where}}
limits: {{stop_grace: 10s, disk_reserve: 0, jobs: 1, threads: 1}}
devices: {{cuda: none}}
web: {{listen: off}}
hub: {{endpoint: '{url}', cache: ./cache}}
"""


@pytest.fixture
def home(tmp_path: Path, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    home = Home(tmp_path, configure=False)
    home.config.write_text(CONFIG.format(url=hub_server.url))
    return home


def model(glass: Path, folder: Path, scale: float = 1.0) -> Path:
    """The real model with its card; another scale of its last norm is another version."""
    shutil.copytree(glass, folder)
    (folder / "README.md").write_text(CARD)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = (tensors["model.norm.weight"].float() * scale).to(tensors["model.norm.weight"].dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_from_a_commit_to_models_that_others_run(home: Home, hub_server: HubServer, glass: Path, tmp_path: Path) -> None:
    first = model(glass, tmp_path / "first")
    commit = hub_server.push("carroll/glass-en", first)
    home.start()
    home.done(3)
    assert hub_server.repos() == ["alice/glass-en-GGUF", "alice/glass-en-fp16", "carroll/glass-en"]
    assert_runs(hub_server, tmp_path / "got-1", first, commit)

    second = model(glass, tmp_path / "second", scale=1.25)
    newer = hub_server.push("carroll/glass-en", second)

    def published() -> bool:
        return all(f"/tree/{newer}" in hub_server.read(repo, "README.md").decode() for repo in hub_server.repos()[:2])

    home.wait(published, "the new version to be published")
    home.wait(lambda: len(home.targets("done")) == 3 and not home.targets("publishing", "ready"), "all to be done")
    assert_runs(hub_server, tmp_path / "got-2", second, newer)
    assert home.stop() == 0
    assert [c["title"] for c in hub_server.commits("alice/glass-en-fp16")][:-1] == ["Add glass-en-fp16"] * 2


def assert_runs(server: HubServer, out: Path, source: Path, commit: str) -> None:
    """What anybody downloads is whole, is described, and computes what the source computes."""
    api = HfApi(endpoint=server.url, token=False)
    gguf = Path(api.snapshot_download("alice/glass-en-GGUF", local_dir=out / "gguf"))
    half = Path(api.snapshot_download("alice/glass-en-fp16", local_dir=out / "half"))
    for folder in (gguf, half):
        reports = verify_path(folder)
        assert reports and all(getattr(r, "sha256", False) for r in reports), reports
        card = ModelCard.load(folder / "README.md").data.to_dict()
        assert (card["base_model"], card["base_model_relation"]) == ("carroll/glass-en", "quantized")
        assert (card["license"], card["language"], card["quantized_by"]) == ("apache-2.0", "en", "alice")
    for manifest in (half / "qconvd.json", *gguf.glob(".qconvd/*.json")):
        assert json.loads(manifest.read_text())["source"]["revision"] == commit

    tokenizer = AutoTokenizer.from_pretrained(half)
    tokens = tokenizer(TEXT)["input_ids"]
    theirs = reference(source, tokens)
    loaded = AutoModelForCausalLM.from_pretrained(half, dtype=torch.float32).eval()
    with torch.no_grad():
        ours = np.asarray(loaded(torch.tensor([tokens])).logits[0].numpy())
    assert mean_kl(theirs, ours) < 1e-4
    for name, bound in (("Q8_0", 0.01), ("Q4_0", 0.6)):
        path = gguf / f"glass-en-{name}.gguf"
        llama = Llama(path)
        assert mean_kl(theirs, llama.logits(tokens)) < bound
        assert generated(path, "Alice was")


def test_what_was_fetched_is_deleted_when_all_is_published_and_not_before(home: Home, hub_server: HubServer) -> None:
    text = home.config.read_text().replace("interval: 1s", "interval: 1s\n    after: delete")
    home.config.write_text(text.replace("[half, four, eight]", "[half]"))
    hub_server.push("carroll/glass-en", tiny_model(home.root / "source"))
    hub_server.fault("POST .*/commit/", kind="hold")
    home.start()
    home.wait(lambda: hub_server.held() == 1, "the upload")

    def blobs() -> list[Path]:
        return [p for p in (home.root / "cache").glob("models--*/blobs/*") if p.stat().st_size > 5000]

    assert blobs(), "it is not published yet"
    hub_server.calm()
    home.done(1)
    home.wait(lambda: not blobs(), "what was fetched to be deleted")
    home.stop()
    assert [c["title"] for c in hub_server.commits("alice/glass-en-fp16")][:-1] == ["Add glass-en-fp16"]
