"""What may change with a dynamic header: its own bytes and the data of its locators, and no byte of anything else.

Step files and journals are untrusted: what they would have written is held here against the file as it is now. No byte
may lie on a block, the BAT, the footer or its copy, and what the header says about those stays. Both of its versions
must make a valid image of the file.

**Source**: docs/reference/vhd.md 1.4, 1.5, 4.1; docs/guarantees.md.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.disk.sector_bitmap import bitmap_size
from vhdkit.errors import VhdError
from vhdkit.journal.patch import read_through
from vhdkit.storage.protocols import read_bytes
from vhdkit.vhd import bat
from vhdkit.vhd.bat_window import Room, Table, check_placement
from vhdkit.vhd.constants import FOOTER_SIZE, HEADER_SIZE
from vhdkit.vhd.header import DynamicHeader
from vhdkit.vhd.locator import MAX_LOCATOR_BYTES
from vhdkit.vhd.metadata import SparseMetadata
from vhdkit.vhd.read_metadata import read_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from vhdkit.journal.patch import Patch
    from vhdkit.storage.protocols import Storage
    from vhdkit.vhd.locator import ParentLocator

_PIECE_BYTES = 1 << 20


def locator_room(
    metadata: SparseMetadata,
    block_offsets: Iterable[NDArray[np.int64]],
    locators: Sequence[ParentLocator],
    *headers: DynamicHeader,
) -> int:
    """Return the bytes at a locator's place that nothing else uses; what it claims for itself is not believed.

    `locators` are the locator's entry in each of the headers, whose others are not to be touched; `block_offsets` the
    file offsets of all blocks, in arrays.
    """
    begin = locators[0].data_offset
    end = begin + max(max(entry.space, entry.data_length) for entry in locators)
    others = [entry for header in headers for entry in header.locators if entry.is_used and entry not in locators]
    taken = [
        *metadata.structures,
        *((other.data_offset, other.data_offset + other.data_length) for other in others),
        (min(metadata.footer_start, metadata.file_size - FOOTER_SIZE), metadata.file_size),
    ]
    span = _block_span(headers[0])
    for at in block_offsets:
        near = at[(at < end) & (at + span > begin)].tolist()
        taken += [(start, start + span) for start in near]
    for start, stop in taken:
        if start < end and begin < stop:
            end = max(begin, start)
    return end - begin


def is_header_change(storage: Storage, patches: Sequence[Patch]) -> bool:
    """Whether patches, the last of them the header, change nothing of a file but a header and its locators' data."""
    *data, last = patches
    if len(last.after) != HEADER_SIZE:
        return False
    try:
        # Only what it is to be has to be sealed: an edit by hand may have left the checksum behind.
        before, after = DynamicHeader.from_bytes(last.before, verify=False), DynamicHeader.from_bytes(last.after)
        metadata = read_metadata(storage, patches=patches)
        if not isinstance(metadata, SparseMetadata) or metadata.footer.data_offset != last.offset:
            return False
        if metadata.header != after or not _are_alike(before, after):
            return False
        table = Table(storage, after.table_offset, after.max_table_entries)
        room = block_room(metadata, after)
        if check_placement(table, room, path=metadata.path).unreadable is not None:
            return False
        return (
            (before.max_table_entries == after.max_table_entries or not data)
            and _is_unallocated(table, before.max_table_entries)
            and _have_moved_with_their_data(storage, before, after)
            and _are_inside_locators(data, metadata, tuple(_block_offsets(table, room)), (before, after))
        )
    except VhdError:
        return False


def rest_digest(storage: Storage, patches: Sequence[Patch]) -> str:
    """Return the digest of what a header's change relies on and does not change: it tells the file from any other.

    That are its size, both footers, the BAT, and the locators' data as they will be; whatever of the change is done,
    it is the same.
    """
    header, before = (DynamicHeader.from_bytes(raw, verify=False) for raw in (patches[-1].after, patches[-1].before))
    size = storage.size()
    total = sha256(size.to_bytes(8))
    stretches = [(0, FOOTER_SIZE), (max(0, size - FOOTER_SIZE), FOOTER_SIZE)]
    stretches += [(header.table_offset, before.max_table_entries * 4)]
    used = [entry for entry in header.locators if entry.is_used]
    stretches += [(entry.data_offset, min(entry.data_length, MAX_LOCATOR_BYTES)) for entry in used]
    for start, length in stretches:
        for at in range(start, start + length, _PIECE_BYTES):
            total.update(read_through(storage, patches, at, min(_PIECE_BYTES, start + length - at)))
    return total.hexdigest()


def _block_span(header: DynamicHeader) -> int:
    return bitmap_size(header.block_size) + header.block_size


def _are_alike(before: DynamicHeader, after: DynamicHeader) -> bool:
    """Whether two headers differ in what they say about the parent, and in a table that grows where it is, alone."""
    same = replace(
        before,
        parent_unique_id=after.parent_unique_id,
        parent_timestamp=after.parent_timestamp,
        parent_name_bytes=after.parent_name_bytes,
        locators=after.locators,
        max_table_entries=after.max_table_entries,
    )
    return same == after and before.max_table_entries <= after.max_table_entries


def block_room(metadata: SparseMetadata, header: DynamicHeader) -> Room:
    """Return where blocks may lie under a header."""
    size, span = metadata.footer.current_size, _block_span(header)
    last = (size - 1) // header.block_size
    return Room(
        structures=metadata.structures,
        locators=(),
        block_span=span,
        last_span=span - header.block_size + size - last * header.block_size,
        needed=last + 1,
        limit=metadata.footer_start,
    )


def _block_offsets(table: Table, room: Room) -> Iterator[NDArray[np.int64]]:
    """Yield the offsets of the blocks, as `Image.windows`."""
    for base, entries in table.windows():
        inside = bat.allocated(entries)
        at = bat.offsets(entries[inside])
        yield at[(inside + base < room.needed) | room.is_usable(at)]


def _is_unallocated(table: Table, first: int) -> bool:
    """Whether the entries that a table gets behind the first so many lead nowhere."""
    return all(
        bool(np.all(entries[max(0, first - base) :] == bat.UNALLOCATED))
        for base, entries in table.windows()
        if base + len(entries) > first
    )


def _have_moved_with_their_data(storage: Storage, before: DynamicHeader, after: DynamicHeader) -> bool:
    """Whether each locator whose data are elsewhere now has the same data there."""
    return all(
        old.data_length == new.data_length <= MAX_LOCATOR_BYTES
        and read_bytes(storage, old.data_offset, old.data_length)
        == read_bytes(storage, new.data_offset, new.data_length)
        for old, new in zip(before.locators, after.locators, strict=True)
        if old.is_used and new.is_used and old.data_offset != new.data_offset
    )


def _are_inside_locators(
    patches: Sequence[Patch],
    metadata: SparseMetadata,
    block_offsets: Sequence[NDArray[np.int64]],
    headers: tuple[DynamicHeader, DynamicHeader],
) -> bool:
    """Whether each patch lies in the room of a locator of its own that both headers have in the same place."""
    slots = zip(*(header.locators for header in headers), strict=True)
    rooms = {
        old.data_offset: locator_room(metadata, block_offsets, (old, new), *headers)
        for old, new in slots
        if old.is_used and new.is_used and old.data_offset == new.data_offset
    }
    places = [patch.offset for patch in patches]
    return len({*places}) == len(places) and all(len(p.after) <= rooms.get(p.offset, -1) for p in patches)
