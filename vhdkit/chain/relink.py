"""Telling a child that its parent is another file now.

Decided first, as bytes before and after: which locators get which data in the room that they have, and the new header.
Then done, in one step that a power cut cannot halve (see `vhd.header_update`).

**Source**: reference 2.7, 2.8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vhdkit.errors import MergeError, ReadOnlyImageError
from vhdkit.journal.patch import Patch, read_through
from vhdkit.storage import paths
from vhdkit.storage.protocols import read_bytes
from vhdkit.vhd import header_update, timestamp
from vhdkit.vhd.header import encode_parent_name
from vhdkit.vhd.header_change import locator_room
from vhdkit.vhd.image import VhdImage, open_image
from vhdkit.vhd.locator import MAX_LOCATOR_BYTES, ParentLocator, PlatformCode
from vhdkit.vhd.parent_reference import moved_windows_path, reference_to

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder
    from vhdkit.vhd.header import DynamicHeader
    from vhdkit.vhd.parent_reference import ParentReference


@dataclass(frozen=True, slots=True, kw_only=True)
class Relink:
    """A child that is to be relinked: from which parent to which."""

    child: str
    old_parent: str
    new_parent: str
    new_parent_id: bytes


def check_relink(folder: Folder, relink: Relink) -> None:
    """Say now what would stop the relinking later.

    Raises:
        MergeError: the new path does not fit into the child's locator.
        ReadOnlyImageError: the child may not be written.

    """
    check_may_relink(folder, relink.child)
    with open_image(relink.child, folder=folder) as child:
        _rewritten(child, relink, stamp=0)


def check_may_relink(folder: Folder, path: str) -> None:
    """Refuse a child whose header may not be rewritten.

    Raises:
        ReadOnlyImageError: its file, or the folder that the step lies in meanwhile, is read-only.

    """
    if not folder.may_write(path):
        raise ReadOnlyImageError("it has to be relinked, and the file is read-only", path=path)
    directory = paths.dirname(path)
    if not folder.may_write(directory):
        message = f"it has to be relinked, for which {directory} must be writable for a moment; allow that"
        raise ReadOnlyImageError(message, path=path)


def relink_patches(child: VhdImage, relink: Relink, *, parent_mtime: float) -> tuple[Patch, ...]:
    """Return what changes in an open child, the header last."""
    header, data = _rewritten(child, relink, stamp=timestamp.from_unix(parent_mtime))
    changes = [*data, (child.footer.data_offset, header.to_bytes())]
    # What a change that was cut off has left is finished before anything else is written.
    before = [read_through(child.storage, child.step_patches, at, len(new)) for at, new in changes]
    return tuple(Patch(offset=at, before=old, after=new) for old, (at, new) in zip(before, changes, strict=True))


def check_patches(child: VhdImage, patches: tuple[Patch, ...]) -> None:
    """Refuse a child that was changed otherwise.

    Raises:
        MergeError: what should change is neither as it was nor as it is to be.

    """
    if not all(patch.fits(child.storage) for patch in patches):
        raise MergeError("its header was changed since it was to be relinked; it is left alone", path=child.path)


def apply_patches(folder: Folder, child: VhdImage, patches: tuple[Patch, ...]) -> None:
    """Relink an open, writable child; one that is relinked already is left as it is.

    Raises:
        MergeError: what should change is neither as it was nor as it is to be.

    """
    check_patches(child, patches)
    if all(read_bytes(child.storage, patch.offset, len(patch.after)) == patch.after for patch in patches):
        header_update.forget(folder, child.path)
    else:
        child.check_writable()
        header_update.apply(folder, child.storage, patches)


def _rewritten(child: VhdImage, relink: Relink, *, stamp: int) -> tuple[DynamicHeader, list[tuple[int, bytes]]]:
    """Return the new header and the locator data to write, as (file offset, bytes)."""
    header = child.header
    if header is None:
        raise MergeError("a fixed disk has no parent to relink", path=child.path)
    reference = _reference(child, relink, stamp)
    locators, data = [], []
    for locator in header.locators:
        kept, content = _new_locator(child, locator, reference)
        locators.append(kept)
        if content:
            data.append((kept.data_offset, content))
    changed = replace(
        header,
        parent_unique_id=reference.unique_id,
        parent_timestamp=reference.timestamp,
        parent_name_bytes=encode_parent_name(reference.name),
        locators=tuple(locators),
    )
    return changed, data


def _reference(child: VhdImage, relink: Relink, stamp: int) -> ParentReference:
    texts = {path.platform_code: path.text for path in child.metadata.parent_paths}
    old = texts.get(PlatformCode.WINDOWS_ABSOLUTE) or texts.get(PlatformCode.WINDOWS_ABSOLUTE_8BIT) or ""
    return reference_to(
        relink.new_parent,
        child.path,
        unique_id=relink.new_parent_id,
        timestamp=stamp,
        known_windows_path=moved_windows_path(old, relink.old_parent, relink.new_parent),
    )


def _new_locator(child: VhdImage, locator: ParentLocator, reference: ParentReference) -> tuple[ParentLocator, bytes]:
    """Return the entry and its data; one that cannot hold the new path is emptied rather than left to mislead."""
    if not locator.is_used:
        return locator, b""
    content = reference.data_for(locator.platform_code)
    block_offsets = (at for _, at in child.windows())
    room = 0 if child.header is None else locator_room(child.metadata, block_offsets, (locator,), child.header)
    # A merge holds its children to the end, and there may be thousands.
    child.table.forget()
    if content is not None and len(content) <= room:
        return replace(locator, data_length=len(content)), content.ljust(
            min(locator.data_length, room, MAX_LOCATOR_BYTES), b"\0"
        )
    if content is not None and locator.platform_code == PlatformCode.WINDOWS_RELATIVE:
        raise MergeError(
            f"it has to be relinked to {reference.name}, and the path takes {len(content)} bytes where its locator"
            f" has room for {room}; move the files closer together, or merge with --to",
            path=child.path,
        )
    return ParentLocator(), b""
