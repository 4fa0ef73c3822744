"""A dry run: every merge planned to the byte, and what that comes to on each file system; nothing is written."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vhdkit.errors import FleetError, VhdError
from vhdkit.fleet.process_pool import ProcessPool
from vhdkit.job.history import estimate_seconds
from vhdkit.merging.plan.planner import plan_request
from vhdkit.options import EnsureRequest
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor, Future

    from vhdkit.fleet.plan import FleetPlan, FleetTarget, FleetTask, TargetLoad

# Merges that are planned in the time that starting processes takes.
_FEW_TASKS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMerge:
    """What one merge would do, in bytes, and what stands in its way; `resume` says what an earlier run has left."""

    leaf: str
    destination: str
    payload_bytes: int = 0
    space_needed: int = 0
    space_free: int = 0
    resume: str = ""
    obstacles: tuple[VhdError | OSError, ...] = ()


def measure_merges(
    plan: FleetPlan, executor: Executor | None = None, *, parallel: int | None = None
) -> tuple[MeasuredMerge, ...]:
    """Plan every merge of a fleet's plan to the byte, in its order; executor and `parallel` are as in `run_plan`."""
    if executor is None and len(plan.tasks) < _FEW_TASKS:
        return tuple(map(measure, plan.tasks))
    with ExitStack() as own:
        pool = executor or own.enter_context(ProcessPool(parallel or multiprocessing.cpu_count()))
        futures = [pool.submit(measure, task) for task in plan.tasks]
        return tuple(_result(future, task) for future, task in zip(futures, plan.tasks, strict=True))


def measure(task: FleetTask) -> MeasuredMerge:
    """Plan one merge to the byte.

    Raises:
        TypeError: the task is none.

    """
    request = task.request
    if not isinstance(request, EnsureRequest):
        raise TypeError(f"{request!r} is no merge")
    leaf, into = request.merge.child, request.merge.into or ""
    try:
        plan = plan_request(request.merge, LocalFolder())
    except (VhdError, OSError) as error:
        return MeasuredMerge(leaf=leaf, destination=into, obstacles=(error,))
    return MeasuredMerge(
        leaf=leaf,
        destination=plan.destination,
        payload_bytes=plan.payload_bytes - plan.bytes_done,
        space_needed=plan.space_needed,
        space_free=plan.space_free,
        resume="" if plan.resume is None else plan.resume.value,
        obstacles=plan.obstacles,
    )


def _result(future: Future[MeasuredMerge], task: FleetTask) -> MeasuredMerge:
    try:
        return future.result()
    except BrokenExecutor as error:
        return MeasuredMerge(leaf=task.path, destination="", obstacles=(FleetError(str(error), path=task.path),))


def measured_loads(plan: FleetPlan, merges: Sequence[MeasuredMerge], rate: int | None) -> tuple[TargetLoad, ...]:
    """Return what the merges come to on each file system: bytes to copy, room, and how long that has taken before.

    `rate` is the most bytes a second of one merge.
    """
    pairs = list(zip(plan.tasks, merges, strict=True))
    by_payload = replace(plan, tasks=tuple(replace(task, cost=float(each.payload_bytes)) for task, each in pairs))
    by_space = replace(plan, tasks=tuple(replace(task, cost=float(each.space_needed)) for task, each in pairs))
    needed = {load.target: load.space_needed for load in by_space.loads}
    beside: dict[FleetTarget, MeasuredMerge] = {}
    for task, each in pairs:
        if each.destination:
            beside.setdefault(task.targets[0], each)
    return tuple(
        _with_estimate(replace(load, space_needed=needed[load.target]), beside.get(load.target), rate)
        for load in by_payload.loads
    )


def _with_estimate(load: TargetLoad, merge: MeasuredMerge | None, rate: int | None) -> TargetLoad:
    """Return a load with the free space and the time of a file system that one of the merges writes to."""
    if merge is None or load.target.host or not LocalFolder().exists(merge.destination):
        return load
    expected = estimate_seconds(load.total_bytes, merge.destination, rate)
    return replace(
        load,
        space_free=LocalFolder().free_space(paths.dirname(merge.destination)),
        seconds=None if expected is None else expected.seconds,
    )
