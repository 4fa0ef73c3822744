"""A chain's disk as a file object, for programs that read file systems and partition tables.

`open_stream` gives a buffered one, as `open` does: a program that takes a few bytes at a time then costs one read for
each buffer, and not one for each call.
"""

from __future__ import annotations

import errno
import io
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from vhdkit.chain.chain import Chain

# As `open` has for most files. More would read what a program that jumps about does not ask for.
BUFFER_BYTES: Final = 8192


class ChainStream(io.RawIOBase):
    """A chain as an unbuffered file object, writable if the chain is and `writable` asks for it.

    It has no `fileno`: no one file holds the disk. Its size is the disk's and never changes: as on a block device, a
    write across the end is cut there, a write behind the end raises OSError (ENOSPC), and `truncate` raises
    io.UnsupportedOperation.
    """

    def __init__(self, chain: Chain, *, writable: bool = False) -> None:
        super().__init__()
        self._chain = chain
        self._position = 0
        self._writable = writable
        self.name = chain.path
        self.size = chain.size
        self.mode: Literal["rb", "rb+"] = "rb+" if writable else "rb"

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return whether the leaf is written by `write`."""
        return self._writable

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill the buffer from the current position; return the bytes read, 0 at the end."""
        self._check_open()
        count = self._chain.read_into(self._position, buffer)
        self._position += count
        return count

    def write(self, buffer: Buffer, /) -> int:
        """Write the buffer into the leaf at the current position; return the bytes written, fewer at the disk's end."""
        self._check_open()
        if not self._writable:
            raise io.UnsupportedOperation("not writable")
        view = memoryview(buffer).cast("B")
        room = max(0, self.size - self._position)
        if len(view) and not room:
            message = f"the disk ends at {self.size:#x}, and a write begins at {self._position:#x}"
            raise OSError(errno.ENOSPC, message, self.name)
        view = view[:room]
        self._chain.write(self._position, view)
        self._position += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to a position, which may lie behind the end."""
        self._check_open()
        # A buffered stream asks for this whenever it has to read elsewhere.
        if whence == io.SEEK_SET:
            position = offset
        elif whence == io.SEEK_CUR:
            position = self._position + offset
        elif whence == io.SEEK_END:
            position = self.size + offset
        else:
            position = -1
        if position < 0:
            raise ValueError(f"cannot seek to {offset} from {whence}")
        self._position = position
        return position

    def tell(self) -> int:
        """Return the position."""
        self._check_open()
        return self._position

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed stream")


class BufferedReader(io.BufferedReader):
    """A buffered, read-only `ChainStream`; `size` is the disk's in bytes."""

    def __init__(self, raw: ChainStream) -> None:
        super().__init__(raw, BUFFER_BYTES)
        self.size = raw.size

    def readall(self) -> bytes:
        """Return the bytes up to the end of the disk, as an unbuffered stream does."""
        return self.read()


class BufferedStream(io.BufferedRandom):
    """A buffered `ChainStream` that can be written; `size` is the disk's in bytes.

    What was written reaches the leaf when the buffer is full, at `flush`, and when the stream or its chain is closed;
    `Chain.sync` makes it durable.
    """

    def __init__(self, raw: ChainStream) -> None:
        super().__init__(raw, BUFFER_BYTES)
        self.size = raw.size

    def readall(self) -> bytes:
        """Return the bytes up to the end of the disk, as an unbuffered stream does."""
        return self.read()


def open_stream(chain: Chain, *, buffered: bool, writable: bool) -> ChainStream | BufferedReader | BufferedStream:
    """Return the disk of a chain as a file object; closing it leaves the chain open."""
    raw = ChainStream(chain, writable=writable)
    if not buffered:
        return raw
    return BufferedStream(raw) if writable else BufferedReader(raw)
