"""How the copier interleaves copying and syncing, and how the payload is counted before."""

from __future__ import annotations

import gc
import itertools
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vhdkit
from tests.crash.acts import small_steps
from tests.crash.programs import CrashProgram
from tests.crash.walking import How, walk
from tests.cutting import small_checkpoints
from tests.keeping import keep
from tests.model import Create, Kind, Merge, ModelChain, Snapshot, Write
from tests.plainvhd import SECTOR, bitmap_length, parse
from tests.unit.test_merge_laws import SpyFolder, SpyStorage, chain_over, contents, fold, in_memory, put
from vhdkit.chain.merged_layers import MergedLayers
from vhdkit.chain.resolve_layers import windows
from vhdkit.disk import extents
from vhdkit.disk.extents import Kind as ExtentKind
from vhdkit.merging.plan import placement
from vhdkit.merging.plan.destination_pieces import DestinationBlocks
from vhdkit.merging.run.engine import _Merge
from vhdkit.merging.run.sector_copier import SectorCopier
from vhdkit.storage.memory import MemoryFolder, MemoryStorage
from vhdkit.vhd.image import VhdImage
from vhdkit.vhd.open_image import Vhd, open_image
from vhdkit.vhd.sparse_image import SparseImage

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder, Storage, Syncing

GROWING = [Kind.DYNAMIC, Kind.DIFFERENCING]
BLOCK = 16384


def cut_blocks(kind: Kind) -> ModelChain:
    """Sectors in every window of old and of new blocks, each of which four windows cut; alone, and close together."""
    alone = [put(sector, 1, sector) for sector in range(1, 200, 9)]
    close = [put(sector, 1, sector) for first in (40, 150) for sector in range(first, first + 40, 2)]
    return chain_over(kind, put(0, 60, 7), Snapshot(), *alone, *close, sectors=200, block_size=BLOCK)


class SyncSpyFolder(SpyFolder):
    """Tells of a sync when it is begun, and when it has been waited for."""

    def open(self, path: str, *, writable: bool = False) -> Storage:
        self.tell("open", path)
        return SyncSpyStorage(self.inner.open(path, writable=writable), self)


class SyncSpyStorage(SpyStorage):
    def begin_sync(self) -> Syncing:
        self._folder.tell("begin sync", self.path)
        return ToldSyncing(super().begin_sync(), self._folder, self.path)


class ToldSyncing:
    def __init__(self, inner: Syncing, folder: SpyFolder, path: str) -> None:
        self._inner, self._folder, self._path = inner, folder, path

    def is_done(self) -> bool:
        return False

    def wait(self) -> float:
        seconds = self._inner.wait()
        self._folder.tell("waited", self._path)
        return seconds


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_checkpoints(monkeypatch)


def references(raw: bytes) -> list[range]:
    """Return where an image keeps what refers to its data: the BAT, and the bitmaps of its blocks."""
    image = parse(raw)
    assert image.header is not None
    table = range(image.header.table_offset, image.header.table_offset + 4 * image.header.max_table_entries)
    bitmaps = [int(image.bat[block]) * SECTOR for block in image.allocated]
    return [table, *(range(at, at + bitmap_length(image.block_size)) for at in bitmaps)]


@pytest.mark.fast_path("overlap")
@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("kind", GROWING)
def test_what_refers_to_a_checkpoint_is_written_when_its_sync_has_been_waited_for(kind: Kind) -> None:
    folder, paths = in_memory(cut_blocks(kind))
    before = references(bytes(folder[paths[1]].content))
    spy = SyncSpyFolder(folder)
    plan, _ = fold(spy, paths, Merge())
    assert len(plan.blocks_added) >= 2
    under_way, syncs, meanwhile, seen = False, 0, 0, 0
    unsynced = taken = 0
    for event in spy.events:
        if event.path != paths[1]:
            continue
        if event.operation == "begin sync":
            assert not under_way, "two checkpoints are under way"
            under_way, syncs = True, syncs + 1
            taken, unsynced = unsynced, 0
        elif event.operation == "waited":
            under_way, taken = False, 0
        elif event.operation in {"write", "copy"}:
            refers = event.operation == "write" and any(event.offset in place for place in before)
            if refers and syncs:
                assert not under_way, "it is written while the sync of what it refers to is under way"
                assert taken == 0
                seen += 1
            elif syncs:
                unsynced += event.length
                meanwhile += under_way
    assert syncs > 5
    assert seen > 3
    assert meanwhile > 5, "nothing is copied while the disk takes the checkpoint before"


@pytest.mark.parametrize("kind", GROWING)
def test_a_block_that_two_checkpoints_touch_is_the_same_as_of_one(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, paths = in_memory(cut_blocks(kind))
    fold(folder, paths, Merge())
    expected = contents(folder)
    small_checkpoints(monkeypatch)
    touched: list[set[int]] = []
    begin = SectorCopier._begin_checkpoint  # noqa: SLF001

    def noting(self: SectorCopier) -> None:
        touched.append({int(block) for each in self._pending for block in each[0]})
        begin(self)

    monkeypatch.setattr(SectorCopier, "_begin_checkpoint", noting)
    folder, paths = in_memory(cut_blocks(kind))
    plan, _ = fold(folder, paths, Merge())
    new = set(plan.blocks_added.tolist())
    assert any(a & b & new for a, b in itertools.pairwise(touched)), "no new block is touched by two"
    assert contents(folder) == expected


@pytest.mark.thorough
@pytest.mark.parametrize("kind", GROWING)
def test_every_cut_of_a_merge_whose_checkpoints_share_a_new_block_keeps_the_laws(kind: Kind) -> None:
    writes = (put(30, 1, 5), *(put(sector, 1, sector) for sector in range(33, 49, 3)), put(60, 2, 6))
    below: tuple[Create | Write | Snapshot, ...] = (
        (Create(kind=Kind.DYNAMIC, sector_count=64, block_size=BLOCK), put(0, 40, 3), Snapshot(block_size=BLOCK))
        if kind is Kind.DIFFERENCING
        else (Create(kind=kind, sector_count=64, block_size=BLOCK),)
    )
    build = (*below, put(2, 3, 9), Snapshot(block_size=BLOCK), *writes)
    with small_steps():
        tally = walk(CrashProgram(name=f"shared block {kind.value}", build=build), How(seed=3, share=0.5))
    assert tally.findings == []
    assert tally.disks > 25


def lone_copier(folder: Folder, path: str, told: list[tuple[int, int]]) -> tuple[SectorCopier, VhdImage]:
    image = open_image(path, writable=True, folder=folder)
    return SectorCopier(
        [], DestinationBlocks(image, np.empty(0, np.uint32)), lambda _: None, lambda *mark: told.append(mark)
    ), image


@pytest.mark.parametrize("kind", [Kind.FIXED, *GROWING])
def test_a_checkpoint_of_nothing_writes_and_syncs_nothing(kind: Kind) -> None:
    folder, paths = in_memory(cut_blocks(kind))
    spy, told = SyncSpyFolder(folder), list[tuple[int, int]]()
    copier, image = lone_copier(spy, paths[1], told)
    before = len(spy.events)
    with image:
        copier.checkpoint()
        copier.checkpoint()
    assert spy.events[before:] == []
    assert told == []


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("kind", [Kind.FIXED, *GROWING])
def test_marks_follow_the_sync_after_and_never_go_back(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int, int]] = []
    begun = 0
    make, begin = SectorCopier.__init__, VhdImage.begin_sync

    def making(self: SectorCopier, layers: Any, blocks: Any, report: Any, durable: Any, **named: Any) -> None:
        make(self, layers, blocks, report, lambda *mark: told.append((*mark, begun)), **named)
        del durable

    def counting(self: VhdImage) -> Syncing:
        nonlocal begun
        begun += 1
        return begin(self)

    monkeypatch.setattr(SectorCopier, "__init__", making)
    monkeypatch.setattr(VhdImage, "begin_sync", counting)
    folder, paths = in_memory(cut_blocks(kind))
    plan, _ = fold(folder, paths, Merge())
    assert len(told) > 5
    assert [mark[:2] for mark in told] == sorted({mark[:2] for mark in told})
    assert told[-1][1] < plan.payload_bytes
    # The first is told when the second sync has ended.
    assert [syncs for _, _, syncs in told] == list(range(2, begun + 1))


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("kind", GROWING)
def test_of_two_checkpoints_at_most_anything_is_kept(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, kept, most = SectorCopier._begin_checkpoint, [], [0]  # noqa: SLF001

    def noting(self: SectorCopier) -> None:
        begin(self)
        assert not self._pending
        if self._under_way is not None:
            kept.append(weakref.ref(self._under_way.written.start))
        gc.collect()
        most[0] = max(most[0], sum(each() is not None for each in kept))

    monkeypatch.setattr(SectorCopier, "_begin_checkpoint", noting)
    folder, paths = in_memory(cut_blocks(kind))
    gc.freeze()  # what was there before is not looked through at every checkpoint
    try:
        fold(folder, paths, Merge())
    finally:
        gc.unfreeze()
    assert len(kept) > 5
    assert most == [1]


# What is counted before


@st.composite
def chains(draw: st.DrawFn) -> tuple[ModelChain, int, list[int], int | None]:
    """Draw a chain whose sources are alike, how many they are, which layers have bits past the end, and `new_from`."""
    block_size = draw(st.sampled_from([512, 4096, 16384]))
    sectors = draw(st.integers(1, 100))
    write = st.integers(0, sectors - 1).flatmap(
        lambda first: st.builds(put, st.just(first), st.integers(1, min(40, sectors - first)), st.integers(0, 255))
    )
    writes = st.lists(write, max_size=6)
    kind = draw(st.sampled_from(GROWING))
    depth = draw(st.integers(1, 4))
    operations: list[Write | Snapshot] = [*draw(writes)]
    for _ in range(depth):
        operations += [Snapshot(block_size=block_size), *draw(writes)]
    chain = chain_over(kind, *operations, sectors=sectors, block_size=block_size)
    past = draw(st.lists(st.integers(0, depth), unique=True))
    return chain, depth, past, draw(st.none() | st.integers(0, 400))


def measured(folder: Folder, top: str, depth: int, new_from: int | None) -> tuple[bool, int, list[int]]:
    """Return whether bits alone decide, the payload, and the blocks that the destination lacks."""
    with vhdkit.open_chain(top, folder=folder) as chain:
        merged = MergedLayers(chain.layers, depth)
        target = placement.target_of(merged)
        payload, added = placement._measure(merged, target, new_from)  # noqa: SLF001
        return placement._are_alike(merged, target), payload, added.tolist()  # noqa: SLF001


@settings(max_examples=80)
@given(drawn=chains(), window=st.sampled_from([4096, 1 << 30]), counted=st.sampled_from([1, 3, 4096]))
@pytest.mark.fast_path("counting")
def test_counting_bits_is_looking_at_each_run(
    drawn: tuple[ModelChain, int, list[int], int | None], window: int, counted: int
) -> None:
    chain, depth, past, new_from = drawn
    vary = {at: lambda spec: replace(spec, bits_past_end=True) for at in past}
    folder, paths = in_memory(chain, vary)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vhdkit.chain.resolve_layers._WINDOW_BYTES", window)
        patch.setattr(placement, "_COUNTED_BYTES", counted * SECTOR)
        by_bits = measured(folder, paths[0], depth, new_from)
        patch.setattr(placement, "_are_alike", lambda *_: False)
        by_runs = measured(folder, paths[0], depth, new_from)
    assert by_bits == (True, *by_runs[1:])
    assert not by_runs[0]


@pytest.mark.thorough
def test_of_large_blocks_few_bitmaps_are_counted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    block, count = 64 << 20, 40
    folder = MemoryFolder({})
    vhdkit.create_image("/base.vhd", size=block * count, block_size=block, folder=folder)
    vhdkit.create_image("/leaf.avhd", parent="/base.vhd", folder=folder)
    with vhdkit.open_chain("/leaf.avhd", writable=True, folder=folder) as chain:
        for at in range(count):
            chain.write(at * block, b"x" * SECTOR)
    read, asked = SparseImage.read_bitmaps, []

    def spied(image: SparseImage, at: Any) -> Any:
        rows = read(image, at)
        asked.append(rows.nbytes)
        return rows

    monkeypatch.setattr(SparseImage, "read_bitmaps", spied)
    assert vhdkit.plan_merge("/leaf.avhd", folder=folder).payload_bytes == count * SECTOR
    assert 0 < max(asked) <= placement._COUNTED_BYTES  # noqa: SLF001


def test_of_tiny_blocks_few_are_looked_at_together() -> None:
    folder = MemoryFolder({})
    count = 16384
    vhdkit.create_image("/base.vhd", size=count * SECTOR, block_size=SECTOR, folder=folder)
    with vhdkit.open_chain("/base.vhd", writable=True, folder=folder) as chain:
        chain.write(0, b"x" * SECTOR * count)
        (layer,) = chain.layers
        assert isinstance(layer, SparseImage)
        bitmaps = [len(layer.allocated(*window)[0]) * 512 for window in windows(chain.layers, 0, chain.size)]
    assert sum(bitmaps) == count * 512
    assert max(bitmaps) <= 4 << 20


@pytest.mark.parametrize(
    "operations",
    [
        (Snapshot(block_size=512), put(0, 3, 1)),
        (Snapshot(sector_count=48), put(0, 3, 1)),
        (Snapshot(), put(0, 3, 1), Snapshot(block_size=512)),
    ],
    ids=["other blocks", "a longer disk", "other blocks further up"],
)
@pytest.mark.parametrize("kind", [Kind.FIXED, *GROWING])
def test_what_is_not_alike_is_looked_at_run_by_run(kind: Kind, operations: tuple[Write | Snapshot, ...]) -> None:
    chain = chain_over(kind, *operations)
    folder, paths = in_memory(chain)
    depth = sum(isinstance(each, Snapshot) for each in operations)
    with vhdkit.open_chain(paths[0], folder=folder) as opened:
        merged = MergedLayers(opened.layers, depth)
        assert not placement._are_alike(merged, placement.target_of(merged))  # noqa: SLF001


def test_a_held_child_keeps_no_table_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = MemoryFolder({})
    vhdkit.create_image("/base.vhd", size=1 << 20, folder=folder)
    vhdkit.create_image("/middle.avhd", parent="/base.vhd", folder=folder)
    vhdkit.create_image("/leaf.avhd", parent="/middle.avhd", folder=folder)
    held: list[int] = []
    relink = _Merge.relink_children

    def spied(merge: Any) -> Any:
        held.extend(len(child.table._loaded[1]) for child in merge.files._children.values())  # noqa: SLF001
        return relink(merge)

    monkeypatch.setattr(_Merge, "relink_children", spied)
    vhdkit.merge(vhdkit.plan_merge("/middle.avhd", folder=folder), folder=folder)
    assert held == [0]


class BatchClock:
    """A clock on which each report takes so long, and each piece as well; `sizes` are those that were reported."""

    def __init__(self, seconds: float, monkeypatch: pytest.MonkeyPatch, piece: float = 0.0) -> None:
        self.now, self.seconds = 0.0, seconds
        self.sizes: list[int] = []
        monkeypatch.setattr("vhdkit.merging.run.sector_copier.time.monotonic", lambda: self.now)
        copy = MemoryStorage.copy_from

        def slowly(storage: MemoryStorage, *arguments: Any) -> None:
            self.now += piece
            copy(storage, *arguments)

        monkeypatch.setattr(MemoryStorage, "copy_from", slowly)

    def report(self, size: int) -> None:
        self.sizes.append(size)
        self.now += self.seconds


def copied_in_batches(seconds: float, monkeypatch: pytest.MonkeyPatch, piece: float = 0.0) -> list[int]:
    clock = BatchClock(seconds, monkeypatch, piece)
    folder, paths = in_memory(chain_over(Kind.FIXED, Snapshot(), put(0, 3000, 1), sectors=3000, block_size=BLOCK))
    layers: list[Vhd] = [keep(open_image(path, writable=path == paths[1], folder=folder)) for path in paths]
    copier = SectorCopier(layers, DestinationBlocks(layers[1], np.empty(0, np.uint32)), clock.report)
    merged = MergedLayers(layers, 1)
    for writes, wipes, stop in placement.window_writes(merged, placement.target_of(merged)):
        copier.copy(writes, wipes, stop)
    return clock.sizes


@pytest.mark.fast_path("alone")
def test_batches_grow_unless_who_is_told_holds_them_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhdkit.merging.plan.destination_pieces.STAGING_BYTES", BLOCK)
    for name, size in (("_BATCH_BYTES", 8 * BLOCK), ("_PART_BYTES", 1 << 30), ("_FIRST_PART_BYTES", 1 << 30)):
        monkeypatch.setattr(f"vhdkit.merging.run.sector_copier.{name}", size)
    for name in ("_FEW_BYTES", "_MANY_BYTES"):
        monkeypatch.setattr(f"vhdkit.merging.run.sector_copier.{name}", 1 << 30)
    quick = [size // BLOCK for size in copied_in_batches(0.01, monkeypatch)]
    assert quick[:4] == [1, 2, 4, 8]
    assert set(quick[3:-1]) == {8}
    slow = copied_in_batches(0.3, monkeypatch)
    assert set(slow[:-1]) == {BLOCK}
    assert sum(slow) == 3000 * SECTOR


@pytest.mark.fast_path("alone")
@pytest.mark.parametrize(("piece", "together"), [(0.011, 5), (0.02, 3), (0.03, 2), (0.06, 1), (4.0, 1)])
def test_who_may_stop_it_is_told_soon_however_slow_the_disk_becomes(
    monkeypatch: pytest.MonkeyPatch, piece: float, together: int
) -> None:
    monkeypatch.setattr("vhdkit.merging.plan.destination_pieces.STAGING_BYTES", 2048)
    sizes = copied_in_batches(0.0, monkeypatch, piece)
    assert max(sizes) == together * 2048
    assert sum(sizes) == 3000 * SECTOR


@pytest.mark.fast_path("alone")
def test_of_zeros_who_may_stop_it_is_told_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhdkit.merging.plan.destination_pieces.STAGING_BYTES", BLOCK)
    clock = BatchClock(0.0, monkeypatch)
    chain = chain_over(Kind.FIXED, Snapshot(), put(0, 3000, 0), sectors=3000, block_size=BLOCK)
    folder, paths = in_memory(chain)
    layers: list[Vhd] = [keep(open_image(path, writable=path == paths[1], folder=folder)) for path in paths]
    copier = SectorCopier(layers, DestinationBlocks(layers[1], np.empty(0, np.uint32)), clock.report)
    zeros = extents.single(0, 3000 * SECTOR, ExtentKind.ZERO, 0)
    copier.copy(zeros, zeros.take(np.empty(0, np.int64)), 3000 * SECTOR)
    assert set(clock.sizes[:-1]) == {BLOCK}
    assert sum(clock.sizes) == 3000 * SECTOR
