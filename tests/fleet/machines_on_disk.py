"""Machines with a chain each, what the tests' own reader sees in them, and fleets of them."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import vhdkit
from tests.crash.real import plain_digest
from tests.jobs.making import make_chain
from vhdkit import fleet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

RECORD = ".vhdkit-merged"


def make_machines(vms: Path, count: int, *, mebibytes: int = 1, levels: int = 3) -> dict[str, str]:
    """Make `count` machines, a folder each, and return what each one's leaf shows by its name."""
    views = {}
    for number in range(count):
        name = f"vm{number:02}"
        (vms / name).mkdir()
        leaf = make_chain(vms / name, name, mebibytes, levels=levels)
        views[name] = plain_digest(vms / name, leaf.rsplit("/", 1)[1])
    return views


def remove_machines(vms: Path) -> None:
    """Remove the machines in a folder, for the next test."""
    for path in vms.iterdir():
        shutil.rmtree(path)


def found(vms: Path, pattern: str = "**/*.avhd") -> fleet.FoundChains:
    """Return the chains below a folder."""
    return fleet.find_chains(fleet.Pattern.of(f"{vms}/{pattern}"), fleet.ParentPolicy())


def plan_of(vms: Path, verb: str, pattern: str = "**/*.avhd", **options: object) -> fleet.FleetPlan:
    """Return the plan of a verb for the chains below a folder."""
    asked = fleet.FleetOptions(verb=fleet.FleetVerb(verb), **options)  # type: ignore[arg-type] # by name
    return fleet.plan_fleet([found(vms, pattern)], asked)


def run_here(plan: fleet.FleetPlan) -> fleet.FleetReport:
    """Carry out a plan in threads of this process, which are there at once."""
    with ThreadPoolExecutor(2) as threads:
        return fleet.run_plan(plan, threads)


def outcomes(report: fleet.FleetReport) -> dict[str, int]:
    """Return how many chains have ended how."""
    return {outcome.value: number for outcome, number in report.counts.items()}


def copying_process(leaf: Path) -> int:
    """Return the process that merges a leaf and is between a fifth and three fifths of the way, 0 if none is."""
    for job in vhdkit.jobs(running=True):
        is_it = job.sources[:1] == (str(leaf),) and job.pid != os.getpid()
        if is_it and 0.2 < job.bytes_done / max(1, job.bytes_total) < 0.6:
            return job.pid
    return 0


def names_below(vms: Path) -> set[str]:
    """Return the files below a folder by their paths from there."""
    return {path.relative_to(vms).as_posix() for path in vms.rglob("*") if path.is_file()}


def assert_merged(vms: Path, views: Mapping[str, str], bases: Sequence[str] = ()) -> None:
    """Hold each machine against what its leaf showed: merged into its base, with nothing else left but its record."""
    for name, view in views.items():
        assert plain_digest(vms / name, f"{name}.vhd") == view, name
    expected = {f"{name}/{name}.vhd{suffix}" for name in views for suffix in ("", RECORD)}
    assert names_below(vms) - set(bases) == expected
