"""The merges that are left to do: those that deleted snapshots leave, those in line, and those that were cut off.

Each is a `Job`, with what it waits for.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.arguments import checked
from vhdkit.errors import JobError, VhdError
from vhdkit.findings import Advice, printable
from vhdkit.job.control import find_job, jobs, listed_jobs, of_machine, resume_job, touches_disk, wait_for_job
from vhdkit.job.job import Job, JobState, WaitReason
from vhdkit.job.registry_tables import leave_out
from vhdkit.job.waiting import with_wait
from vhdkit.snapshot.known_machines import known_machines
from vhdkit.units import as_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vhdkit.progress import Clock
    from vhdkit.units import StrPath

# Whoever waits for a machine to be shut down waits long.
_ASK_SECONDS = 0.5
_CUT_OFF = (JobState.TERMINATED, JobState.KILLED, JobState.EXCEPTION)


@checked
def pending_jobs(*, disk: StrPath | None = None, machine: str | None = None) -> tuple[Job, ...]:
    """Return the merges that are left to do and that no process is at, each with what it waits for.

    They are those of the machines whose snapshots this user keeps, those in line, and those that were cut off. `disk`
    and `machine` are as in `jobs`.

    Raises:
        RegistryError: the list of jobs cannot be had.

    """
    going = jobs(running=True)
    left = (*listed_jobs(_CUT_OFF), *(job for job in going if not job.state.is_running))
    waiting = [with_wait(job, going) for job in left]
    known = {job.destination: job for job in waiting}
    found = {job.id: job for job in waiting if job.wait is not None}
    for path in known_machines():
        found |= {job.id: job for job in _of_machine(path, known, going)}
    chosen = tuple(found.values()) if machine is None else of_machine(found.values(), machine)
    return chosen if disk is None else touches_disk(chosen, as_text(disk))


def _of_machine(path: str, known: Mapping[str, Job], going: Sequence[Job]) -> Sequence[Job]:
    # Manifests are loaded by those that have machines.
    from vhdkit.snapshot.machine_merges import merges_left  # noqa: PLC0415

    try:
        return merges_left(path, known, going)
    except (VhdError, OSError) as error:
        reason = error.text if isinstance(error, VhdError) else str(error)
        leave_out(f"{printable(path)}: what is left to merge on this machine is unknown: {printable(reason)}")
        return ()


def resumable_jobs(*, only_interrupted: bool = False) -> tuple[Job, ...]:
    """Return the jobs that `resume_any_job` lets go on: paused ones, and pending ones but those that wait for others.

    With `only_interrupted` those alone whose process died.
    """
    if only_interrupted:
        return tuple(job for job in pending_jobs() if job.state is JobState.KILLED)
    paused = tuple(job for job in jobs(running=True) if job.state is JobState.SUSPENDED)
    mine = {WaitReason.CUT_OFF, WaitReason.CANCELLED, WaitReason.FAILED, WaitReason.NOT_BEGUN}
    return paused + tuple(job for job in pending_jobs() if job.wait is not None and job.wait.reason in mine)


@checked
def find_any_job(beginning: str) -> Job:
    """Return the job whose id begins so, be it listed or pending.

    The id that a merge had while it was pending leads to the job that it has become.

    Raises:
        JobError: there is none, or several.

    """
    try:
        return find_job(beginning)
    except JobError:
        wanted = beginning.lower()
        found = [job for job in pending_jobs() if wanted and job.id.startswith(wanted)] or _begun_from(wanted)
        if len(found) != 1:
            raise
    return found[0]


def _begun_from(beginning: str) -> list[Job]:
    """Return the newest job of each merge whose id began so while it was pending."""
    from vhdkit.snapshot.machine_merges import pending_id  # noqa: PLC0415 - manifests, where an id is unknown

    newest = {
        pending_id(manifest, job.sources, job.destination): job for job in jobs() for manifest in known_machines()
    }
    return [job for was, job in newest.items() if beginning and was.startswith(beginning)]


@checked
def find_begun_job(beginning: str) -> Job:
    """Return the job whose id begins so, and that has begun: one that can be stopped or forgotten.

    Raises:
        JobError: there is none, or several, or it has not begun.

    """
    job = find_any_job(beginning)
    if job.wait is not None and not job.pid:
        is_startable = job.state is JobState.SERVICE
        hint = Advice.RESUME_JOB.hint("{} begins it", job=job.id) if is_startable else job.wait.hint
        raise JobError(f"the merge {job.id} has not begun", path=job.destination, hint=hint)
    return job


@checked
def resume_any_job(job_id: str) -> Job:
    """Let a job go on, as `resume_job`, or begin a pending merge of a machine, and return it as a job.

    Raises:
        JobError: it runs, or is complete, or was being rolled back.
        ImageInUseError: the machine runs.
        VhdError, OSError: as `start_merge`.

    """
    job = find_any_job(job_id)
    if job.pid or job.wait is None:
        return resume_job(job.id)
    from vhdkit.snapshot.machine import Machine  # noqa: PLC0415 - needs all of merging, as asking does not

    begun = [each.job for each in Machine(job.destination).start_settling()]
    return next((each for each in begun if each.destination == job.destination), job)


@checked
def wait_for_any_job(job_id: str, timeout: float | None = None, *, clock: Clock = time) -> Job:
    """Return a job once it has ended, as `wait_for_job`; a pending merge is waited for until it is done.

    Raises:
        JobError: there is no such job.
        TimeoutError: it has not ended within the time.

    """
    until = None if timeout is None else clock.monotonic() + timeout
    job = find_any_job(job_id)
    while job.wait is not None and not job.pid:
        if until is not None and clock.monotonic() >= until:
            raise TimeoutError(f"the merge {job.id} has not begun: {job.wait}; the time is over")
        clock.sleep(_ASK_SECONDS)
        job = _as_begun(job)
    if job.state is JobState.COMPLETED:
        return job
    return wait_for_job(job.id, None if until is None else max(0.0, until - clock.monotonic()))


def _as_begun(pending: Job) -> Job:
    """Return a merge that had not begun as the job that it is by now, or as it was."""
    begun = _begun_since(pending)
    if begun is not None:
        return begun
    # What is not listed as pending may just have begun, or lie on a machine that cannot be looked at now.
    if any(job.id == pending.id for job in pending_jobs()) or _is_needed(pending):
        return _begun_since(pending) or pending
    # It was done by a process that could not be listed, or is needed no longer.
    return replace(pending, state=JobState.COMPLETED, percent=100, wait=None)


def _begun_since(pending: Job) -> Job | None:
    same = [job for job in jobs() if job.destination == pending.destination and job.submitted >= pending.submitted]
    return same[-1] if same else None


def _is_needed(pending: Job) -> bool:
    """Whether a merge is left to do, as far as its machine shows; one that cannot be looked at shows nothing."""
    from vhdkit.snapshot.machine import Machine  # noqa: PLC0415 - needs all of merging, as asking does not

    try:
        merges = Machine(pending.destination).owed().merges
    except (VhdError, OSError):
        return True
    return any(merge.destination == pending.destination for merge in merges)
