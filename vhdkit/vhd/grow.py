"""Making a dynamic or differencing disk larger: room for a longer BAT, and in the end the new size.

The BAT grows where it is. Blocks that lie in its way are copied to the end of the file, their BAT entries last;
locator data and blktap's batmap are written again behind it. Begun again, it copies nothing from where the copy may lie
by now, and writes all the rest once more: what was read back may not be durable.

**Order**: 1 the blocks' copies, sync (unused space) · 2 their BAT entries, sync (the old places are unused space) ·
3 locator data at their new places, sync · 4 header with these places (see `vhd.header_update`) · 5 the old batmap
invalid, sync, the new one, sync (blktap alone misses it in between), the table's new entries, all unallocated, sync ·
6 header with the new number of entries, in one step.

The disk's size follows when everything in the new part is durable:
`grow_disk`: footer at the end and its copy, in one step (see `footer_update`).

**Source**: docs/reference/vhd.md 1.6, 3.2, 3.3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.journal.patch import Patch
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import SECTOR, round_up
from vhdkit.vhd import bat, header_update, structs
from vhdkit.vhd.bat_window import Table
from vhdkit.vhd.footer_update import write_footers
from vhdkit.vhd.geometry import Geometry
from vhdkit.vhd.write import link_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhdkit.storage.protocols import Folder
    from vhdkit.vhd.growth_plan import Growth
    from vhdkit.vhd.header import DynamicHeader
    from vhdkit.vhd.open_image import Vhd
    from vhdkit.vhd.sparse_image import SparseImage

_LARGEST_GEOMETRY = Geometry(65535, 16, 255)


def grow_table(folder: Folder, image: SparseImage, growth: Growth, places: NDArray[np.int64]) -> None:
    """Do steps 1 to 6; `places` (int64) are the file offsets for the blocks, in room that was made already."""
    header = image.header
    _move_blocks(image, growth.blocks, places)
    header = _move_locators(folder, image, header, growth)
    _move_batmap(image, growth)
    table_at = header.table_offset + growth.old_count * 4
    for at in range(table_at, growth.table_end, 1 << 20):
        image.write_at(at, b"\xff" * min(1 << 20, growth.table_end - at))
    image.sync()
    header = replace(header, max_table_entries=growth.entry_count)
    _write_header(folder, image, header)
    image.table = Table(image.storage, header.table_offset, header.max_table_entries)


def grow_disk(folder: Folder, image: Vhd, new_size: int) -> None:
    """Give the disk its new size: the footer at the end, then its copy, in one step."""
    geometry = Geometry.for_size(new_size)
    if image.footer.geometry == _LARGEST_GEOMETRY:
        # Some makers write the largest geometry to say that only the size counts.
        geometry = _LARGEST_GEOMETRY
    image.footer = replace(image.footer, current_size=new_size, geometry=geometry)
    write_footers(folder, image)
    image.size = new_size


def _move_blocks(image: SparseImage, blocks: NDArray[np.int64], places: NDArray[np.int64]) -> None:
    if not len(blocks):
        return
    entries = np.concatenate([image.table.entries(block, block + 1) for block in blocks.tolist()])
    at = bat.offsets(entries)
    staying = at != places
    for old, new in zip(at[staying].tolist(), places[staying].tolist(), strict=True):
        image.copy_from(image, old, new, image.block_span)
    image.sync()
    link_blocks(image, blocks, places)
    image.sync()


def _move_locators(folder: Folder, image: SparseImage, header: DynamicHeader, growth: Growth) -> DynamicHeader:
    if not growth.locator_offsets:
        return header
    if all(header.locators[slot].data_offset == offset for slot, offset in growth.locator_offsets.items()):
        _write_header(folder, image, header)
        return header
    for slot, offset in growth.locator_offsets.items():
        locator = header.locators[slot]
        data = read_bytes(image.storage, locator.data_offset, locator.data_length)
        image.write_at(offset, data.ljust(round_up(len(data), SECTOR), b"\0"))
    image.sync()
    locators = tuple(
        replace(entry, data_offset=growth.locator_offsets.get(slot, entry.data_offset))
        for slot, entry in enumerate(header.locators)
    )
    header = replace(header, locators=locators)
    _write_header(folder, image, header)
    return header


def _move_batmap(image: SparseImage, growth: Growth) -> None:
    """Write an empty batmap behind the longer table: a clear bit only says that the block's bitmap is to be read.

    The old one is made invalid first, for the new one may lie on its bits and would be taken for them.
    """
    if not growth.batmap_bytes:
        return
    old = growth.batmap
    if image.metadata.batmap != (0, 0):
        image.write_at(image.metadata.batmap[0], bytes(SECTOR))
        image.sync()
    sectors = growth.batmap_bytes // SECTOR - 1
    header = structs.build_batmap(structs.parse_batmap(old), growth.table_end + SECTOR, sectors)
    image.write_at(growth.table_end, header + old[len(header) :] + bytes(sectors * SECTOR))
    image.sync()


def _write_header(folder: Folder, image: SparseImage, header: DynamicHeader) -> None:
    after = header.to_bytes()
    at = image.footer.data_offset
    header_update.apply(
        folder, image.storage, [Patch(offset=at, before=read_bytes(image.storage, at, len(after)), after=after)]
    )
    image.header = header
