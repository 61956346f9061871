"""Where compiled kernels are kept between runs.

numba's own cache looks at the source file of a kernel's entry point only, so an edited building block would silently run old
machine code. Here the folder itself is named by a hash of everything the machine code depends on: all sources of this
package, the versions of numba and llvmlite, numba's settings and the CPU. Nothing in this module imports numba.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import platform
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

from qconvd.api import cache_home

log = logging.getLogger(__name__)
SOURCES = Path(__file__).parent
KERNELS = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "F32", "F16", "BF16",
    "Q4_0.imatrix", "Q4_1.imatrix", "Q5_0.imatrix", "Q5_1.imatrix",
    "Q2_K.imatrix", "Q3_K.imatrix", "Q4_K.imatrix", "Q5_K.imatrix", "Q6_K.imatrix", "squares",
    "IQ4_NL", "IQ4_NL.imatrix", "IQ4_XS", "IQ4_XS.imatrix", "MXFP4", "TQ1_0", "TQ2_0",
    "IQ1_S.imatrix", "IQ1_M", "IQ2_XXS.imatrix", "IQ2_XS.imatrix", "IQ2_S", "IQ3_XXS", "IQ3_S",
)  # fmt: skip
"""The kernels that `warm` compiles, by the type they write; `.imatrix` is for encoding with an importance matrix."""
NO_MATTER = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS")
"""Settings that do not change the machine code. Workers differ in the second: no kernel here starts numba's own threads."""


@cache
def folder() -> Path:
    """The folder for this version of the kernels on this CPU; made if it is not there.

    Below `cache_home()`; where that cannot be written, below the system's temporary folder, where only this user can write.
    """
    wanted = cache_home() / "kernels" / fingerprint()
    if _usable(wanted):
        return wanted
    fallback = _temporary() / fingerprint()
    fallback.mkdir(exist_ok=True)
    log.warning("the kernel cache %s cannot be written; compiled kernels go to %s", wanted, fallback)
    return fallback


@cache
def fingerprint() -> str:
    """A name for all that decides the machine code: sources, compiler, its settings, CPU."""
    parts = [platform.machine(), platform.python_version(), _cpu()]
    parts += [f"{name} {metadata.version(name)}" for name in ("numba", "llvmlite")]
    parts += [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("NUMBA_") and k not in NO_MATTER]
    digest = hashlib.sha256("\n".join(parts).encode())
    for path in sorted(SOURCES.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


def is_warm() -> bool:
    """Whether every kernel is compiled already. Imports nothing, makes nothing; takes some tens of milliseconds."""
    places = (cache_home() / "kernels" / fingerprint(), _temporary_path() / fingerprint())
    return any(all(_marked(place, name) for name in KERNELS) for place in places)


def is_compiled(name: str) -> bool:
    """Whether this kernel was compiled before, so that it only needs to be loaded."""
    return _marked(folder(), name)


def warm() -> float:
    """Compile every kernel that is not compiled yet; returns the seconds of processor time that it took."""
    import time

    from qconvd_ggml import kernels

    start = time.process_time()
    for name in KERNELS:
        kernels.ready(name)
    return time.process_time() - start


@contextmanager
def compiling() -> Iterator[None]:
    """Held while a kernel is compiled or loaded: one process at a time compiles, the others then find its work."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        lock = (folder() / "lock").open("w")
    except OSError as error:
        log.warning("the kernel cache %s cannot be locked: %s", folder(), error)
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def mark(name: str) -> None:
    """Note, for `is_warm`, that a kernel is compiled and kept."""
    (folder() / f"{name}.ready").write_text(_stamp())


def _marked(place: Path, name: str) -> bool:
    try:
        return (place / f"{name}.ready").read_text() == _stamp()
    except OSError:
        return False


@cache
def _stamp() -> str:
    # numba compiles again when a source file's time changes, even if its content does not.
    return " ".join(str(path.stat().st_mtime_ns) for path in sorted(SOURCES.glob("*.py")))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part")))


def _usable(path: Path) -> bool:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return False
    return os.access(path, os.W_OK | os.X_OK)


def _temporary_path() -> Path:
    return Path(tempfile.gettempdir()) / f"qconvd-{os.getuid()}"


def _temporary() -> Path:
    # The cache holds code: a folder of this name that somebody else made must never be trusted.
    path = _temporary_path()
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="qconvd-"))
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
        return path
    return Path(tempfile.mkdtemp(prefix="qconvd-"))
