"""The BAT of an open image, a window at a time: it has up to 513 MiB, so that it is never held whole.

An entry is judged when it is met: a damaged one keeps its own block from being read, and no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from vhdkit.errors import CorruptImageError
from vhdkit.units import MiB
from vhdkit.vhdx import bat
from vhdkit.vhdx.bat import State
from vhdkit.vhdx.constants import MAX_FILE_SIZE
from vhdkit.vhdx.corruption import VhdxCorruption

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vhdkit.storage.protocols import Storage
    from vhdkit.vhdx.bat import BatLayout

WINDOW = 16384  # entries; 128 KiB
# So much of a table is asked for at once whether it is a hole of the file.
_STRIDE = 128 * WINDOW
_Window: TypeAlias = "tuple[int, NDArray[np.uint64]]"


class Blocks(NamedTuple):
    """Payload blocks in one of the states: indices, states, and where they lie in the file (-1 without payload)."""

    blocks: NDArray[np.int64]
    states: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def take(self, which: NDArray[np.bool_]) -> Blocks:
        """Return some of them, by a mask."""
        return Blocks(self.blocks[which], self.states[which], self.offsets[which])


class EntryTable:
    """A BAT on a storage. Entries are native uint64."""

    def __init__(self, storage: Storage, offset: int, layout: BatLayout) -> None:
        self._storage = storage
        self._offset = offset
        self.layout = layout
        # The last two: a range of blocks begins in one and ends in the next. One value, so that threads that read at
        # once see indices and their entries together.
        self._loaded: tuple[_Window, ...] = ()

    def entries(self, first: int, stop: int) -> NDArray[np.uint64]:
        """Return entries [first, stop), which the table has."""
        parts = []
        while first < stop:
            base = first // WINDOW * WINDOW
            end = min(stop, base + WINDOW)
            parts.append(self._load(base)[first - base : end - base])
            first = end
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint64), *parts])

    def payload(self, first: int, stop: int) -> NDArray[np.uint64]:
        """Return the entries of payload blocks [first, stop)."""
        if first >= stop:
            return np.empty(0, np.uint64)
        low, high = self.layout.index(first), self.layout.index(stop - 1) + 1
        entries, bitmaps = self.entries(low, high), self.layout.bitmap_slice(low)
        return np.delete(entries, bitmaps) if bitmaps.start < len(entries) else entries

    def bitmaps(self, chunks: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the entries of the bitmap blocks of chunks (ascending)."""
        found = (self.entries(at, at + 1) for at in map(self.layout.bitmap_index, chunks.tolist()))
        return np.concatenate([np.empty(0, np.uint64), *found])

    def windows(self) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Yield (index of the first entry, entries) over the table, but for what is a hole of the file: zeros."""
        count = self.layout.entry_count
        for far in range(0, count, _STRIDE):
            length = min(_STRIDE, count - far) * bat.ENTRY_SIZE
            if self._storage.hole_bytes(self._offset + far * bat.ENTRY_SIZE, length) == length:
                continue
            for base in range(far, min(far + _STRIDE, count), WINDOW):
                yield base, self._load(base)

    def forget(self) -> None:
        """Keep no window."""
        self._loaded = ()

    def _load(self, base: int) -> NDArray[np.uint64]:
        loaded = self._loaded
        for first, window in loaded:
            if first == base:
                return window
        raw = bytearray(min(WINDOW, self.layout.entry_count - base) * bat.ENTRY_SIZE)
        at = self._offset + base * bat.ENTRY_SIZE
        # Of an empty disk of 64 TiB the table has 513 MiB, none of them in the file.
        is_hole = self._storage.hole_bytes(at, len(raw)) == len(raw)
        got = len(raw) if is_hole else self._storage.read_into(at, raw)
        if got < len(raw):
            detail = f"the BAT ends at {at + got:#x}, before its last entry"
            raise CorruptImageError(VhdxCorruption.BAT_TOO_SHORT, detail, path=self._storage.path)
        window = bat.entries_from(raw)
        self._loaded = ((base, window), *loaded[:1])
        return window


class BlockRoom(NamedTuple):
    """What blocks are held against: `size` of the file and of the last block in bytes, and what the format allows."""

    path: str
    file_size: int
    block_size: int
    last_block: int
    last_size: int
    has_parent: bool

    def judged(self, first: int, entries: NDArray[np.uint64]) -> Blocks:
        """Return the blocks from `first` on that are in any state but NOT_PRESENT.

        Raises:
            CorruptImageError: an entry says what none may say, or its block lies outside of the file.

        """
        found = np.flatnonzero(entries)
        blocks, entries = found + first, entries[found]
        if not len(found):
            return Blocks(blocks, bat.states(entries), blocks)
        states = bat.states(entries)
        for rule, wrong in self._broken(entries, states):
            if wrong.any():
                at = int(np.flatnonzero(wrong)[0])
                detail = f"the BAT entry of block {blocks[at]} is {int(entries[at]):#x}, which means nothing here"
                raise CorruptImageError(rule, detail, path=self.path)
        held = states >= State.FULLY_PRESENT
        sizes = np.where(blocks == self.last_block, self.last_size, self.block_size)
        mebibytes = bat.mebibytes(entries)
        outside = held & ((mebibytes < 1) | (mebibytes > self.file_size // MiB))
        # What lies below the file's end may be multiplied without passing 64 bits.
        offsets = np.where(held & ~outside, mebibytes * MiB, -1)
        outside |= held & (offsets + sizes > self.file_size)
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            where = f"block {blocks[at]} lies at {int(mebibytes[at])} MiB"
            detail = f"{where}, outside of the file of {self.file_size} bytes"
            raise CorruptImageError(VhdxCorruption.BLOCK_OUTSIDE_FILE, detail, path=self.path)
        known = states != State.NOT_PRESENT
        return Blocks(blocks, states, offsets).take(known)

    def _broken(
        self, entries: NDArray[np.uint64], states: NDArray[np.uint8]
    ) -> Iterator[tuple[VhdxCorruption, NDArray[np.bool_]]]:
        yield VhdxCorruption.BAT_RESERVED, bat.have_reserved_bits(entries)
        yield VhdxCorruption.BLOCK_STATE, bat.are_no_states(states)
        if not self.has_parent:
            yield VhdxCorruption.PARTIAL_WITHOUT_PARENT, states == State.PARTIALLY_PRESENT


def find_overlap(table: EntryTable, room: BlockRoom, structures: Sequence[tuple[int, int]]) -> CorruptImageError | None:
    """Return why the blocks cannot be read: two of them, or one and a structure, share bytes; None if none do.

    It takes a byte a MiB of the file; entries that are damaged otherwise are passed over. A table that is a hole of its
    file takes no time.
    """
    if room.file_size > MAX_FILE_SIZE:
        detail = f"the file has {room.file_size} bytes, more than {MAX_FILE_SIZE}, which no disk takes"
        return CorruptImageError(VhdxCorruption.BLOCK_OUTSIDE_FILE, detail, path=room.path)
    taken = np.zeros(-(-room.file_size // MiB) + 1, np.bool_)
    for start, stop in structures:
        taken[start // MiB : stop // MiB] = True
    for base, entries in table.windows():
        # Only states of 4 and more have a place; qemu marks every block of a new disk as zeros.
        if not (entries & np.uint64(4)).any():
            continue
        index = np.arange(base, base + len(entries))
        is_bitmap = table.layout.is_bitmap(index)
        for which, span in ((~is_bitmap, room.block_size // MiB), (is_bitmap & room.has_parent, 1)):
            some = entries[which]
            held = bat.states(some) >= State.FULLY_PRESENT
            at = np.sort(bat.mebibytes(some[held]))
            at = at[(at > 0) & (at < len(taken))]
            clash = _first_clash(taken, at, span)
            if clash is not None:
                detail = f"blocks, or a block and a table, share bytes around {clash * MiB:#x}"
                return CorruptImageError(VhdxCorruption.BLOCKS_OVERLAP, detail, path=room.path, offset=clash * MiB)
    return None


def _first_clash(taken: NDArray[np.bool_], at: NDArray[np.int64], span: int) -> int | None:
    """Take what blocks cover (first MiB each, ascending); return the MiB where two things are, None without one."""
    near = np.flatnonzero(np.diff(at) < span)
    if len(near):
        return int(at[near[0] + 1])
    for step in range(span):
        here = at + step
        here = here[here < len(taken)]
        clash = np.flatnonzero(taken[here])
        if len(clash):
            return int(here[clash[0]])
        taken[here] = True
    return None
