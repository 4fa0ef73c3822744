"""Many jobs at once, from many processes, some of which are killed."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.jobs.making import HANGS_SECONDS, make_chain, python, until, view
from vhdkit.job.job import JobState

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.thorough

_STARTS = """
import sys, time, vhdkit

kind, *leaves = sys.argv[1:]
sys.stdin.readline()
started = [vhdkit.start_merge(leaf, rate=2 << 20, detached=kind == "detached") for leaf in leaves]
print(*(job.id for job in started), flush=True)
for job in started:
    job.wait()
"""
_PROCESSES = 8


def fifty_leaves(vms: Path, count: int) -> list[str]:
    """Make as many leaves: two of each five are two levels of one chain, and cannot be merged side by side."""
    leaves: list[str] = []
    while len(leaves) < count:
        number = len(leaves)
        if number % 5 == 3:
            top = make_chain(vms, f"m{number}", 1, levels=2)
            leaves += [str(vms / f"m{number}_0.avhd"), top]
        else:
            leaves.append(make_chain(vms, f"m{number}", 1))
    return leaves[:count]


def start_all(leaves: list[str], kinds: str) -> tuple[list[str], list[int]]:
    """Start a merge of each, all at once, and return the ids, and the processes that started them."""
    starters = [
        python(_STARTS, ("detached" if (kinds == "detached" or at % 2) else "thread"), *leaves[at::_PROCESSES])
        for at in range(_PROCESSES)
    ]
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("\n")
        starter.stdin.flush()
    ids: list[str] = []
    pids = []
    for starter in starters:
        assert starter.stdout is not None
        line = starter.stdout.readline()
        if not line:
            raise AssertionError(starter.communicate()[1])
        ids += line.split()
        pids.append(starter.pid)
    start_all.starters = starters  # type: ignore[attr-defined]
    return ids, pids


def ended() -> bool:
    return all(job.state.is_finished for job in vhdkit.jobs())


@pytest.mark.parametrize("count", [12, pytest.param(50, marks=pytest.mark.slow)])
def test_each_of_many_jobs_ends_in_one_state_and_no_row_is_lost(count: int, vms: Path) -> None:
    leaves = fifty_leaves(vms, count)
    # What the topmost of a chain reads is what its base reads when all are merged.
    tops = {leaf: view(leaf) for leaf in leaves if leaf.endswith("_1.avhd") or f"{leaf[:-7]}_1.avhd" not in leaves}
    ids, _ = start_all(leaves, "mixed")
    assert len(set(ids)) == count
    for starter in start_all.starters:  # type: ignore[attr-defined]
        _, told = starter.communicate(timeout=HANGS_SECONDS)
        assert (starter.returncode, told) == (0, "")
    until(ended)
    jobs = vhdkit.jobs()
    assert sorted(job.id for job in jobs) == sorted(ids)
    assert [(job.state, job.percent, job.error) for job in jobs] == [(JobState.COMPLETED, 100, "")] * count
    for leaf, read in tops.items():
        assert view(f"{leaf.rpartition('_')[0]}.vhd") == read, leaf


@pytest.mark.parametrize("count", [9, pytest.param(50, marks=pytest.mark.slow)])
def test_of_many_jobs_whose_processes_are_killed_each_is_interrupted_or_complete_and_goes_on(
    count: int, vms: Path
) -> None:
    leaves = [make_chain(vms, f"m{number}", 2) for number in range(count)]
    views = {leaf: view(leaf) for leaf in leaves}
    dice = random.Random(count)
    ids, starters = start_all(leaves, "mixed")
    time.sleep(0.3)
    victims = set(starters[:3])
    for _ in range(count // 3):
        victims.add(dice.choice([job.pid for job in vhdkit.jobs()]))
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    seen = {job.id: job for job in vhdkit.jobs()}
    assert sorted(seen) == sorted(ids)
    assert not [job for job in seen.values() if job.pid in victims and not job.state.is_finished]
    assert any(job.state is JobState.KILLED for job in seen.values())
    until(ended)
    for starter in start_all.starters:  # type: ignore[attr-defined]
        starter.communicate(timeout=HANGS_SECONDS)
    for job in vhdkit.jobs():
        if job.state is not JobState.COMPLETED:
            assert job.state is JobState.KILLED
            leaf = job.sources[0]
            # Killed after the removal of its source: then the base has it all.
            left = leaf if os.path.exists(leaf) else f"{leaf.rpartition('_')[0]}.vhd"
            assert view(left) == views[leaf]
            vhdkit.resume_job(job.id)
    until(ended)
    assert [(job.state, job.percent) for job in vhdkit.jobs()] == [(JobState.COMPLETED, 100)] * count
    for leaf, read in views.items():
        assert not os.path.exists(leaf)
        assert view(f"{leaf.rpartition('_')[0]}.vhd") == read
