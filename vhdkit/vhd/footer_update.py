"""Giving both footers of an image other content, so that a power cut between them can be told from damage.

The footer at the end is what every reader believes; its copy follows. A step file (see `vhd.header_update`) says
beforehand what both will be. It is believed only where the footer at the end is there already: all that is left to do
then is to make the copy the same, so that a forged step file can do nothing else. Before that the file has its old
pair.

A file that becomes longer may get its length in a power cut, and not the footer at its end. A step file says beforehand
where that will be, and is believed only where the file ends there, with anything but a footer, and no block reaches
there; what is then read at its end is the copy, as it would be without the step.

**Order**: 1 step file, sync, folder sync (the old pair) · 2 the footer at the end, sync (a pair that differs, read as
the new one) · 3 the copy, sync (the new pair) · 4 step file removed, folder sync.

**Source**: docs/reference/vhd.md 1.3; docs/guarantees.md.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.errors import VhdError
from vhdkit.journal.patch import Patch
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import SECTOR
from vhdkit.vhd import header_update
from vhdkit.vhd.bat_window import Table, check_placement
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.footer import DiskType, Footer
from vhdkit.vhd.header_update_check import block_room
from vhdkit.vhd.metadata import SparseMetadata
from vhdkit.vhd.read_metadata import ends_with_footer, read_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhdkit.storage.protocols import Folder, Storage
    from vhdkit.vhd.image import VhdImage

# What a folder answers where no step file can be: nothing may be written there, or the name is too long.
_CANNOT_BE_MADE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}


def write_footers(folder: Folder, image: VhdImage) -> None:
    """Write the footer of a dynamic or differencing image that is open for writing, and its copy; see the module.

    Where both are what they will be they are only made durable; where the one at the end is lost there is no pair.
    """
    image.check_writable()
    after = image.footer.to_bytes()
    places = (image.metadata.footer_start, 0)
    before = [read_bytes(image.storage, at, FOOTER_SIZE) for at in places]
    if all(raw == after for raw in before) or len(before[0]) < FOOTER_SIZE:
        for at in places:
            image.write_at(at, after)
        image.sync()
        return
    patches = [Patch(offset=at, before=raw, after=after) for at, raw in zip(places, before, strict=True)]
    header_update.apply(folder, image.storage, patches)


@contextmanager
def step_of_length(folder: Folder | None, image: VhdImage, footer_at: int) -> Iterator[None]:
    """Let the file of an image end with its footer further on, written durably in the body; see the module.

    Without a folder, or where a step file cannot be made (the folder may not be written, or the name is too long),
    nothing explains a footer that a power cut loses.
    """
    step = Patch(offset=footer_at, before=bytes(FOOTER_SIZE), after=image.footer.to_bytes())
    old_size = image.storage.size()
    if folder is not None:
        try:
            header_update.begin_step(folder, image.storage, [step])
        except OSError as error:
            if error.errno not in _CANNOT_BE_MADE:
                raise
            folder = None
    try:
        yield
    except BaseException:
        # Until the old length is durable a cut may leave the longer file, which the step alone explains.
        if folder is not None and image.storage.size() == old_size:
            with suppress(OSError):
                image.storage.sync()
                header_update.forget(folder, image.path)
        raise
    if folder is not None:
        header_update.forget(folder, image.path)


def is_of_footers(patches: Sequence[Patch]) -> bool:
    """Whether a step is one of footers, by its form."""
    return [len(patch.after) for patch in patches] == [FOOTER_SIZE] * 2 and patches[-1].offset == 0


def is_of_length(patches: Sequence[Patch]) -> bool:
    """Whether a step is one of a file that becomes longer, by its form."""
    return [len(patch.after) for patch in patches] == [FOOTER_SIZE] and patches[0].offset > 0


def is_lost_footer(storage: Storage, footer: Patch) -> bool:
    """Whether a file ends with what a patch replaces by the footer copy: no footer, and no part of a block."""
    if footer.offset % SECTOR or storage.size() != footer.offset + FOOTER_SIZE or ends_with_footer(storage):
        return False
    if read_bytes(storage, 0, FOOTER_SIZE) != footer.after:
        return False
    try:
        metadata = read_metadata(storage, patches=[footer])
        if not isinstance(metadata, SparseMetadata):
            return False
        header = metadata.header
        table = Table(storage, header.table_offset, header.max_table_entries)
        # It refuses blocks that reach into the footer.
        check_placement(table, block_room(metadata, header), path=storage.path)
    except VhdError:
        return False
    return True


def is_begun(storage: Storage, patches: Sequence[Patch]) -> bool:
    """Whether a step of footers has written the one at the end."""
    return read_bytes(storage, patches[0].offset, FOOTER_SIZE) == patches[0].after


def is_footer_change(storage: Storage, patches: Sequence[Patch]) -> bool:
    """Whether a step that has begun does nothing but make the copy what the footer at the file's end is.

    Both are of one image, of which nothing but its size or its id is another.
    """
    trailing, copy = patches
    if trailing.offset % SECTOR or trailing.offset != storage.size() - FOOTER_SIZE or copy.after != trailing.after:
        return False
    try:
        before, after = Footer.from_bytes(copy.before), Footer.from_bytes(copy.after)
    except VhdError:
        return False
    like_after = replace(before, current_size=after.current_size, geometry=after.geometry, unique_id=after.unique_id)
    is_same = like_after == after
    return is_same and after.disk_type is not DiskType.FIXED and is_begun(storage, patches)
