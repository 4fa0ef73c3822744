"""Holding the BAT of a VHDX, and what it points at, against the file.

The table is read window by window, and only entries that say something are looked at: 67 million of them take a few
seconds, and a byte for each MiB of the file.

**Source**: docs/reference/vhdx.md 1.8, 1.9, 5 rows 52 to 70 and 79.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vhdkit.disk.file_check import Leaks
from vhdkit.findings import Level
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import MiB, ceil_div
from vhdkit.vhdx import bat
from vhdkit.vhdx.bat import BITMAP_PRESENT, BatLayout, State
from vhdkit.vhdx.bat_window import EntryTable
from vhdkit.vhdx.check_bitmaps import BitmapCheck
from vhdkit.vhdx.constants import MAX_FILE_SIZE
from vhdkit.vhdx.corruption import VhdxCorruption
from vhdkit.vhdx.file_map import FileMap, Owner

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhdkit.disk.file_check import Tally
    from vhdkit.storage.protocols import Storage
    from vhdkit.vhdx.metadata import VhdxMetadata

_C = VhdxCorruption


class _Entries(NamedTuple):
    """Entries of one kind that are not 0: which, the block or the chunk that each is of, and what they say."""

    indices: NDArray[np.int64]
    numbers: NDArray[np.int64]
    raw: NDArray[np.uint64]
    states: NDArray[np.uint8]
    mebibytes: NDArray[np.int64]

    def take(self, which: NDArray[np.bool_]) -> _Entries:
        """Return some of them, by a mask."""
        return _Entries(
            self.indices[which],
            self.numbers[which],
            self.raw[which],
            self.states[which],
            self.mebibytes[which],
        )


def check_vhdx_blocks(storage: Storage, metadata: VhdxMetadata, tally: Tally, *, deep: bool) -> Leaks:
    """Judge the blocks of an image, its log replayed by `storage`; `deep` reads all sector bitmaps.

    Raises:
        CorruptImageError: the file has become shorter while it was read.
        OSError: the file cannot be read.

    """
    layout = BatLayout.of(
        metadata.size, metadata.block_size, metadata.logical_sector_size, has_bitmaps=metadata.parameters.has_parent
    )
    rooms = metadata.bat.length // bat.ENTRY_SIZE
    if layout.entry_count > rooms:
        message = f"the BAT has room for {rooms} entries, {layout.entry_count} are needed"
        tally.add(_C.BAT_TOO_SHORT, Level.ERROR, message, metadata.bat.file_offset)
        return Leaks()
    if storage.size() > MAX_FILE_SIZE:
        message = f"the file has {storage.size()} bytes, more than {MAX_FILE_SIZE}, which no disk takes"
        tally.add(_C.BLOCK_OUTSIDE_FILE, Level.ERROR, message)
        return Leaks()
    check = _BlockCheck(storage, metadata, layout, tally)
    leaks = check.run()
    if metadata.parameters.has_parent:
        bitmaps = BitmapCheck(storage, metadata, check.table, tally)
        bitmaps.check_end()
        if deep:
            bitmaps.check_partial_blocks()
    return leaks


class _BlockCheck:
    """One walk over one table."""

    def __init__(self, storage: Storage, metadata: VhdxMetadata, layout: BatLayout, tally: Tally) -> None:
        self.storage = storage
        self.metadata = metadata
        self.layout = layout
        self.tally = tally
        self.table = EntryTable(storage, metadata.bat.file_offset, layout)
        self.size = storage.size()
        self.map = FileMap(self.size, metadata.structures)
        self.has_parent = metadata.parameters.has_parent
        chunks = ceil_div(layout.block_count, layout.ratio)
        self.has_partial = np.zeros(chunks, np.bool_)
        self.has_bitmap = np.zeros(chunks, np.bool_)
        self.full_count = 0
        self.has_kept = False

    def run(self) -> Leaks:
        """Judge every entry, then what only all of them together tell."""
        for base, entries in self.table.windows():
            payload, bitmaps = self._split(base, entries)
            self._check_payload(payload)
            self._check_bitmaps(bitmaps)
        if self.has_kept:
            for base, entries in self.table.windows():
                self._check_kept(self._split(base, entries)[0])
        self._check_chunks()
        self._check_behind()
        return self._check_space()

    def _split(self, base: int, entries: NDArray[np.uint64]) -> tuple[_Entries, _Entries]:
        """Return the entries of blocks and those of bitmap blocks that say something."""
        found = np.flatnonzero(self._are_telling(base, entries))
        index, raw = found + base, entries[found]
        is_bitmap = self.layout.is_bitmap(index)
        chunks = index // (self.layout.ratio + 1)
        numbers = np.where(is_bitmap, chunks, self.layout.blocks_of(index))
        every = _Entries(index, numbers, raw, bat.states(raw), bat.mebibytes(raw))
        return every.take(~is_bitmap), every.take(is_bitmap)

    def _are_telling(self, base: int, entries: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which entries are to be looked at: not those of blocks that are absent or zeros, and no more.

        qemu marks every block of a new disk as zeros: looking at 67 million of them took five times as long.
        """
        telling: NDArray[np.bool_] = (entries | np.uint64(State.ZERO)) != State.ZERO
        behind = max(0, self.layout.index(self.layout.block_count - 1) + 1 - base)
        for part in (self.layout.bitmap_slice(base), slice(behind, None)):
            telling[part] |= entries[part] != 0
        return telling

    def _tell(self, rule: VhdxCorruption, level: Level, found: _Entries, text: str) -> None:
        """Tell of entries; the text has room for the number of the block or chunk, and for the entry."""
        at = self.metadata.bat.file_offset
        self.tally.add_many(
            rule,
            level,
            len(found.indices),
            lambda i: (
                text.format(int(found.numbers[i]), int(found.raw[i])),
                at + int(found.indices[i]) * bat.ENTRY_SIZE,
            ),
        )

    def _check_payload(self, found: _Entries) -> None:
        error, warning = Level.ERROR, Level.WARNING
        beyond = found.numbers >= self.layout.block_count
        held = found.states >= State.FULLY_PRESENT
        last = self.layout.block_count - 1
        message = f"the disk's last block is {last}, and block {{}} has the entry {{:#x}}"
        self._tell(_C.BLOCK_BEYOND_DISK, error, found.take(beyond & held), message)
        self._tell(_C.BAT_BEHIND, warning, found.take(beyond & ~held), message)
        found = found.take(~beyond)
        self._tell(
            _C.BAT_RESERVED,
            error,
            found.take(bat.have_reserved_bits(found.raw)),
            "the entry of block {} is {:#x}: expected zeros in bits 3 to 19",
        )
        self._tell(
            _C.BLOCK_STATE,
            error,
            found.take(bat.are_no_states(found.states)),
            "the entry of block {} is {:#x}: the format has no such state",
        )
        is_partial = found.states == State.PARTIALLY_PRESENT
        if self.has_parent:
            self.has_partial[found.numbers[is_partial] // self.layout.ratio] = True
        else:
            message = "block {} is present in part (entry {:#x}), and the disk has no parent"
            self._tell(_C.PARTIAL_WITHOUT_PARENT, error, found.take(is_partial), message)
        is_absent = (found.states == State.NOT_PRESENT) | (found.states == State.ZERO)
        self._tell(
            _C.ABSENT_WITH_OFFSET,
            warning,
            found.take(is_absent & (found.mebibytes > 0)),
            "block {} has no payload and the entry {:#x}: expected no offset",
        )
        self.full_count += int(np.count_nonzero(found.states == State.FULLY_PRESENT))
        self.has_kept = self.has_kept or bool((_may_be_kept(found.states) & (found.mebibytes > 0)).any())
        self._place_blocks(found.take(found.states >= State.FULLY_PRESENT))

    def _place_blocks(self, held: _Entries) -> None:
        """Hold blocks with payload against the file's end and against one another."""
        is_last = held.numbers == self.layout.block_count - 1
        used = self.metadata.size - (self.layout.block_count - 1) * self.metadata.block_size
        outside, cut = self._outside(held.mebibytes, np.where(is_last, used, self.metadata.block_size))
        self._tell(
            _C.BLOCK_OUTSIDE_FILE,
            Level.ERROR,
            held.take(outside),
            f"block {{}} has the entry {{:#x}}, outside of the file of {self.size} bytes",
        )
        message = "the unused end of block {}, the disk's last, is cut off (entry {:#x})"
        self._tell(_C.BLOCK_TAIL_CUT, Level.WARNING, held.take(cut & ~outside), message)
        held = held.take(~outside)
        self._take(held, self.metadata.block_size // MiB, Owner.BLOCK, "block {} has the entry {:#x}")

    def _outside(
        self, mebibytes: NDArray[np.int64], used: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which places lie outside of the file with what the disk uses of them, and which end behind it."""
        outside = (mebibytes < 1) | (mebibytes > self.size // MiB)
        # What lies below the file's end may be multiplied without passing 64 bits.
        offsets = np.where(outside, 0, mebibytes) * MiB
        return outside | (offsets + used > self.size), offsets + self.metadata.block_size > self.size

    def _take(self, held: _Entries, span: int, owner: Owner, message: str) -> None:
        clash = self.map.take(held.mebibytes, span, owner)
        for other in Owner:
            if other is not Owner.NOTHING:
                where = f"{message}, on {other.named}"
                self._tell(_C.BLOCKS_OVERLAP, Level.ERROR, held.take(clash == other), where)

    def _check_bitmaps(self, found: _Entries) -> None:
        is_present = found.states == BITMAP_PRESENT
        is_absent = found.states == State.NOT_PRESENT
        self._tell(
            _C.BITMAP_STATE,
            Level.ERROR,
            found.take(~is_present & ~is_absent),
            "the bitmap block of chunk {} has the entry {:#x}: expected the state 0 or 6",
        )
        message = "the bitmap block of chunk {} has the entry {:#x}: expected zeros in bits 3 to 19"
        self._tell(_C.BAT_RESERVED, Level.ERROR, found.take(bat.have_reserved_bits(found.raw)), message)
        message = "the bitmap block of chunk {} is not there and has the entry {:#x}: expected no offset"
        self._tell(_C.ABSENT_WITH_OFFSET, Level.WARNING, found.take(is_absent & (found.mebibytes > 0)), message)
        held = found.take(is_present)
        if not self.has_parent:
            message = "chunk {} has a bitmap block (entry {:#x}), and the disk has no parent"
            self._tell(_C.BITMAP_WITHOUT_PARENT, Level.WARNING, held, message)
            return
        self.has_bitmap[held.numbers] = True
        outside = (held.mebibytes < 1) | (held.mebibytes >= self.size // MiB)
        message = f"the bitmap block of chunk {{}} has the entry {{:#x}}, outside of the file of {self.size} bytes"
        self._tell(_C.BLOCK_OUTSIDE_FILE, Level.ERROR, held.take(outside), message)
        message = "the bitmap block of chunk {} has the entry {:#x}"
        self._take(held.take(~outside), 1, Owner.BITMAP, message)

    def _check_kept(self, found: _Entries) -> None:
        """Blocks that read as zeros may keep their old place, if it is no other block's (row 63)."""
        kept = found.take(
            _may_be_kept(found.states) & (found.mebibytes > 0) & (found.numbers < self.layout.block_count)
        )
        used = np.full(len(kept.indices), self.metadata.block_size, np.int64)
        outside, _ = self._outside(kept.mebibytes, used)
        message = "block {} reads as zeros and keeps a place outside of the file (entry {:#x})"
        self._tell(_C.KEPT_PLACE, Level.WARNING, kept.take(outside), message)
        kept = kept.take(~outside)
        clash = self.map.clashes(kept.mebibytes, self.metadata.block_size // MiB, Owner.KEPT)
        message = "block {} reads as zeros and keeps a place that is another's (entry {:#x})"
        self._tell(_C.KEPT_PLACE, Level.WARNING, kept.take(clash != Owner.NOTHING), message)
        self.map.take(kept.mebibytes[clash == Owner.NOTHING], self.metadata.block_size // MiB, Owner.KEPT)

    def _check_chunks(self) -> None:
        """Blocks in part need a bitmap block; report one that no block needs."""
        at = self.metadata.bat.file_offset
        missing = np.flatnonzero(self.has_partial & ~self.has_bitmap)
        idle = np.flatnonzero(self.has_bitmap & ~self.has_partial)
        for rule, level, chunks, text in (
            (_C.BITMAP_MISSING, Level.ERROR, missing, "blocks of chunk {} are present in part, without a bitmap block"),
            (_C.BITMAP_IDLE, Level.INFO, idle, "chunk {} has a bitmap block, and no block that is present in part"),
        ):

            def tell(i: int, chunks: NDArray[np.int64] = chunks, text: str = text) -> tuple[str, int]:
                chunk = int(chunks[i])
                return text.format(chunk), at + self.layout.bitmap_index(chunk) * bat.ENTRY_SIZE

            self.tally.add_many(rule, level, len(chunks), tell)

    def _check_behind(self) -> None:
        """The table's last mebibyte has zeros behind its last entry."""
        region = self.metadata.bat
        used = self.layout.entry_count * bat.ENTRY_SIZE
        raw = read_bytes(self.storage, region.file_offset + used, min(MiB, region.length - used))
        if raw != bytes(len(raw)):
            at = region.file_offset + used + len(raw) - len(raw.lstrip(b"\0"))
            message = f"there are entries behind the last of the BAT, {self.layout.entry_count - 1}; they say nothing"
            self.tally.add(_C.BAT_BEHIND, Level.WARNING, message, at)

    def _check_space(self) -> Leaks:
        missing = self.layout.block_count - self.full_count
        reserved = 0
        if self.metadata.parameters.is_fixed and not self.has_parent and missing:
            message = f"the disk is a fixed one, and {missing} of its {self.layout.block_count} blocks have no payload"
            self.tally.add(_C.FIXED_WITHOUT_BLOCKS, Level.INFO, message, self.metadata.bat.file_offset)
            reserved = missing * self.metadata.block_size // MiB
        end = self.size // MiB
        if self.size % MiB and self.map.is_free(end):
            message = f"{self.size % MiB} bytes follow the last whole MiB of the file, and belong to nothing"
            self.tally.add(_C.FILE_LENGTH, Level.INFO, message, end * MiB)
        leaks, first = self.map.leaks(reserved)
        if leaks.size:
            message = f"{leaks.size} bytes in {leaks.stretches} stretches belong to nothing, the first at {first:#x}"
            self.tally.add(_C.LEAKED_SPACE, Level.INFO, message, first)
        return leaks


def _may_be_kept(states: NDArray[np.uint8]) -> NDArray[np.bool_]:
    kept: NDArray[np.bool_] = (states == State.UNDEFINED) | (states == State.UNMAPPED)
    return kept
