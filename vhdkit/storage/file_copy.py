"""Copying between open files: shared, past the page cache, by the kernel, or by way of memory.

A long stretch is tried in this order, and each way says how much of it it has done:

 - shared: on XFS and Btrfs both files can have the same extents, if both offsets lie alike in a block of theirs.
 - direct: the device takes the bytes from the pages in which the kernel has the source, by way of a pipe that only
   refers to them, and the target has none. That leaves out one copy of each byte in memory, and the pages of it that a
   sync would have to look for: 2 GiB took 0.6 of the time of copying in the kernel, on ext4. Only whole pages can be
   written so; what is left of the edges is not.
 - kernel: copy_file_range, which a server of files may do without sending anything.
 - memory: read and write, the way that works between any two.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import struct
import time
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from vhdkit.storage.background_call import Aside, end_all
from vhdkit.storage.fast_paths import FastPath, is_used
from vhdkit.storage.handle import closing_on_error
from vhdkit.units import ceil_div

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhdkit.storage.protocols import Storage

# Below this none of the others is quicker than a read and a write, and extents shared in so small pieces would leave
# the file in shreds. Against read and write, direct writes of 64 KiB took 1.8 times as long, of 128 KiB as long, of
# 256 KiB 0.8 times.
LONG_BYTES = 256 << 10
# One kernel call moves at most 2 GiB minus a page on Linux; a round number below is asked for at once.
CALL_BYTES = 1 << 30
_MEMORY_BYTES = 8 << 20
# So many are written at once: of 2 GiB, in pieces of 2 MiB, two took 0.73 s, three 0.58 s, four 0.65 s. More than a
# pipe holds cannot be one write, and more than this a pipe may hold by privilege only.
_AT_ONCE = 3
_PIPE_BYTES = 1 << 20
# No page is to be half in a direct write and half in another: what lies in memory of it could be written over it later.
_PAGE = max(4096, mmap.PAGESIZE)
# Where direct writes were measured. On a network they would go without what its client does in the background.
_DIRECT_FILE_SYSTEMS = {"ext4", "xfs"}
_NOT_DIRECT = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_MOUNTS = "/proc/self/mountinfo"
# The ioctl FICLONERANGE: descriptor, offset and length of the source, offset in the target.
_CLONE_RANGE, _CLONE_FIELDS = 0x4020_940D, struct.Struct("=qQQQ")
_NEVER_SHARED = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF, errno.EPERM}


class _Window(NamedTuple):
    """A stretch of a piece, in whole pages of the file that is written: no more than a pipe holds."""

    piece: int
    source_offset: int
    offset: int
    length: int
    is_first: bool


class _Pipe:
    """A pipe that holds `_PIPE_BYTES`, for one thread at a time.

    Raises:
        OSError: none is to be had, or none so large.

    """

    def __init__(self) -> None:
        self.out, self.into = os.pipe()
        with closing_on_error(self):
            fcntl.fcntl(self.into, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def close(self) -> None:
        """Give it back, with whatever is in it."""
        try:
            os.close(self.out)
        finally:
            os.close(self.into)


class LongCopies:
    """Long copies into one open file by the ways that not every file system has; what one lacks is asked for once.

    What is written from memory is not written direct: from pages that were just filled, 500 pieces of 2 MiB took 1.3 of
    the time of going through the page cache, which goes on while the next piece is made.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._direct: int | None = None
        self._writing: list[Aside] = []
        self._may_share = fcntl is not None

    def copy(
        self, source: int, pieces: Sequence[tuple[int, int, int]], until: float = math.inf
    ) -> list[tuple[int, int]]:
        """Copy pieces of another open file, (offset there, offset here, length) each; none overlaps another here.

        Returns of each the range [start, stop), counted from its beginning, that is copied; the rest is the caller's.
        But for the first, of what was not begun before `until` (of time.monotonic) nothing is copied. While they are
        written nothing else writes into the file's page cache: it could have parts of them.
        """
        done: list[tuple[int, int]] = []
        windows: list[_Window] = []
        for number, (source_offset, offset, length) in enumerate(pieces):
            is_late = number > 0 and time.monotonic() > until
            start, stop = _whole_pages(offset, length) if length >= LONG_BYTES and not is_late else (0, 0)
            is_shared = start < stop and self._share(source, source_offset + start, offset + start, stop - start)
            done.append((start, stop if is_shared else start))
            windows += _windows(number, source_offset, offset, done[-1][1], stop)
        for window, count in zip(windows, self._write_windows(source, windows, until), strict=True):
            start, stop = done[window.piece]
            if pieces[window.piece][1] + stop == window.offset:
                done[window.piece] = start, stop + count
        return done

    def close(self) -> None:
        """Give back what was opened for it, once nothing is written any more."""
        end_all(self._writing)
        # Taken first: interrupted after closing it, another try would close whatever file has its number by then.
        direct, self._direct = self._direct, -1
        if direct is not None and direct >= 0:
            os.close(direct)

    def _share(self, source: int, source_offset: int, offset: int, length: int) -> bool:
        if not self._may_share or (source_offset - offset) % _PAGE or not is_used(FastPath.SHARE):
            return False
        try:
            fcntl.ioctl(self._descriptor, _CLONE_RANGE, _CLONE_FIELDS.pack(source, source_offset, length, offset))
        except OSError as error:
            # Whatever else it is, reading and writing will tell which of the files fails.
            self._may_share = error.errno not in _NEVER_SHARED
            return False
        return True

    def _write_windows(self, source: int, windows: Sequence[_Window], until: float) -> list[int]:
        """Write windows direct, several at once; return how much of each is written."""
        written = [0] * len(windows)
        if not windows or self._opened() < 0:
            return written
        waiting = deque(enumerate(windows))

        def write() -> None:
            self._write_waiting(source, waiting, written, until)

        at_once = _AT_ONCE if is_used(FastPath.AT_ONCE) else 1
        end_all(self._writing)  # an interruption may have come before they were waited for
        self._writing = [Aside(write) for _ in range(min(at_once, len(windows)) - 1)]
        try:
            for other in self._writing:
                other.begin()
            write()
        finally:
            # The file is not written behind its caller's back.
            try:
                waiting.clear()
            finally:
                end_all(self._writing)
        for other in self._writing:
            other.wait()
        return written

    def _write_waiting(
        self, source: int, waiting: deque[tuple[int, _Window]], written: list[int], until: float
    ) -> None:
        """Write windows as they come until one is not written whole; note in `written` how much of each is."""
        pipe = None
        try:
            pipe = _opened_pipe()
            while pipe is not None and (taken := _next(waiting)) is not None:
                index, window = taken
                if index and window.is_first and time.monotonic() > until:
                    break
                written[index] = self._write_window(source, window, pipe)
                if written[index] < window.length:
                    break
        finally:
            # However this ends: on a disk that fails, each of the others could take its time.
            waiting.clear()
            if pipe is not None:
                pipe.close()

    def _write_window(self, source: int, window: _Window, pipe: _Pipe) -> int:
        """Write a window direct, as far as the source has it and can be read: why no further, reading it tells."""
        filled = done = 0
        while done < window.length:
            if filled < window.length:
                left, at = window.length - filled, window.source_offset + filled
                try:
                    # Were it full all the same, of parts of pages, waiting would never end.
                    count = os.splice(source, pipe.into, left, at, flags=os.SPLICE_F_NONBLOCK)
                except OSError:
                    count = 0
                if not count:
                    break
                filled += count
            # Before it is filled again it is empty, but for what is less than a page: a full one would never be.
            while whole := (filled - done) // _PAGE * _PAGE:
                count = self._write_direct(pipe, window.offset + done, whole)
                done += count
                if not count or count % _PAGE:
                    return done
        return done

    def _write_direct(self, pipe: _Pipe, offset: int, length: int) -> int:
        try:
            return os.splice(pipe.out, self._opened(), length, offset_dst=offset)
        except OSError as error:
            if error.errno not in _NOT_DIRECT:
                raise
            return 0

    def _opened(self) -> int:
        """Return a second descriptor of the file, for direct writes alone; -1 if there can be none."""
        if self._direct is None:
            self._direct = _open_direct(self._descriptor)
        return self._direct


def _next(waiting: deque[tuple[int, _Window]]) -> tuple[int, _Window] | None:
    """Return what waits first, None if another thread took the last."""
    try:
        return waiting.popleft()
    except IndexError:
        return None


def _opened_pipe() -> _Pipe | None:
    """Return a pipe, None where none is to be had: the other ways need none."""
    try:
        return _Pipe()
    except OSError:
        return None


def do_overlap(pieces: Sequence[tuple[int, int, int]]) -> bool:
    """Whether any of the pieces, (offset there, offset here, length) each, overlaps another where it is written."""
    stretches = sorted((offset, offset + length) for _, offset, length in pieces)
    return any(stop > start for (_, stop), (start, _) in pairwise(stretches))


def _windows(piece: int, source_offset: int, offset: int, start: int, stop: int) -> Iterator[_Window]:
    """Yield the windows of [start, stop) of a piece, as long as each other but for the last."""
    # Each page takes a place in a pipe, also those of which the first and the last byte are.
    most = _PIPE_BYTES - (_PAGE if (source_offset + start) % _PAGE else 0)
    pages = (stop - start) // _PAGE
    length = ceil_div(pages, max(1, ceil_div(pages * _PAGE, most))) * _PAGE
    for at in range(start, stop, max(_PAGE, length)):
        yield _Window(piece, source_offset + at, offset + at, min(length, stop - at), at == start)


def _whole_pages(offset: int, length: int) -> tuple[int, int]:
    start = -offset % _PAGE
    return start, max(start, (offset + length) // _PAGE * _PAGE - offset)


def _open_direct(descriptor: int) -> int:
    if not hasattr(os, "O_DIRECT") or not hasattr(os, "splice") or not is_used(FastPath.DIRECT):
        return -1
    try:
        status = os.fstat(descriptor)
        if _file_system(status.st_dev) not in _DIRECT_FILE_SYSTEMS:
            return -1
        # By way of the descriptor: the name may lead to another file by now.
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


def _file_system(device: int) -> str:
    """Return the kind of file system that a device's number stands for, "" if that is not known."""
    number = f"{os.major(device)}:{os.minor(device)}"
    # A mount point may have any bytes as its name.
    with open(_MOUNTS, errors="surrogateescape") as mounts:
        for line in mounts:
            place, _, kind = line.partition(" - ")
            if place.split()[2] == number:
                return kind.split()[0]
    return ""


def copy_in_kernel(source: int, source_offset: int, target: int, offset: int, length: int) -> int:
    """Copy between two descriptors; return how many bytes, fewer if there is no such call or the source ends."""
    done = 0
    while done < length and hasattr(os, "copy_file_range"):
        try:
            count = os.copy_file_range(
                source, target, min(length - done, CALL_BYTES), source_offset + done, offset + done
            )
        except OSError:
            # Whether there is no such call, or one of the files fails: reading and writing will tell which of them.
            break
        if not count:
            break
        done += count
    return done


def copy_through_memory(source: Storage, source_offset: int, target: Storage, offset: int, length: int) -> None:
    """Copy by way of a buffer of 8 MiB."""
    buffer = memoryview(bytearray(min(length, _MEMORY_BYTES)))
    done = 0
    while done < length:
        piece = buffer[: min(length - done, _MEMORY_BYTES)]
        if source.read_into(source_offset + done, piece) < len(piece):
            raise OSError(errno.EIO, "the file ended while it was being copied", source.path)
        target.write_at(offset + done, piece)
        done += len(piece)


def copy_one_by_one(
    source: Storage,
    source_offsets: Sequence[int],
    target: Storage,
    offsets: Sequence[int],
    lengths: Sequence[int],
    until: float = math.inf,
) -> int:
    """Copy many pieces by as many calls, but for the first none after `until`; return how many."""
    for number, (source_offset, offset, length) in enumerate(zip(source_offsets, offsets, lengths, strict=True)):
        if number and time.monotonic() > until:
            return number
        target.copy_from(source, source_offset, offset, length)
    return len(lengths)
