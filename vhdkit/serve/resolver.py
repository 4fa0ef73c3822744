"""vhdkit's side of a served disk: it answers what the plugin of nbdkit asks (see `nbdkit_plugin`).

Each channel has a thread. A chain that can be written answers one request at a time; reads of payload that go from the
files to the clients are not among them.
"""

from __future__ import annotations

import errno
import threading
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.disk import extents
from vhdkit.disk.extents import Kind
from vhdkit.disk.holes import without_holes
from vhdkit.errors import VhdError
from vhdkit.serve.nbdkit_plugin import ANSWER, FLUSH, MAP, MAP_HEAD, READ, REQUEST, TRIM, WRITE, ZERO, receive
from vhdkit.storage.descriptors import punch_hole

if TYPE_CHECKING:
    import socket
    from contextlib import AbstractContextManager

    from vhdkit.chain.chain import Chain

# As much as one map describes if bitmaps decide about much of it, and the most where they decide about little. Clients
# ask where the holes of up to 4 GiB are.
SMALL_WINDOW_BYTES = 32 << 20
LARGE_WINDOW_BYTES = 4 << 30
# A window is not doubled beyond this many sectors that bitmaps decide.
_WINDOW_SECTORS = 1 << 17
# nbdkit takes no longer requests.
_MOST_BYTES = 64 << 20
_PIECE_BYTES = 4 << 20


class ChainResolver:
    """What the plugin may ask of a chain."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._layers = chain.layers
        is_written = chain.leaf.storage.writable
        self._turn: AbstractContextManager[object] = threading.Lock() if is_written else nullcontext()

    def answer_all(self, channel: socket.socket) -> None:
        """Answer the requests of one channel until the plugin has gone."""
        with channel, suppress(OSError):
            while True:
                operation, offset, length = REQUEST.unpack(receive(channel, REQUEST.size))
                if operation == WRITE and not 0 <= length <= _MOST_BYTES:
                    return
                data = receive(channel, length) if operation == WRITE else bytearray()
                error, answer = self._answer(operation, offset, length, data)
                channel.sendall(ANSWER.pack(error, len(answer)))
                channel.sendall(answer)

    def _answer(self, operation: int, offset: int, length: int, data: bytearray) -> tuple[int, bytes | bytearray]:
        """Return an errno and a message, or 0 and what was asked for."""
        try:
            with self._turn:
                return 0, self._done(operation, offset, length, data)
        except OSError as error:
            return error.errno or errno.EIO, str(error).encode("utf-8", "replace")
        except (VhdError, ValueError) as error:
            return errno.EIO, str(error).encode("utf-8", "replace")

    def _done(self, operation: int, offset: int, length: int, data: bytearray) -> bytes | bytearray:
        if operation == MAP:
            return self.map_at(offset)
        if operation == READ:
            return self._chain.read(offset, min(length, _MOST_BYTES))
        if operation == WRITE:
            self._chain.write(offset, data)
        elif operation == ZERO:
            self.write_zeros(offset, length)
        elif operation == TRIM:
            self.trim(offset, length)
        elif operation == FLUSH:
            self._chain.sync()
        else:
            raise ValueError(f"the plugin asks for operation {operation}")
        return b""

    def map_at(self, offset: int) -> bytes:
        """Return the map of a window that holds a position."""
        start, stop = self._window(offset)
        parts = list(self._chain.extents(start, stop - start))
        found = without_holes(extents.concatenate(parts), self._layers)
        depth = np.where(found.kind == Kind.DATA, found.depth, -1)
        # Zeros that touch are one stretch: of a disk of terabytes most windows are one hole.
        first = np.flatnonzero(np.concatenate(([True], (depth[1:] >= 0) | (depth[:-1] >= 0))))
        delta = (found.file_offset - found.start)[first]
        head = MAP_HEAD.pack(start, stop, len(first))
        return b"".join((head, found.start[first].tobytes(), delta.tobytes(), depth[first].astype(np.int16).tobytes()))

    def _window(self, offset: int) -> tuple[int, int]:
        """Return the largest window around a position that is not too fine: a power of two, or the disk's end."""
        size = SMALL_WINDOW_BYTES
        while size < LARGE_WINDOW_BYTES and self._mapped_sectors(offset, 2 * size) <= _WINDOW_SECTORS:
            size *= 2
        start = offset // size * size
        return start, min(self._chain.size, start + size)

    def _mapped_sectors(self, offset: int, size: int) -> int:
        start = offset // size * size
        stop = min(self._chain.size, start + size)
        return sum(layer.mapped_sectors(start, min(stop, layer.size)) for layer in self._layers if start < layer.size)

    def write_zeros(self, offset: int, length: int) -> None:
        """Make a range zeros; what is zeros already takes no space."""
        for found in self._chain.extents(offset, length):
            for part in found.of(Kind.DATA):
                start, stop = max(offset, part.start), min(offset + length, part.start + part.length)
                for at in range(start, stop, _PIECE_BYTES):
                    self._chain.write(at, bytes(min(stop - at, _PIECE_BYTES)))

    def trim(self, offset: int, length: int) -> None:
        """Give back the space of what the leaf holds of a range: it reads as zeros, and the rest as before."""
        leaf = self._chain.leaf
        leaf.check_writable()
        for found in self._chain.extents(offset, length):
            own = found.of(Kind.DATA)
            for part in own.take(own.depth == 0):
                start, stop = max(offset, part.start), min(offset + length, part.start + part.length)
                if start < stop:
                    punch_hole(leaf.storage, part.file_offset + start - part.start, stop - start)
