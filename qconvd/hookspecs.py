"""Every seam of the plugin API, on one page.

A plugin is a module registered under the entry-point group `qconvd`; it imports from `qconvd.api` only and implements any of
these hooks with `@qconvd.api.hookimpl`. Hooks run at start-up, also in the daemon: they must be cheap, so heavy imports
(numba, torch) belong inside `plan`, `encoder` and the operations themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from qconvd.checkpoints.base import CheckpointReader
    from qconvd.containers.base import Container
    from qconvd.engine.operations import Operation
    from qconvd.examination import Finding
    from qconvd.formats import Detail, Format
    from qconvd.rebuilt import Rebuilder

hookspec = pluggy.HookspecMarker("qconvd")
hookimpl = pluggy.HookimplMarker("qconvd")


@hookspec
def qconvd_formats() -> Iterable[Format]:  # type: ignore[empty-body]
    """Formats that recipes may name as targets."""


@hookspec
def qconvd_format_details(format: str) -> Iterable[Detail]:  # type: ignore[empty-body]
    """What `qconvd formats FORMAT` shall show beside the options, e.g. the models that it can be made from."""


@hookspec
def qconvd_containers() -> Iterable[Container]:  # type: ignore[empty-body]
    """File formats that plans may name in their `ContainerSpec`."""


@hookspec
def qconvd_checkpoint_readers() -> Iterable[CheckpointReader]:  # type: ignore[empty-body]
    """Readers of models on disk; the first that claims a path reads it."""


@hookspec
def qconvd_operations() -> Iterable[Operation]:  # type: ignore[empty-body]
    """Arithmetic behind `Dequantize` and `Named` expressions."""


@hookspec
def qconvd_gguf_families() -> Iterable[Any]:  # type: ignore[empty-body]
    """Model families that the gguf format can map (see docs/how-to)."""


@hookspec
def qconvd_rebuilders() -> Iterable[Rebuilder]:  # type: ignore[empty-body]
    """Who knows the checkpoint that a model in another container was made from (qconvd/rebuilt.py)."""


@hookspec
def qconvd_task_event(event: Mapping[str, Any]) -> None:
    """Called in the daemon for every change of state, and when a job is over. An error here is logged, not raised.

    Every event has `kind`, `id`, `model`, `label`, `from`, `to`, `reason` and `at` (seconds since 1970, UTC). By `kind`:

    - `target`, `task`, `source`: it came from one state to another; `label` is a target's, e.g. `gguf Q4_0`.
    - `job`: nothing of it goes on by itself any more. `to` is `done`, `failed` (all of it or some), `cancelled`, or `confirm`:
      what is made waits for `qconvd publish`. `id` is the job's number. With `recipe`, `seconds` since it was begun (anew), and
      `artifacts`: a mapping each, of `target`, `label`, `format`, `state`, `bytes`, `place` (a file or folder, or empty)
      and `reason`. Once for each end of a job; one that is tried again ends again.
    - `daemon`: `to` is `paused`: a disk is nearly full. `id` is None.

    It runs in the daemon's loop: what takes longer than a moment belongs into a thread.
    """


@hookspec
def qconvd_findings(warm: bool) -> Iterable[Finding]:  # type: ignore[empty-body]
    """What `qconvd doctor` shall say of this plugin. With `warm`, make ready now what else the first conversion would."""
