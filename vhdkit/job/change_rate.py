"""Changing how fast a job may copy, while it runs or for its next run."""

from __future__ import annotations

import time
from dataclasses import replace

import msgspec

from vhdkit.arguments import checked
from vhdkit.errors import JobError
from vhdkit.job.control import find_job, wait_until
from vhdkit.job.job import Job, JobState
from vhdkit.job.registry import Registry


@checked
def change_rate(job_id: str, rate: int | None) -> Job:
    """Limit a job to `rate` bytes a second from now on, None for no limit; return it once it does.

    One that has ended does so when it is begun again.

    Raises:
        JobError: it is complete. Or its worker does not answer: the change takes effect when it does.
        ValueError: the rate is none.

    """
    if rate is not None and rate <= 0:
        raise ValueError(f"the rate is {rate}: expected bytes a second, more than none")
    registry, job = Registry(), find_job(job_id)
    if job.state is JobState.COMPLETED:
        raise JobError(f"the job {job.id} is completed", path=job.destination)
    if job.state.is_finished:
        after = replace(job, request=msgspec.structs.replace(job.request, rate=rate), changed=time.time())
        if not registry.replace(job, after):
            raise JobError(f"the job {job.id} was begun again by another process just now", path=job.destination)
        return after
    registry.ask(job.id, f"rate {rate or 0}")
    return wait_until(job.id, lambda job: job.state.is_finished or job.request.rate == rate, "changed its rate")
