"""A merge that is complete, held against its files: what is left of its sources, and which of those may go.

Nothing is removed because a journal says so. As long as the topmost source is there, the destination is read and held
against what the sources hold, in the run that removes them. Once it is gone that cannot be done for what it hid: then
a source goes only if

 - the journal has its state as it was when the destination had been read, the source is as it was, and so is the
   destination; or
 - the destination shows all that it holds.

Where the command names such a source itself, or asks to verify, only the second counts: identities in a journal prove
nothing against one who writes it, and the run that removes a source has then seen what it holds.

Any other is kept, and said to be: its view has ended, and it is never to be merged. If the destination is not as it
was, and does not show what is left, a disk that was written to looks like one that was put back: refused.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.chain.merged_layers import MergedLayers
from vhdkit.chain.siblings import is_above
from vhdkit.disk.image import Image
from vhdkit.errors import JournalError, VhdError
from vhdkit.formats import open_image
from vhdkit.merging.plan.evidence import has_what_sources_hold
from vhdkit.merging.plan.placement import target_of, window_writes
from vhdkit.merging.plan.plan import LayerState, MergePlan
from vhdkit.merging.plan.resume import check_relinks, check_undo, is_as_left

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.chain.parent_search import ParentSearch
    from vhdkit.disk.image import Image
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.journal.merge_records import FileState
    from vhdkit.storage.protocols import Folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is left of the sources: those of the chain, leaf first, those of them that may go, and those that are kept.

    `is_whole` says whether all of them are there, so that the destination can be held against them.
    """

    states: tuple[LayerState, ...]
    removable: tuple[str, ...]
    kept: tuple[str, ...] = ()
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class CompleteMerge:
    """The journal of a complete merge, its destination, which is open, and the search for its other files."""

    journal: Journal
    destination: Image
    parents: ParentSearch

    def check(self) -> None:
        """Hold the destination, its undo image and the relinked children against the journal.

        Raises:
            JournalError: they are not what it says.

        """
        journal, destination, parents = self.journal, self.destination, self.parents
        begin = journal.begin
        if destination.unique_id.hex() != begin.destination.unique_id:
            raise JournalError("the file beside it is not the destination that it speaks of", path=journal.path)
        check_relinks(journal, destination, parents)
        undo = journal.resolve(begin.undo) if begin.undo else ""
        if undo and journal.dropping and parents.folder.exists(undo):
            with open_image(undo, folder=parents.folder) as image:
                check_undo(journal, image, destination, parents)

    def left(self, *, only_shown: bool) -> Left:
        """Return what is left of the sources; with `only_shown` no state in the journal is believed.

        Raises:
            JournalError: it is unknown whether the destination has what they hold.

        """
        journal, folder, sources = self.journal, self.parents.folder, self.journal.begin.sources
        there = [journal.resolve(source.path) for source in sources if is_there(journal, source, folder)]
        own = tuple(path for path in there if is_above(path, self.destination, self.parents))
        with ExitStack() as opened:
            images = [opened.enter_context(open_image(path, folder=folder)) for path in own]
            states = tuple(map(LayerState.of, images))
            if len(own) == len(sources):
                return Left(states=states, removable=own, is_whole=True)
            left = Left(states=states, removable=own, kept=tuple(path for path in there if path not in own))
            return self._without_the_topmost(images, left, only_shown=only_shown)

    def _without_the_topmost(self, opened: Sequence[Image], left: Left, *, only_shown: bool) -> Left:
        """Return which sources may go, though not all are there any more; see the module."""
        if self._is_as_left():
            fitting = () if only_shown else self._as_verified(opened)
        elif opened and _shows_all(opened, self.destination):
            fitting = left.removable
        else:
            raise JournalError(self._cannot_be_told(left), path=self.destination.path)
        kept = tuple(image.path for image in opened if image.path not in fitting)
        if kept and _shows_all(opened, self.destination):
            fitting, kept = left.removable, ()
        states = tuple(state for state in left.states if state.path in fitting)
        return Left(states=states, removable=fitting, kept=(*kept, *left.kept))

    def _as_verified(self, opened: Sequence[Image]) -> tuple[str, ...]:
        """Return the paths of the images that are as they were when the destination was read."""
        verified = {self.journal.resolve(state.path): state for state in self.journal.verified or ()}
        return tuple(image.path for image in opened if _is_as_verified(image, verified.get(image.path)))

    def _cannot_be_told(self, left: Left) -> str:
        journal = self.journal
        top = journal.resolve(journal.begin.sources[0].path)
        files = ", ".join((*left.removable, *left.kept, journal.path))
        return (
            f"{top} was merged into it and is gone, and it is not as the merge has left it: it was written since, or"
            " put back as it was earlier. If its disk is what it should be, remove"
            f" {files}; if not, put back it or {top}"
        )

    def _is_as_left(self) -> bool:
        seen, after = self.journal.destination_seen, self.journal.destination_after
        if seen is None:
            return after is not None and is_as_left(after, self.destination)
        return seen.proves(self.destination.storage) or seen.fits(self.destination.storage)


def is_there(journal: Journal, source: FileState, folder: Folder) -> bool:
    """Whether a source is where the journal says; what cannot be read counts as the source."""
    path = journal.resolve(source.path)
    if not folder.exists(path):
        return False
    try:
        with open_image(path, folder=folder) as image:
            return image.unique_id.hex() == source.unique_id
    except VhdError:
        return True


def _is_as_verified(image: Image, state: FileState | None) -> bool:
    if state is None or state.seen is None:
        return False
    seen, storage = state.seen, image.storage
    return seen.proves(storage) or (seen.fits(storage) and image.digest == state.header)


def is_verified(journal: Journal, plan: MergePlan, layers: Sequence[Image]) -> bool:
    """Whether a journal already has the states of all sources that will be removed."""
    verified = {journal.resolve(state.path): state for state in journal.verified or ()}
    going = [layer for layer in layers if layer.path in plan.removals]
    return all(_is_as_verified(image, verified.get(image.path)) for image in going)


def _shows_all(opened: Sequence[Image], destination: Image) -> bool:
    """Whether the destination shows what the sources that are left hold, one over the other."""
    merged = MergedLayers((*opened, destination), len(opened))
    if any(image.size > destination.size for image in opened):
        return False
    return has_what_sources_hold(merged, window_writes(merged, target_of(merged)))
