"""Let a machine start while merges are pending or running: refuse, or stop the merges, which lose nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vhdkit.chain.chain import open_chain
from vhdkit.errors import ImageInUseError, JobError
from vhdkit.findings import Advice
from vhdkit.job.control import cancel_job, jobs

if TYPE_CHECKING:
    from vhdkit.job.job import Job

# A merge stops within a second, and its files are free a moment later.
_PATIENCE_SECONDS = 10.0


def make_way(actives: tuple[str, ...], search: tuple[str, ...], *, yield_merges: bool) -> tuple[Job, ...]:
    """Make sure that a machine's disks can be opened for writing; return the merges that were stopped for it.

    Raises:
        ImageInUseError: the machine runs, or a merge is at a disk and may not be stopped.

    """
    stopped: list[Job] = []
    until = time.monotonic() + _PATIENCE_SECONDS
    for active in actives:
        while True:
            try:
                open_chain(active, search=search, writable=True).close()
                break
            except ImageInUseError as error:
                running = _merges_at(active, search)
                if running and not yield_merges:
                    names = ", ".join(job.id for job in running)
                    text = f"a merge is at its disk (job {names}); with {{}} it stops, and goes on later"
                    error.add_hint(Advice.YIELD_MERGES.hint(text))
                    raise
                if (not running and not stopped) or time.monotonic() > until:
                    raise
                for job in running:
                    stopped += _stopped(job)
            time.sleep(0.05)
    return tuple(stopped)


def _merges_at(active: str, search: tuple[str, ...]) -> list[Job]:
    """Return the running jobs that write to what a disk reads through."""
    with open_chain(active, search=search, lock=False) as chain:
        line = {layer.path for layer in chain.layers}
    return [job for job in jobs(running=True) if line.intersection(job.written)]


def _stopped(job: Job) -> list[Job]:
    try:
        return [cancel_job(job.id)]
    except JobError:
        # It has ended meanwhile, or only names are left to be changed: that takes a moment.
        return []
