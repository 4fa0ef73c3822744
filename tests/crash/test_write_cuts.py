"""Cuts while a leaf is written with `sync`: the image is valid, every sector old or new, and the next write goes on."""

from __future__ import annotations

import pytest

import vhdkit
from tests.crash.disks import Disk
from tests.crash.survivals import cuts
from tests.crashfs import CrashFolder
from vhdkit.findings import Level

BASE, KID = "/vms/base.vhd", "/vms/kid.avhd"
BLOCK, SECTOR = 4096, 512
SIZE = 16 * BLOCK


def shown(path: str, folder: CrashFolder) -> bytes:
    with vhdkit.open_chain(path, folder=folder) as chain:
        return chain.read(0, chain.size)


def write(path: str, offset: int, data: bytes, folder: CrashFolder) -> None:
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
