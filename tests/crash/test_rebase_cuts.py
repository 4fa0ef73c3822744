"""The power cut while a child is told of another parent: it reads through the old one or the new one."""

from __future__ import annotations

import pytest

from tests.crash.disks import Disk
from tests.crash.survivals import cuts
from tests.crashfs import CrashFolder, Synced
from tests.histories import content_of, put, view_of
from vhdkit.chain.chain import open_chain
from vhdkit.chain.rebase import plan_rebase, rebase
from vhdkit.errors import VhdError
from vhdkit.vhd.create import create_image
from vhdkit.vhd.header_update import SUFFIX

pytestmark = pytest.mark.thorough

OLD, NEW, CHILD = "/vms/base.vhd", "/vms/moved to/another folder/base.vhd", "/vms/child.avhd"
THIRD = "/vms/third/with another name.vhd"
IMAGES = {OLD, NEW, THIRD, CHILD}


def base(folder: CrashFolder, path: str, text: bytes) -> None:
    create_image(path, size=16384, block_size=4096, stamp=7, unique_id=text * 4, folder=folder)
    with open_chain(path, writable=True, folder=folder) as chain:
        chain.write(0, text * 1024, sync=True)


def laid() -> CrashFolder:
    """Lay a base, a copy of it elsewhere, a base with another id and other data, and a child of the first."""
    folder = CrashFolder({})
    base(folder, OLD, b"base")
    base(folder, THIRD, b"else")
    create_image(CHILD, parent=OLD, stamp=8, folder=folder)
    with open_chain(CHILD, writable=True, folder=folder) as chain:
        chain.write(8192, b"child" * 100, sync=True)
    put(folder, NEW, content_of(folder, OLD))
    return Disk.of(folder).folder()


def parent_of(folder: CrashFolder) -> str:
    with open_chain(CHILD, folder=folder) as chain:
        return chain.layers[1].path


def assert_planning_writes_nothing(folder: CrashFolder, parent: str) -> None:
    before = folder.contents()
    plan_rebase(CHILD, parent, ignore_id_mismatch=True, folder=folder)
    assert folder.contents() == before


def assert_rebased(folder: CrashFolder, parent: str, view: bytes) -> None:
    """Whatever was left, it can be done again, and leaves nothing but images.

    Only where nothing is to be written, nothing is removed either: a step file that nobody can read may stay.
    """
    result = rebase(CHILD, parent, ignore_id_mismatch=True, folder=folder)
    assert view_of(folder, CHILD) == view
    assert parent_of(folder) == parent
    strays = {entry.path for entry in folder.walk("/vms")} - IMAGES
    assert strays <= ({CHILD + SUFFIX} if result.changes_nothing else set())


def test_every_cut_leaves_the_child_reading_as_before() -> None:
    folder = laid()
    before = view_of(folder, CHILD)
    folder = Disk.of(folder).folder()
    assert not rebase(CHILD, NEW, folder=folder).changes_nothing
    found, count = set(), 0
    for cut in cuts(folder):
        for survival in cut.survivals(3):
            assert_planning_writes_nothing(survival.folder(), NEW)
            again = survival.folder()
            assert view_of(again, CHILD) == before, (survival.cut, survival.label)
            found.add(parent_of(again))
            assert_rebased(again, NEW, before)
            count += 1
    assert found == {OLD, NEW}
    assert count > 20


def walked(folder: CrashFolder, *, without: frozenset[int] = frozenset()) -> set[str]:
    """Hold that each cut of taking other data for the parent leaves one view or the other; return the parents found."""
    views = {OLD: view_of(folder, CHILD)}
    folder = Disk.of(folder).folder()
    rebase(CHILD, THIRD, ignore_id_mismatch=True, folder=folder)
    views[THIRD] = view_of(folder, CHILD)
    assert len(set(views.values())) == 2
    found = set()
    for cut in cuts(folder, without=without):
        for survival in cut.survivals(5):
            where = (survival.cut, survival.label)
            again = survival.folder()
            parent = parent_of(again)
            assert view_of(again, CHILD) == views[parent], where
            # The readers above finished the step, if one was left; what they left reads the same to the next.
            assert parent_of(again) == parent, where
            found.add(parent)
            assert_rebased(survival.folder(), THIRD, views[THIRD])
            assert_rebased(again, OLD, views[OLD])
    # What the last sync made durable is there at the end.
    assert parent == THIRD
    return found


def test_every_cut_of_taking_other_data_leaves_one_view_or_the_other() -> None:
    assert walked(laid()) == {OLD, THIRD}


def test_a_second_cut_in_doing_it_again_leaves_one_of_the_three() -> None:
    """What a first cut left is rebased to a third parent, and that is cut as well."""
    folder = laid()
    near, far = view_of(folder, CHILD), b"else" * 1024
    folder = Disk.of(folder).folder()
    rebase(CHILD, NEW, folder=folder)
    found, begun_steps = set(), 0
    for cut in cuts(folder):
        for survival in cut.survivals(7, missing=4, alone=1, drawn=1):
            begun_steps += CHILD + SUFFIX in survival.files
            second = survival.folder()
            rebase(CHILD, THIRD, ignore_id_mismatch=True, folder=second)
            for next_cut in cuts(second):
                for end in next_cut.survivals(9, missing=4, alone=1, drawn=1):
                    again = end.folder()
                    parent = parent_of(again)
                    expected = far + near[4096:] if parent == THIRD else near
                    assert view_of(again, CHILD) == expected, (survival.cut, survival.label, end.cut, end.label)
                    found.add(parent)
    assert found == {OLD, NEW, THIRD}
    assert begun_steps > 5, "steps that were cut off were among what was done again"


@pytest.mark.parametrize("which", ["step", "child"])
def test_a_sync_that_is_forgotten_is_found(which: str) -> None:
    """The walk itself is tested: without the step's sync, or the child's, it must find what is wrong."""
    folder = laid()
    trial = Disk.of(folder).folder()
    child = trial.names_of[CHILD].number
    rebase(CHILD, THIRD, ignore_id_mismatch=True, folder=trial)
    forgotten = frozenset(
        index
        for index, change in enumerate(trial.log)
        if isinstance(change, Synced) and (change.number == child) == (which == "child")
    )
    assert forgotten
    with pytest.raises((AssertionError, VhdError, OSError)):
        walked(folder, without=forgotten)
