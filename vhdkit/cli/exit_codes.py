"""What the command line exits with."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every verb but `check` and `compare`, which have qemu-img's from 0 to 3.

    IN_USE is EX_TEMPFAIL of sysexits.h, USAGE its EX_USAGE; INTERRUPTED is what a shell says of SIGINT.
    """

    DONE = 0
    FAILED = 1
    USAGE = 64
    IN_USE = 75
    INTERRUPTED = 130
