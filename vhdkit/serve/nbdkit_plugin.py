"""The part of the server that runs inside nbdkit: it answers clients by reading the layers' files.

nbdkit runs this file in the Python that it was built with, another one than vhdkit's and perhaps an older: it stands
alone, in the Python of 3.9 with its standard library. vhdkit imports it too, for the records that they exchange.

nbdkit inherits the open files of the layers, with their locks. Which layer owns a byte is asked of vhdkit once a window
(MAP), and kept in bounded memory; then reads go from the file to the client. What no file holds as it is (a log over a
file, a remote file, the end of a short one) is asked of vhdkit (READ), and so is every change: this file never writes.

Each channel is a pair of sockets, on which one request at a time is answered. A request is REQUEST, with the bytes of a
write behind it; an answer is ANSWER, with its bytes behind it, which are a message if the error is not 0.
"""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import signal
import socket
import struct
import threading
from array import array
from bisect import bisect_left, bisect_right
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

API_VERSION = 2

# The operation, its position on the disk and its length in bytes.
REQUEST = struct.Struct("<Bqq")
# An errno or 0, and the bytes that follow.
ANSWER = struct.Struct("<iq")
# A map: its first byte, its end, and how many stretches follow: their starts (int64), the distance from the position on
# the disk to that in the file (int64), the depths of their layers (int16, -1 for zeros).
MAP_HEAD = struct.Struct("<qqi")
MAP, READ, WRITE, ZERO, TRIM, FLUSH = range(1, 7)
READY = b"R"

# Stretches that are kept, 18 bytes each, and how many a map costs besides.
_MOST_STRETCHES = 1 << 20
_MAP_STRETCHES = 32
# Extents in one answer to a client, who asks again for those behind them.
_MOST_EXTENTS = 1 << 16
_ZEROS = memoryview(bytes(1 << 20))
# How long nbdkit waits for clients that are connected once it is asked to end, in seconds.
_END_SECONDS = 1


class Window:
    """The map of a part of the disk."""

    __slots__ = ("cost", "delta", "depth", "start", "starts", "stop")

    def __init__(self, raw: bytearray) -> None:
        self.start, self.stop, count = MAP_HEAD.unpack_from(raw)
        at = MAP_HEAD.size
        self.starts = array("q", raw[at : at + 8 * count])
        self.delta = array("q", raw[at + 8 * count : at + 16 * count])
        self.depth = array("h", raw[at + 16 * count :])
        # The memory that it takes, in stretches.
        self.cost = count + _MAP_STRETCHES

    def stretches(self, offset: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (start, stop, depth, delta) of the stretches in a range that lies in the window."""
        starts, last = self.starts, len(self.starts) - 1
        index = bisect_right(starts, offset) - 1
        while offset < stop:
            end = min(stop, self.stop if index == last else starts[index + 1])
            yield offset, end, self.depth[index], self.delta[index]
            offset, index = end, index + 1


class Windows:
    """The maps that are known; the oldest is dropped when memory is short.

    Readers take no lock: `_known` is replaced as a whole. `changes` counts the writes: a map that was asked for before
    one of them may be of before it, and is not kept.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._lock = threading.Lock()
        self._known: tuple[list[int], list[Window]] = ([], [])
        self._in_order: dict[int, Window] = {}
        self._total = 0

    def find(self, offset: int) -> Window | None:
        """Return the map that holds a position, or None."""
        starts, windows = self._known
        index = bisect_right(starts, offset) - 1
        if index < 0 or offset >= windows[index].stop:
            return None
        return windows[index]

    def keep(self, window: Window, changes: int) -> None:
        """Keep a map that was requested after `changes` changes."""
        with self._lock:
            if changes != self.changes:
                return
            self._replace(window.start, window.stop, [window])
            while self._total > _MOST_STRETCHES and len(self._in_order) > 1:
                oldest = next(iter(self._in_order.values()))
                self._replace(oldest.start, oldest.stop, [])

    def drop(self, offset: int, stop: int) -> None:
        """Drop the maps of a range that was written."""
        with self._lock:
            self.changes += 1
            self._replace(offset, stop, [])

    def _replace(self, offset: int, stop: int, new: list[Window]) -> None:
        """Put maps in the place of those that share bytes with a range."""
        starts, windows = self._known
        first = max(0, bisect_right(starts, offset) - 1)
        if first < len(windows) and windows[first].stop <= offset:
            first += 1
        last = max(first, bisect_left(starts, stop))
        for old in windows[first:last]:
            del self._in_order[old.start]
            self._total -= old.cost
        for each in new:
            self._in_order[each.start] = each
            self._total += each.cost
        self._known = (
            [*starts[:first], *(each.start for each in new), *starts[last:]],
            [*windows[:first], *new, *windows[last:]],
        )


class ServedDisk:
    """The disk that is served: its files, its maps, and the channels to vhdkit."""

    def __init__(self) -> None:
        self.size = 0
        self.is_writable = False
        self.files: list[int] = []
        self.lifeline: socket.socket | None = None
        self.private_folder = ""
        self.socket_path = ""
        self.windows = Windows()
        self.channels: queue.LifoQueue[socket.socket] = queue.LifoQueue()

    def ask(self, operation: int, offset: int, length: int, data: memoryview | None = None) -> bytearray:
        """Send a request on a free channel; return the bytes of the answer, or raise its OSError."""
        channel = self.channels.get()
        try:
            channel.sendall(REQUEST.pack(operation, offset, length))
            if data is not None:
                channel.sendall(data)
            error, count = ANSWER.unpack(receive(channel, ANSWER.size))
            answer = receive(channel, count)
        finally:
            self.channels.put(channel)
        if error:
            raise OSError(error, bytes(answer).decode("utf-8", "replace"))
        return answer

    def window_at(self, offset: int) -> Window:
        """Return the map that holds a position."""
        found = self.windows.find(offset)
        if found is None:
            changes = self.windows.changes
            found = Window(self.ask(MAP, offset, 0))
            self.windows.keep(found, changes)
        return found

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill a view with the disk's bytes from a position."""
        first, end = offset, offset + len(view)
        while offset < end:
            window = self.window_at(offset)
            stop = min(end, window.stop)
            for start, here, depth, delta in window.stretches(offset, stop):
                self._read_stretch(start, view[start - first : here - first], depth, delta)
            offset = stop

    def _read_stretch(self, start: int, view: memoryview, depth: int, delta: int) -> None:
        if depth < 0:
            for at in range(0, len(view), len(_ZEROS)):
                view[at : at + len(_ZEROS)] = _ZEROS[: min(len(_ZEROS), len(view) - at)]
            return
        descriptor, done = self.files[depth], 0
        while descriptor >= 0 and done < len(view):
            count = _read(descriptor, view[done:], start + delta + done)
            if not count:
                break
            done += count
        if done < len(view):
            view[done:] = self.ask(READ, start + done, len(view) - done)

    def change(self, operation: int, offset: int, length: int, data: memoryview | None = None) -> None:
        """Have vhdkit change a range of the leaf."""
        try:
            self.ask(operation, offset, length, data)
        finally:
            self.windows.drop(offset, offset + length)

    def extents(self, offset: int, stop: int, *, is_one: bool) -> list[tuple[int, int, bool]]:
        """Return (start, length, has data) of a range, the first of them alone if that is asked for."""
        found: list[tuple[int, int, bool]] = []
        while offset < stop and len(found) < _MOST_EXTENTS and not (is_one and len(found) > 1):
            window = self.window_at(offset)
            end = min(stop, window.stop)
            for start, here, depth, _ in window.stretches(offset, end):
                is_data = depth >= 0
                first = found.pop()[0] if found and found[-1][2] is is_data else start
                found.append((first, here - first, is_data))
            offset = end
        return found[:1] if is_one else found[:_MOST_EXTENTS]

    def watch(self, lifeline: socket.socket) -> None:
        """End this process when vhdkit has ended, however that came about."""
        while lifeline.recv(1):
            pass
        self.remove_socket()
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(_END_SECONDS)
        os._exit(1)

    def remove_socket(self) -> None:
        """Remove the socket's name, and the folder that was made for it."""
        for remove, path in ((os.unlink, self.socket_path), (os.rmdir, self.private_folder)):
            with suppress(OSError):  # also of no path
                remove(path)


def receive(channel: socket.socket, count: int) -> bytearray:
    """Receive exactly that many bytes; an OSError says that the other side has gone."""
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        got = channel.recv_into(view[done:])
        if not got:
            raise OSError(errno.ESHUTDOWN, "the other side has ended")
        done += got
    return data


class _Vector(ctypes.Structure):
    """A struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


# preadv2 of the C library, called without giving the interpreter's lock away; not every system has it.
_preadv2 = getattr(ctypes.PyDLL(None), "preadv2", None) if hasattr(os, "RWF_NOWAIT") else None
if _preadv2 is not None:
    _preadv2.argtypes = (ctypes.c_int, ctypes.POINTER(_Vector), ctypes.c_int, ctypes.c_int64, ctypes.c_int)
    _preadv2.restype = ctypes.c_ssize_t


def _read(descriptor: int, view: memoryview, offset: int) -> int:
    """Read into a view, and return how many bytes came.

    What the system has in memory is copied at once (RWF_NOWAIT), and only what comes from a disk lets other threads go
    on meanwhile: waiting for one's turn again took 2.4 of 3.4 s for a GiB on a busy machine.
    """
    if _preadv2 is not None:
        vector = _Vector(ctypes.addressof(ctypes.c_char.from_buffer(view)), len(view))
        count: int = _preadv2(descriptor, ctypes.byref(vector), 1, offset, os.RWF_NOWAIT)
        if count > 0:
            return count
    return os.preadv(descriptor, [view], offset)


_disk = ServedDisk()
cleanup = _disk.remove_socket  # with its parent nbdkit gets a SIGTERM, maybe before `watch` has seen that end


@contextmanager
def _errno_told() -> Iterator[None]:
    """Tell nbdkit the errno of an OSError, which it would take for EIO."""
    try:
        yield
    except OSError as error:
        import nbdkit

        nbdkit.set_error(error.errno or errno.EIO)
        raise


# What nbdkit calls


def thread_model() -> int:
    """Let the connections be served in parallel, each of them one request at a time."""
    # With several of one connection nbdkit 1.32 aborts where a client hangs up in the midst of them: one thread closes
    # the socket, and another asserts that it is open. And a GiB by nbdcopy takes 0.71 s of CPU instead of 0.44 s.
    import nbdkit

    model: int = nbdkit.THREAD_MODEL_SERIALIZE_REQUESTS
    return model


def config(key: str, value: str) -> None:
    """Take one of the values that vhdkit hands over."""
    if key == "size":
        _disk.size = int(value)
    elif key == "writable":
        _disk.is_writable = value == "1"
    elif key == "files":
        _disk.files = [int(each) for each in value.split(",")]
    elif key == "channels":
        for each in value.split(","):
            _disk.channels.put(socket.socket(fileno=int(each)))
    elif key == "lifeline":
        _disk.lifeline = socket.socket(fileno=int(value))
    elif key in {"socket_path", "private_folder"}:
        setattr(_disk, key, value)
    else:
        raise ValueError("vhdkit serves the disk; this plugin takes no parameters of others: " + key)


def config_complete() -> None:
    """Refuse to be run by anybody else."""
    if _disk.lifeline is None or not _disk.files:
        raise ValueError("this plugin is run by vhdkit")


def after_fork() -> None:
    """Say that clients can connect, and end with vhdkit from now on."""
    if _disk.lifeline is not None:
        threading.Thread(target=_disk.watch, args=(_disk.lifeline,), daemon=True).start()
        _disk.lifeline.sendall(READY)


def open(_readonly: bool) -> ServedDisk:
    """Return what stands for a client; all of them see one disk."""
    return _disk


def get_size(disk: ServedDisk) -> int:
    """Return the bytes of the disk."""
    return disk.size


def can_write(disk: ServedDisk) -> bool:
    """Whether clients may write."""
    return disk.is_writable


can_flush = can_trim = can_zero = can_write


def can_fua(disk: ServedDisk) -> int:
    """Let nbdkit flush after a write with FUA."""
    import nbdkit

    way: int = nbdkit.FUA_EMULATE if disk.is_writable else nbdkit.FUA_NONE
    return way


def can_multi_conn(_disk: ServedDisk) -> bool:
    """Whether what one connection has flushed is seen by all: there is one disk."""
    return True


def pread(disk: ServedDisk, buffer: memoryview, offset: int, _flags: int) -> None:
    """Fill a buffer."""
    with _errno_told():
        disk.read_into(offset, memoryview(buffer))


def pwrite(disk: ServedDisk, buffer: memoryview, offset: int, _flags: int) -> None:
    """Write a buffer into the leaf."""
    with _errno_told():
        disk.change(WRITE, offset, len(buffer), buffer)


def zero(disk: ServedDisk, count: int, offset: int, _flags: int) -> None:
    """Write zeros."""
    with _errno_told():
        disk.change(ZERO, offset, count)


def trim(disk: ServedDisk, count: int, offset: int, _flags: int) -> None:
    """Give back the space of a range."""
    with _errno_told():
        disk.change(TRIM, offset, count)


def flush(disk: ServedDisk, _flags: int) -> None:
    """Make durable what was written."""
    with _errno_told():
        disk.ask(FLUSH, 0, 0)


def extents(disk: ServedDisk, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    """Return which parts of a range hold data."""
    import nbdkit

    with _errno_told():
        found = disk.extents(offset, offset + count, is_one=bool(flags & nbdkit.FLAG_REQ_ONE))
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    return [(start, length, 0 if is_data else hole) for start, length, is_data in found]
