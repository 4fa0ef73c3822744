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
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import msgspec
import numpy as np

from vhdkit.arguments import checked
from vhdkit.chain.convert import write_dynamic
from vhdkit.chain.relink import apply_patches, relink_patches
from vhdkit.disk.image import DiskKind
from vhdkit.errors import JournalError, MergeCancelled, VerificationError
from vhdkit.journal.file_state import Seen
from vhdkit.journal.merge_journal import (
    Journal,
    JournalWriter,
    UnbegunJournal,
    find_journal,
    journal_path,
    read_journal,
)
from vhdkit.merging.plan.evidence import has_what_sources_hold, may_be_others
from vhdkit.merging.plan.finishing import check_still_shows, is_verified
from vhdkit.merging.plan.placement import target_of, window_writes
from vhdkit.merging.plan.plan import Resume
from vhdkit.merging.plan.resume import file_state
from vhdkit.merging.run.checkpoints import CheckpointWriter
from vhdkit.merging.run.failure_notes import explained, note_how_it_stands
from vhdkit.merging.run.kept_layers import mark_kept_layers
from vhdkit.merging.run.locked_files import MergeFiles, check_before_finishing, open_planned, remove_sources
from vhdkit.merging.run.page_cache import Forgetting
from vhdkit.merging.run.sector_copier import SectorCopier
from vhdkit.merging.run.undo_image import UndoSaver, create_undo, remove_half_made
from vhdkit.merging.run.view_digest import view_digest
from vhdkit.progress import Phase, Reporter
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.process import this_process
from vhdkit.vhd.bat import UNALLOCATED
from vhdkit.vhd.footer_change import write_footers
from vhdkit.vhd.grow import grow_disk, grow_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.journal.merge_records import RelinkState
    from vhdkit.merging.completion import Completion
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.progress import Cancel, Clock, Progress
    from vhdkit.storage.protocols import Folder

# The longest reason for stopping that a journal keeps: messages may name long paths.
_REASON_LENGTH = 4096


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
    rate: int | None = None,
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
        from vhdkit.merging.run.completion_record import completion_begun  # noqa: PLC0415 - most merges need none of it

        completion = completion_begun(plan, place)
    reporter = Reporter(plan.payload_bytes, plan.bytes_done, progress, cancel, rate, clock)
    if plan.is_new_file:
        size = _write_new_file(plan, place, reporter)
        relinked: tuple[str, ...] = ()
        removed: tuple[str, ...] = ()
    else:
        with MergeFiles(plan, place, _dropped(plan, place)) as files:
            relinked, removed = _Merge(plan, place, files, reporter, job, completion).run()
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


def _dropped(plan: MergePlan, folder: Folder) -> str:
    """Return the undo image that goes with a merge's sources, "" if none does."""
    journal = plan.journal
    if journal is None or not journal.dropping or journal.keep_undo_file:
        return ""
    if plan.resume is not Resume.FINISHES:
        return ""  # the merge goes on after all, and so does its undo image
    path = journal.resolve(journal.begin.undo)
    return path if folder.exists(path) else ""


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


def note_names(writer: JournalWriter, written: Journal | None) -> JournalWriter:
    """Write new names of files into a journal, if those of a plan differ from those that are `written` there."""
    begin = writer.journal.begin
    now = ([state.path for state in begin.sources], begin.undo)
    if written is not None and now != ([state.path for state in written.begin.sources], written.begin.undo):
        writer.write("names", sources=now[0], undo=now[1])
    return writer


class _Merge:
    """One run of a merge over files that are open and locked."""

    def __init__(
        self,
        plan: MergePlan,
        folder: Folder,
        files: MergeFiles,
        reporter: Reporter,
        job: str | None,
        completion: Completion | None = None,
    ) -> None:
        self.job = job
        self.completion = completion
        self.plan = plan
        self.folder = folder
        self.files = files
        self.reporter = reporter
        self.layers = files.chain.layers
        self.depth = len(plan.sources)
        self.destination = files.destination
        self.view = ""
        self.writer: JournalWriter | None = None
        self.has_begun = False

    def run(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Do it; return the children that were relinked and the sources that were removed."""
        try:
            self.writer = self._open_journal()
            self._note_samples(self.writer)
            if self.plan.resume is not Resume.FINISHES:
                self.has_begun = True
                self._fold(self.writer)
                self._complete(self.writer)
            else:
                self._verify_again(self.writer)
            return self._change_names(self.writer)
        except BaseException as error:
            self._stop(error)
            told = explained(error, self.plan, self.folder, self.reporter.done)
            note_how_it_stands(told, self.plan, self.writer.begun if self.writer else None, self.folder)
            if told is error:
                raise
            raise told from error
        finally:
            if self.writer is not None:
                self.writer.close()

    # The journal

    def _open_journal(self) -> JournalWriter:
        """Step 2."""
        now, known = read_journal(self.folder, self.plan.destination), self.plan.journal
        if now is not None and self.plan.spent and self.plan.spent == now.checksum:
            self.folder.remove(now.path)
            now = None
        if (now.checksum if now is not None else "") != (known.checksum if known is not None else ""):
            raise JournalError("another merge of it went on since this one was planned", path=self.plan.destination)
        if self.plan.resume is Resume.FINISHES and known is not None:
            return note_names(JournalWriter.append(self.folder, known), now)
        if self.plan.verify:
            self.reporter.report(Phase.VERIFYING)
            self.view = view_digest(self.layers, self.reporter.check)
        if known is None:
            return self._begin(JournalWriter.create(self.folder, self.plan.destination))
        writer = JournalWriter.append(self.folder, known)
        if self.plan.resume is Resume.RESTARTS:
            return self._begin(writer)
        writer.notes_time = self.plan.undo is not None
        return note_names(writer, now)

    def _begin(self, writer: JournalWriter) -> JournalWriter:
        plan, journal = self.plan, writer.file
        self.writer, self.has_begun = writer, True
        writer.notes_time = plan.undo is not None
        before = journal.begin if isinstance(journal, Journal) else None
        pid, host = this_process()
        now = writer.now()
        files = [msgspec.to_builtins(file_state(layer, journal, now)) for layer in self.layers]
        fields: dict[str, object] = {
            "version": 1,
            "job": (self.job or str(uuid.uuid4())) if before is None else before.job,
            "started": time.time(),
            "pid": pid,
            "host": host,
            "sources": files[: self.depth],
            "destination": files[self.depth],
            "below": files[self.depth + 1 :],
            "keep_sources": plan.keep_sources,
            "relink_siblings": plan.relink_siblings,
            "undo": journal.relative(plan.undo.path) if plan.undo is not None else "",
            "undo_id": plan.undo.unique_id.hex() if plan.undo is not None else "",
            "view": self.view,
            "payload_bytes": plan.payload_bytes,
            "first": plan.place.first,
            "stride": plan.place.stride,
            "moved": plan.blocks_moved,
            "added": len(plan.blocks_added),
            "file_end": plan.file_end,
            "growth": plan.growth.to_record() if plan.growth is not None else None,
            "footer": self.destination.footer.to_bytes().hex(),
            "virtual_size": plan.virtual_size_before,
            "plan": plan.digest,
        }
        if before is not None:
            # What was there before the first run is what a roll-back restores.
            fields["footer"] = before.footer
        writer.write("begin", **fields)
        self.folder.sync(paths.dirname(journal.path))
        return writer

    def _note_samples(self, writer: JournalWriter) -> None:
        """Keep what the completion record will have for the runs to come, which no longer find it in the files."""
        completion, journal = self.completion, writer.journal
        if completion is not None and not (journal.is_ensured and completion.samples == journal.samples):
            writer.note("sampled", samples=msgspec.to_builtins(completion.samples))

    def _stop(self, error: BaseException) -> None:
        """Leave a word of why; and nothing at all where nothing was changed yet."""
        writer = self.writer
        if writer is None:
            with suppress(OSError):
                path = journal_path(self.plan.destination)
                now = find_journal(self.folder, self.plan.destination)
                if isinstance(now, UnbegunJournal) and self.plan.journal is None:
                    self.folder.remove(path)
            return
        if writer.is_closed:
            return  # the merge was complete, and its journal is to go: what failed has changed names only
        is_asked = isinstance(error, (MergeCancelled, KeyboardInterrupt))
        if not self.has_begun and not is_asked:
            return  # it was refused, and nothing was changed
        with suppress(OSError):
            is_reserved = writer.begun is not None and writer.begun.reserved
            if is_reserved or self.plan.journal is not None:
                reason = "cancelled" if is_asked else (str(error) or type(error).__name__)[:_REASON_LENGTH]
                storage = self.destination.storage
                state = msgspec.to_builtins(Seen.of(storage, writer.now(later_than=storage)))
                writer.note("stopped", reason=reason, destination=[storage.size(), storage.mtime], seen=state)
                return
            if self.plan.undo is not None and self.plan.undo.size_before == 0 and self.files.made_undo:
                self.folder.remove(self.plan.undo.path)
            # The journal explains a length without a footer; without it the file must have been made whole.
            self.destination.storage.sync()
            self.folder.remove(writer.file.path)
            self.folder.sync(paths.dirname(writer.file.path))

    # The sectors

    def _fold(self, writer: JournalWriter) -> None:
        """Steps 3 to 6, and the disk's new size."""
        plan, destination = self.plan, self.destination
        self.reporter.report(Phase.RESERVING)
        durable, again = CheckpointWriter(plan, writer, destination.storage).durable, plan.resume is not None
        copier = SectorCopier(
            self.layers,
            destination,
            plan.blocks_added,
            self.reporter.add,
            durable,
            again=again,
            check=self.reporter.check,
            clock=self.reporter.clock,
        )
        saver = self._open_undo(writer)
        try:
            self._make_room(copier, writer)
            if destination.kind is not DiskKind.FIXED and plan.growth is not None and not writer.journal.grown:
                grow_table(self.folder, destination, plan.growth, plan.place.offsets(np.arange(plan.blocks_moved)))
                writer.write("grown")
            self._relink_siblings()
            copier.place_added(plan.place, plan.blocks_moved)
            target = target_of(self.layers, self.depth, plan.virtual_size_before)
            removed = [layer for layer in self.layers[: self.depth] if layer.path in plan.removals]
            forgetting = Forgetting(removed, plan.mark)
            for writes, wipes, stop in window_writes(self.layers, self.depth, target, plan.mark):
                if saver is not None:
                    saver.save(writes, wipes, stop)
                copier.copy(writes, wipes, stop)
                forgetting.passed(stop)
        except MergeCancelled as error:
            try:
                copier.keep()
            except OSError as failure:
                # It reads as before all the same, and goes on at the last mark.
                error.add_note(f"What was copied last could not be made durable, and is copied again: {failure}")
            raise
        finally:
            if saver is not None:
                saver.close()
        self.reporter.report(Phase.FINISHING)
        copier.checkpoint()
        destination.sync()
        self.reporter.check()
        if plan.virtual_size_before < plan.virtual_size:
            grow_disk(self.folder, destination, plan.virtual_size)
        elif plan.resume is not None and destination.kind is not DiskKind.FIXED:
            # An earlier run may have given the disk its size, and lost one of the footers that say so.
            write_footers(self.folder, destination)

    def _open_undo(self, writer: JournalWriter) -> UndoSaver | None:
        plan, journal = self.plan.undo, writer.journal
        if plan is None:
            return None
        remove_half_made(self.folder, plan, journal.begin.job)
        if plan.size_before == 0:
            create_undo(self.folder, plan, self.destination, journal.begin.job)
            self.files.made_undo = True

        def durable(stop: int, saver: UndoSaver) -> None:
            state = msgspec.to_builtins(Seen.of(saver.image.storage, writer.now()))
            writer.write("saved", offset=stop, held=saver.held, undo=state)

        if plan.doubt:
            writer.write("doubted", reason=plan.doubt)
        saver = UndoSaver(self.folder, plan, self.layers[self.depth :], journal.saved, durable, self.reporter.throttle)
        if plan.size_before:
            durable(journal.saved, saver)
        return saver

    def _make_room(self, copier: SectorCopier, writer: JournalWriter) -> None:
        """Step 3 for the destination."""
        plan, destination = self.plan, self.destination
        storage = destination.storage
        if storage.allocated_size < storage.size():
            target = target_of(self.layers, self.depth, plan.virtual_size_before)
            copier.place_added(plan.place, plan.blocks_moved)
            for writes, wipes, _ in window_writes(self.layers, self.depth, target, plan.mark):
                for offset, length in copier.blocks.places_in_old_blocks(writes, wipes):
                    self.reporter.check()
                    storage.reserve(offset, length)
        if writer.journal.reserved:
            self._clean_room(writer.journal)
            return
        if destination.kind is not DiskKind.FIXED:
            count = plan.blocks_moved + len(plan.blocks_added)
            used_end = plan.place.at(count) if count else destination.data_end
            destination.extend_to(plan.file_end, used_end, reserve=True, sync=True)
            # What lay where the blocks go is zeros now: said only when that is durable, for it is never done again.
            destination.sync()
        writer.write("reserved")

    def _clean_room(self, journal: Journal) -> None:
        """Write zeros where blocks are still to come, unless an earlier run did so and copied these very sources there.

        A file that had its new size before may have been put back as it was then, with other bytes there; and what was
        copied from a source that was put back as it was earlier may be a sector that it no longer holds.
        """
        plan, destination = self.plan, self.destination
        if destination.kind is DiskKind.FIXED:
            return
        is_longer = journal.begin.destination.size < plan.destination_size
        if is_longer and not may_be_others(journal, self.layers[: self.depth]):
            return
        storage, span = destination.storage, destination.block_span
        for rank, block in enumerate(plan.blocks_added.tolist(), plan.blocks_moved):
            at = plan.place.at(rank)
            is_linked = destination.table.entries(block, block + 1)[0] != UNALLOCATED
            if not is_linked and storage.hole_bytes(at, span) < span:
                self.reporter.check()
                destination.write_at(at, bytes(span))

    def _relink_siblings(self) -> None:
        """Step 4: the undo image holds nothing yet, so that its children read as before."""
        for relink in self.plan.sibling_relinks:
            child = self.files.child(relink.child)
            patches = relink_patches(child, relink, parent_mtime=self.destination.storage.mtime)
            apply_patches(self.folder, child, patches)

    # The names

    def _complete(self, writer: JournalWriter) -> None:
        """Say in the journal that every sector is durable, and what follows from that."""
        check_before_finishing(self.plan, self.files, self.folder)
        if self.plan.verify:
            self.reporter.report(Phase.VERIFYING)
            if view_digest(self.layers[self.depth :], self.reporter.check) != self.view:
                self._take_back(writer, "it does not read as the leaf did")
        elif self.plan.removals and self.plan.mark > self.plan.read_back:
            # What this run has copied it has seen; what an earlier one has copied is read once before sources go.
            self._read_back(writer, self.plan.mark)
        self._write_merged(writer, ())

    def _verify_again(self, writer: JournalWriter) -> None:
        """Hold a destination that an earlier run has completed against the sources, before any of them goes."""
        if self.plan.removals:
            self.reporter.report(Phase.VERIFYING)
            check_still_shows(self.plan, self.layers, self.reporter.check)
        self.has_begun = True
        self.files.finish_steps(self.plan, self.folder)
        if self.plan.relinks:
            # Children that the topmost source has got since the merge was complete.
            self._write_merged(writer, writer.journal.relinks or ())
        elif self.plan.removals and not is_verified(writer.journal, self.plan, self.layers):
            now = writer.now(later_than=self.destination.storage)
            seen = msgspec.to_builtins(Seen.of(self.destination.storage, now))
            writer.write("verified", sources=self._states_of_removals(writer.journal, now), seen=seen)

    def _read_back(self, writer: JournalWriter, stop: int | None) -> None:
        """Hold the destination against the sources, up to `stop` of the disk; if it differs, the merge begins again."""
        self.reporter.report(Phase.VERIFYING)
        begin = writer.journal.begin
        target = target_of(self.layers, self.depth, begin.virtual_size)
        found = window_writes(self.layers, self.depth, target)
        if not has_what_sources_hold(self.layers, self.depth, found, stop, self.reporter.check):
            self._take_back(writer, "it does not have what the sources hold")

    def _take_back(self, writer: JournalWriter, what: str) -> NoReturn:
        writer.write("mark", offset=0, bytes=0, mtime=0.0)
        message = f"{what}, and no source was removed; check the disk that it lies on, and merge again"
        raise VerificationError(message, path=self.plan.destination)

    def _write_merged(self, writer: JournalWriter, known: tuple[RelinkState, ...]) -> None:
        storage = self.destination.storage
        changes = [(relink.path, relink.patches) for relink in known]
        for relink in self.plan.relinks:
            patches = relink_patches(self.files.child(relink.child), relink, parent_mtime=storage.mtime)
            changes.append((writer.journal.relative(relink.child), patches))
        relinks = [{"path": path, "patches": [patch.to_record() for patch in patches]} for path, patches in changes]
        now = writer.now(later_than=storage)
        states: dict[str, object] = {"seen": msgspec.to_builtins(Seen.of(storage, now))}
        if self.plan.undo is not None:
            with self.folder.open(self.plan.undo.path) as undo:
                states["undo"] = msgspec.to_builtins(Seen.of(undo, now))
        if self.plan.removals:
            states["sources"] = self._states_of_removals(writer.journal, now)
        writer.write("merged", relinks=relinks, destination=[storage.size(), storage.mtime], **states)

    def _states_of_removals(self, journal: Journal, now: float) -> list[dict[str, object]]:
        layers = [layer for layer in self.layers if layer.path in self.plan.removals]
        return [msgspec.to_builtins(file_state(layer, journal, now)) for layer in layers]

    def _change_names(self, writer: JournalWriter) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Steps 8 and 9."""
        self.reporter.report(Phase.FINISHING)
        journal = writer.journal
        relinks: tuple[RelinkState, ...] = journal.relinks or ()
        relinked = []
        for relink in relinks:
            path = journal.resolve(relink.path)
            # One that was renamed since the merge was complete was looked for, and is among them by its new name.
            if self.files.has_child(path):
                apply_patches(self.folder, self.files.child(path), relink.patches)
                relinked.append(path)
        if self.completion is not None:
            self.completion.write(self.folder, self.destination)
        removed = remove_sources(self.plan, self.files, self.folder)
        if journal.begin.undo and not journal.dropping:
            return tuple(relinked), removed
        mark_kept_layers(self.plan, journal, self.destination, self.folder)
        writer.close()
        self.folder.remove(journal.path)
        self.folder.sync(paths.dirname(journal.path))
        return tuple(relinked), removed
