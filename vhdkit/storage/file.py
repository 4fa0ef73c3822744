"""Open files of the operating system.

`LocalStorage` uses pread, pwrite and copy_file_range; `PortableStorage` needs no more than seek, read and write,
for systems that lack them (Windows), and is held to the same tests everywhere.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from threading import Lock, Thread
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from vhdkit.storage.locks import system_lock, whole_lock

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

    from vhdkit.storage.seam import Storage, Syncing


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# One kernel call moves at most 2 GiB minus a page on Linux; a round number below is asked for at once.
_CALL_BYTES = 1 << 30
_COPY_BYTES = 8 << 20
# Below this the kernel's own copying is no quicker than a read and a write; and where it shares extents instead of
# copying, so many small ones would leave the file in shreds.
_KERNEL_COPY_BYTES = 256 << 10
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.ETXTBSY}


def _naming(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let the errors of a method that works on a descriptor say which file it was."""

    @functools.wraps(method)
    def wrapped(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        try:
            return method(*arguments, **named)
        except OSError as error:
            if error.filename is None:
                error.filename = getattr(arguments[0], "path", None)
            raise

    return wrapped


class _FileStorage:
    """What both implementations share: everything that needs no position."""

    _new_lock = staticmethod(system_lock)

    def __init__(self, descriptor: int, path: str, *, writable: bool) -> None:
        self._descriptor = descriptor
        self._path = path
        self._writable = writable
        status = os.fstat(descriptor)
        self._identity = (status.st_dev, status.st_ino)
        self._file_lock = self._new_lock()
        self._syncing: _Syncing | None = None

    @property
    def path(self) -> str:
        return self._path

    @property
    def identity(self) -> tuple[int, int]:
        return self._identity

    @property
    def writable(self) -> bool:
        return self._writable

    @property
    def link_count(self) -> int:
        return os.fstat(self._descriptor).st_nlink

    @property
    def mtime(self) -> float:
        return os.fstat(self._descriptor).st_mtime

    @property
    def owner(self) -> int:
        return os.fstat(self._descriptor).st_uid

    @property
    def allocated_size(self) -> int:
        status = os.fstat(self._descriptor)
        return status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size

    @_naming
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    @_naming
    def reserve(self, offset: int, length: int) -> None:
        if offset + length > self.size() and not length:
            self.truncate(offset)
        if not length:
            return
        try:
            os.posix_fallocate(self._descriptor, offset, length)
        except AttributeError:  # not on macOS and Windows
            self._fill(offset, length)
        except OSError as error:
            if error.errno not in _NO_FALLOCATE:
                raise
            self._fill(offset, length)

    def _fill(self, offset: int, length: int) -> None:
        """Take space by writing: what is there already, and zeros behind the end."""
        for at in range(offset, offset + length, _COPY_BYTES):
            piece = bytearray(min(_COPY_BYTES, offset + length - at))
            self.read_into(at, piece)
            self.write_at(at, piece)

    def read_into(self, offset: int, buffer: Buffer) -> int:
        raise NotImplementedError

    def write_at(self, offset: int, buffer: Buffer) -> None:
        raise NotImplementedError

    @_naming
    def hole_bytes(self, offset: int, length: int) -> int:
        end = min(offset + length, self.size())
        holes = 0
        while offset < end and hasattr(os, "SEEK_DATA"):
            try:
                data = min(end, os.lseek(self._descriptor, offset, os.SEEK_DATA))
            except OSError as error:
                # ENXIO: nothing but hole up to the end; anything else: the file system cannot tell.
                return holes + (end - offset if error.errno == errno.ENXIO else 0)
            holes += data - offset
            offset = min(end, os.lseek(self._descriptor, data, os.SEEK_HOLE)) if data < end else end
        return holes

    @_naming
    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    @_naming
    def sync(self) -> None:
        sync_descriptor(self._descriptor)

    def begin_sync(self) -> Syncing:
        # By a thread, since there is no other way to go on meanwhile: fsync lets go of the interpreter.
        self._syncing = _Syncing(self.sync)
        return self._syncing

    @_naming
    def lock(self, *, exclusive: bool) -> None:
        self._file_lock.take(self._descriptor, self._path, exclusive=exclusive)

    def close(self) -> None:
        if self._syncing is not None:
            self._syncing.end()  # another file may soon have the descriptor's number
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class _Syncing(Thread):
    """A sync under way; where no thread is to be had, it is made at once."""

    def __init__(self, sync: Callable[[], None]) -> None:
        super().__init__(name="vhdkit-sync")
        self._sync = sync
        self._seconds = 0.0
        self._error: Exception | None = None
        try:
            self.start()
        except RuntimeError:
            self.run()

    def run(self) -> None:
        begun = time.monotonic()
        try:
            self._sync()
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing is known to be durable
            self._error = error
        self._seconds = time.monotonic() - begun

    def is_done(self) -> bool:
        return not self.is_alive()

    def end(self) -> None:
        if self.ident is not None:
            self.join()

    def wait(self) -> float:
        self.end()
        if self._error is not None:
            raise self._error
        return self._seconds


class LocalStorage(_FileStorage):
    """An open file, by positioned calls of the kernel."""

    @_naming
    def read_into(self, offset: int, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done : done + _CALL_BYTES]], offset + done)
            if not count:
                break
            done += count
        return done

    @_naming
    def write_at(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done : done + _CALL_BYTES], offset + done)

    @_naming
    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> None:
        done = 0
        if isinstance(source, LocalStorage) and hasattr(os, "copy_file_range"):
            done = self._copy_in_kernel(source, source_offset, offset, length)
        if done < length:
            copy_through_memory(source, source_offset + done, self, offset + done, length - done)

    @_naming
    def copy_many_from(
        self, source: Storage, source_offsets: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]
    ) -> None:
        if not isinstance(source, LocalStorage):
            copy_one_by_one(source, source_offsets, self, offsets, lengths)
            return
        # As bare as can be: of hundreds of thousands of pieces each costs little more than its two calls, 5 us.
        origin, descriptor, read, write = source._descriptor, self._descriptor, os.pread, os.pwrite  # noqa: SLF001
        for source_offset, offset, length in zip(source_offsets, offsets, lengths, strict=True):
            if length < _KERNEL_COPY_BYTES:
                try:
                    piece = read(origin, length, source_offset)
                except OSError as error:
                    error.filename = source.path
                    raise
                if len(piece) == length and write(descriptor, piece, offset) == length:
                    continue
            self.copy_from(source, source_offset, offset, length)

    def _copy_in_kernel(self, source: LocalStorage, source_offset: int, offset: int, length: int) -> int:
        done = 0
        while done < length:
            try:
                count = os.copy_file_range(
                    source._descriptor,
                    self._descriptor,
                    min(length - done, _CALL_BYTES),
                    source_offset + done,
                    offset + done,
                )
            except OSError as error:
                if error.errno in _NO_KERNEL_COPY:
                    break
                raise
            if not count:
                break
            done += count
        return done


class PortableStorage(_FileStorage):
    """The same by seek, read and write under a lock."""

    _new_lock = staticmethod(whole_lock)

    def __init__(self, descriptor: int, path: str, *, writable: bool) -> None:
        super().__init__(descriptor, path, writable=writable)
        self._lock = Lock()

    @_naming
    def read_into(self, offset: int, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            while done < len(view):
                piece = os.read(self._descriptor, min(len(view) - done, _COPY_BYTES))
                if not piece:
                    break
                view[done : done + len(piece)] = piece
                done += len(piece)
        return done

    @_naming
    def write_at(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        done = 0
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            while done < len(view):
                done += os.write(self._descriptor, view[done : done + _CALL_BYTES])

    @_naming
    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> None:
        copy_through_memory(source, source_offset, self, offset, length)

    def copy_many_from(
        self, source: Storage, source_offsets: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]
    ) -> None:
        copy_one_by_one(source, source_offsets, self, offsets, lengths)


def copy_through_memory(source: Storage, source_offset: int, target: Storage, offset: int, length: int) -> None:
    """Copy by way of a buffer of 8 MiB; the way that works between any two storages."""
    buffer = memoryview(bytearray(min(length, _COPY_BYTES)))
    done = 0
    while done < length:
        piece = buffer[: min(length - done, _COPY_BYTES)]
        if source.read_into(source_offset + done, piece) < len(piece):
            raise OSError(errno.EIO, "the file ended while it was being copied", source.path)
        target.write_at(offset + done, piece)
        done += len(piece)


def copy_one_by_one(
    source: Storage, source_offsets: Sequence[int], target: Storage, offsets: Sequence[int], lengths: Sequence[int]
) -> None:
    """Copy many pieces by as many calls."""
    for source_offset, offset, length in zip(source_offsets, offsets, lengths, strict=True):
        target.copy_from(source, source_offset, offset, length)


def sync_descriptor(descriptor: int) -> None:
    """Sync to the medium: on macOS fsync stops at the drive's cache, and only F_FULLFSYNC goes through it."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None and fcntl is not None:
        with contextlib.suppress(OSError):  # some file systems have no such call
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)
