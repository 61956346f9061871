"""What `qconvd doctor` looks at: this machine, the folders of a config, the plugins and what they say of themselves."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qconvd.checkpoints.files import is_folder, is_there

if TYPE_CHECKING:
    from qconvd.config import Config

LIBRARIES = ("torch", "transformers")
LOW_WATCHES = 8192
"""The kernel's old default for fs.inotify.max_user_watches, which an editor alone can use up."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `fix` says what to do about it, where something should be done."""

    what: str
    state: Literal["good", "note", "bad"]
    found: str
    fix: str = ""


def examine(file: Path | None, *, warm: bool = False) -> list[Finding]:
    """Everything that can be said here and now. Never raises for what it looks at: that is a finding."""
    config, about_config = _config(file)
    return [
        _software(),
        about_config,
        *_devices(config),
        *_plugins(warm),
        *_calibration(config, warm),
        *_inotify(config),
        *_hub(config),
        *_notifiers(config),
        *(_folders(config) if config else ()),
    ]


def _software() -> Finding:
    from qconvd import __version__

    return Finding(
        "qconvd", "good", f"{__version__}, Python {sys.version.split()[0]}, Linux {os.uname().release} {os.uname().machine}"
    )


def _config(file: Path | None) -> tuple[Config | None, Finding]:
    from qconvd import config as configuration
    from qconvd.errors import ConfigError

    try:
        path = file or configuration.find()
    except ConfigError as error:
        return None, Finding("config", "note", error.what, error.fix)
    try:
        return configuration.load(path), Finding("config", "good", str(path))
    except ConfigError as error:
        count = len(error.problems) or 1
        return None, Finding("config", "bad", f"{path} has {count} {'mistake' if count == 1 else 'mistakes'}", str(error))


def _devices(config: Config | None) -> Iterator[Finding]:
    from qconvd.devices import Devices
    from qconvd.quantities import show_size

    here = Devices(config.devices.cuda if config else "auto").snapshot()
    yield Finding("CPU", "good", f"{here.cpus} {'core' if here.cpus == 1 else 'cores'}")
    yield Finding("memory", "good", f"{show_size(here.memory_available)} free of {show_size(here.memory_total)}")
    for gpu in here.gpus:
        yield Finding("GPU", "good", f"{gpu.name}, {show_size(gpu.free)} free of {show_size(gpu.total)}, {gpu.uuid}")
    if not here.gpus:
        yield Finding("GPU", "note", f"none: {here.no_gpu}")


def _plugins(warm: bool) -> Iterator[Finding]:
    from qconvd.plugins import plugins

    found = plugins()
    yield Finding("formats", "good" if found.formats else "bad", ", ".join(found.formats) or "none are installed")
    own = found.findings(warm)  # first: it may break one more
    for broken in found.broken:
        name = broken.distribution.partition(" ")[0]
        fix = f"`python -c '{broken.code}'` shows where it fails; `pip uninstall {name}` if it is not wanted"
        yield Finding(f"plugin {broken.name}", "bad", f"cannot be loaded: {broken.reason}", fix)
    yield from own


def _calibration(config: Config | None, warm: bool) -> Iterator[Finding]:
    """Whether there is what calibration runs models with, if a recipe calibrates. Found without importing it."""
    recipes = config.recipes.items() if config else ()
    calibrated = [name for name, recipe in recipes if any(t.options.calibrated for t in recipe.targets)]
    if not calibrated:
        return
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        needs = f"the recipe {calibrated[0]} calibrates" if len(calibrated) == 1 else f"{', '.join(calibrated)} calibrate"
        found = f"{needs}, and {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        yield Finding("calibration", "bad", found, "pip install 'qconvd[calibration]'")
    else:
        yield Finding("calibration", "good", ", ".join(f"{name} {version(name)}" for name in LIBRARIES))
        from qconvd.calibration.kernels import CACHE, ready
        from qconvd.kernel_cache import kernel_findings, multiplies_bfloat16

        if multiplies_bfloat16():
            yield from kernel_findings("calibration kernels", CACHE, ready if warm else None)


def _inotify(config: Config | None) -> Iterator[Finding]:
    watches, instances = _limit("max_user_watches"), _limit("max_user_instances")
    if watches is None or instances is None:
        yield Finding("inotify", "note", "this kernel has none: folders are scanned every `interval`")
        return
    found = f"{watches} watches, {instances} instances per user"
    if watches <= LOW_WATCHES:
        yield Finding("inotify", "note", found, "sudo sysctl fs.inotify.max_user_watches=524288")
    else:
        yield Finding("inotify", "good", found)
    for watch in config.folders if config else ():
        if is_folder(watch.folder) and watch.poll != "always":
            yield _watchable(watch.folder)


def _watchable(folder: Path) -> Finding:
    """Whether a folder can be watched right now: the only way to know is to try."""
    from watchdog.events import FileSystemEventHandler
    from watchdog.observers.inotify import InotifyObserver

    what = f"watch {folder.name}"
    observer = InotifyObserver()
    try:
        observer.start()
        observer.schedule(FileSystemEventHandler(), str(folder))
    except OSError as error:
        return Finding(
            what, "bad", f"{folder} cannot be watched: {error.strerror}", "sudo sysctl fs.inotify.max_user_watches=524288"
        )
    finally:
        observer.stop()
        observer.join()
    return Finding(what, "good", f"{folder} can be watched")


def _hub(config: Config | None) -> Iterator[Finding]:
    """Whether what is watched on the Hub can be asked for: the token, not the Hub itself."""
    from qconvd.errors import QconvdError
    from qconvd.hub.tokens import hub_token

    if config is None or not config.repositories:
        return
    try:
        token = hub_token(config.hub.token_file)
    except QconvdError as error:
        yield Finding("Hub", "bad", f"{error.where}: {error.what}", error.fix)
        return
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Finding("Hub", "bad", "HF_HUB_OFFLINE is set: the Hub may not be asked", "unset it where the daemon is started")
    elif token is None:
        fix = "set hub.token_file or $HF_TOKEN, if private or gated ones are watched"
        yield Finding("Hub", "note", f"{config.hub.endpoint}, without a token: public models only", fix)
    else:
        yield Finding("Hub", "good", f"{config.hub.endpoint}, with {token}")


def _notifiers(config: Config | None) -> Iterator[Finding]:
    """Whether who is to be told can be: files, templates and programs, not whether somebody answers."""
    from qconvd.notifications.sender import trouble

    for entry in config.notify if config else ():
        if (wrong := trouble(entry)) is None:
            yield Finding(entry.name, "good", "`qconvd notify test` tries it")
        else:
            yield Finding(entry.name, "bad", f"{wrong.where}: {wrong.what}" if wrong.where else wrong.what, wrong.fix)


def _folders(config: Config) -> Iterator[Finding]:
    from qconvd.ledger.filesystem import mount_of
    from qconvd.quantities import show_size

    for watch in config.folders:
        # `after: move` and `after: delete` change the watched folder itself.
        yield _folder("watched", watch.folder, write=watch.after != "keep")
    yield _folder("output", config.output, write=True)
    yield _folder("state", config.state, write=True)
    mount = mount_of(config.state)
    if mount.network:
        fix = "set `state:` to a folder on a local disk; the watched folders and the output may stay on the network"
        yield Finding("state", "bad", f"is on a network filesystem ({mount.kind}), where the ledger cannot be kept", fix)
    free = _free(config.output)
    enough = free > config.limits.disk_reserve
    fix = "" if enough else "make room, set a lower `limits.disk_reserve`, or choose another `output:`"
    found = f"{show_size(free)} free for {config.output}; {show_size(config.limits.disk_reserve)} are left alone"
    yield Finding("disk", "good" if enough else "bad", found, fix)


def _folder(what: str, folder: Path, *, write: bool) -> Finding:
    from qconvd.ledger.filesystem import mount_of

    kind = mount_of(folder).kind or "unknown"
    if not is_there(folder) and what == "watched":
        return Finding(what, "note", f"{folder} is not there; it is watched as soon as it is", f"mkdir -p {folder}")
    if not is_there(folder):
        above = next(p for p in folder.parents if is_there(p))
        if os.access(above, os.W_OK | os.X_OK):
            return Finding(what, "note", f"{folder} ({kind}) is not there yet; it will be made")
        return Finding(
            what, "bad", f"{folder} is not there and cannot be made", f"make it, or give this user write permission to {above}"
        )
    missing = [word for word, mode in (("read", os.R_OK | os.X_OK), ("written", os.W_OK)) if not os.access(folder, mode)]
    if not is_folder(folder):
        return Finding(what, "bad", f"{folder} is no folder", "move it away, or name another one")
    if "read" in missing or (write and missing):
        return Finding(
            what, "bad", f"{folder} cannot be {' or '.join(missing)}", "give the user that runs qconvd the permission"
        )
    return Finding(what, "good", f"{folder} ({kind})")


def _free(folder: Path) -> int:
    there = next((p for p in (folder, *folder.parents) if is_folder(p)), Path("/"))
    status = os.statvfs(there)
    return status.f_bavail * status.f_frsize


def _limit(name: str) -> int | None:
    try:
        return int(Path("/proc/sys/fs/inotify", name).read_text())
    except (OSError, ValueError):
        return None
