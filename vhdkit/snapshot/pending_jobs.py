"""The merges that are left to do: those that deleted snapshots leave, those in line, and those that were cut off.

Each is a `Job`, with what it waits for. A merge that nobody has begun has an id of its own all the same, by which it
can be shown and begun; it is made of the machine's manifest and the merge's files, so that it is the same each time.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.arguments import checked
from vhdkit.errors import JobError, VhdError
from vhdkit.findings import Advice
from vhdkit.job.control import find_job, jobs, listed_jobs, of_machine, resume_job, touches_disk
from vhdkit.job.job import Job, JobState, Wait, WaitReason
from vhdkit.job.waiting import with_wait
from vhdkit.journal.manifest import Manifest
from vhdkit.options import Follow, MergeRequest
from vhdkit.snapshot.known_machines import known_machines
from vhdkit.snapshot.transitions import owed_by
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import as_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.errors import ImageInUseError
    from vhdkit.snapshot.manifest_file import ManifestFile
    from vhdkit.snapshot.pending_merges import PendingMerge
    from vhdkit.units import StrPath

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
        with suppress(VhdError, OSError):
            found |= {job.id: job for job in _of_machine(path, known, going)}
    chosen = tuple(found.values()) if machine is None else of_machine(found.values(), machine)
    return chosen if disk is None else touches_disk(chosen, as_text(disk))


def resumable_jobs(*, only_interrupted: bool = False) -> tuple[Job, ...]:
    """Return the jobs that `resume_any_job` lets go on: paused ones, and pending ones but those that wait for others.

    With `only_interrupted` those alone whose process died.
    """
    if only_interrupted:
        return tuple(job for job in pending_jobs() if job.state is JobState.KILLED)
    paused = tuple(job for job in jobs(running=True) if job.state is JobState.SUSPENDED)
    mine = {WaitReason.CUT_OFF, WaitReason.NOT_BEGUN}
    return paused + tuple(job for job in pending_jobs() if job.wait is not None and job.wait.reason in mine)


@checked
def find_any_job(beginning: str) -> Job:
    """Return the job whose id begins so, be it listed or pending.

    Raises:
        JobError: there is none, or several.

    """
    try:
        return find_job(beginning)
    except JobError:
        found = [job for job in pending_jobs() if beginning and job.id.startswith(beginning.lower())]
        if len(found) != 1:
            raise
    return found[0]


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


def _of_machine(path: str, known: dict[str, Job], going: Sequence[Job]) -> list[Job]:
    """Return the pending merges of a machine; those in `known` were begun once and cut off."""
    folder = LocalFolder()
    with folder.open(path) as storage:
        manifest, noted = Manifest.from_json(read_bytes(storage, 0, storage.size())), storage.mtime
    if not owed_by(manifest)[1]:
        return []
    # numpy is loaded by those that have something to look at.
    from vhdkit.snapshot.manifest_file import ManifestFile  # noqa: PLC0415
    from vhdkit.snapshot.pending_merges import effective  # noqa: PLC0415
    from vhdkit.snapshot.run_pending_merges import Settler  # noqa: PLC0415

    file = ManifestFile(folder, path, [paths.dirname(path)])
    manifest = effective(file, file.read())
    settler = Settler(file, is_local=True)
    busy = {job.destination for job in going}
    merges = [merge for merge in settler.owed(manifest).merges if merge.destination not in busy]
    if not merges:
        return []
    state, wait = _wait_of(file.absolute(manifest.disks[0].active), settler.holder(manifest))
    found = []
    for merge in merges:
        begun = known.get(merge.destination)
        if begun is not None and begun.state.is_resumable:
            found.append(replace(begun, wait=wait))
        else:
            found.append(_job_of(file, manifest, merge, state, wait, noted))
    return found


def _wait_of(active: str, holder: ImageInUseError | None) -> tuple[JobState, Wait]:
    """Return what a machine's merges wait for: its end, or somebody who begins them."""
    if holder is None:
        hint = Advice.SETTLE.hint("{} merges it", path=active)
        return JobState.SERVICE, Wait(reason=WaitReason.NOT_BEGUN, hint=hint)
    hint = Advice.SETTLE.hint("when it is off, {} merges it", path=active)
    return JobState.NEW, Wait(reason=WaitReason.MACHINE_RUNS, holders=holder.holders, hint=hint)


def _job_of(
    file: ManifestFile, manifest: Manifest, merge: PendingMerge, state: JobState, wait: Wait, noted: float
) -> Job:
    name = "\n".join([file.path, *merge.sources, merge.destination])
    files = (*merge.sources, merge.destination)
    return Job(
        id=str(uuid.uuid5(uuid.NAMESPACE_OID, name)),
        state=state,
        request=MergeRequest(
            child=merge.sources[0], into=merge.destination, search=file.search(manifest), follow=Follow.SETTLE
        ),
        sources=merge.sources,
        destination=merge.destination,
        files=files,
        written=files,
        machine=manifest.machine,
        submitted=noted,
        changed=noted,
        wait=wait,
    )
