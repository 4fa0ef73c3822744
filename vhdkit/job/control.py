"""Asking about jobs and steering them, whichever process is at them."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.arguments import checked
from vhdkit.errors import JobError, VhdError
from vhdkit.findings import Advice
from vhdkit.job.job import Job, JobState
from vhdkit.job.job import job_id as job_of_journal
from vhdkit.job.reconcile import is_removing, noted, settled
from vhdkit.job.registry import Registry, RegistryError
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.units import as_text, as_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from vhdkit.progress import Cancel, Progress
    from vhdkit.units import StrPath

_ASK_SECONDS = 0.05
# A job stops between two writes; whoever asks does not wait for a disk that hangs.
_STOP_SECONDS = 30.0
# Whoever is at a job writes every second.
_LOST_SECONDS = 5.0

_GOING = tuple(state for state in JobState if not state.is_finished)
_ENDED = tuple(state for state in JobState if state.is_finished)


@checked
def jobs(
    *,
    running: bool = False,
    finished: bool = False,
    disk: StrPath | None = None,
    machine: str | None = None,
    search: Sequence[StrPath] = (),
    limit: int | None = None,
) -> tuple[Job, ...]:
    """Return this user's jobs on this machine, oldest first; of those that ended the newest `limit`.

    `disk` is any file of a job's chain; `machine` the name given at the start, or that of the base, or the path of the
    destination's folder. In the folders of `search`, and below, merges that are not listed are looked for by their
    journals, and listed. A job whose process has ended is listed as interrupted, and recorded so.

    Raises:
        RegistryError: the list cannot be had.

    """
    if search:
        from vhdkit.job.recover import add_found  # noqa: PLC0415 - reads journals, as asking alone does not

        add_found(Registry(), as_texts(search))
    return _jobs(_states(running=running, finished=finished), disk=disk, machine=machine, limit=limit)


def ended_jobs(*, disk: StrPath | None = None, machine: str | None = None, limit: int | None = None) -> tuple[Job, ...]:
    """Return the jobs that have ended, as `jobs`, with those that were taken off the list.

    Raises:
        RegistryError: the list cannot be had.

    """
    return _jobs(_ENDED, disk=disk, machine=machine, limit=limit, with_removed=True)


def _jobs(
    states: tuple[JobState, ...],
    *,
    disk: StrPath | None,
    machine: str | None,
    limit: int | None,
    with_removed: bool = False,
) -> tuple[Job, ...]:
    """Return the jobs in some states."""
    registry = Registry()
    files = None if disk is None else _read_through(as_text(disk))
    # What was running has ended, if its process has: so those are always looked at.
    asked = tuple(dict.fromkeys([*_GOING, *states]))
    if machine is None:
        listed = registry.jobs(states=asked, files=files, limit=limit, with_removed=with_removed)
        return _noted_in(states, listed, registry)
    folder = Registry.real(paths.abspath(machine))
    # The folder is the begin of the destination's path.
    mentions = [json.dumps(machine), json.dumps(folder)[:-1]]
    listed = registry.jobs(states=asked, files=files, mentions=mentions, with_removed=with_removed)
    return _newest(of_machine(_noted_in(states, listed, registry), machine), limit)


def listed_jobs(states: Sequence[JobState]) -> tuple[Job, ...]:
    """Return the jobs that the list has in some states, oldest first.

    Raises:
        RegistryError: the list cannot be had.

    """
    return Registry().jobs(states=states)


def touches_disk(found: Iterable[Job], disk: str) -> tuple[Job, ...]:
    """Return the jobs that touch a file, or one that it reads through."""
    files = set(_read_through(disk))
    return tuple(job for job in found if files.intersection(job.files))


def of_machine(found: Iterable[Job], machine: str) -> tuple[Job, ...]:
    """Return the jobs of a machine, or of the files in a folder; see `jobs`."""
    folder = Registry.real(paths.abspath(machine))
    return tuple(job for job in found if machine == job.machine or folder == paths.dirname(job.destination))


def _states(*, running: bool, finished: bool) -> tuple[JobState, ...]:
    """Return the states that are asked for: both kinds if neither is."""
    if running == finished:
        return (*_GOING, *_ENDED)
    return _GOING if running else _ENDED


def _noted_in(states: Collection[JobState], listed: Iterable[Job], registry: Registry) -> tuple[Job, ...]:
    """Return jobs as they really are, those that are in one of some states."""
    return tuple(job for job in (noted(job, registry) for job in listed) if job.state in states)


def _newest(found: Sequence[Job], limit: int | None) -> tuple[Job, ...]:
    """Return jobs, of those that ended only the newest `limit`."""
    ended = [job for job in found if job.state.is_finished]
    dropped = set() if limit is None else {job.id for job in ended[: max(0, len(ended) - limit)]}
    return tuple(job for job in found if job.id not in dropped)


@checked
def find_job(beginning: str) -> Job:
    """Return the job whose id begins so.

    Raises:
        JobError: there is none, or several.

    """
    registry = Registry()
    found = registry.find(beginning) if beginning else ()
    exact = [job for job in found if job.id == beginning.lower()]
    if len(exact or found) == 1:
        return noted((exact or found)[0], registry)
    if found:
        names = ", ".join(job.id for job in found)
        raise JobError(f"the ids of {len(found)} jobs begin with {beginning!r}: {names}")
    raise JobError(f"there is no job {beginning!r}", hint=Advice.LIST_JOBS.hint("{} shows those there are"))


@checked
def wait_for_job(job_id: str, timeout: float | None = None) -> Job:
    """Return a job once it has ended, in whatever way.

    Raises:
        JobError: there is no such job.
        TimeoutError: it has not ended, in so many seconds.

    """
    until = None if timeout is None else time.monotonic() + timeout
    follow = Follower()
    job = find_job(job_id)
    while not job.state.is_finished:
        if until is not None and time.monotonic() >= until:
            raise TimeoutError(f"the job {job.id} is {job.state.plain} still, at {job.percent} %; the time is over")
        time.sleep(_ASK_SECONDS)
        job = follow(job)
    return job


class Follower:
    """Asks about jobs again and again, and outlasts a list that is lost: it has a job again with its next word."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}

    def __call__(self, job: Job) -> Job:
        """Return a job as it is, or as it was while nothing can be learnt.

        Raises:
            JobError: there has been no such job for some time.

        """
        now = time.monotonic()
        try:
            job = find_job(job.id)
        except JobError:
            if now - self._seen.setdefault(job.id, now) > _LOST_SECONDS:
                raise
        else:
            self._seen[job.id] = now
        return job


@checked
def cancel_job(job_id: str) -> Job:
    """Stop a job where that is safe, and return it once it has stopped; everything reads as before.

    Raises:
        JobError: it has ended, or only names are left to be changed, or it was complete before it was told. Or nobody
            answers: then it still stops as soon as somebody does.

    """
    job = _stopped(job_id)
    if job.state is JobState.COMPLETED:
        raise JobError(f"the job {job.id} was completed before it could be cancelled", path=job.destination)
    return job


def _stopped(job_id: str) -> Job:
    """Stop a job, and return it once it has ended, in whatever way."""
    job = find_job(job_id)
    if job.state.is_finished:
        raise JobError(f"the job {job.id} is {job.state.plain} already", path=job.destination)
    if not job.is_cancellable and job.state is not JobState.SHUTTING_DOWN:
        message = f"the job {job.id} is finishing, and cannot be cancelled any more"
        raise JobError(message, path=job.destination)
    Registry().ask(job.id, "cancel")
    return wait_until(job.id, lambda job: job.state.is_finished, "stopped")


@checked
def pause_job(job_id: str) -> Job:
    """Let a job stand still where that is safe, its files held, and return it once it does.

    Raises:
        JobError: it has ended, or will have in a moment. Or nobody answers: then it pauses as soon as somebody does.

    """
    job = find_job(job_id)
    if job.state is JobState.SUSPENDED:
        return job
    if not job.state.is_finished and job.is_cancellable:
        Registry().ask(job.id, "pause")
        job = wait_until(job.id, lambda job: job.state.is_finished or job.state is JobState.SUSPENDED, "paused")
        if not job.state.is_finished:
            return job
    how = job.state.plain if job.state.is_finished else "finishing"
    raise JobError(f"the job {job.id} is {how}, and cannot be paused", path=job.destination)


@checked
def resume_job(job_id: str) -> Job:
    """Let a paused job go on; start one again that was cancelled, failed or interrupted, in a process of its own.

    Raises:
        JobError: it runs, or is complete, or was being rolled back.
        VhdError, OSError: as `start_merge`.

    """
    job = find_job(job_id)
    if not job.state.is_finished:
        if job.state in {JobState.RUNNING, JobState.STARTING, JobState.NEW, JobState.SHUTTING_DOWN}:
            # A request to pause may be on its way.
            Registry().ask(job.id, "resume")
            return find_job(job.id)
        Registry().ask(job.id, "resume")
        return wait_until(job.id, lambda job: job.state is not JobState.SUSPENDED, "gone on")
    if job.rolled_back:
        raise JobError(f"the job {job.id} was rolled back; start the merge anew", path=job.destination)
    if not job.state.is_resumable:
        raise JobError(f"the job {job.id} is {job.state.plain}", path=job.destination)
    from vhdkit.job.start import restart_job  # noqa: PLC0415 - needs all of merging, as asking does not

    return restart_job(job)


@checked
def rollback_job(
    job_id: str, *, progress: Callable[[Progress], None] | None = None, cancel: Cancel | None = None
) -> Job:
    """Take the merge of a job back, here and now; one that is going on is stopped first. See `vhdkit.rollback`.

    Raises:
        JobError: it was begun without an undo image, or was rolled back.
        VhdError, OSError: as `vhdkit.rollback`.

    """
    job = find_job(job_id)
    if not job.undo:
        message, hint = f"the job {job.id} keeps nothing for taking it back", Advice.UNDO_IMAGE.hint("{} is for that")
        if is_removing(job):
            message += "; its sources are being removed"
            hint = Advice.RESUME_JOB.hint("{} finishes that", job=job.id)
        elif job.state is not JobState.COMPLETED and all(map(LocalFolder().exists, job.sources)):
            message += "; the chain reads as before the merge"
            hint = Advice.RESUME_JOB.hint("{} goes on with it", job=job.id)
        raise JobError(message, path=job.destination, hint=hint)
    if job.rolled_back:
        raise JobError(f"the job {job.id} was rolled back already", path=job.destination)
    if not job.state.is_finished:
        job = _stopped(job.id)
    from vhdkit.job.start import roll_back_job  # noqa: PLC0415 - needs all of merging, as asking does not

    return roll_back_job(job, progress=progress, cancel=cancel)


@checked
def remove_job(job_id: str) -> Job:
    """Take a job that has ended off the list, and forget what it has said. Returns what was known of it.

    How long it took is kept, for `job_history`; images are not touched.

    Raises:
        JobError: it has not ended.

    """
    job = find_job(job_id)
    if not job.state.is_finished:
        raise JobError(f"the job {job.id} is {job.state.plain}: cancel it first", path=job.destination)
    forget = Registry().remove if job.started is None else Registry().hide
    forget(job.id)
    return job


def remove_unreadable_job(job_id: str) -> bool:
    """Take a job off the list whose record cannot be read, named by its whole id; return whether there was one."""
    return Registry().remove_unreadable(job_id)


def job_of_undo(path: str) -> Job | None:
    """Return the job of the merge that an undo image is kept for, None if the list knows of none, or cannot be had."""
    from vhdkit.journal.merge_journal import read_journal  # noqa: PLC0415 - reads journals, as asking alone does not

    folder, real = LocalFolder(), Registry.real(path)
    with suppress(RegistryError, VhdError, OSError):
        for job in reversed(Registry().jobs(states=_ENDED, files=[real])):
            journal = read_journal(folder, job.destination) if job.undo == real else None
            if journal is not None and job_of_journal(journal.begin.job) == job.id:
                return job
    return None


def job_at(path: str) -> Job | None:
    """Return the job that is at a file now, None if the list knows of none, or cannot be had."""
    with suppress(RegistryError):
        for job in Registry().jobs(states=_GOING, files=[Registry.real(path)]):
            now = settled(job)
            if not now.state.is_finished and now.state is not JobState.NEW:
                return now
    return None


def note_undone(job: Job | None, *, rolled_back: bool) -> None:
    """Note that the merge of a job was taken back, or made final, by other means than the job."""
    if job is None:
        return
    now = time.time()
    after = replace(job, undo="", changed=now)
    if rolled_back:
        gone = {"error": "", "error_class": "", "error_code": 0, "rolled_back": True, "phase": ""}
        back = job.at(0, job.bytes_total)
        after = replace(back, state=JobState.TERMINATED, state_changed=now, changed=now, **gone)  # type: ignore[arg-type]
    with suppress(RegistryError):
        Registry().replace(job, after)


def _read_through(disk: str) -> list[str]:
    """Return a file with all that it reads through: a job that touches one of them is a job of its disk."""
    files = [Registry.real(disk)]
    if not LocalFolder().exists(disk):
        # A merge has removed it, perhaps: it is known by its name.
        return files
    from vhdkit.chain.chain import open_chain  # noqa: PLC0415 - needs numpy, as asking for everything does not

    with suppress(VhdError, OSError), open_chain(disk, lock=False) as chain:
        files += [layer.path for layer in chain.layers]
    return list(dict.fromkeys(files))


def wait_until(job_id: str, is_so: Callable[[Job], bool], done: str) -> Job:
    """Return a job once something is so.

    Raises:
        JobError: nothing has come of it for long; what was asked stays asked.

    """
    until = time.monotonic() + _STOP_SECONDS
    while not is_so(job := find_job(job_id)):
        if time.monotonic() > until:
            message = f"the job {job.id} has not {done} in {_STOP_SECONDS:.0f} s, and is {job.state.plain}"
            who = f"its process {job.pid} on {job.host} is stopped, or waits for a disk"
            raise JobError(f"{message}: {who}; once it goes on it does what it was asked", path=job.destination)
        time.sleep(_ASK_SECONDS)
    return job
