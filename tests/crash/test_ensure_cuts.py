"""Every cut of `ensure_merged`, the call repeated on every disk that it leaves; and its destination put back after it.

All of it: pytest -m slow -s tests/crash/test_ensure_cuts.py
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.crash.acts import remembering, standing_still
from tests.crash.disks import Disk
from tests.crash.programs import PROGRAMS, CrashProgram
from tests.crash.readers import images_of, parsed, plain_view
from tests.crash.survivals import cuts
from tests.crashfs import CrashFolder
from tests.plainvhd import PlainImage
from vhdkit import Ensured
from vhdkit.disk.unique_id import guid
from vhdkit.merging.completion import completion_path

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder

pytestmark = pytest.mark.thorough

ENSURED = [program for program in PROGRAMS if not program.undo and not program.merge.keep]
by_name = pytest.mark.parametrize("program", ENSURED, ids=lambda program: program.name)


def ensure(program: CrashProgram, folder: Folder) -> Ensured:
    leaf = parsed(program.files[program.top])
    assert isinstance(leaf, PlainImage)
    with standing_still():
        done = vhdkit.ensure_merged(
            program.top,
            into=program.destination,
            leaf_id=guid(leaf.unique_id),
            verify=program.verify,
            folder=folder,
        )
    return done.outcome


def done(program: CrashProgram) -> CrashFolder:
    folder = CrashFolder(program.files, clock=True)
    assert ensure(program, folder) is Ensured.BEGUN
    return folder


def hold_cuts(program: CrashProgram, share: float) -> Counter[str]:
    """Repeat the call on every disk that a cut may leave: it ends in the same bytes, and then it was done."""
    folder = done(program)
    finished = images_of(folder.contents())
    dice, tally, seen = random.Random(program.name), Counter[str](), set()
    for cut in cuts(folder):
        if share < 1 and dice.random() >= share:
            continue
        tally["cuts"] += 1
        for survival in cut.survivals(3, stale=cut.index % 2 == 1):
            if survival.key in seen:
                continue
            seen.add(survival.key)
            where = f"{program.name}: cut {cut.index}: {survival.label}"
            disk = survival.folder(clock=True)
            tally[ensure(program, disk)] += 1
            assert images_of(disk.contents()) == finished, where
            assert set(disk.contents()) == {*finished, completion_path(program.destination)}, where
            after = disk.contents()
            assert ensure(program, disk) is Ensured.WAS_DONE, where
            assert disk.contents() == after, where
    return tally


def hold_restored(program: CrashProgram, share: float) -> Counter[str]:
    """Put the destination of a complete merge back to each of its earlier versions: it is never called done then."""
    folder = done(program)
    finished = folder.contents()
    expected = plain_view(program.files, program.top)
    versions = {program.files[program.destination]: 0}
    for cut in cuts(folder):
        found = cut.survival([atom.versions - 1 for atom in cut.atoms]).files
        if program.destination in found:
            versions.setdefault(found[program.destination], cut.index)
    dice, tally = random.Random(program.name), Counter[str]()
    for raw, index in versions.items():
        if share < 1 and dice.random() >= share:
            continue
        for mtime in (None, 1.0):
            for in_place in (False, True):
                disk = Disk.of(folder).put_back(program.destination, raw, mtime=mtime, in_place=in_place)
                back = disk.folder(clock=True)
                before = back.contents()
                try:
                    outcome: str = ensure(program, back)
                except (vhdkit.VhdError, OSError) as error:
                    outcome = type(error).__name__
                    assert back.contents() == before, (program.name, index)
                else:
                    # Readers that look for parents by id see the same disk, whatever else lies in the file.
                    shown = plain_view({**finished, program.destination: raw}, program.destination)
                    assert shown == expected, (program.name, index, mtime, in_place)
                tally[outcome] += 1
    return tally


@by_name
def test_a_portion_of_the_cuts_ends_in_the_same_bytes_and_is_done_then(program: CrashProgram) -> None:
    with remembering():
        hold_cuts(program, 0.02)


@by_name
def test_a_destination_that_was_put_back_is_never_called_done(program: CrashProgram) -> None:
    with remembering():
        hold_restored(program, 0.2)


@pytest.mark.slow
def test_every_cut_and_every_earlier_destination() -> None:
    tally = Counter[str]()
    with remembering():
        for program in ENSURED:
            tally += hold_cuts(program, 1.0)
            tally += Counter({f"put back: {name}": count for name, count in hold_restored(program, 1.0).items()})
    print(f"\n{len(ENSURED)} programs: {dict(tally)}")  # noqa: T201 - the figures are what the run is for
