"""Where compiled kernels are kept between runs, and how they are compiled once.

numba's own cache looks at the source file of a kernel's entry point only, so an edited building block would silently run old
machine code. Here the folder itself is named by a hash of everything the machine code depends on: all sources of the kernels'
package, the versions of numba and llvmlite, numba's settings and the CPU. Importing this imports no numba.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast

from qconvd.cache_home import cache_home
from qconvd.examination import Finding

log = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])
NO_MATTER = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS")
"""Settings that do not change the machine code. Workers differ in the second: no kernel here starts numba's own threads."""


OTHER_PROCESSORS = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_ENABLE_AVX")
"""Settings of numba's with which kernels may be compiled for another processor than this one."""

LOADS_ALONE = ((0, 65), (0, 68))
"""The first and the last version of numba of which it is known what machine code needs that was compiled before."""

WIDE = "-prefer-256-bit"
"""Tells LLVM to use AVX-512's whole width, which it shuns on Intel's processors for the sake of their clock. The searches of
the K and IQ types are so much arithmetic that they gain by it: Q4_K 1.8 times, IQ4_XS 4 times (AVX-512 Xeon at 2.5 GHz)."""

_setting = threading.Lock()
"""Held while a setting of numba's, which is one for the process, is another: packages may be imported in several threads."""


@cache
def _compiler() -> Any:
    """numba, set to use the widest vectors that the processor has.

    A setting of NUMBA_CPU_NAME or NUMBA_CPU_FEATURES is kept. Where numba compiled something in this process before, it is too
    late; the kernels are then made, and kept, for what was set.
    """
    import llvmlite.binding as llvm
    import numba

    settings: Any = numba.config
    if settings.CPU_NAME is None and settings.CPU_FEATURES is None and settings.ENABLE_AVX:
        features = llvm.get_host_cpu_features()
        if features.get("avx512f"):
            settings.CPU_FEATURES = f"{features.flatten()},{WIDE}"
    return numba


@cache
def _building_block(dispatcher: Any) -> Any:
    """numba's `dispatcher`, but that calls are refused."""

    class BuildingBlock(dispatcher):  # type: ignore[misc]
        def __call__(self, *arguments: Any, **named: Any) -> Any:  # noqa: ARG002
            raise TypeError(f"{self.py_func.__qualname__} is a part of kernels: only compiled functions can call it")

    return BuildingBlock


def _load_alone(cache: Any) -> None:
    """Let numba's `cache` of a function load machine code without what only compiling needs.

    Before it looks into its cache, numba imports and registers all that it can compile, which takes as long as importing numba
    itself. Its compiler does so, too, when there is something to compile.
    """
    import numba
    from numba.core import runtime

    if not LOADS_ALONE[0] <= numba.version_info.short <= LOADS_ALONE[1]:
        return
    load, allocation = cache.load_overload, cast(Any, runtime).rtsys

    def loaded(signature: Any, context: Any) -> Any:
        # Machine code that lacks a function would end the process, and these it may call. numba calls this with its compiler's
        # lock held, so no thread compiles with a context that does not refresh.
        context.refresh = lambda: allocation.initialize(context)
        try:
            return load(signature, context)
        finally:
            context.__dict__.pop("refresh", None)

    cache.load_overload = loaded


class KernelCache:
    """The kernels of one package: compiled when they are first asked for, and loaded from the disk by the next process."""

    def __init__(self, sources: Path, names: Sequence[str]) -> None:
        """`sources` is the folder with all modules that the kernels are built from, `names` are those that `warm` compiles."""
        self.sources = sources
        self.names = tuple(names)
        self._lock = threading.Lock()
        self._ready: set[str] = set()

    @cached_property
    def folder(self) -> Path:
        """The folder for this version of the kernels on this CPU; made if it is not there.

        Below `cache_home()`; where that cannot be written, below the system's temporary folder, where only this user can write.
        """
        wanted = cache_home() / "kernels" / self.fingerprint
        if _usable(wanted):
            return wanted
        fallback = _temporary() / self.fingerprint
        fallback.mkdir(exist_ok=True)
        log.warning("the kernel cache %s cannot be written; compiled kernels go to %s", wanted, fallback,
                    extra={"action": "kernels.elsewhere", "folder": fallback})  # fmt: skip
        return fallback

    @cached_property
    def fingerprint(self) -> str:
        """A name for all that decides the machine code: sources and their place, compiler, its settings, CPU."""
        parts = [platform.machine(), platform.python_version(), _cpu(), WIDE]
        parts += [f"{name} {metadata.version(name)}" for name in ("numba", "llvmlite")]
        parts += [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("NUMBA_") and k not in NO_MATTER]
        # numba keeps machine code by the place of its source, and makes it anew when that has another time: two installations
        # in one folder would drive each other out.
        parts.append(str(self.sources))
        digest = hashlib.sha256("\n".join(parts).encode())
        for path in self._files():
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()[:20]

    def entry(self, function: Callable[..., Any], signature: Any, **settings: Any) -> Any:
        """Make `function` an entry point of `signature`: kept in the disk cache, compiled when `ready` asks for it.

        It must stand at module level and reach its building blocks as globals, otherwise numba cannot find it in the cache
        again. It releases the GIL and starts no threads; `settings` are further ones of `numba.njit`.
        """
        numba = _compiler()
        config: Any = numba.config
        with _setting:
            before = config.CACHE_DIR
            config.CACHE_DIR = str(self.folder)
            try:
                compiled: Any = numba.njit(nogil=True, error_model="numpy", cache=True, **settings)(function)
            finally:
                config.CACHE_DIR = before
        compiled.declared = signature
        _load_alone(compiled._cache)
        return compiled

    def block(self, function: Function, *, inline: bool = True) -> Function:
        """Make `function` a building block: part of whoever calls it, or a function of its own beside it.

        Only compiled functions can call it. Called from Python, it raises TypeError.
        """
        # Wrappers for calls from Python are a quarter of the time that compiling takes, and a kernel's parts need none.
        settings: dict[str, Any] = {"forceinline": inline, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        compiled: Any = _compiler().njit(error_model="numpy", **settings)(function)
        # numba would call a null pointer.
        dispatcher: Any = type(compiled)
        compiled.__class__ = _building_block(dispatcher)
        return cast(Function, compiled)

    def ready(self, name: str, entry: Any) -> Any:
        """An entry point, compiled or loaded from the disk if it was not used before in this process. Thread-safe."""
        if name in self._ready:
            return entry
        with self._lock:
            if name not in self._ready:
                with self._compiling(name):
                    self._compile(name, entry)
                self._ready.add(name)
        return entry

    def is_compiled(self, name: str) -> bool:
        """Whether this kernel was compiled before, so that it only needs to be loaded."""
        return self._marked(self.folder, name)

    def is_warm(self) -> bool:
        """Whether every kernel is compiled already. Imports nothing, makes nothing; takes some tens of milliseconds."""
        places = (cache_home() / "kernels" / self.fingerprint, _temporary_path() / self.fingerprint)
        return any(all(self._marked(place, name) for name in self.names) for place in places)

    def warm(self, ready: Callable[[str], Any]) -> float:
        """Compile every kernel that is not compiled yet; returns the seconds of processor time that it took."""
        start = time.process_time()
        for name in self.names:
            ready(name)
        return time.process_time() - start

    @contextmanager
    def _compiling(self, name: str) -> Iterator[None]:
        """Held while a kernel is compiled or loaded: one process compiles it, the others then find its work."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / f"{name}.lock").open("w")
        except OSError as error:
            log.warning("the kernel cache %s cannot be locked: %s", self.folder, error,
                        extra={"action": "kernels.unlocked", "folder": self.folder})  # fmt: skip
            yield
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _compile(self, name: str, entry: Any) -> None:
        try:
            self._loaded_or_compiled(name, entry)
            # Note, for `is_warm`, that it is compiled and kept.
            (self.folder / f"{name}.ready").write_text(self._stamp)
        except OSError as error:
            # The machine code is there, only keeping it failed (disk full): that must not stop a conversion.
            if not entry.signatures:
                raise
            log.warning("the %s kernel could not be kept in %s and will be compiled again: %s", name, self.folder, error,
                        extra={"action": "kernels.not_kept", "folder": self.folder})  # fmt: skip
        entry.disable_compile()

    def _loaded_or_compiled(self, name: str, entry: Any) -> None:
        try:
            entry.compile(entry.declared)
        except OSError:
            raise
        except Exception as error:  # whatever numba, pickle and LLVM say of files that a power cut left empty or cut off
            if not any(Path(entry.stats.cache_path).glob("*.nbi")):
                raise
            log.warning("the %s kernel in %s cannot be read and is compiled again: %s", name, self.folder, error,
                        extra={"action": "kernels.damaged", "folder": self.folder})  # fmt: skip
            entry._cache.flush()
            entry.compile(entry.declared)

    def _marked(self, place: Path, name: str) -> bool:
        try:
            return (place / f"{name}.ready").read_text() == self._stamp
        except OSError:
            return False

    @cached_property
    def _stamp(self) -> str:
        # numba compiles again when a source file's time changes, even if its content does not.
        return " ".join(str(path.stat().st_mtime_ns) for path in self._files())

    def _files(self) -> list[Path]:
        return sorted(self.sources.glob("*.py"))


def kernel_findings(what: str, kernels: KernelCache, ready: Callable[[str], Any] | None) -> Iterable[Finding]:
    """Whether kernels are compiled already, for `qconvd doctor`; with `ready`, which makes one so, compile them now."""
    if ready:
        seconds = kernels.warm(ready)
        return [Finding(what, "good", f"compiled in {seconds:.0f} s of processor time, kept in {kernels.folder}")]
    if kernels.is_warm():
        return [Finding(what, "good", f"compiled already, in {kernels.folder}")]
    later = "the first conversion compiles them, once; `qconvd doctor --warm` does it now"
    return [Finding(what, "note", "not all compiled yet", later)]


def multiplies_bfloat16() -> bool:
    """Whether the processor does (AVX512-BF16, or AMX, which comes with it), as Linux says: mostly faster than float32."""
    return "avx512_bf16" in _flags()


def _compiled_with(flag: str) -> bool:
    """Whether the processor has something, as Linux calls it, and kernels are compiled for this processor."""
    return flag in _flags() and not any(name in os.environ for name in OTHER_PROCESSORS)


def converts_halves() -> bool:
    """Whether the processor converts float16 (F16C, as nearly every one since 2013), and kernels are compiled for it."""
    return _compiled_with("f16c")


@cache
def has_tiles() -> bool:
    """Whether the processor has AMX for bfloat16, kernels are compiled for it, and Linux lets this process use it.

    It is asked for that, since it saves these registers for those alone who asked.
    """
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    if not _compiled_with("amx_bf16"):
        return False
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


def is_amd() -> bool:
    """Whether AMD made the processor, as it says itself."""
    return "AuthenticAMD" in _cpu()


def _flags() -> Sequence[str]:
    return [flag for line in _cpu().splitlines() if line.startswith("flags") for flag in line.split()]


@cache
def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if line.startswith(("vendor_id", "flags", "Features", "model name", "CPU part")))


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
