"""python -m vhdkit.background: the process of a background job, which works at it and then does what follows it."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from vhdkit.command_hints import command_words
from vhdkit.errors import VhdError
from vhdkit.findings import hints_as
from vhdkit.job.job import JobState
from vhdkit.job.spawn import work_at
from vhdkit.options import Follow

if TYPE_CHECKING:
    from vhdkit.job.job import Job

# What a cancelled merge ends with at the command line, too.
_CANCELLED = 130


def main() -> NoReturn:
    """Work at the job that stdin describes, and exit as it has ended: 0 complete, 130 cancelled, else 1."""
    # What goes wrong is shown by commands: `job list`, `job show`.
    with hints_as(command_words()):
        job = work_at(sys.stdin.buffer.read())
    if job.state is JobState.COMPLETED and job.request.follow is Follow.SETTLE:
        _settle(job)
    sys.exit({JobState.COMPLETED: 0, JobState.TERMINATED: _CANCELLED}.get(job.state, 1))


def _settle(job: Job) -> None:
    """Note the merge in the manifest of its machine, which is looked for beside the destination, and begin the next.

    What keeps it from that is no failure of the job: the next operation on the machine does it.
    """
    from vhdkit.snapshot.machine import Machine  # noqa: PLC0415 - most jobs are of no machine's snapshots

    with suppress(VhdError, OSError):
        Machine(job.destination).start_settling(rate=job.request.rate)


if __name__ == "__main__":
    main()
