"""A merge that begins again, since its files were put back, and fails: what it noted of them proves nothing later."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.crash.disks import Disk
from tests.crash.failing import CHANGING, FailingFolder, Fault
from tests.crash.restores import BEGUN
from tests.crashfs import CrashFolder
from vhdkit.errors import VhdError

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder

BASE, LEAF, UNDO = "/vms/base.vhd", "/vms/leaf.avhd", "/vms/undo.vhd"
SIZE, BLOCK = 1 << 16, 4096


def shown(path: str, folder: CrashFolder) -> bytes:
    with vhdkit.open_chain(path, folder=folder) as chain:
        return chain.read(0, SIZE)


def put_back(disk_type: Any, *, in_place: bool) -> Disk:
    """Return a disk on which a merge is complete, its sources kept, and its destination put back as it was before."""
    folder = CrashFolder({}, now=BEGUN, clock=True)
    vhdkit.create_image(BASE, size=SIZE, disk_type=disk_type, block_size=BLOCK, folder=folder)
    with vhdkit.open_chain(BASE, writable=True, folder=folder) as chain:
        chain.write(0, b"b" * SIZE)
    vhdkit.create_image(LEAF, parent=BASE, block_size=BLOCK, folder=folder)
    with vhdkit.open_chain(LEAF, writable=True, folder=folder) as chain:
        chain.write(BLOCK, b"l" * 3 * BLOCK)
    before = Disk.of(folder)
    folder = before.folder()
    plan = vhdkit.plan_merge(LEAF, undo=UNDO, folder=folder)
    vhdkit.merge(plan, folder=folder)
    old = before.files[BASE]
    return Disk.of(folder).put_back(BASE, old.content, mtime=old.mtime, in_place=in_place)


def attempt(folder: Folder, **options: Any) -> str:
    """Merge, and return what the error says, with its notes; "" if there is none."""
    try:
        vhdkit.merge(vhdkit.plan_merge(LEAF, undo=UNDO, folder=folder), folder=folder, **options)
    except (VhdError, OSError) as error:
        return "\n".join([str(error), *getattr(error, "__notes__", [])])
    return ""


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("disk_type", ["fixed", "dynamic"])
def test_a_restart_that_fails_is_not_taken_for_a_merge_that_is_complete(disk_type: str, in_place: bool) -> None:
    disk, at, has_struck = put_back(disk_type, in_place=in_place), 0, True
    leaf = shown(LEAF, disk.folder())
    while has_struck:
        found = disk.folder()
        failing = FailingFolder(found, Fault(at=at, error=errno.EIO, kinds=CHANGING, partly=at % 2 == 1))
        said = attempt(failing)
        has_struck, at = failing.struck is not None, at + 1
        assert "is complete" not in said or shown(BASE, found) == leaf
        folder = Disk.of(found).folder()
        assert attempt(folder) == ""
        assert shown(BASE, folder) == leaf, f"{at}: {failing.struck}"
    assert at > 6


@pytest.mark.parametrize("phase", list(vhdkit.Phase))
def test_a_restart_that_is_cancelled_is_not_taken_for_a_merge_that_is_complete(phase: vhdkit.Phase) -> None:
    disk = put_back("dynamic", in_place=False)
    folder = disk.folder()
    leaf = shown(LEAF, folder)

    def stop(state: vhdkit.Progress) -> None:
        if state.phase is phase:
            raise vhdkit.MergeCancelled("enough")

    said = attempt(folder, progress=stop)
    assert "is complete" not in said or shown(BASE, folder) == leaf
    folder = Disk.of(folder).folder()
    assert attempt(folder) == ""
    assert shown(BASE, folder) == leaf
