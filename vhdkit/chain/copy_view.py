"""Copy what a view holds into a new file: the one way of convert and of a merge to a new file.

A piece is planned and read on another thread while the one before it is written: zeros get no space.
Long stretches are not written from memory but go from file to file, as the storage can do best (see
`storage.file_copy`): the page cache keeps no second copy of them, and the last sync finds little to write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from vhdkit.chain.held_pieces import pieces_in_memory
from vhdkit.disk import extents
from vhdkit.disk.extents import Kind
from vhdkit.storage.read_ahead import read_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from vhdkit.disk.extents import Extents
    from vhdkit.disk.image import Image
    from vhdkit.storage.protocols import Storage, Syncing

# No stretch of fewer bytes is quicker from file to file than from the buffer that its zeros were looked for in.
LONG_BYTES = 256 << 10
# Bytes of other layers over which a copy goes on.
_BRIDGE_BYTES = 64 << 10
_PAGE = 4096
_AHEAD = 2
# Bytes of a batch that is copied from file to file: several threads write its parts.
_BATCH_BYTES = 32 << 20
# Bytes written from memory after which a sync is begun, while the copy goes on.
_SYNC_BYTES = 64 << 20


class Places(Protocol):
    """Where the bytes of a view lie in the new file; a piece crosses no multiple of `piece_bytes`."""

    piece_bytes: int

    def offsets(self, start: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the file offsets (int64) of disk offsets (int64, ascending) that hold data; take room for them."""
        ...


class _Piece(NamedTuple):
    """A piece that is ready: its extents, and what of `data` is written as [start, stop) in bytes, after the copies."""

    held: Extents
    data: NDArray[np.uint8]
    writes: NDArray[np.int64]
    copies: Extents
    writes_over_copies: bool


def pages_in_use(data: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return, one a page of 4 KiB (the last may be shorter), whether it has a byte that is not zero.

    >>> pages_in_use(np.array([0] * 4096 + [0, 1], np.uint8)).tolist()
    [False, True]
    """
    whole = len(data) // _PAGE
    words = data[: whole * _PAGE].view(np.uint64).reshape(whole, _PAGE // 8)
    # Data rarely begin with eight zeros: the first word of a page nearly always decides.
    used: NDArray[np.bool_] = words[:, 0] != 0
    unsure = np.flatnonzero(~used)
    if len(unsure):
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
    copier = _Copier(layers, storage, places)
    with read_ahead(_read(layers, size, places.piece_bytes, with_holes=copied is not None), _AHEAD) as pieces:
        for piece in pieces:
            first = int(piece.held.start[0])
            if copied is not None:
                data = piece.held.of(Kind.DATA)
                places.offsets(data.start)
                copied(data.total)
            copier.add(piece.copies)
            if piece.writes_over_copies:
                copier.flush()
            if len(piece.writes):
                offset = int(places.offsets(np.array([first]))[0])
                for start, stop in piece.writes.tolist():
                    storage.write_at(offset + start, piece.data[start:stop].data)
                    copier.written += stop - start
            copier.begin_sync()
            looked(int(piece.held.stop[-1]))
        copier.finish()


def bridged(piece: Extents) -> Extents:
    """Return long stretches that are copied from one file in one go, before other data are copied over parts of them.

    They are those of the layer that holds most of the piece. Where other layers hold a few sectors between two
    stretches of it, the bytes that its file has there are copied as well, which costs less than two copies more.

    >>> small = extents.single(0, 1 << 20, Kind.DATA, 512)
    >>> list(bridged(small))
    [Extent(start=0, length=1048576, kind=<Kind.DATA: 1>, depth=0, file_offset=512)]
    """
    data = piece.of(Kind.DATA)
    if not len(data):
        return data
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


def _read(layers: Sequence[Image], size: int, piece_bytes: int, *, with_holes: bool) -> Iterator[_Piece]:
    for held, data in pieces_in_memory(layers, size, piece_bytes, _AHEAD + 2, with_holes=with_holes):
        copies, is_written, is_over = _ways(held, pages_in_use(data))
        writes = np.minimum(_runs(is_written) * _PAGE, len(data))
        yield _Piece(held, data, writes, copies, writes_over_copies=is_over)


def _ways(piece: Extents, used: NDArray[np.bool_]) -> tuple[Extents, NDArray[np.bool_], bool]:
    """Return the stretches to copy from file to file, the pages to write from memory, and whether any lies over a copy.

    A stretch has whole pages. Each is in use and of one file, or is written from memory whatever it holds.
    """
    first, long = int(piece.start[0]), bridged(piece)
    if not len(long):
        return long, used, False
    own = piece.take((piece.kind == Kind.DATA) & (piece.depth == long.depth[0]))
    is_own = _inner_pages(own, first, len(used))
    is_bridge = _inner_pages(long, first, len(used)) & ~is_own
    runs = _runs(is_own & used | is_bridge)
    runs = runs[(runs[:, 1] - runs[:, 0]) * _PAGE >= LONG_BYTES]
    copies = extents.intersect(long, first + runs[:, 0] * _PAGE, first + runs[:, 1] * _PAGE)
    is_copied = _inner_pages(copies, first, len(used))
    over = is_bridge & is_copied
    return copies, (used & ~is_copied) | over, bool(over.any())


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


class _Copier:
    """Copy stretches from file to file in batches, and sync beside the copy."""

    def __init__(self, layers: Sequence[Image], storage: Storage, places: Places) -> None:
        self._layers, self._storage, self._places = layers, storage, places
        self._waiting: list[tuple[Extents, NDArray[np.int64]]] = []
        self._waiting_bytes = 0
        self._syncing: Syncing | None = None
        self.written = 0

    def add(self, data: Extents) -> None:
        """Copy stretches, now or with later ones; room for them is taken now."""
        if len(data):
            self._waiting.append((data, self._places.offsets(data.start)))
            self._waiting_bytes += data.total
        if self._waiting_bytes >= _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Copy what waits."""
        if self._waiting:
            data = extents.concatenate([data for data, _ in self._waiting])
            self._copy(data, np.concatenate([offset for _, offset in self._waiting]))
            self._waiting.clear()
        self._waiting_bytes = 0

    def _copy(self, whole: Extents, offsets: NDArray[np.int64]) -> None:
        for depth in np.flatnonzero(np.bincount(whole.depth)).tolist():
            chosen = np.flatnonzero(whole.depth == depth)
            data = whole.take(chosen)
            source = self._layers[depth].storage
            # What lies past a file's end cannot be copied: of a raw disk it is zeros, of other images an error.
            length = np.minimum(data.stop - data.start, np.maximum(source.size() - data.file_offset, 0))
            within = length > 0
            self._storage.copy_many_from(
                source,
                data.file_offset[within].tolist(),
                offsets[chosen][within].tolist(),
                length[within].tolist(),
            )
            for number in np.flatnonzero(length < data.stop - data.start).tolist():
                rest = bytearray(int(data.stop[number] - data.start[number] - length[number]))
                done = int(length[number])
                self._layers[depth].fill_past_end(int(data.file_offset[number]) + done, memoryview(rest))
                self._storage.write_at(int(offsets[chosen][number]) + done, rest)

    def begin_sync(self) -> None:
        """Begin a sync beside the copy when enough was written from memory."""
        if self.written >= _SYNC_BYTES and (self._syncing is None or self._syncing.is_done()):
            self._wait()
            self.written = 0
            self._syncing = self._storage.begin_sync()

    def finish(self) -> None:
        """Copy what waits, and raise the error of a sync that was begun."""
        self.flush()
        self._wait()

    def _wait(self) -> None:
        """Raise the error of a sync that was begun: the system reports it once, and not to the next sync."""
        if self._syncing is not None:
            self._syncing.wait()
