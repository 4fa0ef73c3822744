"""At every cut of a merge, and after it, no child can be made of a layer that no longer shows what it did.

All of it: pytest -m slow -s tests/crash/test_ended_cuts.py
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.crash.acts import remembering, run, small_steps, uncut
from tests.crash.programs import PROGRAMS, CrashProgram
from tests.crash.readers import plain_view
from tests.crash.survivals import cuts

if TYPE_CHECKING:
    from tests.crashfs import CrashFolder

pytestmark = pytest.mark.thorough

BETWEEN = [program for program in PROGRAMS if len(program.sources) > 1 and not program.undo]
CHILD = "/vms/child.avhd"
by_name = pytest.mark.parametrize("program", BETWEEN, ids=lambda program: program.name)


def is_refused(folder: CrashFolder, layer: str) -> bool:
    try:
        vhdkit.create_image(CHILD, parent=layer, folder=folder)
    except vhdkit.JournalError:
        return True
    folder.remove(CHILD)
    return False


def hold(program: CrashProgram, share: float) -> Counter[str]:
    before = {path: plain_view(program.files, path) for path in program.sources[1:]}
    dice, tally, seen = random.Random(program.name), Counter[str](), set()
    folder = uncut(program, clock=True)
    last = len(folder.log)
    # Without its fast paths a merge has fewer cuts: at least the last of them is tried.
    chosen = {at for at in range(last + 1) if share >= 1 or dice.random() < share} or {last}
    for cut in cuts(folder):
        if cut.index not in chosen:
            continue
        for survival in cut.survivals(3, stale=cut.index % 2 == 1):
            if survival.key in seen:
                continue
            seen.add(survival.key)
            disk = survival.folder(clock=True)
            where = f"{program.name}: cut {cut.index}: {survival.label}"
            tally["disks"] += 1
            tally["refused"] += hold_views(disk, before, where)
            run(program, disk)
            tally["afterwards"] += hold_views(disk, before, f"{where}, finished")
    return tally


def hold_views(disk: CrashFolder, before: dict[str, bytes], where: str) -> int:
    """Hold every layer that is there against what it showed; return how many no longer show it."""
    files, ended = disk.contents(), 0
    for path, expected in before.items():
        if path in files and plain_view(files, path) != expected:
            assert is_refused(disk, path), f"{where}: a child was made of {path}"
            ended += 1
    return ended


@by_name
def test_no_child_is_made_of_an_ended_view_at_a_portion_of_the_cuts(program: CrashProgram) -> None:
    with remembering(), small_steps():
        tally = hold(program, 0.1)
    assert tally["disks"]
    assert tally["afterwards"] if program.merge.keep else not tally["afterwards"]


@pytest.mark.slow
@by_name
def test_no_child_is_made_of_an_ended_view_at_any_cut(program: CrashProgram) -> None:
    with remembering(), small_steps():
        tally = hold(program, 1)
    assert tally["refused"]
