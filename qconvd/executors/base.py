"""What an executor is. A task is a command line and a spec file; a handle is a string that the ledger keeps."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

MARK = "@@q "
"""What a line of a worker's output begins with if it is an event. One channel for logs and events works on any executor."""

State: TypeAlias = Literal["pending", "running", "succeeded", "failed", "cancelled", "lost"]


@dataclass(frozen=True, slots=True)
class Status:
    """How an attempt stands. `exit_code` is negative for a signal, and None where nobody could record it."""

    state: State
    exit_code: int | None = None
    reason: str = ""

    @property
    def ended(self) -> bool:
        return self.state not in ("pending", "running")


class Executor(Protocol):
    """Every method returns at once, and may be called again after the daemon was restarted."""

    def submit(self, spec: Path, attempt: int, env: Mapping[str, str], *, timeout: float | None = None) -> str:
        """Start the worker on `<state>/tasks/<task>.<attempt>/spec.json`; returns the handle `<task>.<attempt>`.

        An attempt is started at most once, however often this is called. `timeout` in seconds.
        """
        ...

    def poll(self, handle: str) -> Status:
        """How the attempt stands. Never raises: what nobody knows of is `lost`."""
        ...

    def events(self, handle: str, cursor: int) -> tuple[list[dict[str, Any]], int]:
        """Events since `cursor` (0 at first), and the next cursor."""
        ...

    def cancel(self, handle: str, grace: float) -> None:
        """Ask the worker to stop, and make it after `grace` seconds (as long as somebody polls)."""
        ...

    def logs(self, handle: str) -> str:
        """What the attempt wrote."""
        ...


def events_in(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The events in the whole lines of `data`, and how many bytes those lines take."""
    end = data.rfind(b"\n") + 1
    found = []
    for line in data[:end].split(b"\n"):
        if line.startswith(MARK.encode()):
            try:
                event = json.loads(line[len(MARK) :])
            except ValueError:
                # Two processes wrote at once, or a program printed the mark.
                continue
            if isinstance(event, dict):
                found.append(event)
    return found, end


THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""What libraries read when they are imported, and no other program of ours looks at."""
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "QCONVD_WEBHOOK_SECRET")


def environment(device: str, gpu: str, threads: int, *, online: bool = False) -> dict[str, str]:
    """The environment of a worker: the GPU it may see (by UUID, none on the CPU) and how many threads libraries take.

    Only who is `online` gets the token, and may ask the Hub at all.
    """
    count = str(max(1, threads))
    network = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} if online else {"HF_HUB_OFFLINE": "1"}
    return {
        **{name: value for name, value in os.environ.items() if online or name not in TOKENS},
        **network,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": gpu if device == "cuda" else "",
        **dict.fromkeys(THREADS, count),
        # numpy's. Its threads spin while they wait; who has large products runs them in threads of the worker's own.
        "OPENBLAS_NUM_THREADS": "1",
        # Nor need torch's: a layer is many short products, and between them they would.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        **({} if online else {"HF_HUB_OFFLINE": "1"}),
    }
