"""Merges that are kept for being taken back, and undo images: a fleet leaves both alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.crash.real import plain_digest
from tests.fleet.machines_on_disk import make_machines, names_below, outcomes, plan_of, run_here
from vhdkit.cli.main import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def machine(vms: Path) -> Path:
    """A machine whose snapshots were merged with an undo image."""
    make_machines(vms, 1, levels=2)
    folder = vms / "vm00"
    plan = vhdkit.plan_merge(str(folder / "vm00_1.avhd"), into=str(folder / "vm00.vhd"), undo=str(folder / "old.avhd"))
    vhdkit.merge(plan)
    return folder


def test_an_undo_image_that_was_kept_is_never_merged_back(vms: Path, machine: Path) -> None:
    merged = plain_digest(machine, "vm00.vhd")
    vhdkit.drop_undo(str(machine / "old.avhd"), keep_file=True)
    # Another name does not hide what it is.
    (machine / "old.avhd").rename(machine / "renamed.avhd")
    for pattern in ("**/*.avhd", "vm00/renamed.avhd"):
        assert outcomes(run_here(plan_of(vms, "merge", pattern))) == {}
    assert plain_digest(machine, "vm00.vhd") == merged


def test_what_reads_through_a_kept_undo_image_is_merged_into_that_and_no_further(vms: Path, machine: Path) -> None:
    merged = plain_digest(machine, "vm00.vhd")
    vhdkit.drop_undo(str(machine / "old.avhd"), keep_file=True)
    vhdkit.create_image(str(machine / "child.avhd"), parent=str(machine / "old.avhd"))
    view = plain_digest(machine, "child.avhd")
    assert outcomes(run_here(plan_of(vms, "merge"))) == {"done": 1}
    assert plain_digest(machine, "vm00.vhd") == merged
    assert plain_digest(machine, "old.avhd") == view


def test_a_merge_that_waits_for_its_undo_image_to_be_dropped_is_told_and_left_alone(vms: Path, machine: Path) -> None:
    before = names_below(vms)
    report = run_here(plan_of(vms, "merge"))
    assert outcomes(report) == {"waits-for-drop": 1}
    (chain,) = report.chains
    assert (chain.path, chain.detail) == (str(machine / "vm00_1.avhd"), str(machine / "old.avhd"))
    assert "drop" in str(chain.hint)
    assert report.failures == ()
    assert names_below(vms) == before
    assert run(["fleet", "merge", f"{vms}/**/*.avhd", "--progress", "none"]) == 0


def test_nothing_is_merged_into_an_undo_image_that_a_roll_back_may_need(vms: Path, machine: Path) -> None:
    vhdkit.create_image(str(machine / "child.avhd"), parent=str(machine / "old.avhd"))
    view = plain_digest(machine, "old.avhd")
    assert outcomes(run_here(plan_of(vms, "merge"))) == {"waits-for-drop": 1, "failed": 1}
    assert plain_digest(machine, "old.avhd") == view
