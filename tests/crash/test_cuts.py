"""Every cut of a merge, of its roll-back and of dropping its undo image; CI takes a seeded portion.

All of it: pytest -m slow -s tests/crash/test_cuts.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.crash.acts import drop, merged, run, small_steps, take_back, uncut
from tests.crash.laws import Tally
from tests.crash.programs import PROGRAMS, UNDO, CrashProgram
from tests.crash.readers import plain_view
from tests.crash.survivals import cuts
from tests.crash.undoing import is_restored
from tests.crash.walking import How, walk, walk_drop, walk_rollback
from vhdkit.journal.merge_journal import journal_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.crashfs import CrashFolder

BY_NAME = {program.name: program for program in PROGRAMS}
UNDOABLE = [program for program in PROGRAMS if program.undo]
IN_STEPS = [
    "seams dynamic 4096",
    "seams differencing 4096",
    "undo dynamic",
    "undo differencing",
]
# What check may say of an image that it did not say before the merge, all of it mended by the same command again:
# sectors written whose bits are not set yet, blocks whose disk is yet to grow, a footer that did not survive with its
# file's length; and that the merge is not finished.
ALLOWED = {
    vhdkit.Corruption.CLEAR_SECTOR_DATA,
    vhdkit.Corruption.BLOCK_BEYOND_DISK,
    vhdkit.Corruption.FOOTER_TRAILING_LOST,
    vhdkit.Corruption.MERGE_UNFINISHED,
}

by_name = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
by_undoable_name = pytest.mark.parametrize("program", UNDOABLE, ids=lambda program: program.name)


@pytest.fixture
def _in_small_steps() -> Iterator[None]:
    with small_steps():
        yield


def assert_kept(tally: Tally) -> None:
    assert tally.findings == []
    assert tally.warnings.keys() <= ALLOWED


def test_there_are_sixty_programs_of_different_names() -> None:
    assert len(BY_NAME) == len(PROGRAMS) >= 60


@by_name
def test_programs_are_what_the_model_says(program: CrashProgram) -> None:
    assert {path: plain_view(program.files, path) for path in program.before} == program.before


@by_name
def test_a_portion_of_the_cuts_keeps_the_laws(program: CrashProgram) -> None:
    assert_kept(walk(program, How(seed=3, share=SHARE)))


@by_undoable_name
def test_a_portion_of_the_cuts_of_a_roll_back_keeps_the_laws(program: CrashProgram) -> None:
    assert_kept(walk_rollback(program, How(seed=4, share=SHARE)))


@by_undoable_name
def test_a_portion_of_the_cuts_of_dropping_keeps_the_laws(program: CrashProgram) -> None:
    assert_kept(walk_drop(program, How(seed=5, share=SHARE)))


SHARE = 0.01


@pytest.mark.usefixtures("_in_small_steps")
@pytest.mark.parametrize("name", IN_STEPS)
def test_a_portion_of_the_cuts_between_checkpoints_keeps_the_laws(name: str) -> None:
    assert_kept(walk(BY_NAME[name], How(seed=6, share=SHARE)))


def cut_late(program: CrashProgram, number: int) -> CrashFolder:
    """Return the disk of a merge that was cut off at one of the last cuts before it was complete."""
    folder = uncut(program)
    found = [cut.survival([atom.versions - 1 for atom in cut.atoms]) for cut in cuts(folder)]
    return found[-number].folder()


@by_undoable_name
def test_a_merge_that_was_cut_off_is_rolled_back_through_cuts_as_well(program: CrashProgram) -> None:
    assert_kept(walk_rollback(program, How(seed=7, share=SHARE), start=cut_late(program, 5)))


@by_undoable_name
def test_a_merge_is_done_again_after_its_roll_back(program: CrashProgram) -> None:
    folder = merged(program)
    take_back(program, folder)
    assert list(is_restored(program, folder)) == []
    run(program, folder)
    take_back(program, folder)
    assert list(is_restored(program, folder)) == []
    run(program, folder)
    drop(program, folder)
    assert not folder.exists(journal_path(program.destination))
    assert folder.exists(UNDO) == program.relink_siblings


# Too long for CI


@pytest.mark.slow
def test_every_cut_keeps_the_laws() -> None:
    tally = Tally()
    for program in PROGRAMS:
        tally.add(walk(program, How(twice=0.02)))
    print(f"\nmerges: {tally}")  # noqa: T201 - the figures are what the run is for
    assert_kept(tally)


@pytest.mark.slow
def test_every_cut_of_roll_backs_and_of_dropping_keeps_the_laws() -> None:
    tally = Tally()
    for program in UNDOABLE:
        tally.add(walk_rollback(program, How(twice=0.02)))
        tally.add(walk_rollback(program, How(twice=0.02), start=cut_late(program, 5)))
        tally.add(walk_drop(program, How(twice=0.02)))
    print(f"\nroll-backs and drops: {tally}")  # noqa: T201
    assert_kept(tally)


@pytest.mark.slow
@pytest.mark.usefixtures("_in_small_steps")
def test_every_cut_between_checkpoints_keeps_the_laws() -> None:
    tally = Tally()
    for program in PROGRAMS[::3]:
        tally.add(walk(program, How(twice=0.02)))
    print(f"\nin small steps: {tally}")  # noqa: T201
    assert_kept(tally)
