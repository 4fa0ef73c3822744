"""What changes in a child's file when its parent is another: which locators get which data, and the new header.

Decided as bytes before and after. Each locator keeps its place and its room; one that cannot hold the new path is
emptied.

**Source**: docs/reference/vhd.md 2.7, 2.8.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.errors import MergeError, VhdError
from vhdkit.findings import Advice
from vhdkit.journal.patch import Patch, read_through
from vhdkit.vhd.header import DynamicHeader, encode_parent_name
from vhdkit.vhd.header_update_check import is_header_change, locator_room
from vhdkit.vhd.locator import MAX_LOCATOR_BYTES, ParentLocator, PlatformCode
from vhdkit.vhd.parent_reference import moved_windows_path, reference_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.disk.parent_link import ParentChange
    from vhdkit.vhd.parent_reference import ParentReference
    from vhdkit.vhd.sparse_image import SparseImage


def parent_patches(child: SparseImage, change: ParentChange) -> tuple[Patch, ...]:
    """Return what changes in an open child, the header last.

    Raises:
        MergeError: the new path does not fit into the child's locator.

    """
    reference = _reference(child, change)
    locators, data = [], []
    for locator in child.header.locators:
        kept, content = _new_locator(child, locator, reference)
        locators.append(kept)
        if content:
            data.append((kept.data_offset, content))
    header = replace(
        child.header,
        parent_unique_id=reference.unique_id,
        parent_timestamp=reference.timestamp,
        parent_name_bytes=encode_parent_name(reference.name),
        locators=tuple(locators),
    )
    changes = [*data, (child.footer.data_offset, header.to_bytes())]
    # What a change that was cut off has left is finished before anything else is written.
    before = [read_through(child.storage, child.step_patches, at, len(new)) for at, new in changes]
    return tuple(Patch(offset=at, before=old, after=new) for old, (at, new) in zip(before, changes, strict=True))


def is_parent_change(child: SparseImage, patches: Sequence[Patch], unique_id: bytes) -> bool:
    """Whether patches make the image with an id the child's parent, and change nothing else."""
    try:
        before, after = (DynamicHeader.from_bytes(raw) for raw in (patches[-1].before, patches[-1].after))
    except VhdError:
        return False
    shapes = [(h.table_offset, h.max_table_entries, h.block_size) for h in (before, after, child.header)]
    return (
        after.parent_unique_id == unique_id
        and shapes[0] == shapes[1] == shapes[2]
        and is_header_change(child.storage, patches)
    )


def _reference(child: SparseImage, change: ParentChange) -> ParentReference:
    texts = {path.platform_code: path.text for path in child.metadata.parent_paths}
    old = texts.get(PlatformCode.WINDOWS_ABSOLUTE) or texts.get(PlatformCode.WINDOWS_ABSOLUTE_8BIT) or ""
    return reference_to(
        change.new_parent,
        child.path,
        unique_id=change.unique_id,
        timestamp=change.timestamp,
        known_windows_path=moved_windows_path(old, change.old_parent, change.new_parent),
    )


def _new_locator(child: SparseImage, locator: ParentLocator, reference: ParentReference) -> tuple[ParentLocator, bytes]:
    """Return the entry and its data; one that cannot hold the new path is emptied rather than left to mislead."""
    if not locator.is_used:
        return locator, b""
    content = reference.data_for(locator.platform_code)
    block_offsets = (at for _, at in child.windows())
    room = locator_room(child.metadata, block_offsets, (locator,), child.header)
    # A merge holds its children to the end, and there may be thousands.
    child.drop_tables()
    if content is not None and len(content) <= room:
        return replace(locator, data_length=len(content)), content.ljust(
            min(locator.data_length, room, MAX_LOCATOR_BYTES), b"\0"
        )
    if content is not None and locator.platform_code == PlatformCode.WINDOWS_RELATIVE:
        raise MergeError(
            f"it has to be relinked to {reference.name}, and the path takes {len(content)} bytes where its locator"
            f" has room for {room}",
            path=child.path,
            hint=Advice.NEW_FILE.hint("move the files closer together, or use {}"),
        )
    return ParentLocator(), b""
