"""The fetch task against a real server: what is downloaded, what is checked, and everything that may go wrong on the way."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hub_server import HubServer
from qconvd import checkpoints
from qconvd.engine.run import Cancelled
from qconvd.errors import Busy, HubBusy, HubRefused, OutOfSpace, TakenAway
from qconvd.fetching import fetch_task
from qconvd.hub.address import Address
from qconvd.hub.cache import CachedRepo, cache_folder
from qconvd.hub.client import Hub
from qconvd.hub.heads import Found, look
from qconvd.tasks import FetchSpec, FileSpec, LimitsSpec, SourceSpec, TargetSpec, TaskResult, TaskSpec

A = "alice/m"


class Bench:
    def __init__(self, server: HubServer, root: Path) -> None:
        self.server, self.root, self.cache = server, root, root / "cache"
        self.events: list[dict[str, Any]] = []

    def look(self) -> Found:
        return look(Hub(self.server.url, None, 5.0), Address(A), self.root / "state")

    def spec(self, found: Found | None = None) -> TaskSpec:
        found = found or self.look()
        folder = self.root / "state" / found.remote.commit
        fetch = FetchSpec(
            endpoint=self.server.url, timeout=2.0, repo=A, commit=found.remote.commit, folder=folder, cache=self.cache,
            files=tuple(FileSpec(path=f.path, size=f.size, sha256=f.sha256, oid=f.oid) for f in found.files),
        )  # fmt: skip
        target = TargetSpec(id="t1", format="fp16", work=self.root / "work", folder=self.root / "out", stem="m")
        return TaskSpec(
            task=1, kind="fetch", attempt=1, fence=1, source=SourceSpec(path=folder / "heads", name="m"), targets=(target,),
            limits=LimitsSpec(memory=1 << 29, threads=1), state=self.root / "state", fetch=fetch,
        )  # fmt: skip

    def fetch(self, spec: TaskSpec | None = None, cancelled: Callable[[], bool] = lambda: False) -> TaskResult:
        return fetch_task(spec or self.spec(), lambda e: self.events.append(dict(e)), cancelled)

    def model(self, result: TaskResult) -> Path:
        return Path(result.targets["t1"].data["folder"])


@pytest.fixture
def bench(hub_server: HubServer, tmp_path: Path, glass: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("qconvd.fetching.PAUSES", (0.01, 0.01))
    hurried = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", hurried)
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.5)
    hub_server.push(A, glass, texts={"README.md": "# Glass", "train.py": "x"})
    return Bench(hub_server, tmp_path)


def test_what_comes_is_the_model_bit_by_bit(bench: Bench, glass: Path) -> None:
    result = bench.fetch()
    model = bench.model(result)
    assert {p.name for p in model.iterdir()} == {p.name for p in glass.iterdir()} | {"README.md"}
    for file in glass.iterdir():
        assert (model / file.name).read_bytes() == file.read_bytes()
    data = result.targets["t1"].data
    assert data["identity"] == checkpoints.identity(checkpoints.inspect(model))
    assert sorted(data["fetched"]) == sorted(p.name for p in model.iterdir())
    assert bench.events[-1]["done"] == bench.events[-1]["total"] == data["nbytes"] and bench.events[-1]["target"] == "t1"
    assert not bench.server.log("train.py") and not list(bench.cache.rglob("*.incomplete"))


def test_again_downloads_nothing(bench: Bench) -> None:
    spec = bench.spec()
    first = bench.fetch(spec)
    bench.server.forget()
    assert bench.fetch(spec) == first
    assert not bench.server.log("GET .*resolve")


def test_what_others_have_fetched_is_used_and_is_theirs(bench: Bench) -> None:
    spec = bench.spec()
    Hub(bench.server.url).api.hf_hub_download(A, "model.safetensors", cache_dir=bench.cache)
    Hub(bench.server.url).api.hf_hub_download(A, "train.py", cache_dir=bench.cache)
    bench.server.forget()
    result = bench.fetch(spec)
    assert not bench.server.log("GET .*resolve.*model.safetensors")
    assert "model.safetensors" not in result.targets["t1"].data["fetched"]
    assert not (bench.model(result) / "train.py").exists(), "what else the cache has is no part of the model"


def test_exactly_the_commit_though_the_branch_moves(bench: Bench, glass: Path) -> None:
    spec = bench.spec()
    bench.server.push(A, texts={"config.json": "{}"})
    model = bench.model(bench.fetch(spec))
    assert (model / "config.json").read_bytes() == (glass / "config.json").read_bytes()


def test_damage_on_the_way_is_noticed_and_fetched_again(bench: Bench, glass: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = bench.spec()
    bench.server.fault("GET .*resolve/.*/model.safetensors", "flip")
    model = bench.model(bench.fetch(spec))
    assert (model / "model.safetensors").read_bytes() == (glass / "model.safetensors").read_bytes()
    assert "model.safetensors: is not what the Hub lists; it is fetched again" in capfd.readouterr().out


def test_another_file_under_the_same_name_is_never_taken(bench: Bench) -> None:
    spec = bench.spec()
    bench.server.fault("GET .*resolve/.*/tokenizer.json", "flip", times=-1)
    with pytest.raises(TakenAway, match=r"tokenizer\.json arrives with another content than the Hub lists") as caught:
        bench.fetch(spec)
    assert caught.value.where == "hub:alice/m"
    assert not (bench.root / "state" / spec.fetch.commit / "model").exists()  # type: ignore[union-attr]


def test_damage_in_the_cache_is_mended(bench: Bench, glass: Path) -> None:
    spec = bench.spec()
    model = bench.model(bench.fetch(spec))
    blob = (model / "model.safetensors").resolve()
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    assert (
        bench.model(bench.fetch(spec)).joinpath("model.safetensors").read_bytes() == (glass / "model.safetensors").read_bytes()
    )


def test_a_connection_that_drops_in_the_middle(bench: Bench, glass: Path) -> None:
    spec = bench.spec()
    bench.server.fault("GET .*resolve/.*/model.safetensors", "cut", bytes=100_000)
    model = bench.model(bench.fetch(spec))
    assert (model / "model.safetensors").read_bytes() == (glass / "model.safetensors").read_bytes()


@pytest.mark.parametrize("what", ["HEAD", "GET"])
def test_a_busy_hub_is_waited_for(bench: Bench, what: str) -> None:
    spec = bench.spec()
    bench.server.fault(f"{what} .*resolve/.*/model.safetensors", times=-1, status=503)
    with pytest.raises(HubBusy, match=r"fetching model\.safetensors"):
        bench.fetch(spec)
    bench.server.calm()
    assert bench.model(bench.fetch(spec)).exists()


def test_a_hanging_hub_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qconvd.fetching.PAUSES", ())
    spec = bench.spec()
    bench.server.fault("HEAD .*resolve/.*/model.safetensors", "hang", times=-1, seconds=60)
    with pytest.raises(HubBusy, match=r"fetching model\.safetensors"):
        bench.fetch(spec)


def test_access_that_is_taken_away_is_final(bench: Bench) -> None:
    spec = bench.spec()
    bench.server.settings(A, gated="auto")
    with pytest.raises(HubRefused, match="is gated: its conditions were not accepted") as caught:
        bench.fetch(spec)
    assert f"{bench.server.url}/alice/m" in caught.value.fix


def test_the_disk_is_asked_before(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = bench.spec()
    bench.server.forget()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(OutOfSpace, match=r"are to be fetched, and 1 B are free") as caught:
        bench.fetch(spec)
    assert caught.value.where == str(bench.cache) and "hub.cache" in caught.value.fix
    assert not bench.server.log()


def test_litter_goes_and_what_somebody_downloads_now_stays(bench: Bench) -> None:
    import fcntl

    spec = bench.spec()
    repo = CachedRepo(bench.cache, A)
    weights = next(f for f in bench.look().files if f.path == "model.safetensors")
    (repo.folder / "blobs").mkdir(parents=True)
    old, new, other = (repo.folder / "blobs" / name for name in (
        f"{weights.content}.incomplete", f"{weights.content}.ab12cd34.incomplete", "somebody-else.incomplete"))  # fmt: skip
    for place in (old, new, other):
        place.write_bytes(b"half")
    assert sorted(repo.sweep([weights.content])) == sorted([old, new]) and other.exists()
    new.write_bytes(b"half")
    locks = bench.cache / ".locks" / repo.folder.name
    locks.mkdir(parents=True)
    with (locks / f"{weights.content}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert repo.sweep([weights.content]) == [] and new.exists()
    bench.fetch(spec)
    assert not new.exists() and other.exists()


def test_a_stop_is_heard(bench: Bench) -> None:
    spec = bench.spec()
    bench.server.fault("GET .*resolve/.*/model.safetensors", "hold")
    asked = threading.Event()

    def cancelled() -> bool:
        if bench.server.held():
            asked.set()
        return asked.is_set()

    with pytest.raises(Cancelled):
        bench.fetch(spec, cancelled)
    bench.server.calm()
    assert bench.model(bench.fetch(spec)).exists()


def test_two_workers_do_not_fetch_the_same(bench: Bench) -> None:
    spec = bench.spec()
    bench.server.fault("GET .*resolve/.*/model.safetensors", "hold")
    first = threading.Thread(target=bench.fetch, args=(spec,))
    first.start()
    while not bench.server.held():
        pass
    with pytest.raises(Busy, match="another worker fetches this model"):
        bench.fetch(spec)
    bench.server.calm()
    first.join()


def test_what_we_fetched_can_be_freed_and_nothing_else(bench: Bench) -> None:
    spec = bench.spec()
    Hub(bench.server.url).api.hf_hub_download(A, "tokenizer.json", cache_dir=bench.cache)
    result = bench.fetch(spec)
    repo, commit = CachedRepo(bench.cache, A), bench.look().remote.commit
    contents = {f.path: f.content for f in bench.look().files}
    second = bench.server.push(A, texts={"README.md": "# Other"})
    Hub(bench.server.url).api.hf_hub_download(A, "config.json", revision=second, cache_dir=bench.cache)
    freed = repo.free(commit, {path: contents[path] for path in result.targets["t1"].data["fetched"]})
    assert freed >= next(f.size for f in bench.look().files if f.path == "model.safetensors")
    assert not repo.blob(contents["model.safetensors"]).exists()
    assert repo.file(commit, "tokenizer.json").exists(), "it was there before us"
    assert repo.file(second, "config.json").read_bytes(), "another snapshot has it"
    (repo.folder / "snapshots" / commit / "tokenizer.json").unlink()
    shutil.rmtree(repo.folder / "snapshots" / second)
    repo.free(commit, contents)
    assert not repo.folder.exists()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert cache_folder() == Path("~/.cache/huggingface/hub").expanduser()
    monkeypatch.setenv("HF_HOME", "/data/hf")
    assert cache_folder() == Path("/data/hf/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/data/cache")
    assert cache_folder() == Path("/data/cache") and cache_folder(Path("/mine")) == Path("/mine")


FULL = """
import subprocess, sys
from pathlib import Path
from qconvd import fetching
from qconvd.errors import OutOfSpace
from qconvd.tasks import TaskSpec

spec = TaskSpec.model_validate_json(Path(sys.argv[1]).read_bytes())
cache = spec.fetch.cache
fetching.PAUSES = (0.01, 0.01)
preflight = fetching._Fetch._preflight
fetching._Fetch._preflight = lambda self, missing: None  # there was room when it was asked; others took it since
try:
    fetching.fetch_task(spec, lambda event: None, lambda: False)
except OutOfSpace as error:
    print(error.what, "|", error.fix, file=sys.stderr)
assert not [p for p in cache.rglob("model.safetensors") if p.exists()], "nothing half is there"
fetching._Fetch._preflight = preflight
subprocess.run(["mount", "-o", "remount,size=64m", str(cache)], check=True)
result = fetching.fetch_task(spec, lambda event: None, lambda: False)
print(sum(p.stat().st_size for p in cache.rglob("*") if p.is_file() and not p.is_symlink() and p.parent.name == "blobs"))
assert not list(cache.rglob("*.incomplete"))
"""


def test_a_disk_that_fills_up_meanwhile(bench: Bench, tmp_path: Path) -> None:
    """A disk of 4 MiB, for a file of 8."""
    own = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted only where users may have namespaces of their own")
    data = random.Random(1).randbytes(8 << 20)
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    weights = tmp_path / "big" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(len(header).to_bytes(8, "little") + header + data)
    bench.server.push(A, weights.parent)
    spec = bench.spec()
    bench.cache.mkdir()
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    mounted = f'mount -t tmpfs -o size=4m tmpfs "{bench.cache}" && exec "$@"'
    done = subprocess.run(
        [*own, "sh", "-c", mounted, "sh", sys.executable, "-c", FULL, str(tmp_path / "spec.json")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Whichever of the files that are fetched at a time finds no room first.
    assert re.search(r"the disk is full while fetching \S+ \| make room, or choose another `hub.cache`", done.stderr)
    assert int(done.stdout.splitlines()[-1]) == sum(f.size for f in spec.fetch.files if f.size)  # type: ignore[union-attr]
