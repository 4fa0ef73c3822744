"""Making new images: fixed, dynamic, and differencing children of any of them.

A file gets its name only when it is whole and durable; before, it has a temporary one beside it, and after a failure
neither stays. Layout: footer copy, dynamic header, BAT padded with ones to 4 KiB, locators (4 KiB each, room for
longer paths later), footer.

**Source**: docs/reference/vhd.md 1.1, 1.12, 2.7.
"""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from vhdkit.arguments import checked
from vhdkit.disk import timestamp
from vhdkit.disk.file_name import FileFormat, new_image_file
from vhdkit.errors import JournalError, ReadOnlyImageError
from vhdkit.findings import Advice
from vhdkit.journal.ended_view import ended_view
from vhdkit.journal.merge_journal import read_journal
from vhdkit.journal.renamed_files import foreign_journal
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.units import SECTOR, as_text, as_text_map, ceil_div, round_up
from vhdkit.vhd import constants
from vhdkit.vhd.constants import FOOTER_SIZE, HEADER_SIZE
from vhdkit.vhd.footer import DiskType, Footer
from vhdkit.vhd.geometry import Geometry
from vhdkit.vhd.header import DynamicHeader, encode_parent_name
from vhdkit.vhd.locator import ParentLocator, PlatformCode
from vhdkit.vhd.open_image import open_image
from vhdkit.vhd.parent_reference import ParentReference, reference_to

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vhdkit.disk.image import ImageSummary
    from vhdkit.options import DiskTypeName
    from vhdkit.storage.protocols import Folder, Storage
    from vhdkit.units import StrPath
    from vhdkit.vhd.image import VhdImage

# qemu believes `current_size` only of creators it knows, and cuts the disk of any other to its geometry: the tail of
# a 40 MiB disk would be gone. Of the creators on its list this is the one that every reader takes.
CREATOR_APPLICATION = b"win "
CREATOR_VERSION = 0x000A_0000
CREATOR_HOST_OS = b"Wi2k"

_PAGE = 4096
TABLE_OFFSET = FOOTER_SIZE + HEADER_SIZE


@checked
def create_image(
    path: StrPath,
    *,
    size: int | None = None,
    disk_type: DiskTypeName = "dynamic",
    parent: StrPath | None = None,
    block_size: int | None = None,
    parent_map: Mapping[str, StrPath] | None = None,
    stamp: int | None = None,
    unique_id: bytes | None = None,
    accept_ended: bool = False,
    folder: Folder | None = None,
) -> None:
    """Create an image of `size` bytes: "fixed", "dynamic", or with `parent` a differencing child.

    A child takes size and block size from its parent by default; it may be larger, never smaller. `stamp` (seconds
    since 2000, default now) and `unique_id` (16 bytes, default random) are arguments so that files can be made again
    byte for byte. `parent_map` gives the Windows folder of a local one, for the absolute path in the child. Until the
    child is there the parent is held for reading: what it remembers of its parent is true when it begins. A layer that
    was kept when a merge went past it no longer shows what it did, and is refused as a parent unless `accept_ended`.

    Raises:
        ValueError: a size or block size that the format does not allow, or smaller than the parent.
        FileNameError: the name's suffix is that of another format.
        FileExistsError: the name is taken.
        CorruptImageError, UnsupportedImageError: the parent is no readable VHD.
        ImageInUseError: somebody writes to the parent.
        JournalError: a merge into the parent is not finished, or its view has ended.

    """
    place = folder or LocalFolder()
    stamp = timestamp.from_unix(time.time()) if stamp is None else stamp
    if disk_type not in {"fixed", "dynamic"}:
        raise ValueError(f"the disk type is {disk_type!r}: expected fixed or dynamic; a child has a parent instead")
    kind = DiskType[disk_type.upper()]
    path, parent = as_text(path), as_text(parent)
    if parent is not None:
        new_child = _NewChild(path=path, size=size, block_size=block_size, stamp=stamp, unique_id=unique_id)
        with _held_parent(parent, place, accept_ended=accept_ended) as below:
            _create_child(new_child, place.real(parent), below, as_text_map(parent_map), place)
        return
    if size is None:
        raise ValueError("a size is needed")
    footer = new_footer(kind, size, stamp=stamp, unique_id=unique_id)
    with new_image_file(place, path, FileFormat.VHD) as storage:
        if kind is DiskType.FIXED:
            storage.truncate(size)
            storage.write_at(size, footer.to_bytes())
        else:
            write_empty(storage, footer, block_size or constants.DEFAULT_BLOCK_SIZE, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _NewChild:
    path: str
    size: int | None
    block_size: int | None
    stamp: int
    unique_id: bytes | None


def _create_child(new: _NewChild, parent: str, below: VhdImage, parent_map: Mapping[str, str], folder: Folder) -> None:
    size = below.size if new.size is None else new.size
    if size < below.size:
        raise ValueError(f"a child of {size} bytes is smaller than its parent of {below.size}")
    reference = reference_to(
        parent,
        folder.real(new.path),
        unique_id=below.unique_id,
        timestamp=timestamp.from_unix(below.storage.mtime),
        parent_map={remote: folder.real(local) for remote, local in parent_map.items()},
    )
    footer = new_footer(DiskType.DIFFERENCING, size, stamp=new.stamp, unique_id=new.unique_id)
    with new_image_file(folder, new.path, FileFormat.VHD) as storage:
        block_size = new.block_size or below.block_size or constants.DEFAULT_BLOCK_SIZE
        write_empty(storage, footer, block_size, reference)


@contextmanager
def _held_parent(path: str, folder: Folder, *, accept_ended: bool) -> Iterator[VhdImage]:
    """Lend the parent of a child that is made, held so that nobody writes to it meanwhile."""
    with open_image(path, exclusive=False, folder=folder) as parent:
        if parent.footer.saved_state:
            raise ReadOnlyImageError("it belongs to a saved machine state; no child can be made", path=path)
        journal = read_journal(folder, parent.path)
        foreign = None if journal is None else foreign_journal(journal, parent.unique_id)
        if foreign is not None:
            raise foreign
        if journal is not None and (journal.rolling_back or not journal.merged):
            raise JournalError(f"no child can be made of it: {journal.status}", path=path, hint=journal.hint)
        ended = None if accept_ended else ended_view(folder, parent.storage, parent)
        if ended is not None:
            raise ended.refusal("no child can be made of it", Advice.ACCEPT_ENDED.hint("{} accepts it"))
        yield parent


class NewChild(NamedTuple):
    """A child to be made: its id, its block size, and its time stamp."""

    unique_id: bytes
    block_size: int
    stamp: int


def new_footer(kind: DiskType, size: int, *, stamp: int, unique_id: bytes | None = None) -> Footer:
    """Return the footer of a new image.

    Raises:
        ValueError: a size that the format does not allow.

    """
    most = constants.MAX_FIXED_SIZE if kind is DiskType.FIXED else constants.MAX_VIRTUAL_SIZE
    if size > most:
        text = f"the size is {size}: expected at most {most} bytes, {most >> 30} GiB"
        raise ValueError(text if kind is DiskType.FIXED else f"{text}; a fixed disk has no such bound")
    if size <= 0 or size % SECTOR:
        raise ValueError(f"the size is {size}: expected a multiple of {SECTOR} up to {most}")
    return Footer(
        disk_type=kind,
        current_size=size,
        original_size=size,
        data_offset=constants.UNUSED_OFFSET if kind is DiskType.FIXED else FOOTER_SIZE,
        timestamp=stamp,
        # In memory order, as Windows stores a GUID: its tools then show the text of the one made here.
        unique_id=uuid.uuid4().bytes_le if unique_id is None else unique_id,
        geometry=Geometry.for_size(size),
        creator_application=CREATOR_APPLICATION,
        creator_version=CREATOR_VERSION,
        creator_host_os=CREATOR_HOST_OS,
    )


def table_end_for(entry_count: int) -> int:
    """Return where a new image's table ends: padded to a page."""
    return round_up(TABLE_OFFSET + entry_count * 4, _PAGE)


def empty_child_end(entry_count: int) -> int:
    """Return where the structures of a new child end: its table, and a page for each of two locators.

    A path that needs more than a page is a rare thing.
    """
    return table_end_for(entry_count) + 2 * _PAGE


def write_empty(storage: Storage, footer: Footer, block_size: int, reference: ParentReference | None) -> None:
    """Write a dynamic or differencing image that holds no block into an empty file."""
    if block_size < SECTOR or block_size > constants.MAX_BLOCK_SIZE or block_size & (block_size - 1):
        raise ValueError(
            f"the block size is {block_size}: expected a power of two from 512 to {constants.MAX_BLOCK_SIZE}"
        )
    entries = ceil_div(footer.current_size, block_size)
    if entries > constants.MAX_TABLE_ENTRIES:
        raise ValueError(f"{entries} blocks are more than {constants.MAX_TABLE_ENTRIES}; take larger blocks")
    table_end = table_end_for(entries)
    header = DynamicHeader(table_offset=TABLE_OFFSET, max_table_entries=entries, block_size=block_size)
    end = table_end
    if reference is not None:
        header, end = _with_parent(storage, header, reference, table_end)
    storage.write_at(0, footer.to_bytes())
    storage.write_at(FOOTER_SIZE, header.to_bytes())
    chunk = b"\xff" * min(1 << 20, table_end - TABLE_OFFSET)
    for at in range(TABLE_OFFSET, table_end, len(chunk)):
        storage.write_at(at, chunk[: table_end - at])
    storage.write_at(end, footer.to_bytes())


def write_undo_image(
    storage: Storage, path: str, parent: ImageSummary, parent_path: str, *, parent_mtime: float, child: NewChild
) -> None:
    """Write an undo image that holds nothing into an empty file, durably; `path` is where it will be.

    **Order**: 1 a footer, sync (whatever a cut leaves of the rest, the file says whose it is) · 2 all of it, sync.
    """
    reference = reference_to(parent_path, path, unique_id=parent.unique_id, timestamp=timestamp.from_unix(parent_mtime))
    plain = new_footer(DiskType.DIFFERENCING, parent.size, stamp=child.stamp, unique_id=child.unique_id)
    footer = replace(plain, creator_version=constants.UNDO_IMAGE_VERSION)
    storage.write_at(0, footer.to_bytes())
    storage.sync()
    write_empty(storage, footer, child.block_size, reference)
    storage.sync()


def _with_parent(
    storage: Storage, header: DynamicHeader, reference: ParentReference, at: int
) -> tuple[DynamicHeader, int]:
    locators = []
    for code in (PlatformCode.WINDOWS_ABSOLUTE, PlatformCode.WINDOWS_RELATIVE):
        data = reference.data_for(code)
        if data is None:
            continue
        space = max(_PAGE, round_up(len(data), _PAGE))
        locators.append(
            ParentLocator(platform_code=bytes(code), data_space=space, data_length=len(data), data_offset=at)
        )
        storage.write_at(at, data.ljust(space, b"\0"))
        at += space
    return (
        DynamicHeader(
            table_offset=header.table_offset,
            max_table_entries=header.max_table_entries,
            block_size=header.block_size,
            parent_unique_id=reference.unique_id,
            parent_timestamp=reference.timestamp,
            parent_name_bytes=encode_parent_name(reference.name),
            locators=(*locators, *(ParentLocator(),) * (constants.LOCATOR_COUNT - len(locators))),
        ),
        at,
    )
