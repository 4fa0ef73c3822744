"""Locks on open files: shared for reading them, exclusive for changing them.

A lock belongs to an open file and goes with it, however the process ends: there is none that could be left behind.

On Linux these are locks of the open file description on the bytes that qemu uses, so that vhdkit and a running qemu
refuse each other. qemu has a byte for every thing that one may do with an image, and a second one for every thing that
one does not put up with from others; whoever does a thing holds a read lock on its byte. Nobody ever takes a write
lock, so that all can hold, and each then asks whether another holds a byte that forbids what it does. Other systems
lock the file as a whole, which only those see who do the same.

Where the file system has no locks, nothing is held.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vhdkit.errors import ImageInUseError
from vhdkit.storage.lock_holders import OWN, LockLine, file_tag, find_holders

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["OWN", "FileLock", "in_use", "system_lock", "whole_lock"]

# What one may do with an image, by qemu's numbers, and where the bytes for doing it and for forbidding it begin.
_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE = range(4)
_DOES = 100
_FORBIDS = 200

# struct flock: type, whence, start, length, process (which must be 0 here), and padding to the whole's alignment.
_RANGE = struct.Struct("hhqqi0q")

_TAKEN = {errno.EAGAIN, errno.EACCES}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}


class FileLock(Protocol):
    """The lock of one open file."""

    def take(self, descriptor: int, path: str, *, exclusive: bool) -> None:
        """Hold the file in the way asked for, in place of the way that it is held in (see `Storage.lock`)."""
        ...

    def release(self, descriptor: int) -> None:
        """Hold it no longer.

        Closing the descriptor does not do if another process, forked meanwhile, has a copy of it, if only until it
        begins another program. Such a copy gives nothing back itself: what is held is its parent's.
        """
        ...


class Access(NamedTuple):
    """The bytes that somebody holds, and those that nobody else may hold meanwhile."""

    held: frozenset[int]
    clear: frozenset[int]


def _access(does: Iterable[int], forbids: Iterable[int]) -> Access:
    does, forbids = tuple(does), tuple(forbids)
    return Access(
        held=frozenset([_DOES + thing for thing in does] + [_FORBIDS + thing for thing in forbids]),
        clear=frozenset([_FORBIDS + thing for thing in does] + [_DOES + thing for thing in forbids]),
    )


# "Write unchanged" is a write of the bytes that are there already: it harms no reader.
_SHARED = _access(does=[_READ], forbids=[_WRITE, _RESIZE])
_EXCLUSIVE = _access(does=[_READ, _WRITE, _RESIZE], forbids=[_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE])


def in_use(path: str, holders: tuple[str, ...] = ()) -> ImageInUseError:
    """Return the error that says so, and what to do."""
    who = f"by {', '.join(holders)}" if holders else "by another program, or elsewhere in this one"
    return ImageInUseError(f"it is in use {who}; try again when it is closed there", path=path, holders=holders)


class QemuLock:
    """Locks of an open file description on qemu's bytes; for Linux. A descriptor for reading will do.

    **Order**: 1 the bytes that are not held yet, all of them · 2 a look at the bytes that must be clear · 3 if they
    are, what is held no longer is given back; if not, what 1 took. Two who race may both be refused, never both
    succeed; and what was held before is held until what takes its place is.
    """

    def __init__(self) -> None:
        self._held: frozenset[int] = frozenset()
        self._process = os.getpid()

    def take(self, descriptor: int, path: str, *, exclusive: bool) -> None:
        """Hold the file (see `FileLock`)."""
        wanted = _EXCLUSIVE if exclusive else _SHARED
        before = self._held
        try:
            in_the_way = self._lock(descriptor, wanted.held - before) or {
                byte for byte in wanted.clear if _is_held_by_another(descriptor, byte)
            }
            file = file_tag(descriptor) if in_the_way else ""
        except BaseException as error:
            self._unlock(descriptor, self._held - before)
            if isinstance(error, OSError) and error.errno in _NO_LOCKS:
                return
            raise
        self._unlock(descriptor, self._held - (before if in_the_way else wanted.held))
        if in_the_way:
            # Asked only now: a search that takes its time must not keep others out.
            raise in_use(path, find_holders(file, lambda line: _covers(line, in_the_way), but=descriptor))

    def release(self, descriptor: int) -> None:
        """Hold the file no longer (see `FileLock`)."""
        if self._process == os.getpid():
            self._unlock(descriptor, self._held)

    def _lock(self, descriptor: int, bytes_: frozenset[int]) -> set[int]:
        """Lock bytes until one cannot be had, which is returned: somebody has a write lock on it, as qemu never has."""
        for byte in sorted(bytes_):
            try:
                _set_lock(descriptor, fcntl.F_RDLCK, byte)
            except OSError as error:
                if error.errno in _TAKEN:
                    return {byte}
                raise
            self._held |= {byte}
        return set()

    def _unlock(self, descriptor: int, bytes_: frozenset[int]) -> None:
        for byte in sorted(bytes_):
            _set_lock(descriptor, fcntl.F_UNLCK, byte)
            self._held -= {byte}


def _set_lock(descriptor: int, kind: int, byte: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _RANGE.pack(kind, os.SEEK_SET, byte, 1, 0))


def _is_held_by_another(descriptor: int, byte: int) -> bool:
    """Ask for what would stand in the way of a write lock: any lock of any other."""
    asked = _RANGE.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    answer: int = _RANGE.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
    return answer != fcntl.F_UNLCK


def _covers(line: LockLine, bytes_: set[int]) -> bool:
    return line.kind != "FLOCK" and any(
        line.first <= byte and (line.last is None or byte <= line.last) for byte in bytes_
    )


class WholeLock:
    """flock; for Unixes other than Linux, whose locks of open files have no bytes.

    The kernel exchanges one kind for the other in two steps. If another comes between, this is refused, and what was
    held before may be lost.
    """

    def __init__(self) -> None:
        self._kind: int | None = None
        self._process = os.getpid()

    def take(self, descriptor: int, path: str, *, exclusive: bool) -> None:
        """Hold the file (see `FileLock`)."""
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        if kind == self._kind:
            return
        if self._try(descriptor, kind):
            self._kind = kind
            return
        if self._kind is not None and not self._try(descriptor, self._kind):
            self._kind = None
        holders = find_holders(
            file_tag(descriptor),
            lambda line: line.kind == "FLOCK" and (exclusive or line.access == "WRITE"),
            but=descriptor,
        )
        raise in_use(path, holders)

    def release(self, descriptor: int) -> None:
        """Hold the file no longer (see `FileLock`)."""
        if self._kind is not None and self._process == os.getpid():
            self._kind = None
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)

    @staticmethod
    def _try(descriptor: int, kind: int) -> bool:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            # NFS makes locks of bytes of these, and no exclusive one (EBADF) of a file that is open for reading.
            if error.errno in _NO_LOCKS | {errno.EBADF}:
                return True
            if error.errno in _TAKEN:
                return False
            raise
        return True


class WindowsLock:
    """A lock of a byte far behind the end of any file; for Windows.

    There locks keep even those from their bytes who never ask for one, so that none that holds data may be taken. Byte
    ranges are not exchanged: the exclusive one is had by giving up the shared one first, and another may come between.
    """

    def __init__(self, lock_byte: Callable[[int, bool], bool], unlock_byte: Callable[[int], None]) -> None:
        self._lock_byte = lock_byte
        self._unlock_byte = unlock_byte
        self._exclusive: bool | None = None

    def take(self, descriptor: int, path: str, *, exclusive: bool) -> None:
        """Hold the file (see `FileLock`)."""
        if exclusive == self._exclusive:
            return
        before = self._exclusive
        if before is False:
            self._unlock_byte(descriptor)
            self._exclusive = None
        if not self._lock_byte(descriptor, exclusive):
            if before is False and self._lock_byte(descriptor, False):  # noqa: FBT003 - as ctypes is called
                self._exclusive = False
            raise in_use(path)
        if before is True:
            # A handle may have both, and of both the exclusive one is given back first.
            self._unlock_byte(descriptor)
        self._exclusive = exclusive

    def release(self, descriptor: int) -> None:
        """Do nothing: no process has a copy of another's handle here, and what is closed is given back."""


class NoLock:
    """Where nothing is known about locks nothing is held."""

    def release(self, descriptor: int) -> None:
        """Do nothing."""

    def take(self, descriptor: int, path: str, *, exclusive: bool) -> None:
        """Do nothing."""


def system_lock() -> FileLock:
    """Return the best lock of this system for one open file."""
    return QemuLock() if sys.platform == "linux" else whole_lock()


def whole_lock() -> FileLock:
    """Return a lock of a whole file, which every system has.

    On Linux it does not see what `system_lock` holds, nor qemu: it is there so that it can be tested.
    """
    if sys.platform == "win32":
        from vhdkit.storage.windows_locks import lock_byte, unlock_byte  # noqa: PLC0415 - loads ctypes, and only there

        return WindowsLock(lock_byte, unlock_byte)
    return NoLock() if fcntl is None else WholeLock()
