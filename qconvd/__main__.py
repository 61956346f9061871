"""`python -m qconvd`, and where the command `qconvd` begins: what must be settled before anything slow is imported."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line. SIGHUP, which by itself ends a process, is held back from a daemon until it can follow it."""
    if sys.argv[1:2] == ["run"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from qconvd.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
