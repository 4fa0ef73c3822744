"""Taking a merge back, by merging its undo image into the destination.

**Order**, with what a cut leaves: 1 the journal says so (the merge, still whole) · 2 children of what was merged away
are relinked to it again, each in one step (they read the same over either) · 3 the sectors that the undo image holds,
sync (the sources hide them) · 4 the disk's old size, if it had grown, sync · 5 images that read through the undo image
are relinked to the destination · 6 undo image removed, journal removed, folders synced. Every step can be done again.

**Source**: docs/explanation/order-of-writes.md.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from vhdkit.arguments import checked
from vhdkit.chain.children import children_of
from vhdkit.chain.merged_layers import MergedLayers
from vhdkit.chain.parent_search import ParentSearch
from vhdkit.chain.relink import Relink, apply_patches, check_patches, check_relink, relink_patches
from vhdkit.chain.resolve_layers import windows
from vhdkit.disk.extents import Kind
from vhdkit.errors import JournalError, MergeError, SiblingsError
from vhdkit.findings import Advice
from vhdkit.formats import finish_steps, forget_step, open_changeable
from vhdkit.journal.claims import Change
from vhdkit.journal.file_state import Seen
from vhdkit.journal.journal_writer import JournalWriter
from vhdkit.journal.named_files import check_names
from vhdkit.merging.plan.destination_pieces import DestinationBlocks
from vhdkit.merging.plan.finish import find_complete
from vhdkit.merging.plan.placement import target_of, window_writes
from vhdkit.merging.plan.resume import check_relinks, check_undo, find_source, is_as_left, parents_beside
from vhdkit.merging.plan.undo_evidence import DOUBT, check_not_older, held_sectors, may_lack_something
from vhdkit.merging.plan.undo_image import as_undo_image
from vhdkit.merging.run.sector_copier import SectorCopier
from vhdkit.merging.run.undo_image import remove_second_name
from vhdkit.merging.undo_image_search import find_undone, named_directories, read_unchanged, refuse_claimed
from vhdkit.options import RollbackRequest
from vhdkit.progress import Phase, Reporter
from vhdkit.storage import paths
from vhdkit.storage.handle import ClosedAtEnd, closing_on_error
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.vhd.recorded_size import recorded_footer, restore_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vhdkit.journal.merge_journal import Journal
    from vhdkit.journal.merge_records import Begin
    from vhdkit.progress import Cancel, Progress
    from vhdkit.storage.protocols import Folder
    from vhdkit.storage.search_scope import SearchScope
    from vhdkit.units import StrPath
    from vhdkit.vhd.footer import Footer
    from vhdkit.vhd.open_image import Vhd


@checked
def rollback(
    path: StrPath,
    *,
    search: Sequence[StrPath] = (),
    parent_map: Mapping[str, StrPath] | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Cancel | None = None,
    folder: Folder | None = None,
) -> tuple[str, ...]:
    """Take a merge back, complete or cut off, by merging its undo image at `path` into the destination.

    Every layer then reads as before the merge. Returns the files that were changed or removed.

    Raises:
        JournalError: it is no undo image, or the sources are not what they were.
        MergeError: the destination was written after the merge, which would be lost.
        SiblingsError: images were made of the destination since.
        SnapshotError: the snapshots of a machine need a file that would be changed.
        ImageInUseError: somebody holds one of the files.

    """
    request = RollbackRequest.of(path, search=search, parent_map=parent_map)
    return roll_back_as_asked(request, folder or LocalFolder(), progress=progress, cancel=cancel)


def roll_back_as_asked(
    request: RollbackRequest,
    folder: Folder,
    *,
    progress: Callable[[Progress], None] | None = None,
    cancel: Cancel | None = None,
) -> tuple[str, ...]:
    """Take back the merge that is asked for; the rest is as in `rollback`."""
    path, parents = request.path, ParentSearch(folder, request.parents, takes_parent=False)
    if not folder.exists(path):
        journal = find_complete(path, parents.scope)
        if journal is not None and journal.restored:
            check_names(journal, folder, named_directories(path, parents))
            _check_as_restored(journal, folder)
            _forget(folder, journal)
            return ()
    destination, journal = find_undone(path, parents)
    relinked = (journal.resolve(item.path) for item in (*journal.former_relinks, *(journal.relinks or ())))
    change = Change(destination=destination, others=(folder.real(path), *relinked))
    refuse_claimed(journal, parents.scope, change)
    with _Rollback((folder.real(path), destination), journal, parents.scope) as run:
        try:
            return run.run(progress, cancel)
        except BaseException as error:
            how = "Every layer reads as before the merge" if run.restored else "The leaf reads as before"
            again = Advice.ROLL_BACK.hint("{} goes on with the roll-back.", path=path)
            error.add_note(f"{how}; {again}")
            raise


def _check_as_restored(journal: Journal, folder: Folder) -> None:
    """Refuse to end a roll-back whose undo image is gone if its destination is not as the roll-back has left it.

    Raises:
        JournalError: it is not.

    """
    seen = journal.destination_seen
    with folder.open(journal.destination) as storage:
        is_as_left = seen is None or seen.proves(storage) or seen.fits(storage)
    if not is_as_left:
        message = (
            "a merge into it was rolled back, and it is not as that has left it: it was written since, or put back as"
            f" it was earlier. If its disk is what it should be, remove {shlex.quote(journal.path)}"
        )
        raise JournalError(message, path=journal.destination)


def _forget(folder: Folder, journal: Journal) -> None:
    folder.remove(journal.path)
    folder.sync(paths.dirname(journal.path))


class _Rollback(ClosedAtEnd):
    """One roll-back: its files open and locked, and everything checked before the first byte is written."""

    def __init__(self, names: tuple[str, str], journal: Journal, scope: SearchScope) -> None:
        self.folder = scope.folder
        self.scope = scope
        self.parents = parents_beside(journal, scope)
        self.journal = journal
        self.begin: Begin = self._begin(journal)
        self.restored = False
        self._open: list[Vhd] = []
        self.sources: list[Vhd] = []
        with closing_on_error(self):
            self.undo = as_undo_image(self._locked(names[0], writable=False))
            self.destination = self._locked(names[1], writable=True)
            read_unchanged(journal, scope.folder)
            self.size_before = self._size_before()
            check_undo(journal, self.undo, self.destination, self.parents)
            check_relinks(journal, self.destination, self.parents)
            self._check_sources()
            self._check_undo_is_whole()
            self.relinked = [
                (self._child(item.path), item.patches) for item in (*journal.former_relinks, *(journal.relinks or ()))
            ]
            self._check_destination()
            self.siblings = [self._sibling(child) for child in children_of(self.undo, scope)]
            self._finish_steps([*scope.directories, *map(paths.dirname, names)])

    def close(self) -> None:
        """Give all files back."""
        for image in self._open:
            image.close()

    def _finish_steps(self, directories: Sequence[str]) -> None:
        """Finish what was cut off of changes of headers; nothing else was written yet."""
        for image in self._open:
            if image.storage.writable:
                image.finish_step(self.folder)
        finish_steps(self.folder, directories)

    @staticmethod
    def _begin(journal: Journal) -> Begin:
        if journal.dropping:
            message = f"it cannot be rolled back: {journal.status}"
            raise JournalError(message, path=journal.destination, hint=journal.hint)
        return journal.begin

    def _locked(self, path: str, *, writable: bool = True) -> Vhd:
        image = open_changeable(path, writable=writable, exclusive=True, finish_step=False, folder=self.folder)
        self._open.append(image)
        return image

    def _child(self, path: str) -> Vhd:
        path = self.journal.resolve(path)
        if not self.folder.exists(path):
            message = f"{path} was relinked by the merge, and is gone or has another name; put it back first"
            raise JournalError(message, path=self.journal.path)
        return self._locked(path)

    def _size_before(self) -> Footer:
        """Return what the destination said of its size before the merge."""
        try:
            return recorded_footer(self.destination, self.begin.footer, self.undo.size)
        except ValueError as error:
            raise JournalError(str(error), path=self.journal.path) from error

    def _check_sources(self) -> None:
        identity = self.destination.storage.identity
        for source in self.begin.sources:
            path = find_source(self.journal, source, identity, self.parents)
            if path is None:
                message = (
                    f"{self.journal.resolve(source.path)} is gone: without it the chain cannot be restored; put it back"
                )
                raise JournalError(message, path=self.journal.path)
            self.sources.append(self._locked(path, writable=False))

    def _check_undo_is_whole(self) -> None:
        """Refuse if the undo image may lack what was overwritten: what is not put back would be neither old nor new."""
        journal = self.journal
        # What is looked at is held by the sources and owned by the destination: nothing below is read.
        merged = MergedLayers((*self.sources, self.destination), len(self.sources))
        target = target_of(merged, self.begin.virtual_size)
        check_not_older(journal, self.undo, merged, window_writes(merged, target))
        doubt = journal.doubt
        if not doubt:
            found = window_writes(merged, target)
            with self.folder.open(journal.path) as storage:
                doubt = DOUBT if may_lack_something(journal, storage, self.undo, merged, found) else ""
        if doubt:
            text = "the topmost layer shows the disk as it is; {} shows what is kept of the disk before"
            hint = Advice.CONVERT.hint(text, path=self.undo.path, new_path="NEWFILE")
            raise JournalError(doubt, path=self.undo.path, hint=hint)

    def _check_destination(self) -> None:
        """Refuse if somebody wrote to the destination, or made children of it, since the merge."""
        storage = self.destination.storage
        after = self.journal.destination_after
        if after is not None and not self.journal.rolling_back and not is_as_left(after, self.destination):
            message = (
                "it was written after the merge, which a roll-back would spoil; to keep both, convert the undo image"
            )
            raise MergeError(f"{message} to a new file, which shows the disk before the merge", path=storage.path)
        mine = {image.path for image in self._open}
        others = [path for path in children_of(self.destination, self.scope) if path not in mine]
        # Before anything is saved nothing was overwritten, and siblings may not be relinked to the undo image yet; a
        # roll-back that was cut off may have linked them to the destination again.
        if others and held_sectors(self.undo) and not self.journal.rolling_back:
            message = f"{len(others)} image(s) were made of it since the merge: {', '.join(others)}"
            raise SiblingsError(message, path=storage.path, siblings=tuple(others))
        for child, patches in self.relinked:
            check_patches(child, patches)

    def _sibling(self, path: str) -> tuple[Vhd, Relink]:
        relink = Relink(
            child=path,
            old_parent=self.undo.path,
            new_parent=self.destination.path,
            new_parent_id=self.destination.unique_id,
        )
        check_relink(self.folder, relink)
        return self._locked(path), relink

    def run(self, progress: Callable[[Progress], None] | None, cancel: Cancel | None) -> tuple[str, ...]:
        """Do it, see the module for the order; return the files that were changed or removed."""
        reporter = Reporter(self.undo.storage.allocated_size, 0, progress, cancel, None)
        reporter.report(Phase.RESERVING)
        with JournalWriter.append(self.folder, self.journal) as writer:
            if not self.journal.rolling_back:
                writer.write("rollback")
            for child, patches in self.relinked:
                apply_patches(self.folder, child, tuple(patch.reversed for patch in patches))
            self._restore(reporter)
            # How much there was to put back is only known now.
            reporter.done = reporter.total
            reporter.report(Phase.FINISHING)
            self._shrink()
            mtime = self.destination.storage.mtime
            for child, relink in self.siblings:
                apply_patches(self.folder, child, relink_patches(child, relink, parent_mtime=mtime))
            storage = self.destination.storage
            seen = Seen.of(storage, writer.now(later_than=storage))
            writer.write("restored", seen=msgspec.to_builtins(seen))
            self.restored = True
        remove_second_name(self.folder, self.undo, self.begin.job)
        self.folder.remove(self.undo.path)
        forget_step(self.folder, self.undo.path)
        self.folder.sync(paths.dirname(self.undo.path))
        # A step file that was never whole: whatever was whole was finished when the destination was opened.
        forget_step(self.folder, self.destination.path)
        _forget(self.folder, self.journal)
        changed = [child.path for child, _ in (*self.relinked, *self.siblings)]
        return (self.destination.path, *changed, self.undo.path)

    def _restore(self, reporter: Reporter) -> None:
        """Put back what the undo image holds; where the destination has no block nothing was overwritten."""
        blocks = DestinationBlocks(self.destination, np.empty(0, np.uint32))
        copier = SectorCopier([self.undo], blocks, reporter.add, again=True)
        for start, stop in windows([self.undo], 0, self.undo.size):
            held = self.undo.resolve(start, stop - start)
            copier.copy(held.of(Kind.ZERO), held.of(Kind.DATA))
        copier.checkpoint()
        self.destination.sync()

    def _shrink(self) -> None:
        """Give the disk its old size, and drop the blocks behind it.

        Done even if it seems to have it: a merge that was cut off may have left one footer of two, or blocks whose
        disk had yet to grow.
        """
        restore_size(self.folder, self.destination, self.size_before)
