"""Holding a BAT and what it points at against the file: nothing on top of anything, nothing outside, nothing lost.

The table is read once, window by window, into one sorted array of eight bytes a block, and judged in slices of it:
four million blocks take 32 MiB and half a second.

**Source**: docs/reference/vhd.md 4.1 rows 29 to 38 and 40.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.corruption import Corruption
from vhdkit.disk import sector_bitmap
from vhdkit.disk.file_check import Leaks
from vhdkit.findings import Level
from vhdkit.units import SECTOR, ceil_div, round_up
from vhdkit.vhd import bat, constants, structs
from vhdkit.vhd.bat_window import Table, holds_data_from
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.footer import DiskType
from vhdkit.vhd.leaks import PAGE, Gaps
from vhdkit.vhd.metadata import SparseMetadata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vhdkit.disk.file_check import Tally
    from vhdkit.storage.protocols import Storage
    from vhdkit.vhd.header import DynamicHeader
    from vhdkit.vhd.metadata import Metadata

# A block's number takes 22 bits (MAX_TABLE_ENTRIES), its sector 32: both fit into one sortable int64.
_BLOCK_BITS = 22
_SLICE = 1 << 18
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the blocks of a file are held against; all in bytes, `needed` in blocks.

    Blocks end at `limit`; `footer_at` lies before it where the footer is lost, and is where that should be. `rooms` are
    stretches that are not lost though nothing in the file refers to them.
    """

    block_size: int
    bitmap_size: int
    size: int
    needed: int
    limit: int
    footer_at: int
    structures: tuple[tuple[int, int], ...]
    rooms: tuple[tuple[int, int], ...]

    @property
    def span(self) -> int:
        """Bytes that a block takes in the file."""
        return self.bitmap_size + self.block_size


def check_blocks(
    storage: Storage,
    metadata: Metadata,
    entry_count: int,
    tally: Tally,
    *,
    deep: bool,
    kept: tuple[tuple[int, int], ...] = (),
) -> Leaks:
    """Judge the blocks of a dynamic or differencing image; `deep` reads the data of those that are not full.

    `kept` are stretches that are used though nothing in the file refers to them yet: a merge has reserved them.

    Raises:
        OSError: the file cannot be read.

    """
    if not isinstance(metadata, SparseMetadata) or not entry_count:
        return Leaks()
    header = metadata.header
    table = Table(storage, header.table_offset, entry_count)
    shape = _shape(metadata, header, (*kept, _table_padding(storage, header)))
    keys = _placed(table)
    _check_padding(storage, header, entry_count, tally)
    leaks = _check_places(keys, shape, tally)
    _check_last_sector(storage, keys, shape, tally)
    _check_last_bitmap(storage, table, shape, tally)
    _check_batmap(storage, metadata, table, tally)
    if deep:
        _check_clear_sectors(storage, keys, shape, tally)
    return leaks


def _shape(metadata: SparseMetadata, header: DynamicHeader, kept: tuple[tuple[int, int], ...]) -> Shape:
    size = min(max(metadata.footer.current_size, 0), constants.MAX_VIRTUAL_SIZE)
    end = metadata.file_size
    is_child = metadata.footer.disk_type is DiskType.DIFFERENCING
    structures = (*metadata.structures, *(metadata.locator_rooms if is_child else ()))
    return Shape(
        block_size=header.block_size,
        bitmap_size=sector_bitmap.bitmap_size(header.block_size),
        size=size,
        needed=ceil_div(size, header.block_size),
        limit=metadata.footer_start,
        footer_at=min(metadata.footer_start, max(0, end - FOOTER_SIZE)),
        structures=tuple((min(start, end), min(stop, end)) for start, stop in structures),
        rooms=(*metadata.locator_rooms, *kept),
    )


def _table_padding(storage: Storage, header: DynamicHeader) -> tuple[int, int]:
    """Return the stretch from the table's end to the next page, empty unless it is ones: makers pad a table so."""
    start = header.table_offset + header.table_bytes
    stop = round_up(start, PAGE)
    return start, stop if (_read(storage, start, stop - start) == 0xFF).all() else start


def _placed(table: Table) -> NDArray[np.int64]:
    """Return sector << 22 | block of every allocated entry, sorted: the blocks in file order."""
    count = sum(int(np.count_nonzero(entries != bat.UNALLOCATED)) for _, entries in table.windows())
    keys = np.empty(count, np.int64)
    done = 0
    for base, entries in table.windows():
        blocks = bat.allocated(entries)
        keys[done : done + len(blocks)] = entries[blocks].astype(np.int64) << _BLOCK_BITS | (blocks + base)
        done += len(blocks)
    keys.sort()
    return keys


def _slices(keys: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (blocks, file offsets of their bitmaps), both int64, in file order."""
    for low in range(0, len(keys), _SLICE):
        part = keys[low : low + _SLICE]
        yield part & ((1 << _BLOCK_BITS) - 1), (part >> _BLOCK_BITS) * SECTOR


def _check_places(keys: NDArray[np.int64], shape: Shape, tally: Tally) -> Leaks:
    unaligned = count = 0
    gaps = Gaps(shape, int(keys[0] >> _BLOCK_BITS) * SECTOR if len(keys) else shape.limit)
    previous: tuple[int, int] | None = None
    for all_blocks, all_at in _slices(keys):
        # What no sector of the disk can reach is only told.
        _check_beyond(all_blocks, all_at, shape, tally)
        reachable = all_blocks < shape.needed
        blocks, at = all_blocks[reachable], all_at[reachable]
        if len(blocks):
            _check_structures(blocks, at, shape, tally)
            _check_limit(blocks, at, shape, tally)
            _check_overlaps(blocks, at, previous, shape, tally)
            previous = int(blocks[-1]), int(at[-1])
            count += len(blocks)
            unaligned += int(np.count_nonzero((at + shape.bitmap_size) % PAGE))
        gaps.pass_over(all_at, all_at + shape.span)
    if unaligned:
        message = f"{unaligned} of {count} blocks have data that do not begin at a multiple of {PAGE}: slower"
        tally.add(Corruption.BLOCK_ALIGNMENT, Level.INFO, message)
    return gaps.finish(tally)


def _check_structures(blocks: NDArray[np.int64], at: NDArray[np.int64], shape: Shape, tally: Tally) -> None:
    """Tell every block that lies on a structure, once, with the first of those that it lies on."""
    hit = np.full(len(at), -1, np.int64)
    for number, (start, stop) in reversed(list(enumerate(shape.structures))):
        hit[(at < stop) & (at + shape.span > start)] = number
    clash = np.flatnonzero(hit >= 0)

    def tell(i: int) -> tuple[str, int]:
        offset = int(at[clash[i]])
        start, stop = shape.structures[hit[clash[i]]]
        where = f"on the headers or tables at [{start:#x}, {stop:#x})"
        return f"block {blocks[clash[i]]} lies at {offset:#x}, {where}", offset

    tally.add_many(Corruption.BLOCK_IN_HEADERS, Level.ERROR, len(clash), tell)


def _check_limit(blocks: NDArray[np.int64], at: NDArray[np.int64], shape: Shape, tally: Tally) -> None:
    """Only the unused tail of the block that the disk ends inside may be cut off (row 31)."""
    used = np.full(len(at), shape.span, np.int64)
    used[blocks == shape.needed - 1] = shape.bitmap_size + shape.size - (shape.needed - 1) * shape.block_size
    outside = np.flatnonzero(at + used > shape.limit)
    cut = np.flatnonzero((at + shape.span > shape.limit) & (at + used <= shape.limit))

    def tell(i: int) -> tuple[str, int]:
        offset = int(at[outside[i]])
        end = offset + int(used[outside[i]])
        where = f"block {blocks[outside[i]]} ends at {end:#x}"
        return f"{where}, behind the room for blocks, which ends at {shape.limit:#x}", offset

    tally.add_many(Corruption.BLOCK_OUTSIDE_FILE, Level.ERROR, len(outside), tell)
    message = f"the unused end of block {shape.needed - 1}, the disk's last, is cut off"
    tally.add_many(Corruption.BLOCK_TAIL_CUT, Level.WARNING, len(cut), lambda i: (message, int(at[cut[i]])))


def _check_beyond(blocks: NDArray[np.int64], at: NDArray[np.int64], shape: Shape, tally: Tally) -> None:
    beyond = np.flatnonzero(blocks >= shape.needed)

    def tell(i: int) -> tuple[str, int]:
        return f"block {blocks[beyond[i]]} is allocated; the disk has {shape.needed} blocks", int(at[beyond[i]])

    tally.add_many(Corruption.BLOCK_BEYOND_DISK, Level.WARNING, len(beyond), tell)


def _check_overlaps(
    blocks: NDArray[np.int64],
    at: NDArray[np.int64],
    previous: tuple[int, int] | None,
    shape: Shape,
    tally: Tally,
) -> None:
    """Tell every block that begins inside the one before it in the file, which a slice before may hold."""
    if previous is not None:
        blocks, at = np.insert(blocks, 0, previous[0]), np.insert(at, 0, previous[1])
    clash = np.flatnonzero(np.diff(at) < shape.span)

    def tell(i: int) -> tuple[str, int]:
        first, second = sorted((int(blocks[clash[i]]), int(blocks[clash[i] + 1])))
        offset = int(at[clash[i] + 1])
        return f"blocks {first} and {second} share bytes around {offset:#x}", offset

    tally.add_many(Corruption.BLOCKS_OVERLAP, Level.ERROR, len(clash), tell)


def _read(storage: Storage, offset: int, length: int) -> NDArray[np.uint8]:
    """Return bytes of the file, fewer where it ends."""
    buffer = np.empty(max(0, min(length, storage.size() - offset)), np.uint8)
    return buffer[: storage.read_into(offset, buffer.data)] if len(buffer) else buffer


def _check_padding(storage: Storage, header: DynamicHeader, entry_count: int, tally: Tally) -> None:
    if entry_count < header.max_table_entries:
        return
    at = header.table_offset + entry_count * 4
    padding = _read(storage, at, header.table_offset + header.table_bytes - at)
    if (padding != 0xFF).any():
        filling = "other than ones" if padding.any() else "zeros, as some makers write it"
        tally.add(Corruption.BAT_PADDING, Level.INFO, f"the room behind the BAT's last entry is {filling}", at)


def _check_last_bitmap(storage: Storage, table: Table, shape: Shape, tally: Tally) -> None:
    """Bits past the disk's end say nothing; only the block that the disk ends inside can have them (row 36)."""
    last = shape.needed - 1
    if not 0 <= last < table.entry_count:
        return
    entry = int(table.entries(last, last + 1)[0])
    if entry == bat.UNALLOCATED:
        return
    raw = _read(storage, entry * SECTOR, shape.bitmap_size)
    used = (shape.size - last * shape.block_size) // SECTOR
    bits = np.unpackbits(raw, bitorder="big")[used:]
    if bits.any():
        message = f"{int(bits.sum())} bits of block {last}'s bitmap are set beyond the disk's end; they say nothing"
        tally.add(Corruption.BITS_BEYOND_END, Level.INFO, message, entry * SECTOR)


def _check_last_sector(storage: Storage, keys: NDArray[np.int64], shape: Shape, tally: Tally) -> None:
    """Where the footer is lost the last sector of the last block may be, too (row 31)."""
    if shape.footer_at == shape.limit:
        return
    for blocks, at in _slices(keys[-1:]):
        block, offset = int(blocks[0]), int(at[0])
        first = (shape.footer_at - offset - shape.bitmap_size) // SECTOR
        sectors = shape.block_size // SECTOR
        row = _read(storage, offset, shape.bitmap_size)
        if block < shape.needed and first < sectors and holds_data_from(row, first, sectors):
            where = f"block {block} has data at {shape.footer_at:#x}"
            message = f"{where}, where the lost footer should be: they may be lost as well"
            tally.add(Corruption.BLOCK_IN_FOOTER, Level.ERROR, message, offset)


def _check_batmap(storage: Storage, metadata: SparseMetadata, table: Table, tally: Tally) -> None:
    """Hold blktap's map of full blocks against the file: whole blocks are read by it alone (vhd.md 3.3)."""
    at = metadata.batmap[0]
    if not at:
        return
    fields = structs.parse_batmap(_read(storage, at, SECTOR).tobytes())
    start, room, version = int(fields["data_offset"]), int(fields["sectors"]) * SECTOR, int(fields["version"])
    blocks = ceil_div(min(metadata.footer.current_size, constants.MAX_VIRTUAL_SIZE), constants.DEFAULT_BLOCK_SIZE)
    length = ceil_div(blocks, 8 * SECTOR) * SECTOR
    if version not in {0x0001_0001, 0x0001_0002}:
        message = f"blktap's map of full blocks has the unknown version {version:#010x}; blktap passes it over"
        tally.add(Corruption.BATMAP, Level.WARNING, message, at + 20)
        return
    if start % SECTOR or room < length or start + room > metadata.file_size:
        message = f"blktap's map of full blocks should be {room} bytes at {start:#x}, which cannot be"
        tally.add(Corruption.BATMAP, Level.WARNING, message, at + 8)
        return
    raw = _read(storage, start, length)
    kind = np.int8 if version == 0x0001_0001 else np.uint8
    computed = ~int(raw.view(kind).sum(dtype=np.int64)) & 0xFFFF_FFFF
    if computed != fields["checksum"]:
        message = f"the checksum of blktap's map is {fields['checksum']:#010x}, its bytes sum to {computed:#010x}"
        tally.add(Corruption.BATMAP, Level.WARNING, message, at + 24)
    full = np.flatnonzero(np.unpackbits(raw, bitorder="big"))
    full = full[full < table.entry_count]
    empty = [
        base + int(block)
        for base, entries in table.windows()
        for block in np.intersect1d(full - base, np.flatnonzero(entries == bat.UNALLOCATED))[:1]
    ]
    if empty:
        message = f"blktap's map says that block {empty[0]} is full, and it is not allocated"
        tally.add(Corruption.BATMAP, Level.WARNING, message, start + empty[0] // 8)


def _check_clear_sectors(storage: Storage, keys: NDArray[np.int64], shape: Shape, tally: Tally) -> None:
    """Sectors whose bit is clear should be zeros: some tools read them whatever their bit says (row 35).

    A block whose bitmap is full costs one small read; what is read of the others is a mebibyte at a time, and their
    holes are passed over. Blocks that are misplaced are too: nothing is read twice, however many entries a damaged
    table has.
    """
    reach = 0
    for blocks, at in _slices(keys):
        inside = (at < shape.limit) & (blocks < shape.needed)
        for block, offset in zip(blocks[inside].tolist(), at[inside].tolist(), strict=True):
            if offset >= reach:
                _check_clear_bits(storage, block, offset, shape, tally)
                reach = offset + shape.span


def _check_clear_bits(storage: Storage, block: int, offset: int, shape: Shape, tally: Tally) -> None:
    sectors = shape.block_size // SECTOR
    bits = np.unpackbits(_read(storage, offset, shape.bitmap_size), bitorder="big")
    if bits[sectors:].any():
        message = f"the padding of block {block}'s bitmap has bits set; they say nothing"
        tally.add(Corruption.BITS_BEYOND_END, Level.INFO, message, offset)
    clear = bits[:sectors] == 0
    if not clear.any():
        return
    first, count = _filled(storage, offset + shape.bitmap_size, clear, shape.limit)
    if count:
        what = f"sector {first} of block {block} holds" if count == 1 else f"{count} sectors of block {block} hold"
        message = f"{what} data and {'its bit says' if count == 1 else 'their bits say'} that there are none"
        if count > 1:
            message += f"; the first is sector {first}"
        where = offset + shape.bitmap_size + first * SECTOR
        tally.add(Corruption.CLEAR_SECTOR_DATA, Level.WARNING, message, where)


def _filled(storage: Storage, start: int, clear: NDArray[np.bool_], limit: int) -> tuple[int, int]:
    """Return the first of a block's clear sectors that are not zeros, and how many there are."""
    found, count = 0, 0
    length = max(0, min(len(clear) * SECTOR, limit - start))
    if storage.hole_bytes(start, length) == length:
        return found, count
    for first in range(0, len(clear), _PIECE // SECTOR):
        part = clear[first : first + _PIECE // SECTOR]
        at = start + first * SECTOR
        length = min(len(part) * SECTOR, max(0, limit - at))
        if not part.any() or storage.hole_bytes(at, length) == length:
            continue
        raw = _read(storage, at, length)
        whole = len(raw) // SECTOR
        filled = np.flatnonzero(raw[: whole * SECTOR].reshape(-1, SECTOR).any(axis=1) & part[:whole])
        if len(filled) and not count:
            found = first + int(filled[0])
        count += len(filled)
    return found, count
