"""The kernel cache: where it lies, when it is used, and that an edited building block never runs old machine code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

import qconvd_ggml
from qconvd import kernel_cache
from qconvd.api import cache_home
from qconvd_ggml.cache import CACHE
from qconvd_ggml.tile import nearest_int

ENCODE = """
import json, sys
import numpy as np
from qconvd_ggml import kernels
from qconvd_ggml.cache import CACHE
x = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
data, report = kernels.encode(sys.argv[1], x, "F32")
stats = kernels._ENTRIES[sys.argv[1]][0].stats
print(json.dumps({
    "data": data.tobytes().hex(), "folder": str(CACHE.folder),
    "hits": sum(stats.cache_hits.values()), "misses": sum(stats.cache_misses.values()),
}))
"""


def start(script: str, *args: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", script, *args]
    return subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> Any:
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return json.loads(out)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment that names no cache folder, and nothing remembered of one."""
    for name in ("QCONVD_CACHE_DIR", "CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    CACHE.__dict__.pop("folder", None)
    yield monkeypatch
    CACHE.__dict__.pop("folder", None)


def test_the_environment_names_the_folder(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.setenv("HOME", str(tmp_path))
    assert cache_home() == tmp_path / ".cache/qconvd"
    fresh.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_home() == tmp_path / "xdg/qconvd"
    fresh.setenv("CACHE_DIRECTORY", f"{tmp_path}/systemd:{tmp_path}/second")
    assert cache_home() == tmp_path / "systemd"
    fresh.setenv("QCONVD_CACHE_DIR", str(tmp_path / "own"))
    assert cache_home() == tmp_path / "own"
    assert not any(tmp_path.iterdir())
    assert CACHE.folder == tmp_path / "own/kernels" / CACHE.fingerprint
    assert CACHE.folder.is_dir()


def test_a_folder_that_cannot_be_made_is_replaced_by_a_private_one(
    fresh: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    fresh.setenv("QCONVD_CACHE_DIR", str(tmp_path / "file/cache"))
    fresh.setattr(tempfile, "tempdir", str(tmp_path))
    found = CACHE.folder
    assert found == tmp_path / f"qconvd-{os.getuid()}" / CACHE.fingerprint
    assert found.parent.stat().st_mode & 0o777 == 0o700
    assert f"the kernel cache {tmp_path}/file/cache/kernels/{CACHE.fingerprint} cannot be written" in caplog.text


@pytest.mark.parametrize("trap", ["symlink", "writable by all", "file"])
def test_a_temporary_folder_that_others_may_have_made_is_not_trusted(
    fresh: pytest.MonkeyPatch, tmp_path: Path, trap: str
) -> None:
    (tmp_path / "file").touch()
    fresh.setenv("QCONVD_CACHE_DIR", str(tmp_path / "file/cache"))
    fresh.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "theirs").mkdir()
    expected = tmp_path / f"qconvd-{os.getuid()}"
    if trap == "symlink":
        expected.symlink_to(tmp_path / "theirs")
    elif trap == "file":
        expected.touch()
    else:
        expected.mkdir()
        expected.chmod(0o777)
    found = CACHE.folder
    assert expected not in found.parents
    assert found.parent.stat().st_mode & 0o777 == 0o700
    assert not any((tmp_path / "theirs").iterdir())


def test_two_starts_at_once_compile_once_and_a_third_not_at_all(tmp_path: Path) -> None:
    both = [start(ENCODE, "F32", QCONVD_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    first, second = (finish(process) for process in both)
    assert first["data"] == second["data"]
    assert sorted([(first["hits"], first["misses"]), (second["hits"], second["misses"])]) == [(0, 1), (1, 0)]
    third = finish(start(ENCODE, "F32", QCONVD_CACHE_DIR=str(tmp_path)))
    assert (third["hits"], third["misses"]) == (1, 0)
    assert third["data"] == first["data"]


def test_editing_a_building_block_changes_the_folder_and_the_bytes(tmp_path: Path) -> None:
    copy = tmp_path / "qconvd_ggml"
    shutil.copytree(Path(qconvd_ggml.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    env = {"PYTHONPATH": str(tmp_path), "QCONVD_CACHE_DIR": str(tmp_path / "cache")}
    before = finish(start(ENCODE, "BF16", **env))
    assert (before["hits"], before["misses"]) == (0, 1)
    tile = (copy / "tile.py").read_text()
    edited = tile.replace("np.uint32(0x7FFF) + odd", "np.uint32(0x0000) + odd")
    assert edited != tile
    (copy / "tile.py").write_text(edited)
    after = finish(start(ENCODE, "BF16", **env))
    assert after["folder"] != before["folder"]
    assert after["data"] != before["data"]
    copy.rename(tmp_path / "gone")
    shutil.copytree(tmp_path / "gone", tmp_path / "elsewhere" / "qconvd_ggml")
    moved = finish(start(ENCODE, "BF16", **{**env, "PYTHONPATH": str(tmp_path / "elsewhere")}))
    assert moved["folder"] not in (before["folder"], after["folder"]), "two installations would drive each other out"


def test_being_warm_is_told_without_importing_numba(tmp_path: Path) -> None:
    ask = """
import json, sys
from qconvd_ggml.cache import CACHE
CACHE.names = ("F32", "F16")
warm = CACHE.is_warm()
print(json.dumps({"warm": warm, "heavy": sorted({"numba", "numpy", "llvmlite"} & set(sys.modules))}))
"""
    heat = """
import json
from qconvd_ggml.cache import CACHE
from qconvd_ggml.kernels import ready
CACHE.names = ("F32", "F16")
print(json.dumps([CACHE.warm(ready), CACHE.warm(ready)]))
"""
    env = {"QCONVD_CACHE_DIR": str(tmp_path / "cache")}
    assert finish(start(ask, **env)) == {"warm": False, "heavy": []}
    assert not (tmp_path / "cache").exists()
    assert all(seconds >= 0 for seconds in finish(start(heat, **env)))
    assert finish(start(ask, **env)) == {"warm": True, "heavy": []}


def test_warm_compiles_every_type_that_encode_knows() -> None:
    from qconvd_ggml import kernels

    assert set(CACHE.names) == set(kernels._KERNELS)


def test_a_cache_that_cannot_be_written_to_does_not_stop_a_conversion(tmp_path: Path) -> None:
    no_space = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    result = finish(start(no_space + ENCODE, "F32", QCONVD_CACHE_DIR=str(tmp_path)))
    assert (result["hits"], result["misses"]) == (0, 1)
    assert len(result["data"]) == 2 * 128 * 4
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]


def test_a_kernel_is_loaded_without_what_only_compiling_needs(tmp_path: Path) -> None:
    """It takes as long as importing numba. Other versions of numba may need more than is known of those, and do get it."""
    script = (
        "import qconvd.kernel_cache\n"
        "qconvd.kernel_cache.LOADS_ALONE = {versions}\n" + ENCODE + "print(json.dumps('numba.np.linalg' in sys.modules))\n"
    )
    said = []
    for versions in (kernel_cache.LOADS_ALONE, kernel_cache.LOADS_ALONE, ((0, 1), (0, 2))):
        out, error = start(script.replace("{versions}", str(versions)), "F32", QCONVD_CACHE_DIR=str(tmp_path)).communicate(
            timeout=120
        )
        assert not error
        said.append([json.loads(line) for line in out.splitlines()])
    assert [(encoded["misses"], everything) for encoded, everything in said] == [(1, True), (0, False), (0, True)]
    assert len({encoded["data"] for encoded, _ in said}) == 1


def test_it_is_known_what_machine_code_needs_of_the_installed_numba() -> None:
    """Who raises the version: see what `load_additional_registries` of numba.core.cpu does beside imports and registries."""
    least, most = kernel_cache.LOADS_ALONE
    assert least <= numba.version_info.short <= most


def test_a_kernel_that_a_power_cut_damaged_is_compiled_again(tmp_path: Path) -> None:
    cache = {"QCONVD_CACHE_DIR": str(tmp_path)}
    first = finish(start(ENCODE, "F32", **cache))
    for files, damage in (("*.nbi", "empty"), ("*.nbc", "cut off")):
        for path in tmp_path.rglob(files):
            path.write_bytes(b"" if damage == "empty" else path.read_bytes()[: path.stat().st_size // 2])
        process = start(ENCODE, "F32", **cache)
        out, said = process.communicate(timeout=120)
        assert process.returncode == 0 and json.loads(out)["data"] == first["data"], said
        assert re.search(r"the F32 kernel in \S+ cannot be read and is compiled again: ", said)
    assert finish(start(ENCODE, "F32", **cache))["misses"] == 0


def test_callers_cannot_make_a_kernel_compile_again() -> None:
    import numpy as np

    from qconvd_ggml import kernels

    entry = kernels.ready("F32")
    for writable in (True, False):
        x = np.ones((1, 5), np.float32)
        x.flags.writeable = writable
        kernels.encode("F32", x, "F32")
    assert len(entry.signatures) == 1
    with pytest.raises(TypeError, match="No matching definition"):
        entry(0, x, x, x, 1, x)


def test_kernels_compiled_in_different_processes_keep_their_own_building_blocks(tmp_path: Path, golden: Path) -> None:
    """numba numbers closures anew in each process: equal names with different constants once ran each other's code."""
    script = """
import json, sys
import numpy as np
from qconvd_ggml.kernels import encode
with np.load(sys.argv[1]) as known:
    x, importance = known["weights_bf16"], known["imatrix"]
    right = [np.array_equal(encode(t, x, "BF16", importance=importance)[0], known[t + ".imatrix"]) for t in sys.argv[2:]]
print(json.dumps(right))
"""
    blocks, env = str(golden / "ggml_blocks.npz"), {"QCONVD_CACHE_DIR": str(tmp_path)}
    for types in (["IQ1_S"], ["IQ1_M"], ["IQ1_S", "IQ1_M"], ["IQ1_M", "IQ1_S"]):
        assert finish(start(script, blocks, *types, **env)) == [True] * len(types)


def test_a_building_block_that_is_called_from_python_says_so() -> None:
    with pytest.raises(TypeError) as caught:
        nearest_int(np.float32(2.5))
    assert str(caught.value) == "nearest_int is a part of kernels: only compiled functions can call it"
