"""What a look at a watched folder finds: candidates, completeness, reasons; with races, links, holes and bad permissions."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ggml_files
from checkpoint_files import CONFIG, header_of, safetensors, whole_gguf, write_model, write_safetensors, write_sharded
from qconvd.checkpoints.ggml import read_file
from qconvd.intake import LEFT_OVER, Look, candidates, fingerprint, look, name_of, openings

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


def said(found: Look) -> tuple[str, str]:
    return found.state, found.reason


def test_a_defect_of_a_reader_is_that_models_alone(
    inbox: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: object, path: Path) -> None:
        raise OverflowError("Python int too large to convert to C long")

    model = write_model(inbox / "m")
    monkeypatch.setattr("qconvd.checkpoints.safetensors.SafetensorsReader.inspect", broken)
    found = look(model)
    assert said(found) == ("refused", "a defect of qconvd or of a plugin: OverflowError (the log has the traceback)")
    assert found.fix == "please report it"
    (record,) = [r for r in caplog.records if r.getMessage() == f"looking at {model} failed"]
    assert record.exc_info and record.exc_info[0] is OverflowError

    def short(self: object, path: Path) -> None:
        raise MemoryError

    monkeypatch.setattr("qconvd.checkpoints.safetensors.SafetensorsReader.inspect", short)
    assert said(look(model)) == ("incomplete", "there was not enough memory to look at it")


def names(folder: Path, **options: object) -> list[str]:
    return [str(p.relative_to(folder)) for p in candidates(folder, **options)]  # type: ignore[arg-type]


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- candidates


def test_folders_and_lone_files(inbox: Path) -> None:
    write_model(inbox / "model")
    write_model(inbox / "owner" / "nested")
    write_model(inbox / "a" / "b" / "too-deep")
    for name in ("lone.gguf", "lone.safetensors", "pytorch_model.bin", "x.PTH", "notes.txt", "picture.png"):
        touch(inbox / name)
    touch(inbox / "holiday" / "picture.png")
    (inbox / "empty").mkdir()
    assert names(inbox) == ["lone.gguf", "lone.safetensors", "model", "owner/nested", "pytorch_model.bin", "x.PTH"]


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.onnx", "adapter_config.json", "model_index.json", "x.gguf", "tf_model.h5", "model.safetensors.part",
     "model.safetensors.index.json", "model.safetensors.aria2"],
)  # fmt: skip
def test_a_folder_is_a_candidate_for_any_of(inbox: Path, name: str) -> None:
    touch(inbox / "m" / name)
    assert names(inbox) == ["m"]


@pytest.mark.parametrize(
    "name", [".hidden", ".git", "m.part", "m.partial", "m.incomplete", "m.tmp", "m.crdownload", "m~", "m.download"]
)
def test_hidden_and_temporary_names_are_passed_over(inbox: Path, name: str) -> None:
    write_model(inbox / name)
    touch(inbox / f"{name}.part" / "config.json")
    touch(inbox / "x.gguf.part")
    touch(inbox / ".x.gguf.AbCdEf")
    touch(inbox / "x.gguf.aria2")
    assert names(inbox) == []
    assert said(look(inbox / name)) == ("not-a-model", "the name is hidden or temporary")


def test_of_a_split_set_the_first_part_counts(inbox: Path) -> None:
    for i in (1, 2, 3):
        touch(inbox / f"X-{i:05}-of-00003.gguf")
    assert names(inbox) == ["X-00001-of-00003.gguf"]


def test_links_are_followed_once_and_never_in_circles(inbox: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "elsewhere" / "model")
    (inbox / "link").symlink_to(tmp_path / "elsewhere" / "model")
    (inbox / "a-second-link").symlink_to(tmp_path / "elsewhere" / "model")
    (inbox / "circle").symlink_to(inbox)
    (inbox / "up").symlink_to(tmp_path)
    (inbox / "nothing").symlink_to(tmp_path / "gone")
    (inbox / "itself").symlink_to("itself")
    write_model(inbox / "real")
    (inbox / "a-link-to-real").symlink_to("real")
    assert names(inbox) == ["a-second-link", "real"]
    assert look(inbox / "a-second-link").state == "complete"
    assert name_of(inbox / "link") == "link"


def test_the_hub_caches_layout(inbox: Path) -> None:
    repository = inbox / "models--owner--Name"
    write_model(repository / "snapshots" / "old")
    write_model(repository / "snapshots" / "new")
    assert names(inbox) == []  # nothing says which
    touch(repository / "refs" / "main", b"new")
    assert names(inbox) == ["models--owner--Name/snapshots/new"]
    assert name_of(candidates(inbox)[0]) == "Name"
    shutil.rmtree(repository / "snapshots" / "old")
    touch(repository / "refs" / "main", b"\xff..")
    assert names(inbox) == ["models--owner--Name/snapshots/new"]


def test_openings_are_where_a_model_can_appear_unseen(inbox: Path) -> None:
    write_model(inbox / "a-model")
    write_model(inbox / "owner" / "a-model")
    (inbox / "owner" / "empty" / "too-deep").mkdir(parents=True)
    (inbox / "empty").mkdir()
    (inbox / ".hidden").mkdir()
    touch(inbox / "ours-fp16" / "qconvd.json", b"{}")
    write_model(inbox / "models--o--n" / "snapshots" / "one")
    (inbox / "models--o--unfinished" / "blobs").mkdir(parents=True)
    found = openings(inbox, candidates(inbox))
    assert [str(p.relative_to(inbox)) for p in found[:3]] == ["empty", "models--o--unfinished", "owner"]
    assert [str(p.relative_to(inbox)) for p in found[3:]] == ["owner/empty"]
    assert openings(inbox / "gone", []) == []


def test_what_is_ours_is_no_source(inbox: Path) -> None:
    touch(write_model(inbox / "made-fp16") / "qconvd.json", b"{}")
    touch(inbox / "made-GGUF" / "x.gguf")
    touch(inbox / "made-GGUF" / ".qconvd" / "x.json", b"{}")
    write_model(inbox / "output" / "model")
    write_model(inbox / "source")
    assert names(inbox, ignore=[inbox / "output"]) == ["source"]
    assert said(look(inbox / "made-fp16")) == ("not-a-model", "was made by qconvd: it carries a manifest")
    assert look(inbox / "made-fp16").fix == "`qconvd convert` makes other formats of it all the same"
    assert look(inbox / "made-fp16", artifacts=True).state == "complete"
    assert look(inbox / "made-GGUF").state == "not-a-model"
    assert said(look(inbox / "output" / "model", ignore=[inbox / "output"])) == (
        "not-a-model",
        f"lies in {inbox / 'output'}, which holds no sources",
    )


def test_a_watched_folder_that_is_away(inbox: Path) -> None:
    with pytest.raises(FileNotFoundError):
        candidates(inbox / "gone")
    touch(inbox / "file")
    with pytest.raises(NotADirectoryError):
        candidates(inbox / "file")


def test_names_that_are_not_utf8(inbox: Path) -> None:
    bad = os.fsdecode(bytes(inbox) + b"/caf\xe9")
    write_model(Path(bad))
    assert names(inbox) == []
    assert said(look(Path(bad))) == ("not-a-model", f"{bad!a}: the name is not UTF-8")


# --- looks


def test_complete(inbox: Path, glass: Path) -> None:
    found = look(write_model(inbox / "m"))
    assert said(found) == ("complete", "")
    assert found.model is not None
    assert found.model.name == "m"
    real = look(glass)
    assert (real.state, real.model and real.model.architecture) == ("complete", "LlamaForCausalLM")
    touch(inbox / "X-Q4_0.gguf", whole_gguf())
    lone = look(inbox / "X-Q4_0.gguf")
    assert (lone.state, lone.model and lone.model.kind) == ("complete", "gguf")


def test_states_and_reasons(inbox: Path) -> None:
    model = write_sharded(inbox / "m")
    (model / "model-00002-of-00003.safetensors").unlink()
    assert said(look(model)) == ("incomplete", "1 of 3 shards are missing: model-00002-of-00003.safetensors")
    (inbox / "empty").mkdir()
    assert said(look(inbox / "empty")) == ("not-a-model", "the folder is empty")
    assert said(look(inbox / "gone")) == ("not-a-model", "there is nothing at this path")
    quantized = write_model(inbox / "q", CONFIG | {"quantization_config": {"quant_method": "hqq", "bits": 4}})
    assert said(look(quantized)) == ("refused", "config.json: is already quantized (HQQ, 4 bits)")
    assert look(quantized).fix.startswith("give qconvd the model that it was made from")
    (quantized / "config.json").unlink()
    assert said(look(quantized)) == ("refused", "no config.json in the folder")
    touch(inbox / "only" / "config.json", json.dumps(CONFIG).encode())
    assert said(look(inbox / "only")) == ("incomplete", "has a config.json but no weights yet")


def test_a_slow_copy_is_incomplete_at_every_step_but_the_last(inbox: Path, glass: Path) -> None:
    model = inbox / "m"
    model.mkdir()
    assert look(model).state == "not-a-model"
    shutil.copy(glass / "config.json", model)
    content = (glass / "model.safetensors").read_bytes()
    with (model / "model.safetensors").open("wb") as file:
        for start in range(0, len(content), 200_000):
            file.flush()
            assert look(model).state == "incomplete"
            file.write(content[start : start + 200_000])
        file.flush()
    assert look(model).state == "complete"


# --- temporary files beside the model


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json.part", "model.safetensors.tmp", "x.incomplete", "README.md.crdownload", ".tokenizer.json.a1B2c3",
     "x.filepart", ".cache/huggingface/download/AbC.123.incomplete", ".git/index.lock", ".git/shallow.lock",
     ".git/lfs/incomplete/4d7a", ".git/lfs/tmp/4d7a-123", ".git/objects/pack/tmp_pack_x1"],
)  # fmt: skip
def test_a_temporary_file_makes_it_incomplete_until_it_is_left_over(inbox: Path, name: str) -> None:
    model = write_model(inbox / "m")
    temporary = touch(model / name)
    found = look(model)
    assert said(found) == ("incomplete", f"{name}: is a file that is still being written")
    assert found.fix == f"wait for the program that writes it; if none does, remove {temporary.name}"
    then = time.time() - LEFT_OVER - 5
    os.utime(temporary, (then, then))
    assert look(model).state == "complete"
    os.utime(temporary)
    assert look(model).state == "incomplete"
    temporary.unlink()
    assert look(model).state == "complete"


@pytest.mark.parametrize("name", [".gitattributes", ".DS_Store", ".git/config", ".git/objects/pack/pack-1.idx",
                                  ".gitignore.backup", ".cache/huggingface/download/config.json.lock",
                                  ".cache/huggingface/download/x.metadata"])  # fmt: skip
def test_files_that_are_not_temporary(inbox: Path, name: str) -> None:
    model = write_model(inbox / "m")
    touch(model / name)
    assert look(model).state == "complete"


def test_arias_control_file_never_grows_old(inbox: Path) -> None:
    model = write_model(inbox / "m")
    control = touch(model / "model.safetensors.aria2")
    os.utime(control, (1, 1))
    assert said(look(model)) == ("incomplete", "model.safetensors.aria2: is a file that is still being written")
    control.rename(model / "another.aria2")
    assert look(model).state == "complete"


def test_beside_a_lone_file_only_its_own_temporary_files_count(inbox: Path) -> None:
    touch(inbox / "x.gguf", whole_gguf())
    touch(inbox / "xx.gguf.part")
    touch(inbox / "other.part")
    assert look(inbox / "x.gguf").state == "complete"
    touch(inbox / "x.gguf.part")
    assert said(look(inbox / "x.gguf")) == ("incomplete", f"{inbox / 'x.gguf.part'}: is a file that is still being written")
    (inbox / "x.gguf.part").rename(inbox / ".x.gguf.AbCdEf")
    assert look(inbox / "x.gguf").state == "incomplete"


def test_an_unfinished_blob_in_the_hub_cache(inbox: Path) -> None:
    repository = inbox / "models--o--n"
    snapshot = write_model(repository / "snapshots" / "abc")
    touch(repository / "blobs" / "4d7a.incomplete")
    assert look(snapshot).state == "incomplete"
    (repository / "blobs" / "4d7a.incomplete").rename(repository / "blobs" / "4d7a")
    assert look(snapshot).state == "complete"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_git_lfs_pointers(inbox: Path, name: str) -> None:
    model = write_model(inbox / "m")
    touch(model / name, LFS)
    found = look(model)
    assert said(found) == ("incomplete", f"{name}: is a Git LFS pointer, not the file itself")
    assert found.fix == f"run `git lfs pull` in {model}"


def test_a_lone_pointer(inbox: Path) -> None:
    touch(inbox / "x.gguf", LFS)
    assert said(look(inbox / "x.gguf")) == ("incomplete", "is a Git LFS pointer, not the file itself")
    touch(inbox / "x.bin", LFS)
    assert said(look(inbox / "x.bin")) == ("incomplete", "is a Git LFS pointer, not the file itself")


# --- holes


def sparse(model: Path, tensors: dict[str, int], written: dict[str, slice], zeros: dict[str, slice] | None = None) -> Path:
    """A model whose file is reserved at its full length, and written only in places."""
    write_model(model)
    header, size = header_of({name: ("U8", [count]) for name, count in tensors.items()})
    head = json.dumps(header).encode()
    head = head.ljust((len(head) // 4096 + 1) * 4096 - 8)  # data begins on a page
    path = model / "model.safetensors"
    with path.open("wb") as file:
        file.write(safetensors(head, b""))
        file.truncate(len(head) + 8 + size)
        for places, value in ((written, b"x"), (zeros or {}, b"\0")):
            for name, part in places.items():
                start, stop, _ = part.indices(tensors[name])
                file.seek(len(head) + 8 + header[name]["data_offsets"][0] + start)
                file.write(value * (stop - start))
    return model


PAGES = 1 << 18


@pytest.fixture
def knows_holes(tmp_path: Path) -> None:
    with (tmp_path / "probe").open("wb") as file:
        file.truncate(PAGES)
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 0, "these tests need a filesystem that knows holes"


@pytest.mark.usefixtures("knows_holes")
@pytest.mark.parametrize("half", [slice(0, PAGES // 2), slice(PAGES // 2, PAGES), slice(PAGES // 4, PAGES // 2)])
def test_a_reserved_file_that_is_half_written(inbox: Path, half: slice) -> None:
    model = sparse(inbox / "m", {"a": PAGES, "b": PAGES}, {"a": slice(None), "b": half})
    found = look(model)
    assert found.state == "incomplete"
    assert found.reason.startswith("model.safetensors: nothing was written yet from byte ")
    assert "cp --sparse=never" in found.fix
    subprocess.run(["cp", "--sparse=never", model / "model.safetensors", model / "copy"], check=True)
    (model / "copy").replace(model / "model.safetensors")
    assert look(model).state == "complete"


@pytest.mark.usefixtures("knows_holes")
def test_blocks_that_are_reserved_but_not_written(inbox: Path) -> None:
    model = sparse(inbox / "m", {"a": PAGES}, {"a": slice(0, PAGES // 2)})
    with (model / "model.safetensors").open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, (model / "model.safetensors").stat().st_size)
    assert look(model).state == "incomplete"


@pytest.mark.usefixtures("knows_holes")
def test_a_tensor_that_is_zero_throughout_may_be_a_hole(inbox: Path) -> None:
    tensors = {"a": PAGES, "bias": PAGES, "c": PAGES}
    model = sparse(inbox / "m", tensors, {"a": slice(None), "c": slice(None)}, {"bias": slice(0, 5000)})
    assert look(model).state == "complete"


@pytest.mark.usefixtures("knows_holes")
def test_reading_to_explain_a_hole_is_bounded(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparse(inbox / "m", {"a": 4 * PAGES}, {}, {"a": slice(0, 2 * PAGES)})
    assert look(model).state == "complete"
    monkeypatch.setattr("qconvd.holes.READ_LIMIT", PAGES)
    assert look(model).state == "incomplete"


def test_a_filesystem_that_refuses_to_speak_of_holes(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(inbox / "m")

    def refusing(*_: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "lseek", refusing)
    assert look(model).state == "complete"


# --- what may not be read


LOOK = """
import os, sys
from pathlib import Path
from qconvd.intake import candidates, look
from qconvd.plugins import plugins
plugins()  # everything is imported before the rights are given up: Python itself may lie where only root may read
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for path in candidates(Path(sys.argv[1])):
    found = look(path)
    print(found.state, found.reason, found.fix, sep="|")
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users can reach; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("what", ["config.json", "model.safetensors", "tokenizer.json", ""])
def test_what_may_not_be_read(public: Path, what: str) -> None:
    model = write_model(public / "inbox" / "m")
    closed = model / what if what else model
    closed.chmod(0)
    done = subprocess.run([sys.executable, "-c", LOOK, str(public / "inbox")], capture_output=True, text=True, check=False)
    closed.chmod(0o700)
    assert done.returncode == 0, done.stderr
    state, reason, fix = done.stdout.strip().split("|")
    place = f"{what}: " if what else ""
    assert (state, reason) == ("incomplete", f"{place}cannot be read: Permission denied")
    assert fix.startswith("let the user ")
    assert fix.endswith(f" read it: chmod -R a+rX {closed}")


def test_a_disk_that_fails(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(inbox / "m")

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing)
        assert said(look(model)) == ("incomplete", "config.json: cannot be read: Input/output error")
    monkeypatch.setattr("qconvd.checkpoints.inspect", failing)  # as the reader of a plugin may
    assert said(look(model)) == ("incomplete", "cannot be read: Input/output error")
    assert look(model).fix == "check the disk or the network mount"


# --- fingerprints


def changed(path: Path, change: Callable[[], object]) -> bool:
    before = fingerprint(path)
    assert fingerprint(path) == before
    change()
    return fingerprint(path) != before


def test_fingerprints_change_with_everything_relevant(inbox: Path) -> None:
    model = write_model(inbox / "m")
    weights = model / "model.safetensors"
    assert changed(model, lambda: touch(model / "vocab.txt"))
    assert changed(model, lambda: (model / "vocab.txt").rename(model / "vocab.json"))
    assert changed(model, lambda: (model / "vocab.json").unlink())
    assert changed(model, lambda: os.utime(weights, (1, 1)))
    assert changed(model, lambda: weights.chmod(0o600))
    assert changed(model, lambda: touch(model / "1_Pooling" / "config.json"))
    assert changed(model, lambda: touch(model / ".git" / "index.lock"))
    assert changed(model, lambda: touch(model / ".cache" / "huggingface" / "download" / "x.incomplete"))
    assert changed(model, lambda: shutil.copy2(weights, model / "b") and (model / "b").replace(weights))
    assert changed(model, lambda: model.chmod(0o700))
    assert changed(model, lambda: (weights.unlink(), weights.symlink_to("gone")))
    assert changed(model, lambda: shutil.rmtree(model))


def test_fingerprints_see_a_write_that_hides_its_time(inbox: Path) -> None:
    model = write_model(inbox / "m")
    weights = model / "model.safetensors"
    times = (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)

    def rewrite() -> None:
        weights.write_bytes(weights.read_bytes())
        os.utime(weights, ns=times)

    assert changed(model, rewrite)


def test_fingerprints_do_not_change_with_the_rest(inbox: Path) -> None:
    model = write_model(inbox / "m")
    assert not changed(model, lambda: touch(model / ".DS_Store"))
    assert not changed(model, lambda: touch(model / ".git" / "FETCH_HEAD"))
    assert not changed(model, lambda: touch(model / "original" / "params.json"))
    assert not changed(model, lambda: look(model))
    touch(inbox / "x.gguf", whole_gguf())
    assert not changed(inbox / "x.gguf", lambda: touch(inbox / "y.gguf"))
    assert changed(inbox / "x.gguf", lambda: touch(inbox / "x.gguf", b"y"))
    touch(inbox / "Y-00001-of-00002.gguf")
    assert changed(inbox / "Y-00001-of-00002.gguf", lambda: touch(inbox / "Y-00002-of-00002.gguf"))


def test_looks_carry_the_fingerprint_whatever_they_find(inbox: Path) -> None:
    model = write_model(inbox / "m")
    assert look(model).fingerprint == fingerprint(model)
    (model / "config.json").unlink()
    assert look(model).fingerprint == fingerprint(model)
    assert look(inbox / "gone").fingerprint == fingerprint(inbox / "gone")


# --- races


def test_files_that_vanish_or_change_while_they_are_looked_at(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(inbox / "m")
    real = os.open
    victim = model / "model.safetensors"

    def vanishing(path: Path, *rest: object, **more: object) -> int:
        if path == victim:
            victim.unlink(missing_ok=True)
        return real(path, *rest, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", vanishing)
        assert said(look(model)) == ("incomplete", "model.safetensors: is not there")

    def changing(path: Path, *rest: object, **more: object) -> int:
        if path == model / "tokenizer.json":
            touch(model / "tokenizer.json", os.urandom(8))
        return real(path, *rest, **more)  # type: ignore[arg-type]

    write_safetensors(victim)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", changing)
        assert said(look(model)) == ("incomplete", "changed while it was looked at")
    assert look(model).state == "complete"


def test_looking_while_a_model_is_made_and_removed_raises_nothing(inbox: Path, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    script = f"""
import shutil, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from checkpoint_files import write_sharded
while not Path({str(stop)!r}).exists():
    write_sharded(Path({str(inbox / "m")!r}))
    shutil.rmtree({str(inbox / "m")!r})
"""
    with subprocess.Popen([sys.executable, "-c", script]) as busy:
        states: list[str] = []
        while len(states) < 150 and busy.poll() is None:
            states += [look(path).state for path in candidates(inbox)]
        stop.touch()
    assert busy.returncode == 0
    assert len(states) >= 150
    assert set(states) <= {"complete", "incomplete", "refused", "not-a-model"}


def test_a_lone_ggml_file_is_complete_when_all_its_layers_are_there(tmp_path: Path) -> None:
    path, whole = tmp_path / "llama-7b.ggmlv3.f16.bin", ggml_files.llama()
    path.write_bytes(whole[: len(whole) // 2])
    assert candidates(tmp_path) == [path]
    found = look(path)
    assert (found.state, "of at least" in found.reason or "missing" in found.reason) == ("incomplete", True)
    path.write_bytes(whole)
    found = look(path)
    assert found.state == "complete"
    assert found.model is not None
    assert (found.model.name, found.model.kind) == ("llama-7b", "ggml")


@pytest.mark.parametrize("form", ["ggjt", "ggmf", "ggml", "gpt2"])
def test_a_ggml_file_that_is_copied_is_taken_with_its_last_byte(tmp_path: Path, form: str) -> None:
    tokens = [bytes([byte]) for byte in range(256)]
    whole = {
        "ggjt": ggml_files.llama(matrix="Q4_0"),
        "ggmf": ggml_files.llama(ggml_files.GGMF, 1),
        "ggml": ggml_files.llama(ggml_files.GGML, 0),
        "gpt2": ggml_files.gpt2(tokens),
    }[form]
    path = tmp_path / "m.bin"
    path.write_bytes(whole)
    records = [start for start, _ in read_file(tmp_path, path.name).records]
    steps = sorted({*range(4, 64), *range(64, len(whole), len(whole) // 150), *records, len(whole) - 1})
    seen = {}
    for length in steps:
        path.write_bytes(whole[:length])
        seen[length] = look(path).state
    assert {length: state for length, state in seen.items() if state != "incomplete"} == {}
    path.write_bytes(whole)
    assert look(path).state == "complete"
