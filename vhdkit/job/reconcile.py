"""What is so about a job, whatever the list says: whether its process lives, and what the journal says.

**Source**: docs/explanation/architecture.md: the journal beside the images is the truth, the list is for asking.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.errors import ImageInUseError, JournalError, VhdError
from vhdkit.job.job import Job, JobState, job_id, share_a_file
from vhdkit.job.registry import RegistryError
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.process import is_alive

if TYPE_CHECKING:
    from vhdkit.job.registry import Registry

# Whoever is at a job writes every second. After so much silence the files are asked; those of another machine or
# container cannot be.
_SILENCE_SECONDS = 60.0


def settled(job: Job) -> Job:
    """Return the job as it is: one whose process has ended without a word was interrupted, or is complete."""
    if job.state.is_finished or _is_being_worked_at(job):
        return job
    if _is_complete(job):
        return replace(job.advanced(job.changed, JobState.COMPLETED), bytes_done=job.bytes_total)
    message = "the process that was at it has ended"
    return as_left(job.advanced(job.changed, JobState.KILLED, error=message, error_class="", error_code=0))


def as_left(job: Job) -> Job:
    """Return a job that ended before its end as far as its next run need not go again, which its journal says.

    What a process counts is what it has copied; what is durable of that, `check` and `scan` read in the journal.
    """
    if job.phase == "rolling back":
        return job
    if job.request.to is not None:
        # A new file is made from the start.
        return job.at(0, job.bytes_total)
    from vhdkit.journal.merge_journal import read_journal  # noqa: PLC0415 - as in _is_complete

    folder = LocalFolder()
    try:
        journal = read_journal(folder, job.destination) if folder.exists(job.destination) else None
    except (VhdError, OSError):
        return job
    if journal is None or job_id(journal.begin.job) != job.id:
        return job.at(0, job.bytes_total)
    total = journal.begin.payload_bytes
    return job.at(total if journal.merged else journal.bytes_done, total)


def stands_in_the_way(other: Job, job: Job) -> bool:
    """Whether another job goes on, and one of the two changes a file that the other needs."""
    return other.id != job.id and share_a_file(other, job) and not settled(other).state.is_finished


def is_another_at(job: Job, registry: Registry) -> bool:
    """Whether a listed job is at the files of one though it did not come before: a list that was lost lost its order.

    While the list cannot be had one may be.
    """
    try:
        going = registry.jobs(states=(JobState.RUNNING, JobState.SUSPENDED, JobState.SHUTTING_DOWN))
    except RegistryError:
        return True
    return any(stands_in_the_way(other, job) for other in going)


def noted(job: Job, registry: Registry) -> Job:
    """Return a job as it is; if the list says otherwise note it there, and say so to the log."""
    now = settled(job)
    if now is job:
        return job
    try:
        is_noted = registry.replace(job, now)
    except RegistryError:
        # It is so, whether or not it can be written down.
        return now
    if is_noted:
        # Logging is needed now.
        from vhdkit.job import events  # noqa: PLC0415
        from vhdkit.job.on_end import start_end_command  # noqa: PLC0415

        with events.logged(now):
            events.tell(now)
        start_end_command(now)
        return now
    # Another process was first, or it was alive after all.
    latest = registry.find(job.id)
    return settled(latest[0]) if latest else replace(now, error=now.error or "it was removed from the list")


def is_rolling_back(job: Job) -> bool:
    """Whether a roll-back of it has begun and is not finished."""
    from vhdkit.journal.merge_journal import read_journal  # noqa: PLC0415 - as in _is_complete

    try:
        journal = read_journal(LocalFolder(), job.destination)
    except (JournalError, OSError):
        return False
    return journal is not None and journal.rolling_back


def is_removing(job: Job) -> bool:
    """Whether its sectors are all merged, and not all of its sources are there any longer."""
    from vhdkit.journal.merge_journal import read_journal  # noqa: PLC0415 - as in _is_complete

    folder = LocalFolder()
    try:
        journal = read_journal(folder, job.destination)
    except (JournalError, OSError):
        return False
    return journal is not None and journal.merged and not all(folder.exists(path) for path in job.sources)


def _is_being_worked_at(job: Job) -> bool:
    alive = is_alive(job.pid, job.born, job.host)
    if alive is False or time.time() - job.changed < _SILENCE_SECONDS:
        return alive is not False
    # It was stopped for a while, or it has ended and its last word could not be written: who is at it holds the files.
    return bool(alive) and _is_held(job)


def _is_held(job: Job) -> bool:
    # One that makes a new file holds what it reads, as a reader does.
    makes_new = job.request.to is not None
    try:
        with closing(LocalFolder().open(job.request.child if makes_new else job.destination)) as storage:
            storage.lock(exclusive=makes_new)
    except ImageInUseError:
        return True
    except OSError:
        return False
    return False


def _is_complete(job: Job) -> bool:
    """Whether a job that was cut off had nothing left to do: its journal is gone, or waits for an undo only."""
    folder = LocalFolder()
    has_begun = job.phase or job.state is JobState.RUNNING
    if not job.destination or not has_begun or job.phase == "rolling back" or not folder.exists(job.destination):
        return False
    if job.request.to is not None:
        # A new file has its name once it is whole.
        return job.phase == "finishing" or job.bytes_done == job.bytes_total > 0
    return _is_journal_done(job, folder)


def _is_journal_done(job: Job, folder: LocalFolder) -> bool:
    """Whether the journal beside a job's destination is gone, or waits for an undo only."""
    from vhdkit.journal.merge_journal import (  # noqa: PLC0415 - a third of what `job list` may take, rarely needed
        UnbegunJournal,
        find_journal,
    )

    try:
        journal = find_journal(folder, job.destination)
    except (JournalError, OSError):
        return False
    if isinstance(journal, UnbegunJournal):
        return False
    if journal is None:
        # Nothing had begun, or nothing is left: then the sources are gone, or were to be kept.
        is_kept = job.request.keep_sources and job.phase == "finishing"
        return is_kept or not any(folder.exists(path) for path in job.sources)
    return journal.merged and bool(journal.begin.undo) and not journal.dropping
