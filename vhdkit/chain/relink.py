"""Telling a child that its parent is another file now.

Decided first, as bytes before and after; then done, in one step that a power cut cannot halve. Which bytes these are
is the format's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.disk import timestamp
from vhdkit.disk.parent_link import ParentChange
from vhdkit.errors import MergeError, ReadOnlyImageError
from vhdkit.formats import open_changeable
from vhdkit.storage import paths
from vhdkit.storage.protocols import read_bytes

if TYPE_CHECKING:
    from vhdkit.formats import RelinkableImage
    from vhdkit.journal.patch import Patch
    from vhdkit.storage.protocols import Folder


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
    with open_changeable(relink.child, writable=False, folder=folder) as child:
        relink_patches(child, relink, parent_mtime=0)


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


def relink_patches(child: RelinkableImage, relink: Relink, *, parent_mtime: float) -> tuple[Patch, ...]:
    """Return what changes in an open child, the header last."""
    change = ParentChange(
        old_parent=relink.old_parent,
        new_parent=relink.new_parent,
        unique_id=relink.new_parent_id,
        timestamp=timestamp.from_unix(parent_mtime),
    )
    return child.parent_patches(change)


def check_patches(child: RelinkableImage, patches: tuple[Patch, ...]) -> None:
    """Refuse a child that was changed otherwise.

    Raises:
        MergeError: what should change is neither as it was nor as it is to be.

    """
    if not all(patch.fits(child.storage) for patch in patches):
        raise MergeError("its header was changed since it was to be relinked; it is left alone", path=child.path)


def apply_patches(folder: Folder, child: RelinkableImage, patches: tuple[Patch, ...]) -> None:
    """Relink an open, writable child; one that is relinked already is left as it is.

    Raises:
        MergeError: what should change is neither as it was nor as it is to be.

    """
    check_patches(child, patches)
    if all(read_bytes(child.storage, patch.offset, len(patch.after)) == patch.after for patch in patches):
        child.forget_step(folder)
    else:
        child.apply(folder, patches)
