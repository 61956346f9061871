"""The plugin manager: what is installed, what of it works, and who claims which name."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from qconvd import hookspecs
from qconvd.errors import QconvdError

if TYPE_CHECKING:
    from qconvd.checkpoints.base import CheckpointReader
    from qconvd.containers.base import Container
    from qconvd.engine.operations import Operation
    from qconvd.examination import Finding
    from qconvd.formats import Detail, Format
    from qconvd.rebuilt import Rebuilder

log = logging.getLogger(__name__)
GROUP = "qconvd"
BUILT_IN = ("qconvd.checkpoints", "qconvd.containers")
T = TypeVar("T")


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that could not be imported, or whose hook raised: its entry point, its distribution, and why.

    `code` is Python that shows the whole traceback; empty for a plugin that did not come from an entry point.
    """

    name: str
    distribution: str
    reason: str
    code: str = ""


class Plugins:
    """All plugins that could be loaded, asked for by what they add."""

    def __init__(self, extra: Iterable[tuple[str, Any]] = ()) -> None:
        self.broken: list[BrokenPlugin] = []
        self._owners: dict[str, str] = {}
        self._givers: dict[int, str] = {}
        """Who gave a thing, by its id: a family's class is gguf's, whoever made it. What is asked for by this is kept."""
        self._entries: dict[str, metadata.EntryPoint] = {}
        self._manager = pluggy.PluginManager("qconvd")
        self._manager.add_hookspecs(hookspecs)
        for module in BUILT_IN:
            self._register(importlib.import_module(module), module, "qconvd")
        for entry in sorted(metadata.entry_points(group=GROUP), key=lambda e: e.name):
            self._load(entry)
        for name, plugin in extra:
            self._register(plugin, name, name)
        self._check_hooks()
        self.formats: dict[str, Format] = self._named(self._given("qconvd_formats"), "format", "name")
        self.containers: dict[str, Container] = self._named(self._given("qconvd_containers"), "container", "kind")
        self.operations: dict[str, Operation] = self._named(self._given("qconvd_operations"), "operation", "name")
        self.readers: list[CheckpointReader] = self._given("qconvd_checkpoint_readers")

    @cached_property
    def rebuilders(self) -> list[Rebuilder]:
        """Who knows what checkpoint a model in another container was made from."""
        return self._given("qconvd_rebuilders")

    @cached_property
    def gguf_families(self) -> list[Any]:
        """Families that plugins add to the gguf format."""
        return self._given("qconvd_gguf_families")

    def details(self, format: str) -> list[Detail]:
        """What plugins say of a format beside its options."""
        return self._given("qconvd_format_details", format=format)

    def findings(self, warm: bool) -> list[Finding]:
        """What plugins say of themselves to `qconvd doctor`."""
        return self._given("qconvd_findings", warm=warm)

    def notify(self, event: dict[str, Any]) -> None:
        """Tell plugins of an event; what they raise is logged and goes no further."""
        for implementation in reversed(self._manager.hook.qconvd_task_event.get_hookimpls()):
            try:
                implementation.function(*(event for _ in implementation.argnames))
            except Exception:
                log.exception("the plugin %s failed on an event", implementation.plugin_name,
                              extra={"action": "plugin.event_failed", "plugin": implementation.plugin_name})  # fmt: skip

    def distribution(self, thing: object) -> str:
        """The distribution (`name version`) that a format, a container or a family came from."""
        return self._givers.get(id(thing)) or self._owners.get(type(thing).__module__.partition(".")[0], "qconvd")

    def _load(self, entry: metadata.EntryPoint) -> None:
        self._entries[entry.name] = entry
        owner = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"
        try:
            plugin = entry.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 — somebody else's module may raise anything
            self._skip(entry.name, owner, error)
            return
        self._register(plugin, entry.name, owner)

    def _skip(self, name: str, owner: str, error: BaseException, hook: str = "") -> None:
        code = _code(self._entries[name], hook) if name in self._entries else ""
        self.broken.append(BrokenPlugin(name, owner, f"{type(error).__name__}: {error}", code))
        log.warning("plugin %s (%s) is skipped: %s: %s", name, owner, type(error).__name__, error,
                    extra={"action": "plugin.skipped", "plugin": name})  # fmt: skip

    def _given(self, hook: str, **arguments: Any) -> list[Any]:
        """What all plugins give for a hook; one that raises is skipped like one that cannot be imported."""
        given = []
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            root = getattr(implementation.plugin, "__name__", implementation.plugin_name).partition(".")[0]
            try:
                things = list(implementation.function(**{name: arguments[name] for name in implementation.argnames}))
            except (Exception, SystemExit) as error:
                if implementation.plugin_name in BUILT_IN:
                    raise
                self._skip(implementation.plugin_name, self._owners[root], error, hook)
                continue
            if not arguments:  # an answer to a question is thrown away, and its id may be another thing's next
                self._givers |= {id(thing): self._owners[root] for thing in things}
            given += things
        return given

    def _register(self, plugin: Any, name: str, owner: str) -> None:
        if self._manager.is_registered(plugin):
            return
        try:
            self._manager.register(plugin, name=name)
        except pluggy.PluginValidationError as error:
            raise QconvdError(
                f"a hook has arguments that qconvd does not know: {error}",
                where=f"plugin {name} ({owner})",
                fix="see qconvd.hookspecs",
            ) from error
        root = getattr(plugin, "__name__", name).partition(".")[0]
        self._owners.setdefault(root, owner)

    def _check_hooks(self) -> None:
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise QconvdError(
                f"a plugin implements a hook that does not exist: {error}", fix="the hooks are in qconvd/hookspecs.py"
            ) from error

    def _named(self, found: Iterable[T], what: str, attribute: str) -> dict[str, T]:
        by_name: dict[str, T] = {}
        for thing in found:
            name = getattr(thing, attribute, None)
            if not isinstance(name, str):
                raise QconvdError(
                    f"a plugin gives a {what} without `{attribute}`: {thing!r}",
                    where=self.distribution(thing),
                    fix="uninstall it, or ask its author",
                )
            if name in by_name:
                both = " and ".join(sorted(self.distribution(t) for t in (by_name[name], thing)))
                raise QconvdError(f"two plugins claim the {what} {name!r}: {both}", fix="uninstall one of them")
            by_name[name] = thing
        return dict(sorted(by_name.items()))


def _code(entry: metadata.EntryPoint, hook: str) -> str:
    """Python that loads the entry point, as a person would write it, and calls the hook if it is that which raised."""
    load = f"from {entry.module} import {entry.attr}" if entry.attr else f"import {entry.module}"
    return f"{load}; list({entry.attr or entry.module}.{hook}())" if hook else load


@cache
def plugins() -> Plugins:
    """The plugins of this process, loaded once."""
    return Plugins()


def container(kind: str) -> Container:
    """The container of a kind; raises `QconvdError` if no plugin provides it."""
    try:
        return plugins().containers[kind]
    except KeyError:
        known = ", ".join(plugins().containers)
        raise QconvdError(f"no plugin provides the container {kind!r}", fix=f"known containers: {known}") from None


def gguf_families() -> list[Any]:
    """Families of the gguf format that plugins of this process add."""
    return plugins().gguf_families


def given_by(thing: object) -> str:
    """The distribution (`name version`) whose plugin gave a format, a container or a family."""
    return plugins().distribution(thing)
