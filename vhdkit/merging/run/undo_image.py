"""Keeping what a merge overwrites: the undo image, a child of the destination whose view is the destination before.

**Order**, for every stretch of the disk: 1 its sectors as the destination shows them into the undo image, sync · 2 the
bits and table entries that say so, sync · 3 only then are they overwritten. A cut leaves sectors that the undo image
has and the destination still shows as well.

A sector that the undo image holds is never saved again, whatever the journal says: it may be overwritten by now, and it
is right, for its bit was written after its content was durable. Only the bits and table entries themselves are written
once more by a run that goes on, since their sync may be what failed. So an old journal does no harm here; what an old
undo image lacks is looked for in `undo_evidence`.

**Source**: docs/explanation/order-of-writes.md.
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

from vhdkit.chain.resolve_layers import resolve
from vhdkit.chain.siblings import identity_at
from vhdkit.disk import extents, sector_bitmap, timestamp
from vhdkit.disk.extents import Extents, Kind
from vhdkit.errors import VhdError
from vhdkit.formats import open_image
from vhdkit.merging.plan.destination_pieces import UNPLACED, DestinationBlocks
from vhdkit.merging.plan.undo_image import affected, as_undo_image, bitmaps_of, without_held
from vhdkit.merging.run.sector_copier import SectorCopier
from vhdkit.storage import paths
from vhdkit.storage.handle import closing_on_error
from vhdkit.storage.new_file import partial_name
from vhdkit.storage.protocols import read_bytes
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.create import NewChild, write_undo_image
from vhdkit.vhd.footer import Footer
from vhdkit.vhd.write import link_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vhdkit.disk.image import Image, WritableImage
    from vhdkit.merging.plan.plan import UndoPlan
    from vhdkit.storage.protocols import Folder


def create_undo(folder: Folder, plan: UndoPlan, destination: WritableImage, job: str) -> None:
    """Make an undo image that holds nothing, durable with its name; it has one of the job's until it is whole.

    Raises:
        FileExistsError: the name is taken.

    """
    temporary = temporary_name(plan.path, job)
    child = NewChild(plan.unique_id, plan.block_size, timestamp.from_unix(time.time()))
    parent_path, mtime = folder.real(destination.path), destination.storage.mtime
    storage = folder.create(temporary)
    try:
        with storage:
            write_undo_image(storage, plan.path, destination, parent_path, parent_mtime=mtime, child=child)
        folder.publish(temporary, plan.path)
        folder.sync(paths.dirname(plan.path))
    except BaseException:
        # An error after the file has its name leaves it with two names, or with the new one.
        for path in (temporary, plan.path):
            if identity_at(path, folder) == storage.identity:
                with suppress(OSError):
                    folder.remove(path)
        raise


def remove_half_made(folder: Folder, plan: UndoPlan, job: str) -> None:
    """Remove what an earlier run of the same job, cut off, left of its undo image under the other name.

    Any other file that has that name is left alone.
    """
    temporary = temporary_name(plan.path, job)
    if folder.exists(temporary) and _is_half_made(folder, temporary, plan):
        folder.remove(temporary)
        folder.sync(paths.dirname(temporary))


def remove_second_name(folder: Folder, undo: WritableImage, job: str) -> None:
    """Remove the name that an undo image had while it was made, if a cut has left it with both."""
    temporary = temporary_name(undo.path, job)
    if folder.exists(temporary) and identity_at(temporary, folder) == undo.storage.identity:
        folder.remove(temporary)
        folder.sync(paths.dirname(temporary))


def _is_half_made(folder: Folder, path: str, plan: UndoPlan) -> bool:
    """Whether a file is the undo image by another name, or an empty one as far as a cut has left it.

    Such a one begins with the footer that has the id of the undo image, or with zeros. One that is no longer than a
    footer may hold anything: what it got was not durable yet.
    """
    try:
        storage = folder.open(path)
    except OSError:
        return False
    with storage:
        if folder.exists(plan.path) and identity_at(plan.path, folder) == storage.identity:
            return True
        raw = read_bytes(storage, 0, FOOTER_SIZE)
        is_begun = storage.size() <= FOOTER_SIZE and not _id_in(raw)
        return is_begun or (storage.size() <= plan.size and (not any(raw) or _id_in(raw) == plan.unique_id))


def _id_in(raw: bytes) -> bytes:
    try:
        return Footer.from_bytes(raw).unique_id
    except VhdError:
        return b""


def temporary_name(path: str, job: str) -> str:
    """Return the name of an undo image that is being made; a job that was called anything gets an id of its own."""
    try:
        token = uuid.UUID(job).hex
    except ValueError:
        token = uuid.uuid5(uuid.NAMESPACE_OID, job.encode(errors="backslashreplace").decode()).hex
    return partial_name(path, token)


class UndoSaver:
    """Saves what the destination shows, `layers` from it down, into an undo image that has room for it.

    `durable` is called with the offset up to which that is done, and how many sectors the image holds then.
    `overwritten` are the windows of the merge: the space of what it overwrites is taken at once.
    """

    def __init__(
        self,
        folder: Folder,
        plan: UndoPlan,
        layers: Sequence[Image],
        saved: int,
        durable: Callable[[int, UndoSaver], None],
        report: Callable[[int], None],
        overwritten: Iterable[tuple[Extents, Extents, int]],
    ) -> None:
        self.layers = layers
        self.saved = saved
        self.durable = durable
        self.held = 0
        self.image = as_undo_image(open_image(plan.path, writable=True, exclusive=True, folder=folder))
        with closing_on_error(self.image):
            if plan.size_before:
                self._link_again()
            count = len(plan.blocks)
            place = self.image.placement(count) if count else UNPLACED
            blocks = DestinationBlocks(self.image, plan.blocks, place)
            self.copier = SectorCopier(layers, blocks, report, again=plan.size_before > 0)
            if count:
                self.image.extend(count, reserve=False, sync=True)
            self._reserve(blocks, overwritten)
            self.image.sync()

    def _reserve(self, blocks: DestinationBlocks, overwritten: Iterable[tuple[Extents, Extents, int]]) -> None:
        """Take the space of what will be kept, and of the bitmaps; the rest of each block stays a hole."""
        for writes, wipes, _ in overwritten:
            for offset, length in blocks.pages(affected(writes, wipes, self.image.size)):
                self.image.storage.reserve(offset, length)

    def _link_again(self) -> None:
        """Write the bits and entries of every block again: what is read of them may be in memory only."""
        for blocks, at, bitmaps in bitmaps_of(self.image):
            for row, offset in zip(bitmaps, at.tolist(), strict=True):
                self.image.write_at(offset, row.tobytes())
            link_blocks(self.image, blocks, at)
            self.held += int(sector_bitmap.count(bitmaps, self.image.sectors_per_block).sum())
        self.image.sync()

    def save(self, writes: Extents, wipes: Extents, end: int) -> None:
        """Save the sectors that a window of the merge, up to `end`, will overwrite; durable on return."""
        wanted = affected(writes, wipes, self.image.size)
        if len(wanted):
            wanted = without_held(wanted, self.image)
        if len(wanted):
            self._save(wanted)
        if end > self.saved:
            self.durable(end, self)
            self.saved = end

    def _save(self, wanted: Extents) -> None:
        start, stop = int(wanted.start[0]), int(wanted.stop[-1])
        before = extents.intersect(resolve(self.layers, start, stop), wanted.start, wanted.stop)
        self.copier.copy(before, before.of(Kind.PARENT))
        self.copier.checkpoint()
        self.image.sync()
        self.held += wanted.total // self.image.logical_sector_size

    def close(self) -> None:
        """Give the undo image back."""
        self.image.close()
