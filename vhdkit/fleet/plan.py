"""What a fleet's run will do, as plain values: its tasks, what must not run at once, and what stands in the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vhdkit.fleet.requests import FleetRequest, FleetVerb, path_of, written_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vhdkit.errors import VhdError

# As in `merge_slots`: two keep a disk busy.
DEFAULT_PER_TARGET = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetTarget:
    """A file system that takes part: its number on a machine, "" for this one.

    One that a server lends to many machines is that of the server, `source` as it is mounted, on any of them.
    """

    host: str
    device: int
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetTask:
    """One request and what its scheduling takes: see `schedule`. `cost` is about how many bytes are read.

    `host` is the machine that the files are of, "" for this one or any; `place` is what a worker must have that sees
    them, "" if all do; `attempt` counts the workers that died of it.
    """

    number: int
    request: FleetRequest
    targets: tuple[FleetTarget, ...]
    group: int
    cost: float
    host: str = ""
    place: str = ""
    attempt: int = 0

    @property
    def path(self) -> str:
        """The image that it is about: the leaf."""
        return path_of(self.request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """A chain for which nothing can be done, and why."""

    path: str
    host: str
    error: VhdError | OSError


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingMerge:
    """A merge of the leaf `path` that is complete, and that somebody still may take back with its undo image."""

    path: str
    host: str
    undo_image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetLoad:
    """What a run does on one file system: tasks, the bytes that they read, and the room for new ones.

    `space_needed` is what as many tasks as run at once may take before the first of them gives any back; a merge takes
    no more than its sources' files, which are removed when it is complete.
    """

    target: FleetTarget
    name: str
    task_count: int
    total_bytes: int
    space_needed: int
    space_free: int | None = None
    seconds: float | None = None

    @property
    def lacks_space(self) -> bool:
        """Whether what runs at once may need more than is free, where that is known."""
        return self.space_free is not None and self.space_needed > self.space_free


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """The tasks of a run in the order in which they were found, those of a group in the order in which they must run.

    `per_target` is how many use a file system at once.
    """

    verb: FleetVerb
    tasks: tuple[FleetTask, ...]
    per_target: int = DEFAULT_PER_TARGET
    obstacles: tuple[Obstacle, ...] = ()
    waiting: tuple[WaitingMerge, ...] = ()
    mounts: Mapping[FleetTarget, str] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """About how many bytes are read."""
        return int(sum(task.cost for task in self.tasks))

    @property
    def loads(self) -> tuple[TargetLoad, ...]:
        """What is done on each file system, the one with most to do first."""
        of: dict[FleetTarget, list[FleetTask]] = {}
        for task in self.tasks:
            for target in task.targets:
                of.setdefault(target, []).append(task)
        loads = [self._load(target, tasks) for target, tasks in of.items()]
        return tuple(sorted(loads, key=lambda load: (-load.total_bytes, load.name)))

    def _load(self, target: FleetTarget, tasks: Sequence[FleetTask]) -> TargetLoad:
        costs = sorted((int(task.cost) for task in tasks if _writes_to(task, target)), reverse=True)
        at_once = sum(costs) if self.verb is FleetVerb.CONVERT else sum(costs[: self.per_target])
        name = target.source or self.mounts.get(target, "")
        return TargetLoad(
            target=target,
            name=f"{target.host}:{name}" if target.host else name,
            task_count=len(tasks),
            total_bytes=int(sum(task.cost for task in tasks)),
            space_needed=at_once,
        )


def _writes_to(task: FleetTask, target: FleetTarget) -> bool:
    """Whether a task makes files longer on a file system: the first of its targets, if it writes at all."""
    return written_path(task.request) is not None and task.targets[:1] == (target,)
