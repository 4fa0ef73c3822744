"""Who holds locks on a file, as far as Linux tells: each process's open files, with their locks, under /proc.

Nothing here fails and nothing takes long: it is asked for the sake of a message only.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    InTheWay = Callable[["LockLine"], bool]

# A machine with many processes is not searched to the end: a message may be late by a second, not by a minute.
_SECONDS = 1.0
# Of this process nothing but this can be in the way.
OWN = "this process itself (a chain or image that it opened and has not closed)"
# The kernel cuts the name of a process to this many bytes.
_NAME_BYTES = 15


class LockLine(NamedTuple):
    """A lock as the kernel shows it: its kind, READ or WRITE, the file, and the bytes from the first to the last."""

    kind: str
    access: str
    file: str
    first: int
    last: int | None


def file_tag(descriptor: int) -> str:
    """Return how the kernel writes the file's device and number beside locks; empty if that cannot be known.

    A lock that is held through the descriptor tells it best: what stat says of the device is another thing on btrfs.
    """
    lines = _lock_lines(f"/proc/self/fdinfo/{descriptor}")
    if lines:
        return lines[0].file
    try:
        status = os.fstat(descriptor)
        return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    except (OSError, AttributeError):  # os.major is not everywhere
        return ""


def find_holders(file: str, in_the_way: InTheWay, *, but: int, seconds: float = _SECONDS) -> tuple[str, ...]:
    """Return the processes with such a lock on a file, as `name (process 123)`, or `OWN`.

    `file` is its `file_tag`; `but` is this process's own descriptor. Of processes of other users nothing is seen.
    """
    end = time.monotonic() + seconds
    own = (os.getpid(), str(but))
    found: dict[int, str] = {}
    for process, number in _open_files(end):
        if process in found or (process, number) == own:
            continue
        lines = _lock_lines(f"/proc/{process}/fdinfo/{number}")
        if any(line.file == file and in_the_way(line) for line in lines):
            found[process] = OWN if process == own[0] else f"{_name(process)} (process {process})"
    return tuple(text for _, text in sorted(found.items()))


def _open_files(end: float) -> Iterator[tuple[int, str]]:
    """Yield (process, number of an open file) until the time is over; what started last comes first."""
    for process in sorted((int(name) for name in _names("/proc") if name.isdecimal()), reverse=True):
        for number in _names(f"/proc/{process}/fdinfo"):
            if time.monotonic() > end:
                return
            yield process, number


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:  # no such system, a process that has ended, or another user's
        return []


def _lock_lines(path: str) -> list[LockLine]:
    lines = []
    for text in _content(path).splitlines():
        words = text.split()
        if len(words) != 9 or words[0] != "lock:" or not words[7].isdecimal():
            continue
        last = int(words[8]) if words[8].isdecimal() else None
        lines.append(LockLine(words[2], words[4], words[6], int(words[7]), last))
    return lines


def _name(process: int) -> str:
    name = _content(f"/proc/{process}/comm").rstrip("\n")
    if len(name.encode()) >= _NAME_BYTES:
        whole = os.path.basename(_content(f"/proc/{process}/cmdline").partition("\0")[0])
        name = whole if whole.startswith(name) else name
    return name or "a program"


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
