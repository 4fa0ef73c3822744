"""Open files of the operating system.

`LocalStorage` uses pread, pwrite and what `copying` knows; `PortableStorage` needs no more than seek, read and write,
for systems that lack them (Windows), and is held to the same tests everywhere.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import time
import warnings
from collections import deque
from itertools import groupby
from typing import TYPE_CHECKING

from vhdkit.storage.background_call import Aside
from vhdkit.storage.fast_paths import FastPath, is_used
from vhdkit.storage.file_copy import (
    CALL_BYTES,
    LONG_BYTES,
    LongCopies,
    copy_in_kernel,
    copy_one_by_one,
    copy_through_memory,
    do_overlap,
)
from vhdkit.storage.file_errors import name_file, naming_file
from vhdkit.storage.handle import Handle
from vhdkit.storage.locks import system_lock
from vhdkit.storage.read_many import read_by_runs

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from typing_extensions import Buffer

    from vhdkit.storage.protocols import Storage, Syncing

PIECE_BYTES = 8 << 20
# What is to be forgotten is told in pieces of so much, so that two threads can share it.
_FORGET_BYTES = 64 << 20
_MOST_TO_FORGET = 4096
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class FileStorage(Handle):
    """What both implementations share: everything that needs no position.

    One that is dropped without being closed warns as a file object does, and closes itself.
    """

    _new_lock = staticmethod(system_lock)
    _descriptor = -1

    def __init__(self, descriptor: int, path: str, *, writable: bool) -> None:
        self._path = path
        self._writable = writable
        status = os.fstat(descriptor)
        self._identity = (status.st_dev, status.st_ino)
        self._file_lock = self._new_lock()
        self._syncing: Aside | None = None
        self._closing: Aside | None = None
        self._forgetting: Aside | None = None
        self._to_forget: deque[tuple[int, int]] = deque()
        # Bytes [start, stop) that were found to be no hole; of a file that is written here none is kept.
        self._data_run = (0, 0)
        # Last: until then the descriptor is the caller's to close.
        self._descriptor = descriptor

    def __repr__(self) -> str:
        """Return the path, and whether it is closed."""
        return f"<{type(self).__name__} {self._path!r}{' (closed)' if self._closed else ''}>"

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        if self._descriptor < 0:
            return
        try:
            warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            self.close()

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
        return self._status().st_nlink

    @property
    def mtime(self) -> float:
        return self._status().st_mtime

    @property
    def ctime(self) -> float:
        return self._status().st_ctime

    @property
    def owner(self) -> int:
        return self._status().st_uid

    @property
    def allocated_size(self) -> int:
        status = self._status()
        return status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size

    @property
    def is_protected(self) -> bool:
        return not self._status().st_mode & 0o222

    @naming_file
    def _status(self) -> os.stat_result:
        return os.fstat(self._descriptor)

    @naming_file
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    @naming_file
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
        for at in range(offset, offset + length, PIECE_BYTES):
            piece = bytearray(min(PIECE_BYTES, offset + length - at))
            self.read_into(at, piece)
            self.write_at(at, piece)

    def read_into(self, offset: int, buffer: Buffer) -> int:
        raise NotImplementedError

    def write_at(self, offset: int, buffer: Buffer) -> None:
        raise NotImplementedError

    @naming_file
    def hole_bytes(self, offset: int, length: int) -> int:
        end = min(offset + length, self.size())
        holes = 0
        while offset < end and hasattr(os, "SEEK_DATA"):
            # tmpfs walks all pages of a run to find its end: one of 1 GiB was walked for each block of it.
            start, stop = self._data_run
            if start <= offset < stop:
                offset = stop
                continue
            try:
                data = min(end, os.lseek(self._descriptor, offset, os.SEEK_DATA))
            except OSError as error:
                # ENXIO: nothing but hole up to the end; anything else: the file system cannot tell.
                return holes + (end - offset if error.errno == errno.ENXIO else 0)
            holes += data - offset
            offset = os.lseek(self._descriptor, data, os.SEEK_HOLE) if data < end else end
            if data < end and not self.writable:
                self._data_run = (data, offset)
        return holes

    @naming_file
    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    @naming_file
    def sync(self) -> None:
        sync_descriptor(self._descriptor)

    def begin_sync(self) -> Syncing:
        self.check_open()
        self._syncing = Aside(self.sync)
        self._syncing.begin()
        return self._syncing

    def forget(self, offset: int, length: int) -> None:
        self.check_open()
        # Neither on macOS nor on Windows; and what is asked for faster than it is done is left to closing.
        if not hasattr(os, "posix_fadvise") or len(self._to_forget) >= _MOST_TO_FORGET:
            return
        end = offset + length
        while offset < end:
            # Memory is in larger parts than pages, which are let go of as a whole or not.
            stop = min(end, (offset // _FORGET_BYTES + 1) * _FORGET_BYTES)
            self._to_forget.append((offset, stop - offset))
            offset = stop
        if self._forgetting is None or self._forgetting.is_done():
            self._forgetting = Aside(functools.partial(self._forget, self._descriptor))
            self._forgetting.begin()

    def _forget(self, descriptor: int) -> None:
        with contextlib.suppress(IndexError):  # there is no more, or closing has left it out
            while True:
                offset, length = self._to_forget.popleft()
                # Not on every file system; nothing depends on it.
                with contextlib.suppress(OSError):
                    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)

    @naming_file
    def lock(self, *, exclusive: bool) -> None:
        self.check_open()
        self._file_lock.take(self._descriptor, self._path, exclusive=exclusive)

    def begin_close(self) -> None:
        if not is_used(FastPath.CLOSING):
            self.close()
            return
        descriptor = self._taken()
        if descriptor >= 0:
            self._closing = Aside(functools.partial(self._give_back, descriptor))
            self._closing.begin()

    def close(self) -> None:
        if self._closing is None:
            self._to_forget.clear()
            if self._forgetting is not None:
                self._forgetting.end()
        descriptor = self._taken()
        if descriptor >= 0:
            self._give_back(descriptor)
        closing, self._closing = self._closing, None
        if closing is not None:
            closing.wait()

    def _taken(self) -> int:
        """Return the descriptor, which this storage has no longer; -1 if it had none."""
        if self._syncing is not None:
            self._syncing.end()
        descriptor, self._descriptor, self._closed = self._descriptor, -1, True
        return descriptor

    def _give_back(self, descriptor: int) -> None:
        try:
            # What is still to be forgotten would be let go of now by this thread alone.
            self._forget(descriptor)
        finally:
            try:
                if self._forgetting is not None:
                    self._forgetting.end()  # another file may soon have the descriptor's number
                self._file_lock.release(descriptor)
            finally:
                os.close(descriptor)


class LocalStorage(FileStorage):
    """An open file, by positioned calls of the kernel."""

    def __init__(self, descriptor: int, path: str, *, writable: bool) -> None:
        self._long_copies = LongCopies(descriptor)
        super().__init__(descriptor, path, writable=writable)

    def read_into(self, offset: int, buffer: Buffer) -> int:
        # As bare as can be: nearly every read of a chain is one call of this, and it makes one of the system.
        view = memoryview(buffer).cast("B")
        try:
            done = os.preadv(self._descriptor, [view if len(view) <= CALL_BYTES else view[:CALL_BYTES]], offset)
            while 0 < done < len(view):
                count = os.preadv(self._descriptor, [view[done : done + CALL_BYTES]], offset + done)
                if not count:
                    break
                done += count
        except (OSError, ValueError) as error:
            name_file(error, self)
            raise
        return done

    @naming_file
    def read_many_into(self, offsets: Sequence[int], buffers: Sequence[memoryview]) -> list[int]:
        return read_by_runs(self, self._descriptor, offsets, buffers)

    @naming_file
    def write_at(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done : done + CALL_BYTES], offset + done)

    @naming_file
    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> None:
        self._copy_pieces(source, [(source_offset, offset, length)])

    def _copy_pieces(self, source: Storage, pieces: Sequence[tuple[int, int, int]], until: float = math.inf) -> int:
        """Copy pieces, (offset there, offset here, length) each; of several none overlaps another.

        Returns how many are copied, as `Storage.copy_many_from` does; of what was not, parts may have been written.
        """
        done = [(0, 0)] * len(pieces)
        # A file that is read while it is written past the page cache might wait for itself.
        if isinstance(source, LocalStorage) and source.identity != self.identity:
            done = self._long_copies.copy(source._descriptor, pieces, until)  # noqa: SLF001
        for number, ((source_offset, offset, length), (start, stop)) in enumerate(zip(pieces, done, strict=True)):
            if number and start == stop and time.monotonic() > until:
                return number
            self._copy_rest(source, source_offset, offset, start)
            self._copy_rest(source, source_offset + stop, offset + stop, length - stop)
        return len(pieces)

    def _copy_rest(self, source: Storage, source_offset: int, offset: int, length: int) -> None:
        done = 0
        if isinstance(source, LocalStorage) and length >= LONG_BYTES and is_used(FastPath.KERNEL_COPY):
            done = copy_in_kernel(source._descriptor, source_offset, self._descriptor, offset, length)  # noqa: SLF001
        if done < length:
            copy_through_memory(source, source_offset + done, self, offset + done, length - done)

    @naming_file
    def copy_many_from(
        self,
        source: Storage,
        source_offsets: Sequence[int],
        offsets: Sequence[int],
        lengths: Sequence[int],
        until: float = math.inf,
    ) -> int:
        if not isinstance(source, LocalStorage) or not is_used(FastPath.MANY):
            return copy_one_by_one(source, source_offsets, self, offsets, lengths, until)
        pieces = list(zip(source_offsets, offsets, lengths, strict=True))
        if max(lengths, default=0) < LONG_BYTES:
            return self._copy_short(source, pieces, until)
        done = 0
        for group in _alike(pieces):
            if done and time.monotonic() > until:
                break
            copy = self._copy_pieces if group[0][2] >= LONG_BYTES else self._copy_short
            count = copy(source, group, until)
            done += count
            if count < len(group):
                break
        return done

    def _copy_short(self, source: LocalStorage, pieces: Sequence[tuple[int, int, int]], until: float) -> int:
        # As bare as can be: of hundreds of thousands of pieces each costs little more than its two calls, 5 us.
        origin, descriptor = source._descriptor, self._descriptor
        read, write, clock = os.pread, os.pwrite, time.monotonic
        for number, (source_offset, offset, length) in enumerate(pieces):
            if number and clock() > until:
                return number
            try:
                piece = read(origin, length, source_offset)
            except OSError as error:
                error.filename = source.path
                raise
            if len(piece) != length or write(descriptor, piece, offset) != length:
                self.copy_from(source, source_offset, offset, length)
        return len(pieces)

    def _taken(self) -> int:
        # First: a Ctrl-C that comes while it waits leaves a file that can still be closed.
        self._long_copies.close()
        return super()._taken()


def _alike(pieces: Iterable[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Yield pieces that can be copied together, in their order: short ones, or long ones that do not overlap."""
    for is_long, found in groupby(pieces, lambda piece: piece[2] >= LONG_BYTES):
        group = list(found)
        if is_long and do_overlap(group):
            yield from ([piece] for piece in group)
        else:
            yield group


def sync_descriptor(descriptor: int) -> None:
    """Sync to the medium: on macOS fsync stops at the drive's cache, and only F_FULLFSYNC goes through it."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None and fcntl is not None:
        with contextlib.suppress(OSError):  # some file systems have no such call
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)
