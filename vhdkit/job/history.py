"""How long merges took, and how long one would take by that."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vhdkit.arguments import checked
from vhdkit.job.control import ended_jobs
from vhdkit.job.job import JobState
from vhdkit.job.job_record import utc_iso
from vhdkit.job.merge_slots import device_of
from vhdkit.job.registry import RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vhdkit.job.job import Job
    from vhdkit.units import StrPath

# So many of the newest jobs say how fast a file system is: an older disk may have been another.
_MOST_SEEN = 20
# A merge of less says how long it takes to begin and to end, not how fast its disk is.
_LEAST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The `seconds` that a merge will take, by the `rate` in bytes a second of `job_count` jobs on its file system."""

    seconds: float
    rate: float
    job_count: int


@checked
def job_history(*, disk: StrPath | None = None, machine: str | None = None) -> tuple[Job, ...]:
    """Return the jobs that have ended and were worked at, oldest first; `disk` and `machine` are as in `jobs`.

    Those that were taken off the list are among them.

    Raises:
        RegistryError: the list cannot be had.

    """
    return tuple(job for job in ended_jobs(disk=disk, machine=machine) if job.started is not None)


def history_record(job: Job) -> dict[str, Any]:
    """Return how long a job took as plain values: seconds in which it was worked at, over all of its runs."""
    return {
        "id": job.id,
        "machine": job.machine,
        "state": "rolled back" if job.rolled_back else job.state.plain,
        "destination": job.destination,
        "started": utc_iso(job.started),
        "ended": utc_iso(job.ended),
        "seconds": round(job.elapsed, 3),
        "bytes": job.bytes_done,
        "rate": round(mean_rate([job])),
        "runs": job.runs,
    }


def mean_rate(done: Iterable[Job]) -> float:
    """Return the bytes a second of all of some jobs together, 0 if they took no time."""
    counted = list(done)
    seconds = sum(job.elapsed for job in counted)
    return sum(job.bytes_done for job in counted) / seconds if seconds > 0 else 0.0


def estimate_seconds(size: int, beside: str, rate: int | None) -> Estimate | None:
    """Return how long a merge of that many bytes will take; None if the list knows of none on its file system.

    `beside` is a file on that file system, `rate` the most bytes a second that the merge may copy. Jobs that had to
    keep to a rate say nothing of the disk's.
    """
    with suppress(RegistryError, OSError):
        seen = _seen_on(device_of(beside))
        speed = mean_rate(seen)
        if speed > 0:
            speed = min(speed, rate) if rate is not None else speed
            return Estimate(seconds=size / speed, rate=speed, job_count=len(seen))
    return None


def _seen_on(device: int) -> list[Job]:
    seen: list[Job] = []
    for job in reversed(ended_jobs(limit=10 * _MOST_SEEN)):
        is_telling = job.state is JobState.COMPLETED and job.bytes_done >= _LEAST_BYTES and job.request.rate is None
        # A new file may have been moved since, and a disk be gone.
        with suppress(OSError):
            if is_telling and device_of(job.destination) == device:
                seen.append(job)
        if len(seen) == _MOST_SEEN:
            break
    return seen
