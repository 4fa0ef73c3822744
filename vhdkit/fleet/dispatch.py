"""Running a fleet's tasks through an executor: each on its own, none twice, no file system overrun.

A chain that fails stops no other one. A worker that dies takes one task with it, which begins again elsewhere: it goes
on where the journal says that it was. The caller's threads are not needed: all that happens comes through one queue.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from vhdkit.errors import Cancelled, FleetError, ImageInUseError, VhdError
from vhdkit.findings import Advice, Hint
from vhdkit.fleet.outcome import ChainOutcome
from vhdkit.fleet.perform import Performed, perform
from vhdkit.fleet.plan import DEFAULT_PER_TARGET, FleetPlan, FleetTask
from vhdkit.fleet.planner import plan_requests
from vhdkit.fleet.process_pool import ProcessPool
from vhdkit.fleet.report import ChainReport, FleetReport
from vhdkit.fleet.requests import CheckRequest, ConvertRequest, HashRequest
from vhdkit.fleet.schedule import Schedule
from vhdkit.options import EnsureRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vhdkit.findings import Argument
    from vhdkit.fleet.plan import WaitingMerge
    from vhdkit.fleet.requests import FleetRequest
    from vhdkit.options import ParentPolicy
    from vhdkit.progress import Cancel, Progress

# Workers that may die at one chain before that counts as the cause.
MOST_ATTEMPTS = 3
# How soon a cancel is noticed while nothing ends.
_NAP_SECONDS = 0.2


@runtime_checkable
class CancelsRunning(Protocol):
    """An executor that can ask its tasks to stop where that is safe."""

    def cancel_running(self) -> None:
        """Ask the tasks that run to stop."""
        ...


@runtime_checkable
class Reports(Protocol):
    """An executor that can hand on how far its tasks are."""

    progress: Callable[[int, Progress], None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A task was given to a worker."""

    task: FleetTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A task reports how far it is."""

    task: FleetTask
    state: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A task has ended for good; `left` is how many have not."""

    task: FleetTask
    report: ChainReport
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    """The worker of a task has died, and the task is begun again."""

    task: FleetTask
    error: str


FleetEvent = Begun | Moved | Ended | WorkerLost


def run(
    requests: Iterable[FleetRequest],
    executor: Executor | None = None,
    *,
    per_target: int = DEFAULT_PER_TARGET,
    progress: Callable[[FleetEvent], None] | None = None,
    cancel: Cancel | None = None,
) -> FleetReport:
    """Do what is asked for many chains at once, and return what came of each; a bad one stops none of the others.

    `executor` is anything like those of `concurrent.futures`; with None the tasks run in processes of this machine, one
    for each processor. `per_target` is how many tasks may use one file system at once. `progress` is called, in this
    thread, with every `FleetEvent`; `cancel` (a `threading.Event`) lets no more tasks begin, and stops those that run
    where that is safe, if the executor can tell them.

    Raises:
        ValueError: there is no request, or they are of different verbs.
        OSError: a file is not there to be worked with.

    """
    return run_plan(plan_requests(requests, per_target=per_target), executor, progress=progress, cancel=cancel)


def run_plan(
    plan: FleetPlan,
    executor: Executor | None = None,
    *,
    parallel: int | None = None,
    progress: Callable[[FleetEvent], None] | None = None,
    cancel: Cancel | None = None,
) -> FleetReport:
    """Carry out a plan; `parallel` is how many tasks may run at once, and the rest is as in `run`."""
    dispatcher = _Dispatcher(plan, progress, cancel)
    with ExitStack() as own:
        if executor is None:
            parallel = min(parallel or multiprocessing.cpu_count(), max(1, len(plan.tasks)))
            executor = own.enter_context(ProcessPool(parallel))
        if isinstance(executor, Reports):
            executor.progress = dispatcher.note
        return dispatcher.run(executor, parallel)


def not_begun(plan: FleetPlan) -> FleetReport:
    """Return the report of a run that was refused for the obstacles of its plan: nothing was begun."""
    dispatcher = _Dispatcher(plan, None, None)
    return dispatcher.finished(time.time(), 0.0)


class _Dispatcher:
    """One run: what the schedule lets begin goes to the executor, and what comes back goes into the report."""

    def __init__(self, plan: FleetPlan, progress: Callable[[FleetEvent], None] | None, cancel: Cancel | None) -> None:
        self._plan = plan
        self._tell = progress or (lambda _event: None)
        self._cancel = cancel
        self._happened: SimpleQueue[tuple[FleetTask, Future[Performed]] | tuple[int, Progress]] = SimpleQueue()
        self._running: dict[int, tuple[FleetTask, Future[Performed]]] = {}
        self._begun: dict[int, float] = {}
        self._reports: dict[int, ChainReport] = {}
        self._is_stopping = False

    def note(self, number: int, state: Progress) -> None:
        """Take note of how far a task is, from any thread."""
        self._happened.put((number, state))

    def run(self, executor: Executor, parallel: int | None) -> FleetReport:
        """Run all tasks; return when none is left, or none may begin any more."""
        started, begun = time.time(), time.monotonic()
        schedule = Schedule(self._plan.tasks, per_target=self._plan.per_target, parallel=parallel)
        while True:
            self._begin_ready(schedule, executor)
            if not self._running:
                break
            self._take_in(schedule, executor)
        return self.finished(started, time.monotonic() - begun)

    def finished(self, started: float, seconds: float) -> FleetReport:
        """Return what came of every chain of the plan; tasks that have not ended were not begun."""
        done = (
            self._reports.get(task.number) or self._report(task, ChainOutcome.NOT_BEGUN) for task in self._plan.tasks
        )
        refused = (_refused(each.path, each.host, each.error) for each in self._plan.obstacles)
        return FleetReport(
            verb=self._plan.verb,
            chains=(*done, *map(_waiting, self._plan.waiting), *refused),
            started=started,
            seconds=seconds,
            is_cancelled=self._is_stopping,
        )

    def _begin_ready(self, schedule: Schedule[FleetTask], executor: Executor) -> None:
        while not self._is_stopping and (task := schedule.next()) is not None:
            self._begin(task, schedule, executor)

    def _begin(self, task: FleetTask, schedule: Schedule[FleetTask], executor: Executor) -> None:
        self._begun.setdefault(task.number, time.monotonic())
        try:
            future = executor.submit(perform, task)
        except (BrokenExecutor, RuntimeError) as error:
            # The caller's executor is broken, or was shut down: it takes no task any more.
            self._end(task, self._report(task, ChainOutcome.FAILED, error=FleetError(str(error))), schedule)
            return
        self._running[task.number] = (task, future)
        self._tell(Begun(task=task))
        future.add_done_callback(lambda done: self._happened.put((task, done)))

    def _take_in(self, schedule: Schedule[FleetTask], executor: Executor) -> None:
        """Wait for what happens next, and do what follows from it."""
        if not self._is_stopping and self._cancel is not None and self._cancel.is_set():
            self._stop(executor)
        try:
            what, news = self._happened.get(timeout=_NAP_SECONDS)
        except Empty:
            return
        if isinstance(what, FleetTask) and isinstance(news, Future):
            del self._running[what.number]
            self._judge(what, news, schedule)
        elif isinstance(what, int) and not isinstance(news, Future) and what in self._running:
            self._tell(Moved(task=self._running[what][0], state=news))

    def _stop(self, executor: Executor) -> None:
        """Let nothing more begin, and ask what runs to stop."""
        self._is_stopping = True
        for _, future in self._running.values():
            future.cancel()
        if isinstance(executor, CancelsRunning):
            executor.cancel_running()

    def _judge(self, task: FleetTask, future: Future[Performed], schedule: Schedule[FleetTask]) -> None:
        """Decide what becomes of a task whose worker is done with it, or has died."""
        try:
            performed = future.result()
        except BrokenExecutor as error:
            self._begin_again(task, error, schedule)
        except Cancelled as error:
            self._end(task, self._report(task, ChainOutcome.CANCELLED, error=error), schedule)
        except CancelledError:
            self._end(task, self._report(task, ChainOutcome.NOT_BEGUN), schedule)
        except Exception as error:  # noqa: BLE001 - whatever one chain fails of, the others go on
            outcome = ChainOutcome.IN_USE if isinstance(error, ImageInUseError) else ChainOutcome.FAILED
            self._end(task, self._report(task, outcome, error=_known(error)), schedule)
        else:
            self._end(task, self._report(task, performed.outcome, performed), schedule)

    def _begin_again(self, task: FleetTask, error: BrokenExecutor, schedule: Schedule[FleetTask]) -> None:
        again = replace(task, attempt=task.attempt + 1)
        if again.attempt < MOST_ATTEMPTS and not self._is_stopping:
            self._tell(WorkerLost(task=again, error=str(error)))
            schedule.retry(again)
            return
        outcome = ChainOutcome.CANCELLED if self._is_stopping else ChainOutcome.FAILED
        message = f"{again.attempt} workers died of it, the last one so: {error}"
        self._end(task, self._report(task, outcome, error=FleetError(message, path=task.path)), schedule)

    def _end(self, task: FleetTask, report: ChainReport, schedule: Schedule[FleetTask]) -> None:
        schedule.end(task)
        self._reports[task.number] = report
        self._tell(Ended(task=task, report=report, left=schedule.unfinished))

    def _report(
        self,
        task: FleetTask,
        outcome: ChainOutcome,
        performed: Performed | None = None,
        *,
        error: VhdError | OSError | None = None,
    ) -> ChainReport:
        begun = self._begun.get(task.number)
        is_left = not outcome.is_good
        return ChainReport(
            path=task.path,
            host=task.host,
            outcome=outcome,
            detail="" if performed is None else performed.detail,
            worker="" if performed is None else performed.worker,
            total_bytes=0 if performed is None else performed.total_bytes,
            seconds=0.0 if begun is None else time.monotonic() - begun,
            attempts=task.attempt + (0 if begun is None else 1),
            error=error,
            hint=_again(task) if is_left else None,
        )


def _refused(path: str, host: str, error: VhdError | OSError) -> ChainReport:
    """Return the report on a chain that never became a task."""
    hint = error.hint if isinstance(error, VhdError) else None
    return ChainReport(path=path, host=host, outcome=ChainOutcome.FAILED, error=error, hint=hint)


def _waiting(merge: WaitingMerge) -> ChainReport:
    """Return the report on a merge that is left alone for the sake of its undo image."""
    return ChainReport(
        path=merge.path,
        host=merge.host,
        outcome=ChainOutcome.WAITS_FOR_DROP,
        detail=merge.undo_image,
        hint=Advice.DROP_UNDO.hint(path=merge.undo_image),
    )


def _known(error: BaseException) -> VhdError | OSError:
    """Return an error as a VhdError or OSError; a worker may raise anything."""
    if isinstance(error, VhdError | OSError):
        return error
    return FleetError(f"{type(error).__name__}: {error}")


def _again(task: FleetTask) -> Hint:
    """Return what goes on with one chain, or does it again, by itself."""
    match task.request:
        case EnsureRequest(merge=merge, leaf_id=leaf_id):
            into = merge.into or ""
            return _hint(
                Advice.ENSURE_MERGED, merge.parents, path=merge.child, into=into, leaf_id=leaf_id, verify=merge.verify
            )
        case HashRequest(path=path, algorithm=algorithm, parents=parents):
            return _hint(Advice.HASH, parents, path=path, algorithm="" if algorithm == "sha256" else algorithm)
        case ConvertRequest(path=path, destination=new_path, output_format=output_format, parents=parents):
            return _hint(Advice.CONVERT, parents, path=path, new_path=new_path, output_format=output_format)
        case CheckRequest(path=path, deep=deep, parents=parents):
            return _hint(Advice.CHECK_CHAIN, parents, path=path, deep=deep)


def _hint(advice: Advice, parents: ParentPolicy, **arguments: Argument) -> Hint:
    """Return a hint with those of its arguments that differ from what holds without them."""
    given = {**arguments, "search": parents.search}
    return Hint(advice=advice, arguments=tuple((name, value) for name, value in given.items() if value))
