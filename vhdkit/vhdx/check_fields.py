"""What is odd about the headers, tables, items and locator of a VHDX, though the disk can be read.

What keeps a disk from being read is reported where it is read: `vhdkit.vhdx.metadata_reader`.

**Source**: docs/reference/vhdx.md 5 rows 3, 8, 19, 28 to 30, 34, 35, 38, 49 to 51, 71, 77.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from vhdkit.disk.unique_id import guid
from vhdkit.errors import CorruptImageError
from vhdkit.findings import Finding, Level, printable
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import KiB, MiB
from vhdkit.vhdx import constants as c
from vhdkit.vhdx.corruption import VhdxCorruption
from vhdkit.vhdx.header import Header
from vhdkit.vhdx.parent_locator import ABSOLUTE_PATH, LINKAGE, PATH_KEYS, SECOND_LINKAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.storage.protocols import Storage
    from vhdkit.vhdx.metadata import VhdxMetadata
    from vhdkit.vhdx.metadata_reader import VhdxExamination
    from vhdkit.vhdx.metadata_table import MetadataEntry

_MOST_USER_ITEMS = 1024
# IsUser, IsVirtualDisk, IsRequired.
_ITEM_FLAGS = 7
_REQUIRED, _REQUIRED_OF_DISK = 4, 6
_EXPECTED_FLAGS = {
    c.FILE_PARAMETERS: _REQUIRED,
    c.PARENT_LOCATOR: _REQUIRED,
    c.VIRTUAL_DISK_SIZE: _REQUIRED_OF_DISK,
    c.VIRTUAL_DISK_ID: _REQUIRED_OF_DISK,
    c.LOGICAL_SECTOR_SIZE: _REQUIRED_OF_DISK,
    c.PHYSICAL_SECTOR_SIZE: _REQUIRED_OF_DISK,
}
_KEYS = frozenset({LINKAGE, SECOND_LINKAGE, *PATH_KEYS})
_REGION_TABLES_END = c.REGION_TABLE_OFFSETS[1] + c.TABLE_SIZE


class _Oddity(NamedTuple):
    corruption: VhdxCorruption
    message: str
    offset: int | None
    level: Level = Level.WARNING


def check_vhdx_fields(storage: Storage, examined: VhdxExamination) -> Iterator[Finding]:
    """Yield what is odd; of a file that says nothing of its disk, what stands in its first MiB."""
    oddities = [*_first_mebibyte(storage), *_headers(storage), *_regions(examined), *_items(examined)]
    if examined.metadata is not None:
        oddities += [*_identity(examined.metadata), *_locator(examined.metadata)]
    for each in oddities:
        yield Finding(
            corruption=each.corruption,
            path=storage.path,
            message=each.message,
            level=each.level,
            offset=each.offset,
        )


def _first_mebibyte(storage: Storage) -> Iterator[_Oddity]:
    """Bytes that no structure has should be zeros (row 3); one page at a time is reported once for each room."""
    rooms = [(c.IDENTIFIER_SIZE, 64 * KiB), (_REGION_TABLES_END, MiB)]
    for at in c.HEADER_OFFSETS:
        rooms += [(at + c.HEADER_FIELDS_SIZE, at + 64 * KiB)]
    for start, stop in sorted(rooms):
        raw = read_bytes(storage, start, max(0, min(stop, storage.size()) - start))
        if raw != bytes(len(raw)):
            at = start + len(raw) - len(raw.lstrip(b"\0"))
            message = f"the reserved bytes [{start:#x}, {stop:#x}) are not all zero"
            yield _Oddity(VhdxCorruption.RESERVED_BYTES, message, at, Level.INFO)


def _headers(storage: Storage) -> Iterator[_Oddity]:
    """Writers leave the two headers one number apart, with the same ids (row 8)."""
    found = []
    for at in c.HEADER_OFFSETS:
        try:
            found.append(Header.from_bytes(read_bytes(storage, at, c.HEADER_SIZE)))
        except CorruptImageError:
            return
    for first, second in pairwise(found):
        apart = abs(first.sequence_number - second.sequence_number)
        if apart > 1:
            message = f"the numbers of its two headers are {apart} apart: one was not written twice"
        elif (first.file_write_guid, first.data_write_guid, first.log_guid) != (
            second.file_write_guid,
            second.data_write_guid,
            second.log_guid,
        ):
            message = "its two headers have different ids: the last change of them was not written twice"
        else:
            continue
        yield _Oddity(VhdxCorruption.HEADERS_APART, message, c.HEADER_OFFSETS[0], Level.INFO)


def _regions(examined: VhdxExamination) -> Iterator[_Oddity]:
    for number, region in enumerate(examined.regions):
        at, name = examined.region_table + 16 + 32 * number, guid(region.guid)
        is_known = region.guid in {c.BAT_REGION, c.METADATA_REGION}
        if not is_known and not region.is_required:
            message = f"the region {name} is unknown and not required: a program that changes the file has to keep it"
            yield _Oddity(VhdxCorruption.REGION_UNKNOWN, message, at, Level.INFO)
        if is_known and not region.is_required:
            message = f"the region {name} is not marked as required, as qemu leaves it"
            yield _Oddity(VhdxCorruption.REGION_OPTIONAL, message, at + 28, Level.INFO)
        if region.flags & ~1:
            message = f"the region {name} has the flags {region.flags:#x}, of which only the lowest is known"
            yield _Oddity(VhdxCorruption.REGION_FLAGS, message, at + 28)


def _items(examined: VhdxExamination) -> Iterator[_Oddity]:
    users = sum(entry.is_user for entry in examined.items)
    if users > _MOST_USER_ITEMS:
        message = f"it has {users} metadata items of users, at most {_MOST_USER_ITEMS} are allowed"
        yield _Oddity(VhdxCorruption.USER_ITEMS, message, examined.metadata_table)
    for number, entry in enumerate(examined.items):
        yield from _item(entry, examined.metadata_table + 32 + 32 * number)


def _item(entry: MetadataEntry, at: int) -> Iterator[_Oddity]:
    name = guid(entry.item_id)
    if not entry.length and entry.offset:
        message = f"the metadata item {name} is empty and has the offset {entry.offset:#x}, expected 0"
        yield _Oddity(VhdxCorruption.ITEM_EMPTY, message, at + 16)
    if entry.is_user and entry.is_required:
        message = f"the metadata item {name} of a user is marked as required"
        yield _Oddity(VhdxCorruption.USER_ITEMS, message, at + 24)
    expected = entry.flags if entry.is_user else _EXPECTED_FLAGS.get(entry.item_id, entry.flags)
    if entry.flags != expected or entry.flags & ~_ITEM_FLAGS:
        message = f"the metadata item {name} has the flags {entry.flags:#x}, expected {expected & _ITEM_FLAGS:#x}"
        yield _Oddity(VhdxCorruption.ITEM_FLAGS, message, at + 24)
    if entry.reserved:
        message = f"the reserved field of the metadata item {name} is {entry.reserved:#x}, expected 0"
        yield _Oddity(VhdxCorruption.ITEM_FLAGS, message, at + 28)


def _identity(metadata: VhdxMetadata) -> Iterator[_Oddity]:
    if metadata.unique_id == c.NULL_GUID:
        message = "the id of its content is zeros, which fit no child"
        yield _Oddity(VhdxCorruption.UNIQUE_ID_NULL, message, None)
    elif metadata.parent is not None and metadata.unique_id in metadata.parent.ids:
        message = "it has the id that it gives to its parent, as a copied file has"
        yield _Oddity(VhdxCorruption.PARENT_ID_IS_OWN, message, None)
    replay = metadata.replay
    if replay is not None and replay.size > metadata.file_size:
        message = f"its log makes it {replay.size} bytes long: what is behind {metadata.file_size} reads as zeros"
        yield _Oddity(VhdxCorruption.LOG_EXTENDS, message, metadata.file_size, Level.INFO)


def _locator(metadata: VhdxMetadata) -> Iterator[_Oddity]:
    texts = metadata.texts
    if not texts:
        return
    if not any(texts.get(key) for key in PATH_KEYS):
        message = "the parent locator has no path of the parent: only its id identifies it"
        yield _Oddity(VhdxCorruption.LOCATOR_PATHS, message, None)
    absolute = texts.get(ABSOLUTE_PATH, "\\\\?\\")
    if not absolute.startswith("\\\\?\\"):
        message = f"{ABSOLUTE_PATH} of the parent locator lacks the prefix \\\\?\\, as Windows writes it"
        yield _Oddity(VhdxCorruption.LOCATOR_PREFIX, message, None, Level.INFO)
    for key in texts:
        if key not in _KEYS:
            message = f"the parent locator has the unknown key {printable(key[:64])}"
            yield _Oddity(VhdxCorruption.LOCATOR_KEY, message, None, Level.INFO)
