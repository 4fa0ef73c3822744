"""What a job that is not being worked at waits for, and whether anything of it is left to do."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.errors import JournalError
from vhdkit.findings import Advice
from vhdkit.job.job import Job, JobState, Wait, WaitReason, job_id
from vhdkit.job.merge_slots import device_of
from vhdkit.job.reconcile import stands_in_the_way
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

_REASONS = {JobState.TERMINATED: WaitReason.CANCELLED, JobState.EXCEPTION: WaitReason.FAILED}


def with_wait(job: Job, going: Sequence[Job]) -> Job:
    """Return a job with what it waits for: an earlier job that still runs, or to be resumed."""
    if job.state is JobState.NEW:
        # Of two that need a file the one that came first goes first; later ones wait for both.
        ahead = [other for other in _before(job, going) if stands_in_the_way(other, job)]
        reason = WaitReason.OTHER_JOB if ahead else WaitReason.LIMIT
        holders = tuple(f"job {other.id}" for other in ahead or _beside(job, going))
        hint = None if ahead else Advice.PARALLEL.hint("{} lets more run")
        return replace(job, wait=Wait(reason=reason, holders=holders, hint=hint)) if holders else job
    if is_left(job) and not any(other.destination == job.destination for other in going):
        hint = Advice.RESUME_JOB.hint("{} goes on with it", job=job.id)
        return replace(job, wait=Wait(reason=reason_of(job), hint=hint))
    return job


def reason_of(ended: Job) -> WaitReason:
    """Return why a merge is left to do whose job ended before its end."""
    return _REASONS.get(ended.state, WaitReason.CUT_OFF)


def is_left(job: Job) -> bool:
    """Whether a job that has ended was cut off in the midst of its merge, which nothing has finished since."""
    if not job.state.is_resumable or job.rolled_back or not job.destination:
        return False
    folder = LocalFolder()
    if job.request.to is not None or not folder.exists(job.destination):
        # Nothing was changed by one that makes a new file.
        return False
    # A third of what `job list` may take to load, and rarely needed.
    from vhdkit.journal.merge_journal import Journal, find_journal  # noqa: PLC0415

    try:
        journal = find_journal(folder, job.destination)
    except (JournalError, OSError):
        return False
    if journal is None:
        # One whose process has died may not have come to its journal; of others nothing was begun.
        return job.state is JobState.KILLED and all(map(folder.exists, job.sources))
    return not isinstance(journal, Journal) or job_id(journal.begin.job) == job.id


def _beside(job: Job, going: Sequence[Job]) -> Sequence[Job]:
    """Return the jobs that run on the file system of another."""
    device = _device_of(job)
    return [other for other in going if other.state.is_running and _device_of(other) == device]


def _device_of(job: Job) -> int | None:
    """Return the number of the file system that a job's files lie on, None if they are gone."""
    for path in filter(None, (job.request.into, job.request.child)):
        with suppress(OSError):
            return device_of(path)
    return None


def _before(job: Job, going: Sequence[Job]) -> Sequence[Job]:
    at = next((at for at, other in enumerate(going) if other.id == job.id), len(going))
    return going[:at]
