"""The laws of the schedule, on small fleets of every shape; `test_many_chains` has the large one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdkit.fleet.schedule import Schedule

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True)
class Job:
    number: int
    targets: tuple[str, ...]
    group: int
    cost: float


@st.composite
def fleets(draw: st.DrawFn) -> list[Job]:
    return [
        Job(
            number,
            tuple(draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))),
            draw(st.integers(0, 8)),
            draw(st.integers(0, 5)),
        )
        for number in range(draw(st.integers(0, 20)))
    ]


@given(
    fleets(),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 4)),
    st.randoms(use_true_random=False),
)
def test_every_task_ends_once_and_no_bound_is_passed(
    jobs: list[Job], per_target: int, parallel: int | None, dice: Random
) -> None:
    schedule = Schedule(jobs, per_target=per_target, parallel=parallel)
    running: list[Job] = []
    ended: list[Job] = []
    cut_off: Counter[int] = Counter()
    while schedule.unfinished:
        while (job := schedule.next()) is not None:
            running.append(job)
        # With nothing running something must be able to begin: no two wait for each other.
        assert running
        users = Counter(target for job in running for target in job.targets)
        assert max(users.values()) <= per_target
        assert parallel is None or len(running) <= parallel
        assert len({job.group for job in running}) == len(running) == schedule.running
        job = running.pop(dice.randrange(len(running)))
        if cut_off[job.number] < 2 and dice.random() < 0.3:
            cut_off[job.number] += 1
            schedule.retry(job)
        else:
            schedule.end(job)
            ended.append(job)
    assert sorted(ended, key=lambda job: job.number) == jobs
    for group in range(9):
        assert [job for job in ended if job.group == group] == [job for job in jobs if job.group == group]


def test_no_place_is_left_empty_that_a_task_could_take() -> None:
    """A task that waits for one file system does not block the other that it uses."""
    both, here, there = Job(0, ("a", "b"), 0, 9), Job(1, ("a",), 1, 1), Job(2, ("b",), 2, 5)
    schedule = Schedule([both, here, there], per_target=1)
    # Most work waits for b.
    assert schedule.next() is there
    assert schedule.next() is here
    schedule.end(here)
    assert schedule.next() is None
    schedule.end(there)
    assert schedule.next() is both


def test_the_longest_group_begins_first() -> None:
    jobs = [Job(0, ("a",), 0, 5), Job(1, ("a",), 1, 3), Job(2, ("a",), 1, 3), Job(3, ("a",), 2, 4)]
    schedule = Schedule(jobs, per_target=1)
    order = []
    while (job := schedule.next()) is not None:
        order.append(job.number)
        schedule.end(job)
    assert order == [1, 0, 3, 2]


@pytest.mark.parametrize(("per_target", "parallel"), [(0, None), (1, 0)])
def test_a_bound_of_none_is_refused(per_target: int, parallel: int | None) -> None:
    with pytest.raises(ValueError, match="expected 1 or more"):
        Schedule([], per_target=per_target, parallel=parallel)
