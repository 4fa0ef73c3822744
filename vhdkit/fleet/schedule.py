"""Which task begins next: pure bookkeeping, so that a simulated clock drives it as well as real workers.

A task needs a place on every target (a file system) that it reads or writes, all at once, so that no two tasks wait for
each other. Tasks of a group share files: they run one after another, in their order. Of what may begin, what has most
work behind it does: the target, and on it the group, that would else be the last to end.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence


class Schedulable(Protocol):
    """What is scheduled: where it takes place, what it must not run beside, and about how much work it is."""

    @property
    def targets(self) -> Sequence[Hashable]:
        """The file systems that it uses, the busiest first."""
        ...

    @property
    def group(self) -> int:
        """The tasks of a group run one after another."""
        ...

    @property
    def cost(self) -> float:
        """How much work it is, in any unit that all tasks share."""
        ...


AnyTask = TypeVar("AnyTask", bound=Schedulable)


@dataclass(slots=True)
class _Group(Generic[AnyTask]):
    """Tasks that run one after another; `remaining` is the cost of those that have not ended."""

    waiting: deque[AnyTask]
    remaining: float


@dataclass(slots=True)
class _Target:
    """A file system: how many tasks use it, and which groups wait for it, those with most work first."""

    running: int
    remaining: float
    waiting: list[tuple[float, int]]


class Schedule(Generic[AnyTask]):
    """The tasks that have not ended, and those that run.

    `per_target` is how many tasks may use a target at once, `parallel` how many may run in all, None for no bound.
    """

    def __init__(
        self,
        tasks: Iterable[AnyTask],
        *,
        per_target: int,
        parallel: int | None = None,
        limits: Mapping[Hashable, int] | None = None,
    ) -> None:
        if per_target < 1 or (parallel is not None and parallel < 1):
            raise ValueError(f"per_target is {per_target} and parallel {parallel}: expected 1 or more")
        self._per_target = per_target
        self._limits = dict(limits or {})
        self._parallel = parallel
        self._groups: dict[int, _Group[AnyTask]] = {}
        self._targets: dict[Hashable, _Target] = {}
        # Targets with a place to give and groups that wait, those with most work first.
        self._ready: list[tuple[float, int, Hashable]] = []
        self._count = 0
        self.running = 0
        self.unfinished = 0
        for task in tasks:
            self._add(task)
        for number in self._groups:
            self._queue(number)

    def next(self) -> AnyTask | None:
        """Return a task that may begin now and count it as running; None if none may."""
        if self._parallel is not None and self.running >= self._parallel:
            return None
        while self._ready:
            _, _, key = heapq.heappop(self._ready)
            target = self._targets[key]
            if not target.waiting or target.running >= self._limit(key):
                continue
            _, number = heapq.heappop(target.waiting)
            group = self._groups[number]
            full = next((other for other in group.waiting[0].targets if self._is_full(other)), None)
            if full is not None:
                # It waits for the other target, and does not block this one.
                heapq.heappush(self._targets[full].waiting, (-group.remaining, number))
                self._offer(key)
                continue
            task = group.waiting.popleft()
            self._take(task)
            self._offer(key)
            return task
        return None

    def end(self, task: AnyTask) -> None:
        """Take note that a running task has ended for good: what waits for it may begin."""
        self._release(task)
        self.unfinished -= 1
        group = self._groups[task.group]
        group.remaining -= task.cost
        for key in task.targets:
            self._targets[key].remaining -= task.cost
        self._settle(task)

    def retry(self, task: AnyTask) -> None:
        """Take note that a running task was cut off and has to run again, before all others of its group."""
        self._release(task)
        self._groups[task.group].waiting.appendleft(task)
        self._settle(task)

    def _add(self, task: AnyTask) -> None:
        group = self._groups.setdefault(task.group, _Group(deque(), 0.0))
        group.waiting.append(task)
        group.remaining += task.cost
        self.unfinished += 1
        for key in task.targets:
            self._targets.setdefault(key, _Target(0, 0.0, [])).remaining += task.cost

    def _limit(self, key: Hashable) -> int:
        return self._limits.get(key, self._per_target)

    def _is_full(self, key: Hashable) -> bool:
        return self._targets[key].running >= self._limit(key)

    def _take(self, task: AnyTask) -> None:
        self.running += 1
        for key in task.targets:
            self._targets[key].running += 1

    def _release(self, task: AnyTask) -> None:
        self.running -= 1
        for key in task.targets:
            self._targets[key].running -= 1

    def _settle(self, task: AnyTask) -> None:
        """Queue what is next in the group of a task that runs no longer, and offer the places that it held."""
        self._queue(task.group)
        for key in task.targets:
            self._offer(key)

    def _queue(self, number: int) -> None:
        """Let the next task of a group wait for its target."""
        group = self._groups[number]
        if not group.waiting:
            return
        key = group.waiting[0].targets[0]
        heapq.heappush(self._targets[key].waiting, (-group.remaining, number))
        self._offer(key)

    def _offer(self, key: Hashable) -> None:
        """Say that a target may have a place for what waits for it."""
        target = self._targets[key]
        if target.waiting and target.running < self._limit(key):
            self._count += 1
            heapq.heappush(self._ready, (-target.remaining / self._limit(key), self._count, key))
