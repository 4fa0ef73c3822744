"""What the processes of a pool are asked to do in its tests; they import it by name."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from vhdkit.findings import Advice
from vhdkit.fleet.channel import TaskReporter
from vhdkit.fleet.process_pool import ProcessPool
from vhdkit.progress import Phase, Progress

HALF = Progress(phase=Phase.COPYING, bytes_done=1, bytes_total=2)


def die() -> None:
    """End this process as the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def hang(path: str) -> None:
    """Say that this runs, then stop, so that nothing but SIGKILL ends it."""
    Path(path).touch()
    os.kill(os.getpid(), signal.SIGSTOP)


def process_id() -> int:
    """Return which process this is."""
    return os.getpid()


def fail(text: str) -> None:
    """Raise an error."""
    raise LookupError(text)


def hint_text() -> str:
    """Return how this process writes a hint."""
    return str(Advice.CHECK.hint(path="a b.vhd"))


def unpicklable() -> object:
    """Return what cannot be sent."""
    return threading.Lock()


def report_and_wait(number: int, path: str) -> str:
    """Say that this runs, then wait for the word to stop, and note in a file that it came."""
    reporter = TaskReporter(number)
    reporter(HALF)
    Path(path).write_text(str(os.getpid()))
    while not reporter.cancel.is_set():
        time.sleep(0.01)
    Path(f"{path}.stopped").touch()
    return "stopped"


if __name__ == "__main__":
    with ProcessPool(1) as pool:
        print(pool.submit(report_and_wait, 0, sys.argv[1]).result())  # noqa: T201 - never reached: it is killed
