"""The one list of all that is known of merges: those that run, those that are left to do, and those that have ended."""

from __future__ import annotations

from enum import Enum, auto, unique
from typing import TYPE_CHECKING

from vhdkit.job.control import jobs
from vhdkit.snapshot.pending_jobs import pending_jobs

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from vhdkit.job.job import Job


@unique
class JobKind(Enum):
    """A job runs, is left to do, or has ended; one that was cut off is both of the last."""

    RUNNING = auto()
    PENDING = auto()
    FINISHED = auto()


def list_jobs(
    kinds: Collection[JobKind],
    *,
    disk: str | None = None,
    machine: str | None = None,
    search: Sequence[str] = (),
    limit: int | None = None,
) -> tuple[Job, ...]:
    """Return the jobs of some kinds, oldest first, then the pending merges that no list has; see `jobs`.

    Each that is pending says what it waits for.

    Raises:
        RegistryError: the list cannot be had.

    """
    is_finished = JobKind.FINISHED in kinds
    listed = jobs(running=True, finished=is_finished, disk=disk, machine=machine, search=search, limit=limit)
    pending: dict[str, Job] = {}
    if JobKind.PENDING in kinds:
        pending = {job.id: job for job in pending_jobs(disk=disk, machine=machine)}
    shown = [pending.pop(job.id, job) for job in listed if _kind_of(job) in kinds]
    return (*shown, *pending.values())


def _kind_of(job: Job) -> JobKind:
    """Return what a listed job is first of all."""
    if job.state.is_running:
        return JobKind.RUNNING
    return JobKind.FINISHED if job.state.is_finished else JobKind.PENDING
