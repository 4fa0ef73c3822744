"""What making a dynamic or differencing disk larger takes: room for a longer BAT. `vhd.grow` does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.storage.protocols import read_bytes
from vhdkit.units import SECTOR, ceil_div, round_up
from vhdkit.vhd.constants import MAX_TABLE_ENTRIES
from vhdkit.vhd.locator import MAX_LOCATOR_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vhdkit.journal.merge_records import GrowthState
    from vhdkit.vhd.locator import ParentLocator
    from vhdkit.vhd.sparse_image import SparseImage


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Growth:
    """How an image's headers will lie.

    The table has `old_count` entries and gets `entry_count`. It ends at `table_end`, everything before the blocks at
    `end`; `blocks` (int64) make way; `locator_offsets` are the locators' new places by slot; `batmap` is the header of
    blktap's map, empty without one.
    """

    old_count: int
    entry_count: int
    table_end: int
    end: int
    blocks: NDArray[np.int64]
    batmap_bytes: int
    locator_offsets: dict[int, int]
    batmap: bytes

    def to_record(self) -> dict[str, object]:
        """Return what `from_record` takes: values for a journal."""
        return {
            "old_count": self.old_count,
            "entry_count": self.entry_count,
            "table_end": self.table_end,
            "end": self.end,
            "blocks": self.blocks.tolist(),
            "batmap_bytes": self.batmap_bytes,
            "locator_offsets": {str(slot): at for slot, at in self.locator_offsets.items()},
            "batmap": self.batmap.hex(),
        }

    @classmethod
    def from_record(cls, record: GrowthState) -> Growth:
        """Return the growth that a journal speaks of; its digest has been held against the plan."""
        return cls(
            old_count=record.old_count,
            entry_count=record.entry_count,
            table_end=record.table_end,
            end=record.end,
            blocks=np.array(record.blocks, np.int64),
            batmap_bytes=record.batmap_bytes,
            locator_offsets={int(slot): at for slot, at in record.locator_offsets.items()},
            batmap=bytes.fromhex(record.batmap),
        )


def plan_growth(image: SparseImage, new_size: int) -> Growth | None:
    """Return what must be done before the table can have an entry for every block; None if it can already, or never."""
    header = image.header
    entry_count = ceil_div(new_size, image.block_size)
    if entry_count <= header.max_table_entries or entry_count > MAX_TABLE_ENTRIES:
        return None
    table_end = round_up(header.table_offset + entry_count * 4, SECTOR)
    has_batmap = image.metadata.batmap != (0, 0)
    batmap_bytes = SECTOR + ceil_div(entry_count, 8 * SECTOR) * SECTOR if has_batmap else 0
    end = table_end + batmap_bytes
    offsets: dict[int, int] = {}
    in_the_way = [
        slot
        for slot, locator in enumerate(header.locators)
        if _is_readable(locator, image) and header.table_offset < locator.data_offset < end
    ]
    # The new places must not touch the old ones, which count until the header is written.
    place = max(end, image.metadata.reserved_end) if in_the_way else end
    for slot in in_the_way:
        offsets[slot] = place
        room = max(min(header.locators[slot].space, MAX_LOCATOR_BYTES), header.locators[slot].data_length)
        place += round_up(room, SECTOR)
    span = image.block_span
    moving = [blocks[(at < place) & (at + span > header.table_offset)] for blocks, at in image.windows()]
    return Growth(
        old_count=header.max_table_entries,
        entry_count=entry_count,
        table_end=table_end,
        end=max(place, image.metadata.reserved_end),
        blocks=np.concatenate(moving) if moving else np.empty(0, np.int64),
        batmap_bytes=batmap_bytes,
        locator_offsets=offsets,
        batmap=read_bytes(image.storage, image.metadata.batmap[0], SECTOR) if has_batmap else b"",
    )


def growth_refusals(image: SparseImage, new_size: int, growth: Growth | None, *, begun: bool) -> Iterator[str]:
    """Yield why a disk cannot become so large; `begun` says that an earlier run may have added blocks already."""
    usable, unusable = image.entries_beyond(new_size)
    # An earlier run has added blocks there; what another tool left would be shown by the larger disk.
    if unusable or (usable and not begun):
        yield "its BAT has entries behind the disk's end, which the larger disk would show"
    entry_count = ceil_div(new_size, image.block_size)
    if entry_count > MAX_TABLE_ENTRIES:
        yield f"{entry_count} blocks of {image.block_size} bytes are too many"
    if growth is not None and image.header.table_offset < image.footer.data_offset:
        yield "its BAT lies before its dynamic header and has no room to grow"


def _is_readable(locator: ParentLocator, image: SparseImage) -> bool:
    """Whether a locator has data that is worth keeping: what its fields say is bounded before it is believed."""
    if not locator.is_used or not 0 < locator.data_length <= MAX_LOCATOR_BYTES:
        return False
    return locator.data_offset + locator.data_length <= image.metadata.file_size
