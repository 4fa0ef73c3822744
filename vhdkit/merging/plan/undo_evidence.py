"""Whether an undo image holds all that its merge has overwritten, as far as the files show.

The merge saves a sector before it overwrites it, so the newest undo image always holds enough. One that was put back as
it was earlier may not, and if the journal is put back with it, nothing in the two says so. What does:

 - The journal's last `saved` counts the sectors that the undo image held. One that holds fewer is older: refused,
   unless the sources are certainly those that the merge began with, and no sector that the undo image lacks reads as
   what they would write. Then nothing that it lacks is overwritten: the destination was put back as well, or the merge
   had not come so far. The same goes for an undo image that is gone.
 - Nothing can be missing if the undo image, the journal, or the destination was not touched since the journal's last
   word: what is overwritten later is saved later, and the journal speaks of it in between.
 - Otherwise only sectors that the destination owns, the undo image lacks, and that read as what the sources would
   write may be overwritten already. Without any of those nothing is.
 - What is left is doubt. The merge may go on, for saving such a sector and not saving it come to the same; the
   roll-back is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.chain.resolve_layers import windows
from vhdkit.disk import extents, sector_bitmap
from vhdkit.disk.extents import Kind
from vhdkit.errors import JournalError
from vhdkit.findings import Advice
from vhdkit.merging.plan.evidence import are_as_begun
from vhdkit.merging.plan.undo_image import affected, bitmaps_of, without_held
from vhdkit.units import SECTOR

if TYPE_CHECKING:
    from vhdkit.chain.merged_layers import MergedLayers
    from vhdkit.disk.extents import Extents
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.merging.plan.evidence import WindowWrites
    from vhdkit.storage.protocols import Storage
    from vhdkit.vhd.sparse_image import SparseImage

DOUBT = (
    "nothing proves that the undo image holds all that was overwritten: it and the journal were put back as they were"
    " earlier, or were copied while the merge was under way"
)
_PIECE = 4 << 20
# The journal's time is taken by a write just before that of its record. The kernel's clock has steps of 4 ms; those of
# some file systems have a second.
_STEP_SECONDS = 0.005


def held_sectors(undo: SparseImage) -> int:
    """Return how many sectors an undo image holds."""
    return sum(int(sector_bitmap.count(rows, undo.sectors_per_block).sum()) for _, _, rows in bitmaps_of(undo))


def check_not_older(journal: Journal, undo: SparseImage, merged: MergedLayers, window_writes: WindowWrites) -> int:
    """Refuse an undo image that lacks what the journal has counted in it; return how many sectors it holds.

    Raises:
        JournalError: it does, and what it lacks may be overwritten.

    """
    held = held_sectors(undo)
    if held >= journal.held or lacks_nothing(journal, undo, merged, window_writes):
        return held
    top = journal.resolve(journal.begin.sources[0].path)
    message = (
        f"it holds {held} sectors, and held {journal.held} when the merge last wrote to it: it was put back as it was"
        " earlier, and lacks some of what was overwritten since. Put the newest one back"
    )
    text = "if there is none, the disk is whole all the same: {} makes a new file of it"
    raise JournalError(message, path=undo.path, hint=Advice.MERGE.hint(text, path=top, to="NEWFILE"))


def lacks_nothing(
    journal: Journal, undo: SparseImage | None, merged: MergedLayers, window_writes: WindowWrites
) -> bool:
    """Whether nothing is overwritten that the undo image (None if there is none) lacks, whatever the journal counts."""
    if journal.has_begun_anew or not are_as_begun(journal, merged.sources):
        return False
    missing = _missing(window_writes, undo, undo.size if undo is not None else journal.begin.virtual_size)
    return not any(_may_be_overwritten(part, merged, with_zeros=True) for part in missing)


def may_lack_something(
    journal: Journal,
    journal_file: Storage,
    undo: SparseImage | None,
    merged: MergedLayers,
    window_writes: WindowWrites,
) -> bool:
    """Whether something may be overwritten that the undo image (None if there is none) lacks; see the module."""
    begin, destination = journal.begin, merged.destination
    if begin.destination.seen is None or journal.rolling_back:
        return False  # an earlier version's journal has no states, and is believed as it was
    if undo is not None and journal.undo_seen is not None and journal.undo_seen.proves(undo.storage):
        return False
    if _is_newest(journal, journal_file):
        return False
    seen = journal.destination_seen
    if seen is not None and seen.now > 0 and seen.fits(destination.storage):
        return False
    size = undo.size if undo is not None else begin.virtual_size
    has_clock = journal.now > 0
    return any(_may_be_overwritten(part, merged, with_zeros=has_clock) for part in _missing(window_writes, undo, size))


def _is_newest(journal: Journal, file: Storage) -> bool:
    """Whether a journal's file was not touched since its last record was written."""
    is_coarse = file.ctime.is_integer() and journal.now.is_integer()
    return journal.now > 0 and 0 <= file.ctime - journal.now <= (1 if is_coarse else _STEP_SECONDS)


def _missing(window_writes: WindowWrites, undo: SparseImage | None, size: int) -> list[Extents]:
    """Return what is to be overwritten of a disk of `size` bytes and not in the undo image, by windows."""
    found = []
    for writes, wipes, _ in window_writes:
        wanted = affected(writes, wipes, size)
        if len(wanted) and undo is not None:
            wanted = without_held(wanted, undo)
        if len(wanted):
            found.append(wanted)
    return found


def _may_be_overwritten(missing: Extents, merged: MergedLayers, *, with_zeros: bool) -> bool:
    """Whether the destination owns one of the sectors, and shows in it what the sources hold.

    Zeros over zeros are common. Where files have no change times, so that nothing else can tell, they do not count.
    """
    chain, below, destination = merged.view(), merged.destination_view(), merged.destination
    start, stop = int(missing.start[0]), int(missing.stop[-1])
    for first, end in windows([destination], start, min(stop, destination.size)):
        owned = destination.resolve(first, end - first).of(Kind.DATA)
        for part in extents.split(extents.intersect(missing, owned.start, owned.stop), _PIECE):
            views = [np.frombuffer(each.read(part.start, part.length), np.uint8) for each in (chain, below)]
            new, now = (view.reshape(-1, SECTOR) for view in views)
            is_same = (new == now).all(axis=1)
            if (is_same if with_zeros else is_same & now.any(axis=1)).any():
                return True
    return False
