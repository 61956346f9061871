"""`python -m qconvd`, and where the command `qconvd` begins: what must be settled before anything slow is imported."""

from __future__ import annotations

import gc
import signal
import sys

COLLECTED_EVERY = 20_000
"""Objects. What start-up imports stays: looking through it at every 700th, which is Python's own, takes a tenth of the time."""


def main() -> None:
    """Run the command line. SIGHUP, which by itself ends a process, is held back from a daemon until it can follow it."""
    if not sys.flags.safe_path:
        # The script's folder, or with -m the current one: nothing is imported from there, also in a fork of this.
        del sys.path[0]
    if sys.argv[1:2] == ["run"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    gc.set_threshold(COLLECTED_EVERY)
    # Until somebody can hear it, Ctrl-C ends this as it ends any program, and not with a traceback of imports.
    interrupts = signal.getsignal(signal.SIGINT)
    if interrupts is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from qconvd.cli import main as command_line

    signal.signal(signal.SIGINT, interrupts)
    command_line(forks=True)


if __name__ == "__main__":
    main()
