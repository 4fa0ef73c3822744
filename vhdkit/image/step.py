"""Rewriting a dynamic header and what belongs to it, so that a power cut cannot leave half of it.

A header spans two sectors, and nothing makes a disk write both or none. So what is about to change lies in a step file
beside the image first, its bytes before and after. Whoever opens the image while that file is there reads it as if
the step were done, and finishes it where the file may be written.

**Order**: 1 step file, sync, folder sync (a cut leaves the old bytes, read as the new) · 2 what headers refer to, sync
(the same) · 3 header, sync (old, new or a mix, all read as the new) · 4 step file removed, folder sync (new).

A step file is believed only if it changes a header and its locators' data, and nothing else, and every sector in
question is what it was before or what it is to be.

**Source**: reference 3.8; DESIGN P2.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from vhdkit.errors import Corruption, Finding, ImageInUseError, Level, VhdError
from vhdkit.format.header import DynamicHeader
from vhdkit.format.layout import FOOTER_COOKIE, FOOTER_SIZE, HEADER_SIZE, LOCATOR_COUNT, SECTOR
from vhdkit.format.locator import MAX_LOCATOR_BYTES
from vhdkit.image.records import Record, Size, decode_object, encode, is_believable, read_lines
from vhdkit.storage import paths
from vhdkit.storage.reading import read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vhdkit.storage.seam import Folder, Storage

SUFFIX = ".vhdkit-header"
# What a folder answers where nothing may be written: the step is then read through and left to others.
_MAY_NOT = {errno.EACCES, errno.EPERM, errno.EROFS}


# A header's size, or the longest data of a locator.
_PatchBytes = Annotated[bytes, Meta(min_length=1, max_length=MAX_LOCATOR_BYTES)]


class Patch(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"before": "b", "after": "a"}):
    """Bytes at a place in a file, before and after; both have the same length. In JSON they are Base64."""

    offset: Size
    before: _PatchBytes
    after: _PatchBytes

    def __post_init__(self) -> None:
        """Refuse bytes of two lengths."""
        if len(self.before) != len(self.after):
            raise ValueError("a patch has as many bytes before as after")

    def fits(self, storage: Storage) -> bool:
        """Whether every sector of the file that the patch touches is as it was before, or as it is to be."""
        if self.offset > storage.size():
            return False
        now = read_bytes(storage, self.offset, len(self.after))
        cuts = [0, *range(-self.offset % SECTOR or SECTOR, len(self.after), SECTOR), len(self.after)]
        pairs = ((slice(start, stop), now[start:stop]) for start, stop in pairwise(cuts))
        return len(now) == len(self.after) and all(part in {self.before[at], self.after[at]} for at, part in pairs)

    @property
    def reversed(self) -> Patch:
        """The patch that takes this one back."""
        return Patch(offset=self.offset, before=self.after, after=self.before)

    def to_record(self) -> dict[str, object]:
        """Return the patch as JSON has it."""
        record: dict[str, object] = msgspec.to_builtins(self)
        return record


class StepRecord(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a step file holds: the name that its image had, and what changes in it, the header last."""

    image: Annotated[str, Meta(max_length=8192)] = ""
    patches: Annotated[tuple[Patch, ...], Meta(min_length=1, max_length=LOCATOR_COUNT + 1)]


_DECODER = msgspec.json.Decoder(StepRecord)


def apply(folder: Folder, storage: Storage, patches: Sequence[Patch]) -> None:
    """Write patches to an open image, the last of which is its header; see the module for the order."""
    path = storage.path + SUFFIX
    if folder.exists(path):
        # An earlier step that was cut off: its file may be all that the header can be read by.
        earlier = _fitting(folder, storage)
        if earlier:
            _write(storage, earlier)
        forget(folder, storage.path)
    step = folder.create(path, private=True)
    try:
        step.write_at(0, encode([{"image": paths.basename(storage.path), "patches": _texts(patches)}]))
        step.sync()
    finally:
        step.close()
    folder.sync(paths.dirname(path))
    _write(storage, patches)
    forget(folder, storage.path)


def pending(folder: Folder, storage: Storage) -> tuple[Patch, ...]:
    """Return the patches of a step that was begun on an image and not finished, as far as they fit the file."""
    with suppress(OSError):
        return _fitting(folder, storage)
    return ()


def _fitting(folder: Folder, storage: Storage) -> tuple[Patch, ...]:
    """Return `pending`'s patches; raise the OSError of a step file that cannot be read, for it may be needed."""
    if not folder.exists(storage.path + SUFFIX):
        return ()
    try:
        record = _record(folder, storage.path)
    except (VhdError, ValueError):
        return ()
    patches = record.patches if record is not None else ()
    fits = _is_of_header(storage, patches) and all(patch.fits(storage) for patch in patches)
    return patches if fits else ()


def _record(folder: Folder, path: str) -> StepRecord | None:
    """Return what a step file says, None if it was cut off before it was whole, or is another user's."""
    step, image = folder.open(path + SUFFIX), folder.open(path)
    try:
        if not is_believable(step, image):
            return None
        line = next(read_lines(step), None)
        return None if line is None else decode_object(line.text, _DECODER)
    finally:
        step.close()
        image.close()


def finish(folder: Folder, path: str) -> Finding | None:
    """Finish the step of the image at a path, if there is one and nobody is at it; say so."""
    if not folder.exists(path + SUFFIX):
        return None
    try:
        storage = folder.open(path)
    except OSError:
        return None
    try:
        patches = pending(folder, storage)
    finally:
        storage.close()
    if not patches:
        return None
    message = "a change of its header was cut off; it is read as if it were finished"
    if folder.may_write(path) and folder.may_write(paths.dirname(path)):
        with suppress(ImageInUseError):
            _finish(folder, path)
            message = "a change of its header had been cut off, and was finished"
    return Finding(corruption=Corruption.HEADER_UNFINISHED, path=path, message=message, level=Level.INFO)


def finish_all(folder: Folder, directories: Iterable[str]) -> None:
    """Finish the steps of all images in directories and below them.

    An image that is relinked by half is read as if it were relinked: a run that is repeated would not look at it again.
    A step file that was cut off before it was whole, when nothing else was written yet, is removed.
    """
    for directory in dict.fromkeys(directories):
        for entry in tuple(folder.walk(directory, one_device=True)):
            path = entry.path.removesuffix(SUFFIX)
            if path != entry.path and folder.exists(path):
                finish(folder, path)
                with suppress(ImageInUseError):
                    _finish(folder, path, forget_unwritten=True)


def _finish(folder: Folder, path: str, *, forget_unwritten: bool = False) -> None:
    try:
        storage = folder.open(path, writable=True)
    except OSError as error:
        if error.errno in _MAY_NOT:
            raise ImageInUseError("it may not be written", path=path) from error
        raise
    try:
        storage.lock(exclusive=True)
        # Between the look above and the lock somebody else may have finished it.
        patches = _fitting(folder, storage)
        if patches:
            _write(storage, patches)
            forget(folder, path)
        elif forget_unwritten and folder.exists(path + SUFFIX) and _is_unwritten(folder, path):
            forget(folder, path)
    finally:
        storage.close()


def _is_unwritten(folder: Folder, path: str) -> bool:
    try:
        return _record(folder, path) is None
    except (VhdError, ValueError):
        return False


def _write(storage: Storage, patches: Sequence[Patch]) -> None:
    *data, header = patches
    for patch in data:
        storage.write_at(patch.offset, patch.after)
    if data:
        storage.sync()
    storage.write_at(header.offset, header.after)
    storage.sync()


def forget(folder: Folder, path: str) -> None:
    """Remove the step file of an image whose step is done, if there is one."""
    if folder.exists(path + SUFFIX):
        folder.remove(path + SUFFIX)
        folder.sync(paths.dirname(path))


def _is_of_header(storage: Storage, patches: Sequence[Patch]) -> bool:
    """Whether patches change nothing but a dynamic header, where a footer says that it is, and its locators' data.

    Whoever may put a file into the folder must not be able to have anything else changed.
    """
    if not patches or len(patches[-1].after) != HEADER_SIZE:
        return False
    *data, last = patches
    try:
        # Only what it is to be has to be sealed: an edit by hand may have left the checksum behind.
        before, after = DynamicHeader.from_bytes(last.before, verify=False), DynamicHeader.from_bytes(last.after)
    except VhdError:
        return False
    footers = [read_bytes(storage, at, FOOTER_SIZE) for at in (max(0, storage.size() - FOOTER_SIZE), 0)]
    at = [int.from_bytes(raw[16:24]) for raw in footers if raw.startswith(FOOTER_COOKIE)]
    same = (before.table_offset, before.block_size) == (after.table_offset, after.block_size)
    grows = before.max_table_entries <= after.max_table_entries
    return same and grows and last.offset in at and are_inside_locators(data, before)


def are_inside_locators(patches: Sequence[Patch], header: DynamicHeader) -> bool:
    """Whether patches lie in the room that a header's locators have for their data."""
    used = [entry for entry in header.locators if entry.is_used]
    rooms = [(entry.data_offset, entry.data_offset + max(entry.space, entry.data_length)) for entry in used]
    return all(
        any(start <= patch.offset and patch.offset + len(patch.after) <= stop for start, stop in rooms)
        for patch in patches
    )


def _texts(patches: Sequence[Patch]) -> list[dict[str, object]]:
    return [patch.to_record() for patch in patches]
