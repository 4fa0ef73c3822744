"""Waiting for a merge that another process is at, as if it were done here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vhdkit.errors import ImageInUseError, MergeCancelled
from vhdkit.findings import Advice
from vhdkit.job.control import Follower
from vhdkit.job.job import JobState
from vhdkit.progress import Phase, Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.job.job import Job
    from vhdkit.progress import Cancel

_ASK_SECONDS = 0.2


def follow(job: Job, *, progress: Callable[[Progress], None] | None = None, cancel: Cancel | None = None) -> Job:
    """Return a job once it has ended, in whatever way, telling meanwhile how far it is.

    Raises:
        MergeCancelled: whoever waits was asked to stop; the merge goes on.
        ImageInUseError: it is paused.
        JobError: the list of jobs has lost it.

    """
    at = Follower()
    while not job.state.is_finished:
        if job.state is JobState.SUSPENDED:
            message = f"the merge into it, the job {job.id}, is paused"
            hint = Advice.RESUME_JOB.hint("{} lets it go on", job=job.id)
            raise ImageInUseError(message, path=job.destination, hint=hint)
        if progress is not None and job.phase:
            phase = next((each for each in Phase if each.value == job.phase), Phase.COPYING)
            progress(Progress(phase=phase, bytes_done=job.bytes_done, bytes_total=job.bytes_total))
        if cancel is not None and cancel.is_set():
            message = f"the merge, the job {job.id}, goes on in the background"
            hint = Advice.CANCEL_JOB.hint("{} stops it", job=job.id)
            raise MergeCancelled(message, path=job.destination, hint=hint)
        time.sleep(_ASK_SECONDS)
        job = at(job)
    return job
