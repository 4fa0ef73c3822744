"""Noticing that another process opens a file, while nothing is locked: inotify, on Linux.

The kernel says that a file was opened, or closed after it was open for writing, but not by whom, and of several such
events in a row only the first. Who still has a file open is asked of /proc, which shows a user its own processes, and
root all of them.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vhdkit.storage.handle import ClosedAtEnd

if TYPE_CHECKING:
    from collections.abc import Collection

# linux/inotify.h
_CLOSE_WRITE, _OPEN, _IGNORED = 0x8, 0x20, 0x8000
_EVENT = struct.Struct("iIII")
_MOST_BYTES = 64 << 10


@dataclass(slots=True)
class Openings:
    """Whether a file was opened since it was last asked, and whether one who could write to it has closed it."""

    is_opened: bool = False
    is_closed_by_writer: bool = False


class OpenWatch(Protocol):
    """Watches files for being opened."""

    def watch(self, path: str) -> None:
        """Begin to watch a file; one that is watched goes on to be."""
        ...

    def forget(self, path: str) -> None:
        """Watch a file no longer."""
        ...

    def wait(self, seconds: float) -> None:
        """Wait so long at most, less if a file is opened or closed."""
        ...

    def take(self, path: str) -> Openings:
        """Return what has happened to a file since it was watched, or since this was last asked."""
        ...

    def close(self) -> None:
        """End the watch."""
        ...


def open_watch() -> OpenWatch:
    """Return what watches files on this system; where nothing can it notices nothing."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            return InotifyWatch()
    return NoWatch()


class NoWatch:
    """Notices nothing."""

    def watch(self, path: str) -> None:
        """Do nothing."""

    def forget(self, path: str) -> None:
        """Do nothing."""

    def wait(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def take(self, path: str) -> Openings:  # noqa: ARG002 - as `OpenWatch`
        """Return that nothing has happened."""
        return Openings()

    def close(self) -> None:
        """Do nothing."""


class InotifyWatch(ClosedAtEnd):
    """Watches by inotify."""

    def __init__(self) -> None:
        """Begin to watch nothing yet.

        Raises:
            OSError: the system lets this user have no more of them.

        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._paths: dict[int, str] = {}
        self._seen: dict[str, Openings] = {}

    def watch(self, path: str) -> None:
        """Begin to watch a file (see `OpenWatch`)."""
        if path in self._seen:
            return
        mask, name = _OPEN | _CLOSE_WRITE, os.fsencode(path)
        number = self._checked(self._libc.inotify_add_watch(self._descriptor, name, mask))
        self._paths[number] = path
        self._seen[path] = Openings()

    def forget(self, path: str) -> None:
        """Watch a file no longer (see `OpenWatch`)."""
        if self._seen.pop(path, None) is None:
            return
        for number in [number for number, watched in self._paths.items() if watched == path]:
            del self._paths[number]
            self._libc.inotify_rm_watch(self._descriptor, number)

    def wait(self, seconds: float) -> None:
        """Wait until something happens, or the time is over (see `OpenWatch`)."""
        if select.select([self._descriptor], [], [], seconds)[0]:
            self._read()

    def take(self, path: str) -> Openings:
        """Return what has happened to a file (see `OpenWatch`)."""
        self._read()
        seen = self._seen.get(path)
        if seen is None:
            return Openings()
        self._seen[path] = Openings()
        return seen

    def close(self) -> None:
        """End the watch."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while raw := os.read(self._descriptor, _MOST_BYTES):
                self._count(raw)

    def _count(self, raw: bytes) -> None:
        at = 0
        while at < len(raw):
            number, mask, _, length = _EVENT.unpack_from(raw, at)
            at += _EVENT.size + length
            path = self._paths.get(number)
            seen = self._seen.get(path or "")
            if path is None or seen is None:
                continue
            if mask & _IGNORED:
                # The file is gone, and with it the watch.
                del self._paths[number], self._seen[path]
            seen.is_opened |= bool(mask & _OPEN)
            seen.is_closed_by_writer |= bool(mask & _CLOSE_WRITE)

    def _checked(self, answer: int) -> int:
        if answer < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return answer


def is_open_elsewhere(path: str, but: Collection[int]) -> bool:
    """Whether a process has a file open, but for some, as far as the system shows it."""
    try:
        wanted = os.stat(path)
        processes = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return False
    return any(_has_open(process, wanted) for process in processes if process not in but)


def _has_open(process: int, wanted: os.stat_result) -> bool:
    directory = f"/proc/{process}/fd"
    with suppress(OSError):
        for name in os.listdir(directory):
            # A file may have several names, and a process see others.
            with suppress(OSError):
                found = os.stat(f"{directory}/{name}")
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    return False
