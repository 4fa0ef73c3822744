"""Calls that fail in operations on snapshots: each has happened or has not, and what was left is settled later."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

import pytest

from tests.crash.disks import Disk
from tests.crash.failing import CHANGING, FailingFolder, Fault
from tests.crash.survivals import cuts
from tests.crash.test_snapshot_cuts import PROGRAMS
from tests.crashfs import CrashFolder
from tests.histories import Act, Model, Settle, begin, carry_out, machine_on, strays, views_on
from vhdkit.errors import VhdError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.thorough

FAULTS = [
    Fault(at=0, error=errno.EIO),
    Fault(at=0, error=errno.ENOSPC, kinds=CHANGING, partly=True),
    Fault(at=0, error=errno.EIO, kinds=CHANGING, lasting=True),
    Fault(at=0, error=errno.EACCES),
]


def calls(folder: CrashFolder, act: Act, at: int, fault: Fault) -> int:
    counting = FailingFolder(Disk.of(folder).folder(), Fault(at=1 << 60, error=fault.error, kinds=fault.kinds))
    carry_out(counting, act, at)
    return counting.calls


def hit(folder: CrashFolder, act: Act, at: int, fault: Fault, before: Model, after: Model) -> None:
    """Carry an act out with a fault, and assert what must hold then, also if the power goes right afterwards."""
    inner = Disk.of(folder).folder()
    failing = FailingFolder(inner, fault)
    raised = False
    try:
        carry_out(failing, act, at)
    except (OSError, VhdError):
        raised = True
    where = f"{act}, {fault}, struck {failing.struck}"
    for file in inner.names_of.values():
        # A process that failed has ended.
        file.holders.clear()
    found = views_on(inner)
    assert found in (before.views(), after.views()), where
    assert raised or found == after.views(), where
    *_, last = cuts(inner)
    disks = [survival.folder(clock=True) for survival in last.survivals(at, missing=2, alone=1, drawn=1)]
    for disk in (Disk.of(inner).folder(), *disks):
        left = views_on(disk)
        assert left in (before.views(), after.views()), where
        machine = machine_on(disk, 3000 + at)
        machine.settle()
        assert views_on(disk) == left, where
        assert strays(disk) == [], where
        if left != after.views():
            carry_out(disk, act, 4000 + at)
            assert views_on(disk) == after.views(), where


def walk(acts: list[Act], disks: int, cut_acts: int, *, share: float, seed: int) -> Iterator[Fault]:
    """Let a share of the calls of a program's last acts fail, each alone; yield the faults."""
    folder = CrashFolder({}, clock=True)
    begin(folder, disks)
    model = Model.empty(disks)
    dice = random.Random(seed)
    for at, act in enumerate(acts):
        before = model.copy()
        model.carry_out(act)
        for fault in FAULTS if at >= len(acts) - cut_acts else ():
            count = calls(folder, act, at, fault)
            for number in sorted(dice.sample(range(count), max(1, round(count * share)))):
                one = Fault(at=number, error=fault.error, kinds=fault.kinds, partly=fault.partly, lasting=fault.lasting)
                hit(folder, act, at, one, before, model)
                yield one
        folder = Disk.of(folder).folder()
        carry_out(folder, act, at)


@pytest.mark.parametrize(
    ("disks", "acts", "cut_acts"), [program[1:] for program in PROGRAMS], ids=[program[0] for program in PROGRAMS]
)
def test_an_operation_whose_calls_fail_has_happened_or_has_not(disks: int, acts: list[Act], cut_acts: int) -> None:
    share = 0.002 if Settle() in acts[-cut_acts:] else 0.008
    assert len(list(walk(acts, disks, cut_acts, share=share, seed=len(acts)))) >= len(FAULTS)


@pytest.mark.slow
def test_any_call_of_an_operation_may_fail() -> None:
    hits = sum(1 for _, disks, acts, cut_acts in PROGRAMS for _ in walk(acts, disks, cut_acts, share=0.3, seed=7))
    print(f"\n{hits} calls failed")  # noqa: T201 - the figure is what the run is for
