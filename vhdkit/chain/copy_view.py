"""Copy what a view holds into a new file: the one way of convert and of a merge to a new file.

A piece is planned and read on another thread while those before it are written: zeros get no space. Long stretches are
not written from memory but go from file to file (see `batch_copier`). Their bytes are only looked at for zeros, by a
buffer that stays in a processor's cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from vhdkit.chain.batch_copier import BatchCopier
from vhdkit.chain.held_pieces import held_pieces
from vhdkit.disk import extents
from vhdkit.disk.extents import Kind
from vhdkit.disk.read_extents import read_exactly, read_extents
from vhdkit.storage.read_ahead import read_ahead
from vhdkit.units import ceil_div

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from vhdkit.disk.extents import Extents
    from vhdkit.disk.image import Image
    from vhdkit.storage.protocols import Storage

# No stretch of fewer bytes is quicker from file to file than from the buffer that its zeros were looked for in.
LONG_BYTES = 256 << 10
# Bytes of other layers over which a copy goes on.
_BRIDGE_BYTES = 64 << 10
_PAGE = 4096
_AHEAD = 2
# So much of a long stretch is looked at at once. Converting 1 GiB in the page cache took 0.63 of the processor time of
# reading its pieces of 4 MiB into four buffers by turns.
_SCAN_BYTES = 512 << 10
_NONE = np.empty((0, 2), np.int64)


class Places(Protocol):
    """Where the bytes of a view lie in the new file; a piece crosses no multiple of `piece_bytes`."""

    piece_bytes: int

    @property
    def end(self) -> int:
        """The length of a file that has room for everything that was placed so far."""
        ...

    def offsets(self, start: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the file offsets (int64) of disk offsets (int64, ascending) that hold data; take room for them."""
        ...


class _Piece(NamedTuple):
    """A piece that is ready: its extents, and what of `data` is written as [start, stop) in bytes, after the copies."""

    held: Extents
    data: NDArray[np.uint8]
    writes: NDArray[np.int64]
    copies: Extents


def pages_in_use(data: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return, one a page of 4 KiB (the last may be shorter), whether it has a byte that is not zero.

    >>> pages_in_use(np.array([0] * 4096 + [0, 1], np.uint8)).tolist()
    [False, True]
    """
    whole = len(data) // _PAGE
    words = data[: whole * _PAGE].view(np.uint64).reshape(whole, _PAGE // 8)
    # Data rarely begin with eight zeros: the first word of a page nearly always decides.
    used: NDArray[np.bool_] = words[:, 0] != 0
    if not used.all():
        unsure = np.flatnonzero(~used)
        used[unsure] = words[unsure].any(axis=1) if len(unsure) < whole else words.any(axis=1)
    if len(data) % _PAGE:
        used = np.append(used, data[whole * _PAGE :].any())
    return used


def copy_view(
    layers: Sequence[Image],
    size: int,
    storage: Storage,
    places: Places,
    looked: Callable[[int], None],
    copied: Callable[[int], None] | None = None,
) -> None:
    """Copy every page of a view that is not all zeros; `looked` is called with how much of the disk is done.

    Pages are counted from the beginning of each piece. The file reads as zeros where nothing was written. With `copied`
    everything that layers hold gets room, zeros as well, and it is called with the bytes that they hold of each piece.
    """
    held = held_pieces(layers, size, places.piece_bytes, with_holes=copied is not None)
    pieces = _read_pieces(layers, min(size, places.piece_bytes), held)
    with read_ahead(pieces, _AHEAD) as ready, BatchCopier(layers, storage) as copier:
        for piece in ready:
            if copied is not None:
                data = piece.held.of(Kind.DATA)
                places.offsets(data.start)
                copied(data.total)
            writes = []
            if len(piece.writes):
                offset = int(places.offsets(piece.held.start[:1])[0])
                writes = [(offset + start, piece.data[start:stop].data) for start, stop in piece.writes.tolist()]
            copier.add(piece.copies, places.offsets(piece.copies.start), writes, places.end)
            looked(int(piece.held.stop[-1]))
        copier.finish(places.end)


def bridged(piece: Extents) -> Extents:
    """Return long stretches that are copied from one file in one go, before other data are copied over parts of them.

    They are those of the layer that holds most of the piece. Where other layers hold a few sectors between two
    stretches of it, the bytes that its file has there are copied as well, which costs less than two copies more.

    >>> small = extents.single(0, 1 << 20, Kind.DATA, 512)
    >>> list(bridged(small))
    [Extent(start=0, length=1048576, kind=<Kind.DATA: 1>, depth=0, file_offset=512)]
    """
    data = piece.of(Kind.DATA)
    if len(data) < 2:
        return data.take(data.stop - data.start >= LONG_BYTES)
    depth = int(np.bincount(data.depth, weights=(data.stop - data.start)).argmax())
    one = data.take(data.depth == depth)
    # What is zeros in between must not get the bytes that the file has there: they count as infinitely many.
    zeros = np.where(piece.kind == Kind.ZERO, piece.stop - piece.start, 0)
    zeros_before = np.cumsum(zeros)[np.searchsorted(piece.start, one.start, "right") - 1]
    heads, tails = extents.groups(one.start, one.stop, _BRIDGE_BYTES, one.file_offset - one.start, zeros_before)
    start, stop = one.start[heads], one.stop[tails - 1]
    long = stop - start >= LONG_BYTES
    found = one.take(heads[long])
    return extents.with_stops(found, stop[long])


def _read_pieces(layers: Sequence[Image], piece_bytes: int, pieces: Iterator[Extents]) -> Iterator[_Piece]:
    """Read what is not copied; the bytes of a piece are valid until `_AHEAD + 2` more were read."""
    buffers = [np.empty(piece_bytes, np.uint8) for _ in range(_AHEAD + 2)]
    scratch = np.empty(_SCAN_BYTES // _PAGE * _PAGE, np.uint8)
    for number, piece in enumerate(pieces):
        data = buffers[number % len(buffers)][: int(piece.stop[-1] - piece.start[0])]
        yield _read(piece, layers, data, scratch)


def _read(piece: Extents, layers: Sequence[Image], data: NDArray[np.uint8], scratch: NDArray[np.uint8]) -> _Piece:
    first, used = int(piece.start[0]), np.zeros(ceil_div(len(data), _PAGE), np.bool_)
    long = bridged(piece)
    _scan(long, layers, first, used, scratch)
    if len(piece) == 1 and not len(data) % _PAGE and used.all():
        return _Piece(piece, data, _NONE, piece)
    own = piece.take((piece.kind == Kind.DATA) & (piece.depth == long.depth[0])) if len(long) else long
    is_long = _inner_pages(long, first, len(used))
    is_own = is_long & _inner_pages(own, first, len(used))
    if _read_pages(piece, layers, data, ~is_own):
        # Of what was not read the scan's answer counts.
        used = np.where(is_own, used, pages_in_use(data))
    copies, is_written = _ways(long, first, used, is_own, is_long & ~is_own)
    _read_pages(piece, layers, data, is_written & is_own)
    return _Piece(piece, data, np.minimum(_runs(is_written) * _PAGE, len(data)), copies)


def _scan(
    stretches: Extents, layers: Sequence[Image], first: int, used: NDArray[np.bool_], scratch: NDArray[np.uint8]
) -> None:
    """Note which of the whole pages in stretches are in use; pages are counted from byte `first` of the disk."""
    for start, length, _, depth, offset in stretches:
        low, high = ceil_div(start - first, _PAGE), (start - first + length) // _PAGE
        at, layer = offset + first - start, layers[depth]
        if layer.storage.hole_bytes(at + low * _PAGE, (high - low) * _PAGE) == (high - low) * _PAGE:
            continue
        for page in range(low, high, len(scratch) // _PAGE):
            part = scratch[: (high - page) * _PAGE]
            read_exactly(layer, at + page * _PAGE, part)
            used[page : page + len(part) // _PAGE] = pages_in_use(part)


def _read_pages(piece: Extents, layers: Sequence[Image], data: NDArray[np.uint8], wanted: NDArray[np.bool_]) -> bool:
    """Read pages of a piece; return whether there were any."""
    first = int(piece.start[0])
    runs = np.minimum(_runs(wanted) * _PAGE, len(data))
    if len(runs) == 1 and runs[0, 1] - runs[0, 0] == len(data):
        read_extents(piece, layers, first, data)
    elif len(runs):
        read_extents(extents.intersect(piece, first + runs[:, 0], first + runs[:, 1]), layers, first, data)
    return len(runs) > 0


def _ways(
    long: Extents, first: int, used: NDArray[np.bool_], is_own: NDArray[np.bool_], is_bridge: NDArray[np.bool_]
) -> tuple[Extents, NDArray[np.bool_]]:
    """Return the stretches to copy from file to file, and one a page, whether it is written from memory after them.

    A stretch has whole pages. Each is in use and of one file, or is written from memory whatever it holds.
    """
    if not len(long):
        return long, used
    runs = _runs(is_own & used | is_bridge)
    runs = runs[(runs[:, 1] - runs[:, 0]) * _PAGE >= LONG_BYTES]
    copies = extents.intersect(long, first + runs[:, 0] * _PAGE, first + runs[:, 1] * _PAGE)
    is_copied = _inner_pages(copies, first, len(used))
    return copies, (used & ~is_copied) | (is_bridge & is_copied)


def _runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return [start, stop) of each run of true values, a row each."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return edges.reshape(-1, 2)


def _inner_pages(stretches: Extents, first: int, count: int) -> NDArray[np.bool_]:
    """Return, one a page from `first` on, whether it lies in one of the stretches (ascending, apart) as a whole."""
    low, high = -(-(stretches.start - first) // _PAGE), (stretches.stop - first) // _PAGE
    whole = low < high
    steps = np.zeros(count + 1, np.int8)
    np.add.at(steps, low[whole], 1)
    np.add.at(steps, high[whole], -1)
    return np.cumsum(steps[:-1], dtype=np.int8) > 0
