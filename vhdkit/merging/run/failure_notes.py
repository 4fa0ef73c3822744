"""The notes of a merge that fails: what is missing, how things stand, and which command continues."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING

from vhdkit.errors import ImageInUseError, MergeError, NotEnoughSpaceError, VhdError
from vhdkit.findings import Advice
from vhdkit.journal.merge_journal import journal_path
from vhdkit.storage import paths

if TYPE_CHECKING:
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.merging.run.run_journal import RunJournal
    from vhdkit.storage.protocols import Folder

# A journal takes a block of the file system, which is rarely larger, and hardly ever a second.
_JOURNAL_BYTES = 4096
NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def noted_error(error: BaseException, plan: MergePlan, journal: RunJournal, folder: Folder, done: int) -> BaseException:
    """Return the error to raise, which says how things stand, after leaving a word of it in the journal.

    `done` is the payload that is copied.
    """
    try:
        journal.note_stop(error)
        return _noted(error, plan, journal, folder, done)
    except KeyboardInterrupt as again:
        # A second Ctrl-C cuts short what the first has begun to say; the caller still hears how things stand.
        return _noted(again, plan, journal, folder, done)


def _noted(error: BaseException, plan: MergePlan, journal: RunJournal, folder: Folder, done: int) -> BaseException:
    raised = _translated(error, plan, folder, done)
    if journal.is_of_before:
        raised.add_note("Every disk reads as before.")
    else:
        _add_status_note(raised, plan, journal.last, folder)
    return raised


def _translated(error: BaseException, plan: MergePlan, folder: Folder, done: int) -> BaseException:
    """Return the error to raise: one that says how many bytes are missing, where space is what is.

    `done` is the payload that is copied.
    """
    if not isinstance(error, OSError) or error.errno not in NO_SPACE:
        return error
    if error.filename == journal_path(plan.destination):
        told = NotEnoughSpaceError(path=error.filename, needed=_JOURNAL_BYTES, available=0)
        told.add_note("The journal of the merge grows by a few hundred bytes for each step.")
        return told
    is_undo = plan.undo is not None and error.filename == plan.undo.path
    path = plan.undo.path if plan.undo is not None and is_undo else plan.destination
    size_after = plan.undo.size if plan.undo is not None and is_undo else plan.destination_size
    free = grows = 0
    with suppress(OSError):
        free = folder.free_space(paths.dirname(path))
        with folder.open(path) as storage:
            grows = max(0, size_after - storage.size())
    # The plan saw enough: someone else took some since, or a quota allows less than is free.
    needed = max(1, grows or plan.payload_bytes - done)
    told = NotEnoughSpaceError(path=path, needed=needed, available=min(free, needed - 1))
    if not grows:
        told.add_note(
            "Its own space was reserved before. Writing over what it shares with another file, a clone or a snapshot of"
            " the file system, takes space anew, at most as much as is still to be copied; or a quota allows less than"
            f" the {free} bytes that are free."
        )
    return told


def _left(plan: MergePlan, folder: Folder) -> list[str]:
    """Return the files that a merge has made, and could not remove again when it failed before it began to write."""
    made = [] if plan.journal is not None else [journal_path(plan.destination)]
    if plan.undo is not None and plan.undo.size_before == 0:
        made.append(plan.undo.path)
    return [path for path in made if folder.exists(path)]


def _add_status_note(error: BaseException, plan: MergePlan, journal: Journal | None, folder: Folder) -> None:
    """Note on the error that ends a merge how things stand."""
    if isinstance(error, VhdError) and not isinstance(error, (MergeError, ImageInUseError)):
        return
    if journal is None or not (journal.reserved or journal.merged):
        if not isinstance(error, VhdError):
            left = _left(plan, folder)
            error.add_note(
                f"Every disk reads as before; left are {', '.join(left)}" if left else "Nothing was changed."
            )
        return
    error.add_note(_status(plan, journal, folder))


def _status(plan: MergePlan, journal: Journal, folder: Folder) -> str:
    """Return how a merge stands that has begun to write, and what goes on with it."""
    own = paths.dirname(plan.sources[0])
    lie_in = [paths.dirname(path) for path in (*plan.sources, plan.destination)]
    again = journal.merge_hint(search=[*map(folder.real, plan.search), *(each for each in lie_in if each != own)])
    if journal.merged and not folder.exists(journal.path):
        return f"The merge is complete and durable in {plan.destination}; nothing is left to be done."
    if journal.merged:
        return f"The merge is complete and durable in {plan.destination}; {again} finishes what is left to be done."
    how = f"The chain reads as before the merge; {again} goes on with it."
    if plan.undo is not None:
        how += f" {journal.undo_hint(Advice.ROLL_BACK, '{} takes it back.')}"
    return how
