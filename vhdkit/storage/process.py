"""Who is asking: the process, the user and the machine, for what another process reads later."""

from __future__ import annotations

import os
import platform
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess


def this_process() -> tuple[int, str]:
    """Return the process id and the machine's name."""
    return os.getpid(), platform.node()


def this_user() -> int:
    """Return the number of the user whom this process acts for, 0 where users have none."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


def user_name() -> str:
    """Return the name of the user whom this process acts for, or the number if nobody knows a name."""
    import getpass  # noqa: PLC0415 - needed once a job, by those that begin one

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(this_user())


def environment_with_modules() -> dict[str, str]:
    """Return this process's environment for another Python, which finds its modules where this one does."""
    # Where this package lies comes first: it may have been found by "", the working folder, which is not handed on.
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    found = dict.fromkeys([own, *(os.path.abspath(entry) for entry in sys.path if entry)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(found)}


def end_process(process: subprocess.Popen[Any], seconds: float) -> None:
    """Ask a process of this one's to end, if it goes on, and kill it if it has not ended after that many seconds."""
    from subprocess import TimeoutExpired  # noqa: PLC0415 - who has a process has loaded it

    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(seconds)
    except TimeoutExpired:
        process.kill()
        process.wait()


def find_program(name: str) -> str | None:
    """Return where a program of that name is; None if it is not installed."""
    from shutil import which  # noqa: PLC0415 - only verbs that take other programs need it

    return which(name)


def prefer_library(variable: str, name: str) -> None:
    """Have a binding that looks at a variable of the environment take a library, if it is there and none is named."""
    from ctypes.util import find_library  # noqa: PLC0415 - only such bindings need it

    if find_library(name) is not None:
        os.environ.setdefault(variable, name)


def environment_without_modules() -> dict[str, str]:
    """Return this process's environment for a program that has another Python in it, with other modules."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def environment_with(**values: str) -> dict[str, str]:
    """Return this process's environment, and some values besides, for another program."""
    return {**os.environ, **values}


def birth_of(pid: int) -> str:
    """Return what tells a process from an earlier or later one of the same number; "" if there is none, or it ended.

    On Linux that is when it began in the kernel's own ticks, which no change of the clock moves, with the boot and the
    namespace in which its number counts. A process that ended and was not waited for yet counts as ended.
    """
    if sys.platform != "linux":
        return _birth_elsewhere(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may hold anything.
            state, *fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if state in {b"Z", b"X"} else f"{_realm()}/{int(fields[18])}"


def is_alive(pid: int, birth: str, host: str) -> bool | None:
    """Whether a process still runs; None if that cannot be told from here: another machine, another container."""
    if host != platform.node():
        return None
    if sys.platform == "linux":
        *realm, _ticks = birth.split("/")
        here = _realm().split("/")
        if realm[:1] == here[:1] and realm != here:
            return None
    return birth_of(pid) == birth != ""


def _realm() -> str:
    """Return the boot and the namespace of process numbers."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return "/"
    return f"{boot}/{space}"


def _birth_elsewhere(pid: int) -> str:
    import psutil  # noqa: PLC0415 - on Linux it need not even be there

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.1f}"
    except psutil.Error:
        return ""
