"""Cuts while a leaf is written with `sync`: the image is valid, every sector old or new, and the next write goes on."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.crash.disks import Disk
from tests.crash.failing import FailingFolder, Fault
from tests.crash.survivals import cuts
from tests.crashfs import CrashFolder
from tests.unit.test_merge_laws import contents
from vhdkit.errors import VhdError
from vhdkit.findings import Level
from vhdkit.storage.memory import MemoryFolder, MemoryStorage

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder

BASE, KID = "/vms/base.vhd", "/vms/kid.avhd"
BLOCK, SECTOR = 4096, 512
SIZE = 16 * BLOCK


def shown(path: str, folder: CrashFolder) -> bytes:
    with vhdkit.open_chain(path, folder=folder) as chain:
        return chain.read(0, chain.size)


def write(path: str, offset: int, data: bytes, folder: Folder) -> None:
    with vhdkit.open_chain(path, writable=True, folder=folder) as chain:
        chain.write(offset, data, sync=True)


@pytest.mark.parametrize("path", [BASE, KID])
def test_a_cut_while_blocks_are_added_leaves_every_sector_old_or_new(path: str) -> None:
    folder = CrashFolder({})
    vhdkit.create_image(BASE, size=SIZE, block_size=BLOCK, unique_id=b"b" * 16, stamp=7, folder=folder)
    if path == KID:
        vhdkit.create_image(KID, parent=BASE, stamp=8, folder=folder)
    write(path, 0, b"o" * (BLOCK + SECTOR), folder)
    before = shown(path, folder)
    folder = Disk.of(folder).folder()
    # Of a block that is there, and of two that are not.
    write(path, BLOCK, b"n" * 2 * BLOCK + b"n" * SECTOR, folder)
    after = shown(path, folder)
    for cut in cuts(folder):
        # Length that survives without its data is rubbish at every other cut.
        for survival in cut.survivals(seed=1, stale=cut.index % 2 == 1):
            left = survival.folder()
            findings = vhdkit.check(path, folder=left).findings
            assert not [str(each) for each in findings if each.level is Level.ERROR], survival.label
            now = shown(path, left)
            for at in range(0, SIZE, SECTOR):
                assert now[at : at + SECTOR] in {before[at : at + SECTOR], after[at : at + SECTOR]}, survival.label
            write(path, BLOCK, b"n" * 2 * BLOCK + b"n" * SECTOR, left)
            assert shown(path, left) == after
            assert vhdkit.check(path, folder=left).exit_code == 0


SOME = b"n" * 2 * BLOCK


def before_blocks_are_added() -> CrashFolder:
    folder = CrashFolder({})
    vhdkit.create_image(BASE, size=SIZE, block_size=BLOCK, unique_id=b"b" * 16, stamp=7, folder=folder)
    return Disk.of(folder).folder()


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_cut_after_a_write_whose_calls_failed_leaves_a_valid_image(error: int, lasting: bool) -> None:
    whole = FailingFolder(before_blocks_are_added(), Fault(at=-1))
    write(BASE, 0, SOME, whole)
    failures = 0
    for at in range(whole.calls):
        folder = before_blocks_are_added()
        try:
            write(BASE, 0, SOME, FailingFolder(folder, Fault(at=at, error=error, lasting=lasting)))
        except (OSError, VhdError):
            failures += 1
        *_, last = cuts(folder)
        for survival in last.survivals(seed=at, stale=at % 2 == 1):
            left = survival.folder()
            findings = vhdkit.check(BASE, folder=left).findings
            assert not [str(each) for each in findings if each.level is Level.ERROR], (at, survival.label)
            write(BASE, 0, SOME, left)
            assert shown(BASE, left)[: len(SOME)] == SOME
            assert vhdkit.check(BASE, folder=left).exit_code == 0
    assert failures > 5


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "lost"), KeyboardInterrupt()])
def test_a_step_stays_until_the_old_length_is_durable(failure: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = MemoryFolder({})
    vhdkit.create_image(BASE, size=SIZE, block_size=BLOCK, folder=folder)
    old = bytes(folder[BASE].content)
    seen: list[tuple[str, int]] = []
    sync, remove = MemoryStorage.sync, MemoryFolder.remove

    def failing(self: MemoryStorage) -> None:
        is_longer = self.path == BASE and self.size() > len(old)
        seen.append(("sync", self.size()))
        if is_longer:
            raise failure
        sync(self)

    def noting(self: MemoryFolder, path: str) -> None:
        seen.append(("remove", 0))
        remove(self, path)

    monkeypatch.setattr(MemoryStorage, "sync", failing)
    monkeypatch.setattr(MemoryFolder, "remove", noting)
    with pytest.raises(type(failure)):
        write(BASE, 0, SOME, folder)
    monkeypatch.undo()
    end = next(size for kind, size in seen if kind == "sync" and size > len(old))
    if ("remove", 0) in seen:
        # The old length was made durable before the step went.
        assert seen[seen.index(("remove", 0)) - 1] == ("sync", len(old))
        return
    # The length has survived and the footer has not: the step, which is still there, explains it.
    left = MemoryFolder(contents(folder))
    left[BASE].content[:] = old + bytes(end - len(old))
    report = vhdkit.check(BASE, folder=left)
    assert not [str(each) for each in report.findings if each.level is Level.ERROR]
