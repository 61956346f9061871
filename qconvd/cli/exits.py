"""Exit codes: what a script may rely on."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    BAD_CONFIG = 78
    INTERRUPTED = 130


MEANING = {
    Exit.OK: "everything was done",
    Exit.FAILED: "a conversion or a verification failed, or `doctor` found trouble; any unforeseen error, with its traceback",
    Exit.USAGE: "the command line is wrong",
    Exit.REFUSED: "something you can mend stands in the way: the message says what, where and what to do",
    Exit.BAD_CONFIG: "the config file is wrong or missing (EX_CONFIG of sysexits.h; systemd does not restart on it)",
    Exit.INTERRUPTED: "stopped with Ctrl-C (`convert` and `run --once` also with SIGTERM) while work remained; running the "
    "same command again goes on where it stopped",
}
