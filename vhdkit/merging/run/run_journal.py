"""The journal of a merge as one run of it writes it: opened at step 2 of the order of writes, and gone after step 9."""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import msgspec

from vhdkit.chain.relink import relink_patches
from vhdkit.errors import JournalError, MergeCancelled, VerificationError
from vhdkit.journal.file_state import Seen
from vhdkit.journal.journal_writer import JournalWriter
from vhdkit.journal.merge_journal import Journal, UnbegunJournal, find_journal, journal_path, read_journal
from vhdkit.merging.plan.complete_merge import is_verified
from vhdkit.merging.plan.plan import Resume
from vhdkit.merging.plan.resume import file_state
from vhdkit.storage import paths
from vhdkit.storage.process import this_process
from vhdkit.vhd.recorded_size import size_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.journal.merge_records import RelinkState
    from vhdkit.merging.completion import Completion
    from vhdkit.merging.run.locked_files import MergeFiles

# The longest reason for stopping that a journal keeps: messages may name long paths.
_REASON_LENGTH = 4096


class RunJournal:
    """The journal of one run over files that are open and locked; `job` is the id that a journal which begins gets.

    `has_begun` says that something may be changed, so that an end under way is to be noted.
    """

    def __init__(self, files: MergeFiles, job: str | None) -> None:
        self.files = files
        self.job = job
        self.has_begun = False
        self._writer: JournalWriter | None = None

    @property
    def writer(self) -> JournalWriter:
        """What the steps write with, once the journal is open."""
        assert self._writer is not None, "the journal is opened first"  # noqa: S101 - a bug of our own
        return self._writer

    @property
    def last(self) -> Journal | None:
        """What the journal says now, None if it was not opened, or no merge has begun in it."""
        return None if self._writer is None else self._writer.begun

    @property
    def is_of_before(self) -> bool:
        """Whether a merge that begins again has not said so: the journal speaks of the files as they were before."""
        return self._writer is not None and self.files.plan.resume is Resume.RESTARTS and not self.has_begun

    def close(self) -> None:
        """Give the file back."""
        if self._writer is not None:
            self._writer.close()

    def open(self, view: Callable[[], str]) -> None:
        """Step 2: begin the journal, or go on with that of an earlier run; `view` returns the digest that it keeps.

        Raises:
            JournalError: another merge went on since this one was planned.

        """
        plan, folder = self.files.plan, self.files.folder
        now, known = read_journal(folder, plan.destination), plan.journal
        if now is not None and plan.spent and plan.spent == now.checksum:
            folder.remove(now.path)
            now = None
        if (now.checksum if now is not None else "") != (known.checksum if known is not None else ""):
            raise JournalError("another merge of it went on since this one was planned", path=plan.destination)
        if plan.resume is Resume.FINISHES and known is not None:
            self._writer = _note_names(JournalWriter.append(folder, known), now)
            return
        digest = view()
        if known is None:
            self._begin(JournalWriter.create(folder, plan.destination), digest)
        elif plan.resume is Resume.RESTARTS:
            self._begin(JournalWriter.append(folder, known), digest)
        else:
            writer = JournalWriter.append(folder, known)
            writer.notes_time = plan.undo is not None
            self._writer = _note_names(writer, now)

    def _begin(self, writer: JournalWriter, view: str) -> None:
        plan, journal = self.files.plan, writer.file
        depth, destination = len(plan.sources), self.files.destination
        self._writer, self.has_begun = writer, isinstance(journal, UnbegunJournal)
        writer.notes_time = plan.undo is not None
        before = journal.begin if isinstance(journal, Journal) else None
        pid, host = this_process()
        now = writer.now()
        files = [msgspec.to_builtins(file_state(layer, journal, now)) for layer in self.files.layers]
        fields: dict[str, object] = {
            "version": 1,
            "job": (self.job or str(uuid.uuid4())) if before is None else before.job,
            "started": time.time(),
            "pid": pid,
            "host": host,
            "sources": files[:depth],
            "destination": files[depth],
            "below": files[depth + 1 :],
            "keep_sources": plan.keep_sources,
            "relink_siblings": plan.relink_siblings,
            "undo": journal.relative(plan.undo.path) if plan.undo is not None else "",
            "undo_id": plan.undo.unique_id.hex() if plan.undo is not None else "",
            "view": view,
            "payload_bytes": plan.payload_bytes,
            "first": plan.place.first,
            "stride": plan.place.stride,
            "moved": plan.blocks_moved,
            "added": len(plan.blocks_added),
            "file_end": plan.file_end,
            "growth": plan.growth.to_record() if plan.growth is not None else None,
            "footer": size_record(destination),
            "virtual_size": plan.virtual_size_before,
            "plan": plan.digest,
        }
        if before is not None:
            # What was there before the first run is what a roll-back restores.
            fields["footer"] = before.footer
        writer.write("begin", **fields)
        self.has_begun = True
        self.files.folder.sync(paths.dirname(journal.path))

    def note_samples(self, completion: Completion | None) -> None:
        """Keep what the completion record will have for the runs to come, which no longer find it in the files."""
        writer = self.writer
        journal = writer.journal
        if completion is not None and not (journal.is_ensured and completion.samples == journal.samples):
            writer.note("sampled", samples=msgspec.to_builtins(completion.samples))

    def note_stop(self, error: BaseException) -> None:
        """Leave a word of why; and nothing at all where nothing was changed yet."""
        plan, folder, writer = self.files.plan, self.files.folder, self._writer
        if writer is None:
            self._remove_unbegun()
            return
        if writer.is_closed:
            return  # the merge was complete, and its journal is to go: what failed has changed names only
        is_asked = isinstance(error, (MergeCancelled, KeyboardInterrupt))
        if not self.has_begun and (not is_asked or plan.resume is Resume.RESTARTS):
            # It was refused, and nothing was changed; or the journal still speaks of files that are others by now.
            return
        with suppress(OSError):
            if self._has_changed_files(writer):
                reason = "cancelled" if is_asked else (str(error) or type(error).__name__)[:_REASON_LENGTH]
                self._note_stopped(writer, reason)
                return
            if plan.undo is not None and plan.undo.size_before == 0 and self.files.made_undo:
                folder.remove(plan.undo.path)
            # The journal explains a length without a footer; without it the file must have been made whole.
            self.files.destination.storage.sync()
            folder.remove(writer.file.path)
            folder.sync(paths.dirname(writer.file.path))

    def _note_stopped(self, writer: JournalWriter, reason: str) -> None:
        """Record why the run ended; what the destination looks like only if this run has begun, or has read it."""
        storage = self.files.destination.storage
        state = {}
        if self.has_begun:
            state = {"seen": msgspec.to_builtins(Seen.of(storage, writer.now(later_than=storage)))}
        writer.note("stopped", reason=reason, destination=[storage.size(), storage.mtime], **state)

    def _has_changed_files(self, writer: JournalWriter) -> bool:
        """Whether this run, or an earlier one, has come so far as to change a file."""
        return self.files.plan.journal is not None or (writer.begun is not None and writer.begun.reserved)

    def _remove_unbegun(self) -> None:
        """Remove a journal that was made and holds nothing."""
        plan, folder = self.files.plan, self.files.folder
        with suppress(OSError):
            path = journal_path(plan.destination)
            now = find_journal(folder, plan.destination)
            if isinstance(now, UnbegunJournal) and plan.journal is None:
                folder.remove(path)

    def write_verified(self) -> None:
        """Say what the sources that are about to go, and the destination, looked like when it was read."""
        writer, storage = self.writer, self.files.destination.storage
        if is_verified(writer.journal, self.files.plan, self.files.layers):
            return
        now = writer.now(later_than=storage)
        seen = msgspec.to_builtins(Seen.of(storage, now))
        writer.write("verified", sources=self._states_of_removals(writer.journal, now), seen=seen)

    def refuse_result(self, what: str) -> NoReturn:
        """Say that all of it is to be copied again, since what was copied is not right.

        Raises:
            VerificationError: always.

        """
        self.writer.write("mark", offset=0, bytes=0, mtime=0.0)
        message = f"{what}, and no source was removed; check the disk that it lies on, and merge again"
        raise VerificationError(message, path=self.files.plan.destination)

    def write_merged(self, known: tuple[RelinkState, ...]) -> None:
        """Say that every sector is durable, and which children are to be relinked: those that are known, and more."""
        plan, writer, storage = self.files.plan, self.writer, self.files.destination.storage
        changes = [(relink.path, relink.patches) for relink in known]
        for relink in plan.relinks:
            patches = relink_patches(self.files.child(relink.child), relink, parent_mtime=storage.mtime)
            changes.append((writer.journal.relative(relink.child), patches))
        relinks = [{"path": path, "patches": [patch.to_record() for patch in patches]} for path, patches in changes]
        now = writer.now(later_than=storage)
        states: dict[str, object] = {"seen": msgspec.to_builtins(Seen.of(storage, now))}
        if plan.undo is not None:
            with self.files.folder.open(plan.undo.path) as undo:
                states["undo"] = msgspec.to_builtins(Seen.of(undo, now))
        if plan.removals:
            states["sources"] = self._states_of_removals(writer.journal, now)
        writer.write("merged", relinks=relinks, destination=[storage.size(), storage.mtime], **states)

    def _states_of_removals(self, journal: Journal, now: float) -> list[dict[str, object]]:
        layers = [layer for layer in self.files.layers if layer.path in self.files.plan.removals]
        return [msgspec.to_builtins(file_state(layer, journal, now)) for layer in layers]

    def remove(self) -> None:
        """Remove the journal, which has nothing more to say."""
        self.close()
        self.files.folder.remove(self.writer.journal.path)
        self.files.folder.sync(paths.dirname(self.writer.journal.path))


def _note_names(writer: JournalWriter, written: Journal | None) -> JournalWriter:
    """Write new names of files into a journal, if those of a plan differ from those that are `written` there."""
    begin = writer.journal.begin
    now = ([state.path for state in begin.sources], begin.undo)
    if written is not None and now != ([state.path for state in written.begin.sources], written.begin.undo):
        writer.write("names", sources=now[0], undo=now[1])
    return writer
