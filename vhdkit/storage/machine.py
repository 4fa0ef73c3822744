"""Who is asking: the process and the machine, for journals that another process reads later."""

from __future__ import annotations

import os
import platform


def this_process() -> tuple[int, str]:
    """Return the process id and the machine's name."""
    return os.getpid(), platform.node()


def this_user() -> int:
    """Return the number of the user whom this process acts for, 0 where users have none."""
    return os.geteuid() if hasattr(os, "geteuid") else 0
