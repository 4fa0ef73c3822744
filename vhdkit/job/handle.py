"""A merge that was started, for whoever started it."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from vhdkit.errors import JobError, MergeCancelled
from vhdkit.job.job import Job, JobState
from vhdkit.job.reconcile import settled
from vhdkit.job.registry import Registry, RegistryError

if TYPE_CHECKING:
    import subprocess
    import threading

    from vhdkit.job.worker import Worker

_ASK_SECONDS = 0.1


class MergeJob:
    """A merge that was started. It goes on whether or not anybody holds this.

    `unlisted` says why other processes cannot see it, and is "" if they can.
    """

    def __init__(
        self,
        job: Job,
        registry: Registry,
        unlisted: str,
        *,
        worker: Worker | None = None,
        thread: threading.Thread | None = None,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.id = job.id
        self._known = job
        self._registry = registry
        self._unlisted = unlisted
        self._worker = worker
        self._thread = thread
        self._process = process

    def __repr__(self) -> str:
        """Return the id and how it is."""
        return f"<MergeJob {self.id}: {self.job.state.plain}, {self.job.percent} %>"

    @property
    def unlisted(self) -> str:
        """Why it could not be listed, "" if it is."""
        return self._worker.unlisted if self._worker is not None else self._unlisted

    @property
    def job(self) -> Job:
        """The job as it is now."""
        if self._worker is not None:
            return self._worker.job
        with suppress(RegistryError):
            for job in self._registry.find(self.id):
                self._known = settled(job)
                return self._known
        if self._process is not None and self._process.poll() is not None:
            # It could not be listed: how its process ended is all that is known.
            state = {0: JobState.COMPLETED, 130: JobState.TERMINATED}.get(self._process.returncode, JobState.EXCEPTION)
            self._known = self._known.advanced(time.time(), state)
        return self._known

    def wait(self, timeout: float | None = None) -> Job:
        """Return the job once it has ended, in whatever way.

        Raises:
            TimeoutError: it has not, in so many seconds.

        """
        until = None if timeout is None else time.monotonic() + timeout
        if self._thread is not None:
            self._thread.join(timeout)
        while not (job := self.job).state.is_finished or (self._thread is not None and self._thread.is_alive()):
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(f"the job {self.id} has not ended in {timeout} seconds")
            time.sleep(_ASK_SECONDS)
        if self._process is not None:
            # Its last word comes a moment before its end.
            self._process.wait()
        return job

    def result(self, timeout: float | None = None) -> Job:
        """Return the job once it is complete.

        Raises:
            TimeoutError: it has not ended, in so many seconds.
            MergeCancelled: it was cancelled.
            JobError: it failed or was interrupted. A job of this process raises its own error.

        """
        job = self.wait(timeout)
        if job.state is JobState.COMPLETED:
            return job
        if self._worker is not None and self._worker.error is not None:
            raise self._worker.error
        if job.state is JobState.TERMINATED:
            raise MergeCancelled("the merge was cancelled", path=job.destination)
        raise JobError(f"the job {job.state.plain}: {job.error}", path=job.destination, windows_code=job.error_code)

    def cancel(self) -> None:
        """Ask it to stop at the next place where that is safe; everything reads as before, and it can be resumed."""
        self._ask("cancel")

    def pause(self) -> None:
        """Ask it to stand still, its files held."""
        self._ask("pause")

    def resume(self) -> None:
        """Let it go on after a pause."""
        self._ask("resume")

    def _ask(self, request: str) -> None:
        if self._worker is not None:
            getattr(self._worker, request)()
            return
        try:
            self._registry.ask(self.id, request)
        except RegistryError:
            if self._process is None or request != "cancel":
                raise
            # It listens to this too.
            self._process.terminate()
