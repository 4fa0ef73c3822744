"""What is odd about the fields of a footer, a dynamic header and its locators, though the disk can be read.

What keeps a disk from being read is told where it is read: `vhdkit.vhd.metadata`. Nothing here opens or reads.

**Source**: docs/reference/vhd.md 4.1 rows 5 to 26 and 37 to 39, 4.2 rows 50 to 54.
"""

from __future__ import annotations

import ntpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.corruption import Corruption
from vhdkit.disk import timestamp, unique_id
from vhdkit.findings import Finding, Level, printable
from vhdkit.units import SECTOR, ceil_div
from vhdkit.vhd import constants
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.footer import DiskType
from vhdkit.vhd.geometry import Geometry
from vhdkit.vhd.locator import MAX_LOCATOR_BYTES, ParentLocator, PlatformCode
from vhdkit.vhd.metadata import LOCATOR_SIZE, LOCATORS_AT, FooterPlace, SparseMetadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vhdkit.vhd.footer import Footer
    from vhdkit.vhd.header import DynamicHeader
    from vhdkit.vhd.metadata import Metadata

# A clock may be somewhat ahead, as blktap's checker allows (docs/reference/vhd.md 1.9).
_CLOCK_SECONDS = 1800
# The largest that the fields hold: said of every disk that is larger, and by some makers of every disk.
_MAX_GEOMETRY = (65535, 16, 255)
# qemu takes the disks of these makers for as large as their geometry says (docs/reference/vhd.md B15).
_SIZED_BY_GEOMETRY = frozenset({b"vpc ", b"qemu"})
_HOST_SYSTEMS = frozenset({b"Wi2k", b"Mac ", b"\0\0\0\0"})
_BLKTAP = b"tap\0"
_SIMH = b"simh"
_USUAL_BLOCK_SIZES = frozenset({512 << 10, 2 << 20})
_UTF16 = frozenset({PlatformCode.WINDOWS_RELATIVE, PlatformCode.WINDOWS_ABSOLUTE})


@dataclass(frozen=True, slots=True)
class _Rule:
    """Something that should not be so, and is if `broken`; `at` is the offset in the structure."""

    broken: bool
    corruption: Corruption
    at: int
    message: str
    level: Level = Level.WARNING


def check_fields(metadata: Metadata, now: float) -> Iterator[Finding]:
    """Yield what is odd about the fields; `now` is in Unix seconds."""
    footer = metadata.footer
    start = 0 if metadata.footer_place is FooterPlace.COPY else metadata.footer_start
    rules = [(start, rule) for rule in (*_footer_rules(footer, now), *_size_rules(metadata))]
    if isinstance(metadata, SparseMetadata):
        at = footer.data_offset
        rules += [(at, rule) for rule in _header_rules(footer, metadata.header)]
        rules += [(at, rule) for rule in _parent_rules(metadata, metadata.header, now)]
        rules += [(at, rule) for rule in _locator_rules(metadata, metadata.header)]
    for offset, rule in rules:
        if rule.broken:
            yield Finding(
                corruption=rule.corruption,
                path=metadata.path,
                message=rule.message,
                level=rule.level,
                offset=offset + rule.at,
            )


def _footer_rules(footer: Footer, now: float) -> Iterator[_Rule]:
    info = Level.INFO
    features, version, saved = footer.features, footer.version, footer.saved_state
    yield _Rule(features & ~1 != 2, Corruption.FEATURES, 8, f"the features are {features:#x}, expected 0x2 or 0x3")
    yield _Rule(
        version != constants.FORMAT_VERSION, Corruption.FORMAT_VERSION, 12, f"the format version is {_dotted(version)}"
    )
    stamp = footer.timestamp
    message = f"it says that it was made {timestamp.to_datetime(stamp).isoformat()}, which is still to come"
    yield _Rule(_is_future(stamp, now), Corruption.TIMESTAMP_FUTURE, 24, message)
    creator, made_by = footer.creator_application, footer.creator_version
    yield _Rule(
        creator == _BLKTAP and made_by > 0x0001_0003,
        Corruption.CREATOR_VERSION,
        32,
        f"it was made by a blktap {_dotted(made_by)}; what is known of blktap ends with 1.3",
    )
    yield _Rule(
        creator == _BLKTAP and made_by == 0x0000_0001,
        Corruption.CREATOR_VERSION,
        32,
        "it was made by blktap 0.1, whose sector bitmaps have another order of bits",
        Level.ERROR,
    )
    host = footer.creator_host_os
    yield _Rule(host not in _HOST_SYSTEMS, Corruption.CREATOR_HOST_OS, 36, f"the host system {host!r} is unknown", info)
    original, size = footer.original_size, footer.current_size
    message = f"the disk was made with {original} bytes and has {size} now"
    yield _Rule(original != size, Corruption.ORIGINAL_SIZE, 40, message, info)
    yield _Rule(saved > 1, Corruption.SAVED_STATE, 84, f"the saved-state flag is {saved}, expected 0 or 1")
    null = footer.unique_id == unique_id.NULL
    yield _Rule(null, Corruption.UNIQUE_ID_NULL, 68, "it has no unique id; a child could find it by name only")
    # Byte 85 is blktap's hidden flag; SIMH names its drive and itself (docs/reference/vhd.md 1.2).
    yield _Rule(
        footer.reserved[0] > 1 or any(footer.reserved[1:]),
        Corruption.FOOTER_RESERVED,
        85,
        "the footer's reserved bytes are not all zero; its maker may keep something there",
        info if creator == _SIMH else Level.WARNING,
    )


def _size_rules(metadata: Metadata) -> Iterator[_Rule]:
    footer, file_size = metadata.footer, metadata.file_size
    size, geometry = footer.current_size, footer.geometry
    computed = Geometry.for_size(size)
    message = f"the geometry is {_chs(geometry)}; the specification gives a disk of this size {_chs(computed)}"
    yield _Rule(geometry != computed, Corruption.GEOMETRY, 56, message, Level.INFO)
    yield _Rule(
        footer.creator_application in _SIZED_BY_GEOMETRY and geometry != _MAX_GEOMETRY and geometry.size != size,
        Corruption.GEOMETRY_SIZE,
        56,
        f"the geometry gives {geometry.size} bytes, the disk has {size}; qemu goes by the geometry",
    )
    odd = file_size % SECTOR not in ({0, SECTOR - 1} if metadata.footer_place is FooterPlace.TRAILING_511 else {0})
    message = f"the file has {file_size} bytes, which is no multiple of {SECTOR}"
    yield _Rule(odd, Corruption.FILE_LENGTH, 0, message)
    if footer.disk_type is DiskType.FIXED:
        unused = footer.data_offset == constants.UNUSED_OFFSET
        message = f"the data offset of a fixed disk should be all ones, it is {footer.data_offset:#x}"
        yield _Rule(not unused, Corruption.FIXED_DATA_OFFSET, 16, message)
        extra = metadata.footer_start - size
        message = f"{extra} bytes between the disk's end and the footer belong to nothing"
        yield _Rule(size > 0 and extra > 0, Corruption.FIXED_DATA_EXTRA, 48, message)


def _header_rules(footer: Footer, header: DynamicHeader) -> Iterator[_Rule]:
    version, link, block = header.version, header.data_offset, header.block_size
    known = version == constants.FORMAT_VERSION
    yield _Rule(not known, Corruption.HEADER_VERSION, 24, f"the dynamic header's version is {_dotted(version)}")
    unused = link == constants.UNUSED_OFFSET
    message = f"the dynamic header's own data offset should be all ones, it is {link:#x}; it is not followed"
    yield _Rule(not unused, Corruption.HEADER_DATA_OFFSET, 8, message)
    filled = header.reserved_word != 0 or any(header.reserved)
    yield _Rule(filled, Corruption.HEADER_RESERVED, 768, "the dynamic header's reserved bytes are not all zero")
    valid = SECTOR <= block <= constants.MAX_BLOCK_SIZE and not block & (block - 1)
    message = f"the block size is {block}; other tools are tested with 2 MiB and 512 KiB"
    yield _Rule(valid and block not in _USUAL_BLOCK_SIZES, Corruption.BLOCK_SIZE_UNUSUAL, 32, message)
    # Not a warning: a BAT made for later growth is in order, and checkers that object are wrong (vhd.md 4.3, B17).
    needed = ceil_div(footer.current_size, block) if valid else header.max_table_entries
    message = f"the BAT has {header.max_table_entries} entries, the disk needs {needed}"
    yield _Rule(header.max_table_entries > needed, Corruption.BAT_LARGER, 28, message, Level.INFO)


def _parent_rules(metadata: SparseMetadata, header: DynamicHeader, now: float) -> Iterator[_Rule]:
    used = any(locator.is_used for locator in header.locators)
    if metadata.footer.disk_type is not DiskType.DIFFERENCING:
        filled = any(header.parent_unique_id) or header.parent_timestamp or any(header.parent_name_bytes) or used
        yield _Rule(bool(filled), Corruption.PARENT_FIELDS, 40, "a dynamic disk has no parent, yet it says one")
        return
    null = header.parent_unique_id == unique_id.NULL
    message = "it remembers no id of its parent: a raw file, which must be named, or any file of the right name"
    yield _Rule(null, Corruption.PARENT_ID_NULL, 40, message)
    own = not null and header.parent_unique_id == metadata.footer.unique_id
    yield _Rule(own, Corruption.PARENT_ID_IS_OWN, 40, "the id of its parent is its own")
    nameless = not header.parent_name and not metadata.parent_paths
    message = "neither a locator nor the name field says where its parent is; only its id can tell"
    yield _Rule(nameless, Corruption.PARENT_UNNAMED, 64, message)
    stamp = header.parent_timestamp
    message = f"it remembers its parent as of {timestamp.to_datetime(stamp).isoformat()}, which is still to come"
    yield _Rule(_is_future(stamp, now), Corruption.PARENT_TIMESTAMP_FUTURE, 56, message)


def _locator_rules(metadata: SparseMetadata, header: DynamicHeader) -> Iterator[_Rule]:
    seen: list[ParentLocator] = []
    name = ntpath.basename(header.parent_name)
    texts = {path.platform_code: path.text for path in metadata.parent_paths}
    for slot, locator in enumerate(header.locators):
        if not locator.is_used:
            continue
        at, code = LOCATORS_AT + slot * LOCATOR_SIZE, locator.platform_code
        title = f"parent locator {slot} ({printable(code.decode('latin-1'))})"
        known = code in set(PlatformCode)
        yield _Rule(not known, Corruption.LOCATOR_CODE, at, f"{title} is of an unknown kind; it is not used")
        twice = code in {other.platform_code for other in seen}
        yield _Rule(twice, Corruption.LOCATOR_DUPLICATE, at, f"{title} is the second of its kind")
        message = f"the reserved bytes of {title} are not zero"
        yield _Rule(locator.reserved != 0, Corruption.LOCATOR_RESERVED, at + 12, message)
        if has_data(locator, metadata.file_size):
            yield from _length_rules(locator, at, title)
            clash = _lies_on_others(locator, seen, metadata)
            message = f"the data of {title} lie on a header, a table or another locator"
            yield _Rule(clash, Corruption.LOCATOR_OVERLAPS, at + 16, message)
        text = texts.get(code)
        if text is not None and name and not twice:
            base = ntpath.basename(text.replace("/", "\\"))
            message = f"{title} names {base}, the name field {name}"
            yield _Rule(base.lower() != name.lower(), Corruption.LOCATOR_NAME, at, message, Level.INFO)
        seen.append(locator)


def _lies_on_others(locator: ParentLocator, seen: Iterable[ParentLocator], metadata: SparseMetadata) -> bool:
    """Whether a locator's data lie on a structure, on the footer or on the data of another locator."""
    taken = [*metadata.structures, *(_data(other) for other in seen if has_data(other, metadata.file_size))]
    if metadata.footer_place is not FooterPlace.COPY:
        taken.append((metadata.footer_start, metadata.file_size))
    first, end = _data(locator)
    return any(start < end and first < stop for start, stop in taken)


def _length_rules(locator: ParentLocator, at: int, title: str) -> Iterator[_Rule]:
    length, room = locator.data_length, locator.space
    message = f"{title} has {length} bytes of data in a room of {room}"
    yield _Rule(length > room, Corruption.LOCATOR_LENGTH, at + 4, message)
    odd = locator.platform_code in _UTF16 and length % 2 == 1
    message = f"{title} has {length} bytes of data: an odd number, which UTF-16 cannot have"
    yield _Rule(odd, Corruption.LOCATOR_LENGTH, at + 8, message)


def has_data(locator: ParentLocator, file_size: int) -> bool:
    """Whether a locator's data can be read: the rule by which `read_metadata` passes the others over."""
    inside = FOOTER_SIZE <= locator.data_offset <= file_size - locator.data_length
    return locator.is_used and 0 < locator.data_length <= MAX_LOCATOR_BYTES and inside


def _data(locator: ParentLocator) -> tuple[int, int]:
    return locator.data_offset, locator.data_offset + locator.data_length


def _is_future(stamp: int, now: float) -> bool:
    return stamp > now - timestamp.EPOCH + _CLOCK_SECONDS


def _dotted(version: int) -> str:
    return f"{version >> 16}.{version & 0xFFFF}"


def _chs(geometry: Geometry) -> str:
    return "/".join(map(str, geometry))
