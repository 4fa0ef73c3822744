"""A fleet of any size on a simulated clock: the schedule is the real one, and what merges take was recorded.

`recorded_merges.csv` has what 120 real merges took, one after another on two busy cores: the bytes of their sources,
which is all that a schedule knows, and seconds. Hosts have from a few to a thousand chains; every tenth chain lies on
one of a few file servers that all hosts share. Workers fail and straggle as `Weather` says.
"""

from __future__ import annotations

import csv
import heapq
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vhdkit.fleet.schedule import Schedule

if TYPE_CHECKING:
    import random

PER_TARGET: Final = 2
WORKERS_PER_HOST: Final = 4
SERVERS: Final = 5
SERVER_LIMIT: Final = 40


@dataclass(frozen=True, slots=True)
class Weather:
    """How often a task's worker dies, at a random point of it, and how often and how many times slower it is."""

    dies: float = 0.02
    straggles: float = 0.03
    slower: float = 8.0


@dataclass(frozen=True, slots=True)
class SimulatedTask:
    """A merge: what the schedule knows of it, and the seconds that it takes a worker that is well."""

    number: int
    targets: tuple[str, ...]
    group: int
    cost: float
    seconds: float


@dataclass(slots=True)
class Outcome:
    """What a simulated run did; times are in simulated seconds.

    `bound` is what no schedule whatever could beat: the most that any file system, host, worker or group of merges had
    to do, by how much of it may be done at once. What dying and straggling workers took is in it.
    """

    makespan: float = 0.0
    bound: float = 0.0
    ends: Counter[int] = field(default_factory=Counter)
    deaths: int = 0
    most_at_once: Counter[str] = field(default_factory=Counter)


def recorded() -> list[tuple[float, float]]:
    """Return (bytes, seconds) of each recorded merge."""
    with (Path(__file__).parent / "recorded_merges.csv").open(newline="") as file:
        return [(float(row["source_bytes"]), float(row["seconds"])) for row in csv.DictReader(file)]


def make_fleet(chains: int, hosts: int, dice: random.Random) -> list[SimulatedTask]:
    """Return a number of merges on a number of hosts; every eighth shares its files with the one before."""
    merges = recorded()
    weights = [dice.uniform(0.5, 1.5) for _ in range(hosts)]
    places = dice.choices(range(hosts), weights, k=chains)
    tasks: list[SimulatedTask] = []
    for number, host in enumerate(places):
        cost, seconds = dice.choice(merges)
        shared = number % 8 == 7
        where = tasks[-1].targets if shared else (_disk(host, dice), f"host {host}")
        group = tasks[-1].group if shared else number
        tasks.append(SimulatedTask(number, where, group, cost, seconds))
    return tasks


def _disk(host: int, dice: random.Random) -> str:
    if dice.random() < 0.1:
        return f"server {dice.randrange(SERVERS)}"
    return f"disk {host}.{dice.randrange(2)}"


def limits_of(tasks: list[SimulatedTask]) -> dict[object, int]:
    """Return the limits that are not the usual one: a host's workers, and what a file server takes."""
    names = {target for task in tasks for target in task.targets}
    hosts: dict[object, int] = {name: WORKERS_PER_HOST for name in names if name.startswith("host")}
    return hosts | {name: SERVER_LIMIT for name in names if name.startswith("server")}


def simulate(tasks: list[SimulatedTask], weather: Weather, dice: random.Random, parallel: int | None = None) -> Outcome:
    """Run a fleet to its end, and return what happened."""
    limits = limits_of(tasks)
    schedule = Schedule(tasks, per_target=PER_TARGET, parallel=parallel, limits=limits)
    outcome, now = Outcome(), 0.0
    using: Counter[str] = Counter()
    busy: dict[str, float] = defaultdict(float)
    groups: dict[int, float] = defaultdict(float)
    left = {task.number: task.seconds for task in tasks}
    running: list[tuple[float, int, SimulatedTask, bool]] = []
    while schedule.unfinished:
        while (task := schedule.next()) is not None:
            took, dies = _attempt(left[task.number], weather, dice)
            left[task.number] -= took if dies else 0.0
            heapq.heappush(running, (now + took, task.number, task, dies))
            groups[task.group] += took
            for target in task.targets:
                using[target] += 1
                busy[target] += took
                outcome.most_at_once[target] = max(outcome.most_at_once[target], using[target])
        now, _, task, dies = heapq.heappop(running)
        using.subtract(task.targets)
        if dies:
            outcome.deaths += 1
            schedule.retry(task)
        else:
            outcome.ends[task.number] += 1
            schedule.end(task)
    outcome.makespan = now
    outcome.bound = max(*(busy[name] / limits.get(name, PER_TARGET) for name in busy), *groups.values())
    if parallel is not None:
        outcome.bound = max(outcome.bound, sum(groups.values()) / parallel)
    return outcome


def _attempt(seconds: float, weather: Weather, dice: random.Random) -> tuple[float, bool]:
    """Return how long an attempt at what is left of a merge takes, and whether its worker dies in it."""
    if dice.random() < weather.dies:
        # Where it died the journal's mark is: what it did counts.
        return seconds * dice.random(), True
    return seconds * (weather.slower if dice.random() < weather.straggles else 1.0), False
