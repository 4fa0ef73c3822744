"""Carrying out a merge plan.

**Order**, with what a power cut leaves; the sources stay linked until 8, so that what is read through them is the same
at every instant:

 1 every file is opened, locked and held against the plan; nothing written yet
 2 journal, sync, folder sync (a journal of a merge that has not begun)
 3 room: the undo image, synced with its name; the space of holes that will be filled; the footer at the new end, sync,
   and the space before it taken and clean, sync (unused space). The journal says so
 4 a longer BAT if the disk grows (see `growth`); the destination's other children relinked to the undo image
 5 payload: sectors in place, new blocks with their bitmaps, sync (sectors that a source hides; unreferenced blocks);
   with an undo image, what they overwrite is durable there first
 6 bitmaps of blocks that were there, BAT entries of new ones, sync (the same sectors, owned twice)
 7 the disk's new size if it grows, sync; the journal says that the merge is complete, and what is to be relinked
 8 the children of the topmost source are relinked, each in one step (see `vhd.header_update`)
 9 the sources are removed, leaf first, folders synced; then the journal, its folder synced. With an undo image both are
   kept until it is dropped

5 and 6 alternate in checkpoints, after each of which the journal's mark follows. The disk takes one checkpoint while
the next is copied: a cut leaves sectors of both, which nothing refers to yet or a source hides. A merge that was cut
off is run again with the same command: it goes on at the mark, and ends in the same bytes.
"""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from vhdkit.arguments import checked
from vhdkit.chain.convert import write_dynamic
from vhdkit.chain.relink import apply_patches, relink_patches
from vhdkit.disk.image import DiskKind
from vhdkit.errors import MergeCancelled
from vhdkit.journal.file_state import Seen
from vhdkit.merging.plan.destination_pieces import DestinationBlocks
from vhdkit.merging.plan.evidence import has_what_sources_hold
from vhdkit.merging.plan.finish import check_still_shows
from vhdkit.merging.plan.placement import target_of, window_writes
from vhdkit.merging.plan.plan import Resume
from vhdkit.merging.run.checkpoints import CheckpointWriter
from vhdkit.merging.run.failure_notes import noted_error
from vhdkit.merging.run.kept_layers import mark_kept_layers
from vhdkit.merging.run.locked_files import MergeFiles, check_before_finishing, open_planned, remove_sources
from vhdkit.merging.run.page_cache import CacheDropper
from vhdkit.merging.run.reserve import clean_room, extend_destination, fill_holes
from vhdkit.merging.run.run_journal import RunJournal
from vhdkit.merging.run.sector_copier import SectorCopier
from vhdkit.merging.run.undo_image import UndoSaver, create_undo, remove_half_made
from vhdkit.merging.run.view_digest import view_digest
from vhdkit.progress import Phase, Reporter
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.vhd.footer_update import write_footers
from vhdkit.vhd.grow import grow_disk, grow_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhdkit.merging.completion import Completion
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.progress import Cancel, Clock, Progress, RateLimit
    from vhdkit.storage.protocols import Folder


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What a merge did. Sizes in bytes, paths absolute, sources leaf first; `undo` is the undo image, "" without one.

    `bytes_copied` is what this run copied, `resumed` whether an earlier one had begun.
    """

    sources: tuple[str, ...]
    destination: str
    bytes_copied: int
    blocks_added: int
    destination_size: int
    seconds: float
    removed: tuple[str, ...]
    relinked: tuple[str, ...]
    undo: str
    resumed: bool


@checked
def merge(
    plan: MergePlan,
    *,
    progress: Callable[[Progress], None] | None = None,
    cancel: Cancel | None = None,
    rate: RateLimit | int | None = None,
    job: str | None = None,
    folder: Folder | None = None,
    completion: Completion | None = None,
    clock: Clock = time,
) -> MergeResult:
    """Do what the plan says; see the module for the order of writes.

    It stops between two writes when `cancel` is set (a `threading.Event`), or when `progress` raises `MergeCancelled`;
    `rate` is the most bytes of payload a second; `job` the id that a journal which begins gets. However it ends, the
    same plan made anew goes on. `completion` is written when every sector is durable, before a source is removed; one
    that `ensure_merged` has begun needs none here, its journal says what to record. The rate is kept by `clock`.

    Raises:
        MergeError, ReadOnlyImageError, CorruptImageError: the plan has obstacles (the first is raised, the others are
            notes on it), or a file changed since it was made. Nothing was written.
        ImageInUseError: another process holds one of the files. Nothing was written.
        NotEnoughSpaceError: the space could not be had. The leaf reads as before.
        MergeCancelled: it was stopped. The leaf reads as before.
        VerificationError: the destination does not read as the leaf. No source was removed.
        OSError: a file failed under way. The leaf reads as before.

    """
    place = folder or LocalFolder()
    plan.refuse_obstacles()
    begun = time.monotonic()
    if completion is None and plan.journal is not None and plan.journal.is_ensured:
        from vhdkit.merging.run.completion_draft import completion_begun  # noqa: PLC0415 - most merges need none of it

        completion = completion_begun(plan, place)
    reporter = Reporter(plan.payload_bytes, plan.bytes_done, progress, cancel, rate, clock)
    if plan.is_new_file:
        size = _write_new_file(plan, place, reporter)
        relinked: tuple[str, ...] = ()
        removed: tuple[str, ...] = ()
    else:
        with MergeFiles(plan, place) as files:
            relinked, removed = _Merge(files, reporter, RunJournal(files, job), completion).run()
            size = files.destination.storage.size()
    return MergeResult(
        sources=plan.sources,
        destination=plan.destination,
        bytes_copied=plan.payload_bytes - plan.bytes_done,
        blocks_added=len(plan.blocks_added),
        destination_size=size,
        seconds=time.monotonic() - begun,
        removed=removed,
        relinked=relinked,
        undo=plan.undo_path,
        resumed=plan.resume is not None,
    )


def _write_new_file(plan: MergePlan, folder: Folder, reporter: Reporter) -> int:
    with open_planned(plan, folder) as chain:

        def looked(_done: int) -> None:
            reporter.check()

        def copied(count: int) -> None:
            if not reporter.done:
                reporter.report(Phase.COPYING)  # not before: now there is a file
            reporter.add(count)

        try:
            return write_dynamic(chain, folder, plan.destination, plan.block_size, looked=looked, copied=copied)
        except (MergeCancelled, KeyboardInterrupt) as error:
            if not folder.exists(plan.destination):
                error.add_note(f"The chain was only read, and {plan.destination} was not made.")
            raise


class _Merge:
    """One run of a merge over files that are open and locked."""

    def __init__(
        self, files: MergeFiles, reporter: Reporter, journal: RunJournal, completion: Completion | None
    ) -> None:
        self.plan = files.plan
        self.folder = files.folder
        self.files = files
        self.reporter = reporter
        self.journal = journal
        self.completion = completion
        self.merged = files.merged
        self.destination = files.destination
        self.view = ""

    def run(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Do it; return the children that were relinked and the sources that were removed."""
        try:
            self.journal.open(self.read_view)
            self.journal.note_samples(self.completion)
            if self.plan.resume is not Resume.FINISHES:
                self.journal.has_begun = True
                self.write_sectors()
                self.complete()
            else:
                self.verify_again()
            self.reporter.report(Phase.FINISHING)
            relinked = self.relink_children()
            if self.completion is not None:
                self.completion.write(self.folder, self.destination)
            return relinked, self.remove_sources()
        except BaseException as error:
            noted = noted_error(error, self.plan, self.journal, self.folder, self.reporter.done)
            if noted is error:
                raise
            raise noted from error
        finally:
            self.journal.close()

    def read_view(self) -> str:
        """Return the digest of what the leaf shows, if the result is to be held against it."""
        if self.plan.verify:
            self.reporter.report(Phase.VERIFYING)
            self.view = view_digest(self.merged.layers, self.reporter.check)
        return self.view

    # Steps 3 to 6, and the disk's new size

    def write_sectors(self) -> None:
        """Bring every sector of the sources into the destination, durable, with all that refers to it."""
        self.reporter.report(Phase.RESERVING)
        copier = self._copier()
        with self._undo_saver() as saver, copier.kept_when_cancelled():
            self.reserve()
            self.grow_table()
            self.relink_siblings()
            self.copy_payload(copier, saver)
        self.link_blocks(copier)
        self.grow_disk()

    def _copier(self) -> SectorCopier:
        plan, reporter = self.plan, self.reporter
        blocks = DestinationBlocks(self.destination, plan.blocks_added, plan.place, plan.blocks_moved)
        checkpoints = CheckpointWriter(plan, self.journal.writer, self.destination.storage)
        return SectorCopier(
            self.merged.layers,
            blocks,
            reporter.add,
            checkpoints.durable,
            again=plan.resume is not None,
            check=reporter.check,
            clock=reporter.clock,
        )

    @contextmanager
    def _undo_saver(self) -> Iterator[UndoSaver | None]:
        """Step 3 for the undo image: make it, or go on with it, and lend what saves into it; None without one."""
        plan, writer = self.plan.undo, self.journal.writer
        begin = writer.journal.begin
        if plan is None:
            yield None
            return
        remove_half_made(self.folder, plan, begin.job)
        if plan.size_before == 0:
            create_undo(self.folder, plan, self.destination, begin.job)
            self.files.made_undo = True

        def durable(stop: int, saver: UndoSaver) -> None:
            state = msgspec.to_builtins(Seen.of(saver.image.storage, writer.now()))
            writer.write("saved", offset=stop, held=saver.held, undo=state)

        if plan.doubt:
            writer.write("doubted", reason=plan.doubt)
        # Made anew, it holds nothing of what the journal has counted.
        counted = writer.journal.saved
        saved = counted if plan.size_before else 0
        overwritten, below = self.files.window_writes(), self.merged.remaining
        saver = UndoSaver(self.folder, plan, below, saved, durable, self.reporter.throttle, overwritten)
        with closing(saver):
            if plan.size_before or counted:
                durable(saved, saver)
            yield saver

    def reserve(self) -> None:
        """Step 3 for the destination."""
        fill_holes(self.files, self.reporter.check)
        writer = self.journal.writer
        if writer.journal.reserved:
            clean_room(self.files, writer.journal, self.reporter.check)
            return
        extend_destination(self.files)
        writer.write("reserved")

    def grow_table(self) -> None:
        """Step 4: a longer BAT, if the disk grows and an earlier run has not done it."""
        plan, writer, destination = self.plan, self.journal.writer, self.destination
        if destination.kind is not DiskKind.FIXED and plan.growth is not None and not writer.journal.grown:
            grow_table(self.folder, destination, plan.growth, plan.place.offsets(np.arange(plan.blocks_moved)))
            writer.write("grown")

    def relink_siblings(self) -> None:
        """Step 4: the undo image holds nothing yet, so that its children read as before."""
        for relink in self.plan.sibling_relinks:
            child = self.files.child(relink.child)
            patches = relink_patches(child, relink, parent_mtime=self.destination.storage.mtime)
            apply_patches(self.folder, child, patches)

    def copy_payload(self, copier: SectorCopier, saver: UndoSaver | None) -> None:
        """Step 5, and step 6 of all checkpoints but the last; what is overwritten is saved before."""
        plan = self.plan
        removed = [layer for layer in self.merged.sources if layer.path in plan.removals]
        cache_dropper = CacheDropper(removed, plan.mark)
        for writes, wipes, stop in self.files.window_writes(plan.mark):
            if saver is not None:
                saver.save(writes, wipes, stop)
            copier.copy(writes, wipes, stop)
            cache_dropper.passed(stop)

    def link_blocks(self, copier: SectorCopier) -> None:
        """Step 6 of the last checkpoint: bitmaps and table entries, durable."""
        self.reporter.report(Phase.FINISHING)
        copier.checkpoint()
        self.destination.sync()
        self.reporter.check()

    def grow_disk(self) -> None:
        """Step 7: the disk's new size."""
        plan, destination = self.plan, self.destination
        if plan.virtual_size_before < plan.virtual_size:
            grow_disk(self.folder, destination, plan.virtual_size)
        elif plan.resume is not None and destination.kind is not DiskKind.FIXED:
            # An earlier run may have given the disk its size, and lost one of the footers that say so.
            write_footers(self.folder, destination)

    # Step 7: the merge is complete

    def complete(self) -> None:
        """Say in the journal that every sector is durable, and what follows from that."""
        check_before_finishing(self.files)
        if self.plan.verify:
            self.reporter.report(Phase.VERIFYING)
            if view_digest(self.merged.remaining, self.reporter.check) != self.view:
                self.journal.refuse_result("it does not read as the leaf did")
        elif self.plan.removals and self.plan.mark > self.plan.read_back:
            # What this run has copied it has seen; what an earlier one has copied is read once before sources go.
            self._read_back(self.plan.mark)
        self.journal.write_merged(())

    def verify_again(self) -> None:
        """Hold a destination that an earlier run has completed against the sources, before any of them goes."""
        if self.plan.removals:
            self.reporter.report(Phase.VERIFYING)
            check_still_shows(self.plan, self.merged.layers, self.reporter.check)
        self.journal.has_begun = True
        self.files.finish_steps()
        if self.plan.relinks:
            # Children that the topmost source has got since the merge was complete.
            self.journal.write_merged(self.journal.writer.journal.relinks or ())
        elif self.plan.removals:
            self.journal.write_verified()

    def _read_back(self, stop: int) -> None:
        """Hold the destination against the sources, up to `stop` of the disk; if it differs, the merge begins again."""
        self.reporter.report(Phase.VERIFYING)
        target = target_of(self.merged, self.journal.writer.journal.begin.virtual_size)
        found = window_writes(self.merged, target)
        if not has_what_sources_hold(self.merged, found, stop, self.reporter.check):
            self.journal.refuse_result("it does not have what the sources hold")

    # Steps 8 and 9

    def relink_children(self) -> tuple[str, ...]:
        """Step 8; return the children that were relinked."""
        journal, relinked = self.journal.writer.journal, []
        for relink in journal.relinks or ():
            path = journal.resolve(relink.path)
            # One that was renamed since the merge was complete was looked for, and is among them by its new name.
            if self.files.has_child(path):
                apply_patches(self.folder, self.files.child(path), relink.patches)
                relinked.append(path)
        return tuple(relinked)

    def remove_sources(self) -> tuple[str, ...]:
        """Step 9; return the sources that were removed."""
        removed = remove_sources(self.files)
        journal = self.journal.writer.journal
        if journal.begin.undo and not journal.dropping:
            return removed
        mark_kept_layers(self.plan, journal, self.destination, self.folder)
        self.journal.remove()
        return removed
