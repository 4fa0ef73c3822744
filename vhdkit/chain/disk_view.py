"""Read a disk through layers that the caller holds open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.chain.index import ChainIndex
from vhdkit.chain.resolve_layers import resolve, windows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Buffer

    from vhdkit.disk.extents import Extents
    from vhdkit.disk.image import Image

# Reads up to this length share a buffer.
_SCRATCH_BYTES = 1 << 20


class DiskView:
    """A disk as the first of some layers shows it, leaf first. It borrows them, and never closes them.

    Positions and lengths are in bytes and need no alignment.
    """

    _closed = False

    def __init__(self, layers: Sequence[Image]) -> None:
        self.layers = tuple(layers)
        self.size = self.layers[0].size
        self._index = ChainIndex(self.layers)
        self._scratch: list[bytearray] = []

    @property
    def leaf(self) -> Image:
        """The topmost layer."""
        return self.layers[0]

    def check_open(self) -> None:
        """Refuse to go on with layers that were closed (ValueError)."""
        self.leaf.check_open()

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extents]:
        """Return an iterator over where the bytes of a range come from, in order, by windows; no kind is PARENT."""
        self.check_open()
        if offset < 0:
            raise ValueError(f"offset {offset} is negative")
        stop = self.size if length is None else min(self.size, offset + length)
        return (resolve(self.layers, start, end) for start, end in windows(self.layers, offset, stop))

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes of a range, fewer where the disk ends."""
        if length < 0:
            raise ValueError(f"length {length} is negative")
        count = max(0, min(length, self.size - offset))
        if count > _SCRATCH_BYTES:
            out = bytearray(count)
            self.read_into(offset, out)
            return bytes(out)
        # New memory costs more than the copy: the buffer is kept, and another thread that reads now makes its own.
        try:
            scratch = self._scratch.pop()
        except IndexError:
            scratch = bytearray(_SCRATCH_BYTES)
        view = memoryview(scratch)[:count]
        self.read_into(offset, view)
        found = bytes(view)
        self._scratch.append(scratch)
        return found

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """Fill a buffer from an offset; return the number of bytes, fewer where the disk ends."""
        if self._closed:  # not by a call, which would cost a hundredth of a short read
            self.check_open()
        if offset < 0:
            raise ValueError(f"offset {offset} is negative")
        view = memoryview(buffer).cast("B")
        if offset + len(view) > self.size:
            view = view[: max(0, self.size - offset)]
        self._index.read_into(offset, view)
        return len(view)
