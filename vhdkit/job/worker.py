"""Working at one job in this process: waiting in line, planning, merging, and saying how it goes.

A thread beside the merge writes to the list of jobs, and reads what is asked of this one: the merge itself never waits
for the list, and goes on without it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import msgspec

from vhdkit.errors import ImageInUseError, MergeCancelled, MergeError
from vhdkit.job import events, job_files
from vhdkit.job.job import UNFINISHED, Job, JobState, Wait, WaitReason
from vhdkit.job.merge_slots import MergeSlot
from vhdkit.job.on_end import start_end_command
from vhdkit.job.rate_meter import RateMeter
from vhdkit.job.reconcile import as_left, is_another_at, stands_in_the_way
from vhdkit.job.registry import Registry, RegistryError
from vhdkit.merging.plan.plan import Resume
from vhdkit.merging.plan.planner import plan_request
from vhdkit.merging.run.engine import MergeResult, merge
from vhdkit.progress import RateLimit
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.merging.completion import Completion
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.progress import Cancel, Progress

# Being asked something is noticed this soon, and how far it is is written so often, in seconds.
_LISTEN_SECONDS = 0.2
# What changes in quick succession is one thing to tell; how far it is may be told later than anything else: each tenth
# told by itself, a merge of 0.15 s took 0.01 s longer.
_SETTLING_SECONDS = 0.01
_PROGRESS_SECONDS = 0.1
_WRITE_SECONDS = 1.0
# A slot is asked for so often; each time the system's list of locks is read.
_SLOT_SECONDS = 0.5
# Who reads the images for a moment, to check or to look, is waited for.
_IN_USE_SECONDS = 3.0
_PATIENCE_SECONDS = 2.0


class Worker:
    """One job while this process works at it. It says to the merge when to stop, as a `Cancel`.

    `unlisted` is why the job could not be listed, "" if it is; `completion` is that of `merging.run.engine.merge`,
    and `plan` what the job was begun with, which is carried out if it need not wait.
    """

    def __init__(
        self,
        job: Job,
        registry: Registry,
        *,
        progress: Callable[[Progress], None] | None = None,
        cancel: Cancel | None = None,
        unlisted: str = "",
        completion: Completion | None = None,
        slot: MergeSlot | None = None,
        plan: MergePlan | None = None,
    ) -> None:
        self.registry = registry
        # A list that somebody holds must not hold up the merge; its last word waits.
        self._quick = Registry(registry.directory, patience=_PATIENCE_SECONDS)
        self.last_word = job
        self.unlisted = unlisted
        self._completion = completion
        self._given = plan
        self.error: BaseException | None = None
        self._job = job_files.of_this_process(job)
        self._runs = job.runs + 1
        self._progress = progress
        self._outer_cancel = cancel
        self._lock = threading.RLock()
        self._cancelled = threading.Event()
        self._going = threading.Event()
        self._going.set()
        self._is_over = threading.Event()
        self._changed = threading.Event()
        self._has_news = False  # more than how far it is
        self._meter = RateMeter()
        self._limit = RateLimit(job.request.rate)
        self._slot = slot or MergeSlot(job.request, registry.directory)
        self._tenth = 10 * job.percent // 100
        self._done = 0
        self._listener = threading.Thread(target=self._listen, name=f"vhdkit-job-{job.id[:8]}", daemon=True)

    @property
    def job(self) -> Job:
        """The job as it is now."""
        with self._lock:
            return replace(self._job, elapsed=self._job.elapsed_at(now := time.time()), changed=now)

    # What it is asked, from any thread

    def cancel(self) -> None:
        """Stop at the next place where that is safe."""
        with self._lock:
            self._cancelled.set()
            self._going.set()
            if self._job.is_cancellable:
                self._change(JobState.SHUTTING_DOWN)

    def pause(self) -> None:
        """Stand still at the next place where that is safe, the files held."""
        if not self._cancelled.is_set():
            self._going.clear()

    def resume(self) -> None:
        """Go on after a pause."""
        self._going.set()

    def change_rate(self, rate: int | None) -> None:
        """Copy at most `rate` bytes a second from now on, also when it is begun again; None for no limit."""
        with self._lock:
            self._limit.rate = rate
            self._meter.clear()
            self._job = replace(self._job, request=msgspec.structs.replace(self._job.request, rate=rate))
            self._change(self._job.state)

    def is_set(self) -> bool:
        """Whether the merge should stop; while it is to pause, this does not return."""
        if not self._going.is_set() and not self._cancelled.is_set():
            with self._lock:
                before = self._job.state
                self._change(JobState.SUSPENDED)
            # Its files stay held; the disk is others' meanwhile.
            self._slot.release()
            while not self._going.wait(_LISTEN_SECONDS) and not self._is_asked_elsewhere():
                pass
            while not (self._slot.take() or self._cancelled.wait(_SLOT_SECONDS) or self._is_asked_elsewhere()):
                pass
            with self._lock:
                if self._job.state is JobState.SUSPENDED:
                    self._meter.clear()
                    self._change(before)
        return self._cancelled.is_set() or self._is_asked_elsewhere()

    def _is_asked_elsewhere(self) -> bool:
        return self._outer_cancel is not None and self._outer_cancel.is_set()

    # The work

    def __enter__(self) -> Self:
        self._write()
        try:
            self._listener.start()
        except RuntimeError as error:
            # The merge needs no other thread; but nobody else can steer it or see how far it is until it ends.
            events.logger.warning("the job %s cannot be steered: %s", self._job.id, error)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._failed(error)
        self._is_over.set()
        self._changed.set()
        try:
            if self._listener.ident is not None:
                self._listener.join()
            # Whoever sees that it has ended finds that in the log.
            events.tell(self._job)
        finally:
            self._slot.release()
            # The last word is what others wait for, and a second Ctrl-C is no reason to keep it.
            self._write(self.registry)
        start_end_command(self._job)

    def run(self) -> MergeResult:
        """Wait in line until no other job needs the files, plan, and merge.

        Raises:
            MergeCancelled: it was cancelled.
            VhdError, OSError: as `plan_request` and `merge`.

        """
        is_in_line = self._wait_in_line()
        self._wait_for_slot()
        until: float | None = None
        while True:
            with self._lock:
                self._change(JobState.STARTING)
            try:
                given, self._given = self._given, None
                plan = given or plan_request(self._job.request, LocalFolder())
                job_files.check_same(self._job, job_files.identities_of(plan.layers))
                return self.merge(plan)
            except MergeError as error:
                # A plan that was made before this process began may be out of date: then it is made anew.
                if given is None or not job_files.may_be_outdated(error, given):
                    raise
            except ImageInUseError:
                # Nothing was written. Who reads the images for a moment is waited for, another job until it has ended;
                # and where the list cannot tell, whoever it is. One that was at it may have ended meanwhile.
                if not is_in_line or is_another_at(self._job, self._quick):
                    until = None
                elif until is None:
                    until = time.monotonic() + _IN_USE_SECONDS
                elif time.monotonic() > until:
                    raise
            except FileNotFoundError as error:
                raise job_files.gone(self._job, error) from error
            self._wait(_LISTEN_SECONDS)

    def merge(self, plan: MergePlan) -> MergeResult:
        """Carry a plan out, as `merging.run.engine.merge`, when its file system has room for one more.

        One that only changes names waits for none: a machine's manifest may be held until it is done.
        """
        if plan.resume is not Resume.FINISHES:
            self._wait_for_slot()
        request = self._job.request
        if not plan.is_new_file:
            # From here on it is settled where it goes, whatever the chain looks like when it is resumed.
            request = msgspec.structs.replace(request, into=plan.destination, resume=False)
        with self._lock:
            if plan.resume is not Resume.FINISHES:
                # It goes on where the journal's mark is, whatever an earlier run had copied beyond that.
                self._job = self._job.at(plan.bytes_done, plan.payload_bytes)
                self._tenth = 10 * self._job.percent // 100
            self._change(
                JobState.RUNNING,
                **job_files.touched(plan),
                request=request,
                bytes_total=plan.payload_bytes,
                bytes_done=plan.bytes_done,
                started=self._job.started or time.time(),
                # One run, however often files that somebody reads for a moment are asked for.
                runs=self._runs,
            )
        events.tell(self._job)
        result = merge(
            plan,
            progress=self._advance,
            cancel=self,
            rate=self._limit,
            job=self._job.id,
            completion=self._completion,
        )
        with self._lock:
            self._change(JobState.COMPLETED, bytes_done=plan.payload_bytes, undo=result.undo, error="", error_class="")
        return result

    def act(self, phase: str, work: Callable[[Callable[[Progress], None], Cancel], None]) -> None:
        """Do something else with a job that has ended, such as to roll it back; it ends as cancelled."""
        with self._lock:
            self._change(JobState.RUNNING, phase=phase)

        def advance(state: Progress) -> None:
            if self._progress is not None:
                self._progress(state)

        work(advance, self)
        with self._lock:
            # Nothing of the merge is done any more.
            self._job = self._job.at(0, self._job.bytes_total)
            self._change(JobState.TERMINATED, phase="", rolled_back=True, error="", error_class="", error_code=0)

    def _wait_in_line(self) -> bool:
        """Wait until no job that came before needs the files; return whether the list could tell."""
        while not self.unlisted:
            try:
                if not self._quick.find(self._job.id):
                    # The list was lost, and with it who came before.
                    self._write()
                    return False
                ahead = self._quick.waits_for(self._job.id, UNFINISHED)
                if not any(stands_in_the_way(job, self._job) for job in ahead):
                    return True
            except RegistryError as error:
                self._lost(error)
            else:
                self._wait(_LISTEN_SECONDS)
        return False

    def _wait_for_slot(self) -> None:
        """Wait until fewer merges run on the file system than may; what is held then is given back at the end."""
        if self._slot.take():
            return
        events.logger.warning("the job %s waits: %s", self._job.id, Wait(reason=WaitReason.LIMIT))
        while not self._slot.take():
            self._wait(_SLOT_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._given = None  # other processes may change the files while it waits
        if self._cancelled.wait(seconds) or self.is_set():
            raise MergeCancelled("the merge was cancelled before it began; nothing was changed")

    def _advance(self, state: Progress) -> None:
        """Take note of how far it is: called for every piece, so that it does next to nothing."""
        tenth = 10 * state.bytes_done // state.bytes_total if state.bytes_total else 0
        if tenth > self._tenth or state.phase.value != self._job.phase:
            with self._lock:
                self._job = self._job.advanced(
                    time.time(), self._job.state, phase=state.phase.value, bytes_done=state.bytes_done
                )
                self._changed.set()
                if tenth > self._tenth and state.phase.value == "copying":
                    events.tell_progress(self._job)
                self._tenth = max(tenth, self._tenth)
        self._done = state.bytes_done
        if self._progress is not None:
            self._progress(state)

    def _change(self, state: JobState, **changes: object) -> None:
        self._job = self._job.advanced(time.time(), state, **changes)
        self._has_news = True
        self._changed.set()

    def _failed(self, error: BaseException) -> None:
        self.error = error
        with self._lock:
            self._job = as_left(self._job)
            if isinstance(error, (MergeCancelled, KeyboardInterrupt)):
                self._change(JobState.TERMINATED, error="", error_class="", error_code=0)
                return
            self._change(JobState.EXCEPTION, **job_files.error_fields(error))

    # The list

    def _listen(self) -> None:
        """Write how it goes and read what is asked, until the work is over."""
        written = time.monotonic()
        while not self._is_over.is_set():
            has_changed = self._changed.wait(_LISTEN_SECONDS)
            if self._is_over.is_set():
                break
            self._hear()
            if has_changed and self._is_over.wait(_SETTLING_SECONDS if self._has_news else _PROGRESS_SECONDS):
                break
            if has_changed or time.monotonic() - written > _WRITE_SECONDS:
                self._has_news = False
                self._changed.clear()
                self._sample()
                # That it has ended is the last word, which is not the listener's.
                if not self._job.state.is_finished:
                    self._write()
                written = time.monotonic()
            if has_changed:
                self._hear()

    def _sample(self) -> None:
        with self._lock:
            now, done = time.monotonic(), max(self._done, self._job.bytes_done)
            if self._job.state is JobState.RUNNING:
                rate = self._meter.sample(now, done)
                self._job = self._job.advanced(time.time(), JobState.RUNNING, bytes_done=done, rate=rate)
            elif not self._job.state.is_finished:
                self._job = self._job.advanced(time.time(), self._job.state)

    def _hear(self) -> None:
        if self.unlisted:
            return
        try:
            request = self._quick.request(self._job.id)
            if not request:
                return
            self._fulfil(request)
            self._quick.fulfilled(self._job.id, request)
        except RegistryError as error:
            self._lost(error)

    def _fulfil(self, request: str) -> None:
        """Do what another process asks for, unless it is nothing that this version knows."""
        match request.split():
            case ["cancel"]:
                self.cancel()
            case ["pause"]:
                self.pause()
            case ["resume"]:
                self.resume()
            case ["rate", text] if text.isdecimal():
                self.change_rate(int(text) or None)

    def _write(self, registry: Registry | None = None) -> None:
        with self._lock:
            job = self._job
        try:
            (registry or self._quick).put(job)
            self.last_word = job
        except RegistryError as error:
            self._lost(error)
        else:
            self.unlisted = ""

    def _lost(self, error: RegistryError) -> None:
        """Go on without the list; it is tried again with every word."""
        if not self.unlisted:
            events.logger.warning("the job %s is not listed: %s", self._job.id, error)
        self.unlisted = str(error)
