"""An undo image takes the space of the sectors that it keeps, all of it before the first of them is overwritten."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vhdkit
from tests.plainvhd import SECTOR
from vhdkit.disk import extents
from vhdkit.disk.extents import Kind
from vhdkit.disk.holes import data_pieces
from vhdkit.merging.plan.destination_pieces import GAP_BYTES, written_pages
from vhdkit.merging.run.undo_image import UndoSaver

if TYPE_CHECKING:
    from pathlib import Path

    from vhdkit.disk.extents import Extents
    from vhdkit.storage.protocols import Storage

PAGE = 4096
BLOCK = 2 << 20
BLOCKS = 40


@pytest.fixture
def leaf(tmp_path: Path) -> Path:
    """Make a full base, and a child that has 4 KiB of each of its blocks, at an odd sector."""
    base, child = tmp_path / "base.vhd", tmp_path / "leaf.avhd"
    vhdkit.create_image(base, size=BLOCKS * BLOCK)
    with vhdkit.open_chain(base, writable=True) as chain:
        for block in range(BLOCKS):
            chain.write(block * BLOCK, bytes([block + 1]) * (64 << 10))
    vhdkit.create_image(child, parent=base)
    with vhdkit.open_chain(child, writable=True) as chain:
        for block in range(BLOCKS):
            chain.write(block * BLOCK + 3 * SECTOR, b"x" * PAGE)
    return child


def test_it_takes_pages_and_bitmaps_and_not_blocks(leaf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undo = leaf.parent / "undo.avhd"
    plan = vhdkit.plan_merge(leaf, undo=undo)
    assert plan.undo is not None
    # Of each block a bitmap, and the two pages that the sectors lie in.
    assert 3 * PAGE * BLOCKS < plan.undo.space < 3 * PAGE * BLOCKS + (64 << 10)
    assert plan.undo.size > BLOCKS * BLOCK
    assert plan.space_needed == plan.undo.space
    taken: list[int] = []
    save = UndoSaver.save

    def looked(self: UndoSaver, writes: Extents, wipes: Extents, end: int) -> None:
        taken.append(self.image.storage.allocated_size)
        save(self, writes, wipes, end)

    with monkeypatch.context() as patch:
        patch.setattr(UndoSaver, "save", looked)
        vhdkit.merge(plan)
    final = os.stat(undo)
    assert final.st_size == plan.undo.size
    # A file system may need some more for its own list of where they are.
    assert final.st_blocks * 512 <= plan.undo.space + (64 << 10)
    assert taken[0] >= final.st_blocks * 512 - (64 << 10)
    with vhdkit.open_chain(undo) as chain:
        assert all(chain.read(block * BLOCK, PAGE) == bytes([block + 1]) * PAGE for block in range(BLOCKS))


def test_all_that_is_kept_has_its_space_before_anything_is_kept(leaf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written then takes no more: no range of it is a hole that was not reserved."""
    reserved: list[tuple[int, int]] = []
    written: list[tuple[int, int]] = []
    undo = leaf.parent / "undo.avhd"

    def watched(self: UndoSaver, writes: Extents, wipes: Extents, end: int) -> None:
        kind = type(self.image.storage)
        write_at, copy_many = kind.write_at, kind.copy_many_from

        def write(storage: object, offset: int, buffer: bytes) -> None:
            if storage is self.image.storage:
                written.append((offset, offset + len(memoryview(buffer).cast("B"))))
            write_at(storage, offset, buffer)  # type: ignore[arg-type]

        def copy(storage: object, source: object, *columns: object) -> int:
            if storage is self.image.storage:
                _, offsets, lengths = columns[:3]
                written.extend((at, at + length) for at, length in zip(offsets, lengths, strict=True))  # type: ignore[call-overload]
            return copy_many(storage, source, *columns)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(kind, "write_at", write)
            patch.setattr(kind, "copy_many_from", copy)
            save(self, writes, wipes, end)

    save, reserve = UndoSaver.save, UndoSaver._reserve  # noqa: SLF001 - what takes the space

    def reserving(self: UndoSaver, *arguments: object) -> None:
        kind = type(self.image.storage)
        real = kind.reserve

        def noted(storage: object, offset: int, length: int) -> None:
            reserved.append((offset, offset + length))
            real(storage, offset, length)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(kind, "reserve", noted)
            reserve(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(UndoSaver, "save", watched)
    monkeypatch.setattr(UndoSaver, "_reserve", reserving)
    vhdkit.merge(vhdkit.plan_merge(leaf, undo=undo))
    table = 8192
    assert len(written) >= 2 * BLOCKS
    for start, stop in written:
        assert stop <= table or any(low <= start and stop <= high for low, high in reserved), (start, stop)


# A process that ends where it begins to call a function of the merge.
CUT = """
import os, sys
import vhdkit
from vhdkit.merging.run.sector_copier import SectorCopier
from vhdkit.merging.run.undo_image import UndoSaver
setattr(globals()[sys.argv[1]], sys.argv[2], lambda *_: os._exit(9))
vhdkit.merge(vhdkit.plan_merge(sys.argv[3], undo=sys.argv[4]))
"""


@pytest.mark.parametrize(("kind", "name"), [("UndoSaver", "_reserve"), ("SectorCopier", "checkpoint")])
def test_after_a_kill_it_still_takes_what_is_said(leaf: Path, kind: str, name: str) -> None:
    """Its length is there, and the space may not be; what is a hole stays one."""
    undo = leaf.parent / "undo.avhd"
    first = vhdkit.plan_merge(leaf, undo=undo)
    assert first.undo is not None
    killed = subprocess.run([sys.executable, "-c", CUT, kind, name, leaf, undo], check=False)
    assert killed.returncode == 9
    before = os.stat(undo)
    assert before.st_size == first.undo.size
    plan = vhdkit.plan_merge(leaf, undo=undo)
    assert plan.undo is not None
    missing = first.undo.space - before.st_blocks * 512
    assert max(0, missing) <= plan.undo.space <= max(0, missing) + PAGE
    assert plan.space_needed == plan.undo.space
    vhdkit.merge(plan)
    # A file system may need some more for its own list of where they are.
    assert os.stat(undo).st_blocks * 512 <= before.st_blocks * 512 + plan.undo.space + (64 << 10)
    with vhdkit.open_chain(undo) as chain:
        assert all(chain.read(block * BLOCK, PAGE) == bytes([block + 1]) * PAGE for block in range(BLOCKS))


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 9000), st.sampled_from([4096, 12288, 65536]))
def test_pieces_are_all_that_is_no_hole(pages: list[bool], start: int, most: int) -> None:
    class Sparse:
        def hole_bytes(self, offset: int, length: int) -> int:
            return sum(not pages[at // PAGE] for at in range(offset, offset + length))

    found = list(data_pieces(cast("Storage", Sparse()), start, len(pages) * PAGE, most))
    covered = [at for low, high in found for at in range(low, high)]
    data = [at for at in range(start, len(pages) * PAGE) if pages[at // PAGE]]
    # Where a page is cut by a piece's edge, a piece of no more than a page may be part hole.
    assert set(data) <= set(covered)
    assert covered == sorted(set(covered))
    assert all(pages[low // PAGE] or pages[(high - 1) // PAGE] for low, high in found)
    assert all(high - low <= most for low, high in found)


def slow_pages(sectors: list[bool], block_sectors: int) -> set[int]:
    """Return the pages of what is written, with those of gaps that a span may go over."""
    written = {at for at, is_written in enumerate(sectors) if is_written}
    for first in range(0, len(sectors), block_sectors):
        own = sorted(at for at in written if first <= at < first + block_sectors)
        for one, other in itertools.pairwise(own):
            if (other - one - 1) * SECTOR <= GAP_BYTES:
                written |= set(range(one, other))
    return {at * SECTOR // PAGE for at in written}


@given(st.lists(st.booleans(), min_size=1, max_size=96), st.sampled_from([8, 16, 64]))
def test_pages_are_those_of_the_sectors_and_of_what_a_span_goes_over(sectors: list[bool], block_sectors: int) -> None:
    parts = [
        extents.single(at * SECTOR, (at + 1) * SECTOR, Kind.DATA, at * SECTOR)
        for at, is_written in enumerate(sectors)
        if is_written
    ]
    writes = extents.concatenate(parts) if parts else extents.single(0, 0, Kind.ZERO)
    start, stop = written_pages(writes, block_sectors * SECTOR)
    pages = [page for low, high in zip(start, stop, strict=True) for page in range(low // PAGE, high // PAGE)]
    assert sorted(set(pages)) == pages
    assert set(pages) == slow_pages(sectors, block_sectors)
    assert (np.diff(np.stack((start, stop), axis=1)) > 0).all()
