"""What systemd is told of the daemon (`Type=notify`), over the datagram socket that it names: sd_notify(3), by its protocol."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, MutableMapping, Sequence

from qconvd.ledger import PENDING, Pause

SHARE = 4
"""A sign of life is due in a fourth of the watchdog's time, so that one that comes late is no death."""
PATIENCE = 2.0
"""Seconds to wait for a systemd that does not listen."""
STATES_TOLD = {"planned": "waiting", "ready": "waiting", "converting": "being converted", "verifying": "being verified",
               "publishing": "being published"}  # fmt: skip


class Notifier:
    """Sends to `$NOTIFY_SOCKET`; without one nothing is sent. The variables are taken away: no worker speaks for the daemon."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        pid, usec = environ.pop("WATCHDOG_PID", ""), environ.pop("WATCHDOG_USEC", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        ours = usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        self.every = int(usec) / 1e6 / SHARE if ours and self._address else float("inf")
        """Seconds between two signs of life; infinity if nobody waits for them."""
        self._alive_at = 0.0
        self._status = ""

    def send(self, *lines: str) -> None:
        """Say something, e.g. READY=1. Never raises: a daemon that cannot be heard works all the same."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                # A busy machine's systemd may be behind with reading; of a socket that is connected, poll knows when it is not.
                out.settimeout(PATIENCE)
                out.connect(self._address)
                out.send("\n".join(lines).encode(errors="replace"))
        except OSError:
            return

    def status(self, sentence: str, *lines: str) -> None:
        """Show a sentence in `systemctl status`, if it is another one than before."""
        if sentence != self._status or lines:
            self._status = sentence
            self.send(*lines, f"STATUS={sentence}")

    def reloading(self) -> None:
        """The configuration is read again; READY=1 ends it. The time tells systemd which of its reloads this answers."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def alive(self) -> None:
        """A sign of life, if one is due. To be called by the loop that works, and often."""
        if (now := time.monotonic()) - self._alive_at >= self.every:
            self._alive_at = now
            self.send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """More time is needed to stop: so many seconds from now on."""
        self.send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")


def summary(counts: Mapping[str, int], pauses: Sequence[Pause] = ()) -> str:
    """Whether tasks are held back, and how many artifacts are in which state, as `systemctl status` shows it."""
    named = [
        (STATES_TOLD.get(state, state), counts[state])
        for state in (*PENDING, "failed", "cancelled", "done")
        if counts.get(state)
    ]
    added: dict[str, int] = {}
    for words, count in named:
        added[words] = added.get(words, 0) + count
    held = "".join(f"{pause.told[0].upper()}{pause.told[1:]}. " for pause in pauses)
    made = f"Artifacts: {', '.join(f'{count} {words}' for words, count in added.items())}" if added else "No model yet"
    return held + made
