"""Reading which regions a VHDX has: two tables that say the same, each region in a place of its own.

**Source**: docs/reference/vhdx.md 1.5, 5 rows 20 to 27.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from vhdkit.disk.unique_id import guid
from vhdkit.errors import CorruptImageError
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import MiB
from vhdkit.vhdx import constants as c
from vhdkit.vhdx.corruption import VhdxCorruption
from vhdkit.vhdx.region_table import Region, RegionTable

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Storage
    from vhdkit.vhdx.header import Header
    from vhdkit.vhdx.judge import Judge


class RegionReader:
    """One reading of the region tables, after the log was replayed."""

    def __init__(self, storage: Storage, judge: Judge, *, verify: bool) -> None:
        self._storage = storage
        self._judge = judge
        self._verify = verify
        self.checksum_ok = True
        self.table_offset = c.REGION_TABLE_OFFSETS[0]
        self.entries: tuple[Region, ...] = ()
        self.places: list[Region] = []

    def read(self, header: Header) -> dict[bytes, Region]:
        """Return the regions by their ids, BAT and metadata among them.

        Raises:
            CorruptImageError, UnsupportedImageError: they cannot be read, or one is required and unknown.

        """
        table = self._table()
        self.entries = table.entries
        if table.reserved:
            detail = f"the region table's reserved field is {table.reserved:#x}, expected 0"
            self._judge.refuse(VhdxCorruption.REGION_TABLE, detail, self.table_offset + 12)
        found: dict[bytes, Region] = {}
        for region in table.entries:
            if region.guid in found:
                detail = f"the region {guid(region.guid)} is there twice"
                self._judge.refuse(VhdxCorruption.REGION_DUPLICATE, detail, self.table_offset)
            elif self._is_placed(region):
                found[region.guid] = region
        for name, wanted in (("BAT", c.BAT_REGION), ("metadata", c.METADATA_REGION)):
            if wanted not in found:
                self._judge.give_up(VhdxCorruption.REGION_MISSING, f"it has no {name} region", self.table_offset)
        self._place(found, header)
        return found

    def _table(self) -> RegionTable:
        """Return the table that counts: the first that is whole."""
        found: list[tuple[RegionTable, int]] = []
        wrong: list[CorruptImageError] = []
        raws = [read_bytes(self._storage, offset, c.TABLE_SIZE) for offset in c.REGION_TABLE_OFFSETS]
        for raw, offset in zip(raws, c.REGION_TABLE_OFFSETS, strict=True):
            try:
                found.append((RegionTable.from_bytes(raw), offset))
            except CorruptImageError as error:
                wrong.append(error.located(self._storage.path, offset))
        if not found:
            if self._verify:
                self._judge.refuse_for(wrong[0])
            self.checksum_ok = False
            return RegionTable.from_bytes(raws[0], verify=False)
        table, self.table_offset = found[0]
        if wrong or table != found[1][0]:
            why = "is damaged" if wrong else "differs"
            message = f"one of its two region tables {why}, and the {'other' if wrong else 'first'} is used"
            at = wrong[0].offset if wrong else c.REGION_TABLE_OFFSETS[1]
            self._judge.note(VhdxCorruption.REGION_TABLES_DIFFER, message, at)
        return table

    def _is_placed(self, region: Region) -> bool:
        name, where = guid(region.guid), f"[{region.file_offset:#x}, {region.stop:#x})"
        if region.guid not in {c.BAT_REGION, c.METADATA_REGION} and region.is_required:
            message = f"the region {name} is required for reading it, and unknown"
            self._judge.refuse_unknown(VhdxCorruption.REGION_REQUIRED, message, self.table_offset)
        is_whole = not region.file_offset % MiB and not region.length % MiB and region.length > 0
        if is_whole and region.file_offset >= c.FIRST_REGION and region.stop <= self._storage.size():
            return True
        detail = f"the region {name} is {where}: expected whole MiB inside the file"
        self._judge.refuse(VhdxCorruption.REGION_PLACE, detail, self.table_offset)
        return False

    def _place(self, regions: dict[bytes, Region], header: Header) -> None:
        """Note where regions and log lie; none shares bytes with another."""
        log = Region(guid=c.NULL_GUID, file_offset=header.log_offset, length=header.log_length, flags=0)
        logs = [log] if log.length else []
        self.places = sorted([*regions.values(), *logs], key=lambda each: each.file_offset)
        for below, above in pairwise(self.places):
            if below.stop > above.file_offset:
                names = " and ".join("the log" if each is log else guid(each.guid) for each in (below, above))
                self._judge.refuse(VhdxCorruption.REGIONS_OVERLAP, f"{names} share bytes", above.file_offset)
