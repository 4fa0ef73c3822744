"""What a merge does, one law at a time: which sectors move, how a disk grows, what is refused, what a cut leaves.

Chains are written by the tests' own writer into memory, merged by vhdkit, and read by the tests' own reader.
`SpyFolder` sees every call that the engine makes; it counts, fails or stops them.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import vhdkit
from tests.model import Create, Kind, Merge, ModelChain, Snapshot, Write, specs, write_files
from tests.plainbuild import ImageSpec, build, locator
from tests.plaincheck import validate
from tests.plainvhd import SECTOR, bitmap_length, flat, parse, round_up, seal
from tests.through import ThroughFolder, ThroughStorage
from vhdkit.corruption import Corruption
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.memory import MemoryFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from typing_extensions import Buffer

    from vhdkit.storage.protocols import Folder, Storage

Vary = Mapping[int, Callable[[ImageSpec], ImageSpec]]
Mend = Mapping[int, Callable[[bytes], bytes]]

BASES = (Kind.FIXED, Kind.DYNAMIC)
GROWING = (Kind.DYNAMIC, Kind.DIFFERENCING)
CHANGES = frozenset({"write", "copy", "reserve", "truncate", "create", "publish", "remove", "sync", "sync folder"})


# Spying on the seam


@dataclass(frozen=True, slots=True)
class Event:
    """One call through the seam."""

    operation: str
    path: str
    offset: int = 0
    length: int = 0


class SpyStorage(ThroughStorage):
    """A storage whose calls are told to its folder before they are made."""

    def __init__(self, inner: Storage, folder: SpyFolder) -> None:
        super().__init__(inner)
        self._folder = folder

    def read_into(self, offset: int, buffer: Buffer) -> int:
        self._folder.tell("read", self.path, offset, memoryview(buffer).nbytes)
        return self.inner.read_into(offset, buffer)

    def write_at(self, offset: int, buffer: Buffer) -> None:
        self._folder.tell("write", self.path, offset, memoryview(buffer).nbytes)
        self.inner.write_at(offset, buffer)

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> None:
        self._folder.tell("copy", self.path, offset, length)
        inner = source.inner if isinstance(source, SpyStorage) else source
        self.inner.copy_from(inner, source_offset, offset, length)

    def reserve(self, offset: int, length: int) -> None:
        self._folder.tell("reserve", self.path, offset, length)
        self.inner.reserve(offset, length)

    def truncate(self, size: int) -> None:
        self._folder.tell("truncate", self.path, size)
        self.inner.truncate(size)

    def forget(self, offset: int, length: int) -> None:
        self._folder.tell("forget", self.path, offset, length)
        self.inner.forget(offset, length)

    def sync(self) -> None:
        self._folder.tell("sync", self.path)
        self.inner.sync()
        self._folder.synced(self.inner)


class SpyFolder(ThroughFolder):
    """A folder that notes every call, hands it to `before`, and may pretend that little space is free."""

    def __init__(
        self, inner: Folder, before: Callable[[Event], None] = lambda _: None, *, free: int | None = None
    ) -> None:
        super().__init__(inner)
        self.before = before
        self.free = free
        self.events: list[Event] = []

    def tell(self, operation: str, path: str, offset: int = 0, length: int = 0) -> None:
        event = Event(operation, path, offset, length)
        self.events.append(event)
        self.before(event)

    def synced(self, storage: Storage) -> None:
        """For those who must know what is durable."""

    def changes(self, path: str | None = None) -> list[Event]:
        return [e for e in self.events if e.operation in CHANGES and path in {None, e.path}]

    def open(self, path: str, *, writable: bool = False) -> Storage:
        self.tell("open", path)
        return SpyStorage(self.inner.open(path, writable=writable), self)

    def create(self, path: str, *, private: bool = False) -> Storage:
        self.tell("create", path)
        return SpyStorage(self.inner.create(path, private=private), self)

    def publish(self, temporary: str, path: str) -> None:
        self.tell("publish", path)
        self.inner.publish(temporary, path)

    def remove(self, path: str) -> None:
        self.tell("remove", path)
        self.inner.remove(path)

    def free_space(self, directory: str) -> int:
        return self.inner.free_space(directory) if self.free is None else self.free

    def sync(self, directory: str) -> None:
        self.tell("sync folder", directory)
        self.inner.sync(directory)


# Chains in memory


def put(first: int, count: int, fill: int) -> Write:
    return Write(offset=first * SECTOR, length=count * SECTOR, fill=fill)


def changed(**changes: object) -> Callable[[ImageSpec], ImageSpec]:
    return lambda spec: replace(spec, **changes)  # type: ignore[arg-type] # any field may be changed


def in_memory(chain: ModelChain, vary: Vary | None = None, mend: Mend | None = None) -> tuple[MemoryFolder, list[str]]:
    """Put the layers into /vms, the specs of some depths varied, the bytes of some mended; paths are leaf first."""
    files = {}
    for depth, (name, spec) in enumerate(specs(chain)):
        assert isinstance(spec, ImageSpec)
        raw = build(vary[depth](spec) if vary and depth in vary else spec)
        files[f"/vms/{name}"] = mend[depth](raw) if mend and depth in mend else raw
    return MemoryFolder(files), list(files)


def contents(folder: MemoryFolder) -> dict[str, bytes]:
    return {entry.path: bytes(folder[entry.path].content) for entry in folder.walk("/")}


def plain_view(folder: MemoryFolder, paths: Sequence[str]) -> bytes:
    return flat([parse(bytes(folder[path].content)) for path in paths]).tobytes()


def vhdkit_view(folder: Folder, path: str) -> bytes:
    with vhdkit.open_chain(path, folder=folder) as chain:
        return chain.read(0, chain.size)


def planned(folder: Folder, paths: Sequence[str], merge: Merge) -> vhdkit.MergePlan:
    top, bottom = paths[merge.depth_from], paths[merge.depth_to]
    return vhdkit.plan_merge(top, into=bottom, keep_sources=merge.keep, folder=folder)


def fold(folder: Folder, paths: Sequence[str], merge: Merge) -> tuple[vhdkit.MergePlan, vhdkit.MergeResult]:
    plan = planned(folder, paths, merge)
    return plan, vhdkit.merge(plan, folder=folder)


def allocated(raw: bytes) -> set[int]:
    return set(parse(raw).allocated)


def assert_folds(
    chain: ModelChain, merge: Merge | None = None, vary: Vary | None = None, mend: Mend | None = None
) -> tuple[MemoryFolder, list[str], vhdkit.MergePlan]:
    """Merge, and hold views, the judge's word and the plan's figures against the model."""
    merge = merge or Merge()
    folder, paths = in_memory(chain, vary, mend)
    views = [chain.view(depth).tobytes() for depth in range(len(paths))]
    assert [plain_view(folder, paths[depth:]) for depth in range(len(paths))] == views, "the test's own files"
    destination = paths[merge.depth_to]
    before = contents(folder)
    plan, result = fold(folder, paths, merge)
    after = contents(folder)
    merged = after[destination]
    assert plain_view(folder, paths[merge.depth_to :]) == views[merge.depth_from]
    assert vhdkit_view(folder, destination) == views[merge.depth_from]
    assert validate(merged) == []
    assert len(merged) == plan.destination_size == result.destination_size
    assert plan.destination_size - plan.destination_size_before == plan.space_needed
    assert allocated(merged) - allocated(before[destination]) == set(plan.blocks_added.tolist())
    gone = set() if merge.keep else set(paths[merge.depth_from : merge.depth_to])
    assert set(before) - set(after) == gone == set(result.removed) == set(plan.removals)
    for path in paths[merge.depth_to + 1 :]:
        assert after[path] == before[path], "a layer below the destination was written"
    return folder, paths, plan


def assert_refused(
    folder: MemoryFolder, paths: Sequence[str], error: type[Exception], merge: Merge | None = None
) -> Exception:
    """See the merge refused, and every file as it was."""
    before = contents(folder)
    with pytest.raises(error) as caught:
        fold(folder, paths, merge or Merge())
    assert contents(folder) == before
    return caught.value


def chain_over(kind: Kind, *operations: Write | Snapshot, sectors: int = 40, block_size: int = 4096) -> ModelChain:
    """Run a program on a destination of the given kind; a differencing one gets a full parent of its size."""
    create = Create(kind=kind, sector_count=sectors, block_size=block_size)
    if kind is not Kind.DIFFERENCING:
        return ModelChain.run([create, *operations])
    full = (replace(create, kind=Kind.DYNAMIC), put(0, sectors, 3))
    return ModelChain.run([*full, Snapshot(block_size=block_size), *operations])


# Which sectors are moved


@pytest.mark.parametrize("kind", [*BASES, Kind.DIFFERENCING])
def test_set_bits_over_zeros_are_merged(kind: Kind) -> None:
    chain = chain_over(kind, put(0, 40, 9), Snapshot(), put(5, 30, 0))
    folder, paths, plan = assert_folds(chain)
    assert plan.payload_bytes == 30 * SECTOR
    assert plain_view(folder, paths[1:])[5 * SECTOR : 35 * SECTOR] == bytes(30 * SECTOR)


@pytest.mark.parametrize("kind", [*BASES, Kind.DIFFERENCING])
def test_a_differencing_destination_owns_exactly_what_it_was_given(kind: Kind) -> None:
    chain = chain_over(kind, put(2, 3, 9), Snapshot(), put(4, 2, 5), put(20, 1, 6))
    folder, paths, _ = assert_folds(chain)
    image = parse(bytes(folder[paths[1]].content))
    held = {number for number in range(40) if image.sector(number) is not None}
    whole_blocks = {*range(8), *range(16, 24)}  # a block of a dynamic disk is born with all bits set (B11)
    expected = {Kind.FIXED: set(range(40)), Kind.DYNAMIC: {2, 3, 4, 5} | set(range(16, 24))}
    assert held == expected.get(kind, {2, 3, 4, 5, 20})
    assert held <= whole_blocks or kind is Kind.FIXED


@pytest.mark.parametrize("kind", [*BASES, Kind.DIFFERENCING])
def test_the_topmost_layer_wins_and_each_sector_is_moved_once(kind: Kind) -> None:
    chain = chain_over(
        kind,
        put(0, 64, 1),
        Snapshot(block_size=8192),
        put(0, 64, 2),
        Snapshot(block_size=4096),
        put(16, 32, 3),
        Snapshot(block_size=16384),
        put(24, 16, 4),
        sectors=64,
    )
    folder, paths = in_memory(chain)
    before, expected = bytes(folder[paths[3]].content), chain.view().tobytes()
    spy = SpyFolder(folder)
    plan, _ = fold(spy, paths, Merge(depth_from=0, depth_to=3))
    assert plain_view(folder, paths[3:]) == expected
    writes = [e for e in spy.changes(paths[3]) if e.operation in {"write", "copy"}]
    times = Counter(n for e in writes for n in range(e.offset // SECTOR, (e.offset + e.length) // SECTOR))
    starts = [0] if kind is Kind.FIXED else [int(at) * SECTOR + 512 for at in parse(before).bat]
    length = 64 * SECTOR if kind is Kind.FIXED else 4096
    assert [times[(at + inside) // SECTOR] for at in starts for inside in range(0, length, SECTOR)] == [1] * 64
    assert plan.payload_bytes == 64 * SECTOR


@pytest.mark.parametrize(
    ("child", "parent"),
    [
        (4096, 32768),
        (32768, 4096),
        (512, 4096),
        (4096, 512),
        (512 << 10, 2 << 20),
        (2 << 20, 512 << 10),
        (4 << 20, 4096),
    ],
)
@pytest.mark.parametrize("kind", GROWING)
def test_block_sizes_may_differ_both_ways(kind: Kind, child: int, parent: int) -> None:
    sectors = 2 * max(child, parent) // SECTOR + 3
    seam = max(child, parent) // SECTOR
    chain = chain_over(
        kind,
        put(1, 2, 8),
        Snapshot(block_size=child),
        put(seam - 3, 6, 5),
        put(0, 1, 0),
        put(sectors - 1, 1, 7),
        sectors=sectors,
        block_size=parent,
    )
    assert_folds(chain)


@pytest.mark.parametrize("kind", [*BASES, Kind.DIFFERENCING])
@pytest.mark.parametrize("sectors", [1, 7, 9, 31, 33])
def test_a_last_block_that_the_disk_ends_inside_is_merged(kind: Kind, sectors: int) -> None:
    operations = (put(0, 1, 4), Snapshot(block_size=8192), put(sectors - 1, 1, 6))
    assert_folds(chain_over(kind, *operations, sectors=sectors))


@pytest.mark.parametrize("kind", [*BASES, Kind.DIFFERENCING])
def test_bits_past_the_end_are_clipped(kind: Kind) -> None:
    chain = chain_over(kind, put(0, 3, 4), Snapshot(block_size=8192), put(10, 1, 6), sectors=11)
    vary: Vary = dict.fromkeys((0, 1), with_junk_past_the_end)
    _, _, plan = assert_folds(chain, vary=vary)
    assert plan.payload_bytes == SECTOR


def with_junk_past_the_end(spec: ImageSpec) -> ImageSpec:
    """Return the spec with its last block allocated, and set bits over junk in all of the block's unused tail."""
    if spec.disk_type == 2:
        return spec
    per_block = spec.block_size // SECTOR
    end = round_up(spec.sector_count, per_block)
    junk = {number: bytes([200 + number % 50]) * SECTOR for number in range(spec.sector_count, end)}
    last = frozenset({(spec.sector_count - 1) // per_block})
    return replace(spec, sectors={**spec.sectors, **junk}, bits_past_end=True, empty_blocks=last)


@pytest.mark.parametrize("kind", [*BASES, Kind.DIFFERENCING])
def test_a_short_middle_source_hides_what_lies_below_its_end(kind: Kind) -> None:
    chain = chain_over(kind, put(0, 40, 9), Snapshot(sector_count=21), put(3, 1, 5), Snapshot(sector_count=40))
    assert_folds(chain, Merge(depth_from=0, depth_to=2))


@pytest.mark.parametrize("kind", [*BASES, Kind.DIFFERENCING])
def test_a_merge_of_nothing_changes_no_sector(kind: Kind) -> None:
    folder, paths, plan = assert_folds(chain_over(kind, put(1, 2, 3), Snapshot()))
    assert (plan.payload_bytes, plan.space_needed, len(plan.blocks_added)) == (0, 0, 0)
    assert list(contents(folder)) == sorted(paths[1:])


def test_levels_between_are_left_out_of_the_chain_and_those_above_stay() -> None:
    operations = (Snapshot(), put(3, 4, 2), Snapshot(), put(5, 9, 3), Snapshot(), put(30, 2, 4))
    chain = chain_over(Kind.DYNAMIC, put(0, 40, 1), *operations)
    folder, paths, plan = assert_folds(chain, Merge(depth_from=1, depth_to=3))
    assert [relink.child for relink in plan.relinks] == [paths[0]]
    assert plain_view(folder, [paths[0], paths[3]]) == chain.view().tobytes()
    assert vhdkit_view(folder, paths[0]) == chain.view().tobytes()


# Growth


GROWN = (Snapshot(sector_count=61), put(50, 2, 7))


@pytest.mark.parametrize("kind", GROWING)
@pytest.mark.parametrize("sectors", [41, 47, 48, 49, 200])
def test_a_destination_grows_to_the_child(kind: Kind, sectors: int) -> None:
    operations = (put(38, 2, 9), Snapshot(sector_count=sectors), put(sectors - 1, 1, 7))
    _, _, plan = assert_folds(chain_over(kind, *operations))
    assert plan.grows
    assert (plan.virtual_size_before, plan.virtual_size) == (40 * SECTOR, sectors * SECTOR)


@pytest.mark.parametrize("kind", GROWING)
def test_a_grown_disk_has_the_geometry_of_its_size(kind: Kind) -> None:
    folder, paths, _ = assert_folds(chain_over(kind, Snapshot(sector_count=70_000), put(69_999, 1, 7)))
    footer = parse(bytes(folder[paths[1]].content)).footer
    assert (footer.cylinders, footer.heads, footer.sectors_per_track) == (823, 5, 17)
    assert footer.original_size == 40 * SECTOR


@pytest.mark.parametrize("kind", GROWING)
@pytest.mark.parametrize("sectors", [40, 45, 61])
def test_a_growing_disk_sheds_set_bits_and_junk_behind_its_old_end(kind: Kind, sectors: int) -> None:
    chain = chain_over(kind, put(36, 1, 9), Snapshot(sector_count=sectors), put(0, 1, 7), sectors=37)
    assert_folds(chain, vary={1: with_junk_past_the_end})


@pytest.mark.parametrize("kind", GROWING)
def test_a_growing_disk_sheds_junk_without_bits_behind_its_old_end(kind: Kind) -> None:
    chain = chain_over(kind, put(36, 1, 9), Snapshot(sector_count=45), put(37, 1, 7), sectors=37)

    def without_bits(spec: ImageSpec) -> ImageSpec:
        return replace(with_junk_past_the_end(spec), bits_past_end=False)

    assert_folds(chain, vary={1: without_bits})


@pytest.mark.parametrize("between", [37, 45, 61])
def test_a_growing_disk_does_not_show_what_its_longer_ancestors_hold(between: int) -> None:
    chain = ModelChain.run(
        [
            Create(kind=Kind.DYNAMIC, sector_count=61),
            put(0, 61, 1),
            Snapshot(sector_count=between),
            put(between - 1, 1, 2),
            Snapshot(sector_count=37),
            put(36, 1, 3),
            Snapshot(sector_count=61),
            put(44, 1, 4),
        ]
    )
    assert_folds(chain, vary={1: with_junk_past_the_end})


@pytest.mark.parametrize("kind", GROWING)
def test_junk_behind_the_end_of_a_growing_child_is_not_merged(kind: Kind) -> None:
    chain = chain_over(kind, put(0, 1, 9), Snapshot(sector_count=45, block_size=8192), put(44, 1, 7), sectors=37)
    assert_folds(chain, vary={0: with_junk_past_the_end, 1: with_junk_past_the_end})


def long_growth(kind: Kind, *held: int, table_sectors: int = 11) -> ModelChain:
    """Return a chain whose destination's BAT, one full sector, must grow to so many."""
    sectors = 128 * 8 * table_sectors
    blocks = [put(8 * block, 2, 9) for block in held]
    grown = (Snapshot(sector_count=sectors), put(sectors - 20, 3, 7), put(0, 1, 6), put(90, 30, 5))
    return chain_over(kind, *blocks, *grown, sectors=128 * 8)


@pytest.mark.parametrize("kind", GROWING)
@pytest.mark.parametrize("held", [(), (0,), (3, 0), (0, 1, 2, 3, 4, 5)], ids=len)
@pytest.mark.parametrize("gap", [0, 8 * SECTOR])
def test_blocks_make_way_for_a_longer_table(kind: Kind, held: tuple[int, ...], gap: int) -> None:
    _, _, plan = assert_folds(long_growth(kind, *held), vary={1: changed(gap=gap)})
    assert plan.blocks_moved <= len(held)
    assert plan.blocks_moved or not held or gap


@pytest.mark.parametrize("held", [(), (0,), (0, 1, 2, 3)], ids=len)
def test_a_table_grows_over_padding_of_zeros(held: tuple[int, ...]) -> None:
    vary: Vary = {1: changed(table_fill=0, table_multiple=4096)}
    assert_folds(chain_over(Kind.DYNAMIC, *(put(8 * b, 1, 9) for b in held), *GROWN), vary=vary)
    assert_folds(long_growth(Kind.DYNAMIC, *held), vary=vary)


@pytest.mark.parametrize("first", [False, True], ids=["locators behind the table", "locators before the table"])
@pytest.mark.parametrize("held", [(), (0, 1, 2)], ids=len)
@pytest.mark.parametrize("kind", GROWING)  # VirtualBox gives locators to dynamic disks too (2.7)
def test_locators_survive_a_longer_table(kind: Kind, held: tuple[int, ...], first: bool) -> None:
    names = {b"W2ku": "C:\\vms\\parent.vhd", b"W2ru": ".\\parent.vhd", b"MacX": "file://./layer-0.vhd"}
    locators = tuple(locator(3 - slot, code, names[code]) for slot, code in enumerate(names))
    fields = changed(locators_first=first, locators=locators)
    folder, paths, _ = assert_folds(long_growth(kind, *held), vary={1: fields})
    image = parse(bytes(folder[paths[1]].content))
    assert {item.code: item.text for item in image.locators} == names
    assert [item.slot for item in image.locators] == [1, 2, 3]


def test_spare_entries_of_a_table_are_used_before_it_grows() -> None:
    _, _, plan = assert_folds(long_growth(Kind.DYNAMIC, 0, 1), vary={1: changed(extra_entries=128 * 10)})
    assert plan.blocks_moved == 0


@pytest.mark.parametrize("kind", GROWING)
def test_blocks_are_not_placed_over_locators(kind: Kind) -> None:
    texts = ((b"W2ru", ".\\layer-0.vhd"), (b"W2ku", "C:\\vms\\layer-0.vhd"))
    locators = tuple(replace(locator(slot, *text), room=1024, space=1024) for slot, text in enumerate(texts))
    assert_folds(chain_over(kind, Snapshot(), put(3, 9, 2)), vary={1: changed(locators=locators)})


def with_batmap(raw: bytes) -> bytes:
    """Write blktap's batmap right behind the table, into a gap that the spec left before the first block (3.7)."""
    image = parse(raw)
    assert image.header is not None
    at = image.header.table_offset + round_up(4 * image.header.max_table_entries, SECTOR)
    bits = bytes([0b1010_0000]).ljust(SECTOR, b"\0")
    head = struct.pack(">8sQIII", b"tdbatmap", at + SECTOR, 1, 0x00010002, ~sum(bits) & 0xFFFFFFFF)
    return raw[:at] + head.ljust(SECTOR, b"\0") + bits + raw[at + 2 * SECTOR :]


@pytest.mark.parametrize("kind", GROWING)
@pytest.mark.parametrize("grown", [True, False])
def test_a_batmap_is_kept_and_claims_nothing_that_is_not_so(kind: Kind, grown: bool) -> None:
    chain = long_growth(kind, 0, 2) if grown else chain_over(kind, put(0, 24, 9), Snapshot(), put(30, 5, 7))
    tap = changed(creator_app=b"tap\0", creator_version=0x10003, gap=2 * SECTOR, locators_first=True)
    full = {block * 8 + i: b"f" * SECTOR for block in (0, 2) for i in range(8)}
    vary: Vary = {1: lambda spec: tap(replace(spec, sectors={**full, **spec.sectors}))}
    chain.layers[1].held[[*full]] = True
    chain.layers[1].data[[n for n in full if not chain.layers[1].data[n].any()]] = ord("f")
    folder, paths, _ = assert_folds(chain, vary=vary, mend={1: with_batmap})
    raw = bytes(folder[paths[1]].content)
    image = parse(raw)
    assert image.header is not None
    at = image.header.table_offset + round_up(4 * image.header.max_table_entries, SECTOR)
    cookie, offset, sectors, _, checksum = struct.unpack_from(">8sQIII", raw, at)
    bits = np.unpackbits(np.frombuffer(raw[offset : offset + sectors * SECTOR], np.uint8))
    assert cookie == b"tdbatmap"
    assert len(bits) >= image.header.max_table_entries
    assert checksum == ~sum(raw[offset : offset + sectors * SECTOR]) & 0xFFFFFFFF
    for block in np.flatnonzero(bits).tolist():
        found = image.block(block)
        assert found is not None
        assert found.bitmap.all()


def with_table_before_the_header(raw: bytes) -> bytes:
    """Swap header and table, as no writer known does and the format allows: footer copy, BAT, header."""
    table, header = raw[1536:2048], bytearray(raw[512:1536])
    struct.pack_into(">Q", header, 16, 512)
    footers = []
    for footer in (raw[:512], raw[-512:]):
        moved = bytearray(footer)
        struct.pack_into(">Q", moved, 16, 1024)
        footers.append(seal(bytes(moved), 64))
    return footers[0] + table + seal(bytes(header), 36) + raw[2048:-512] + footers[1]


@pytest.mark.parametrize("kind", GROWING)
def test_a_header_behind_the_table_survives_a_longer_one_or_the_merge_is_refused(kind: Kind) -> None:
    chain = long_growth(kind, 0, 1)
    try:
        assert_folds(chain, mend={1: with_table_before_the_header})
    except vhdkit.MergeError:
        folder, paths = in_memory(chain, mend={1: with_table_before_the_header})
        assert_refused(folder, paths, vhdkit.MergeError)


def with_cut_last_block(raw: bytes) -> bytes:
    """Cut the last block's unused tail off the file, its footer right behind the disk's last sector (1.7)."""
    image = parse(raw)
    assert image.header is not None
    last = len(image.bat) - 1
    used = image.size - last * image.block_size
    end = int(image.bat[last]) * SECTOR + bitmap_length(image.block_size) + used
    return raw[:end] + raw[-SECTOR:]


@pytest.mark.parametrize("kind", GROWING)
@pytest.mark.parametrize("sectors", [37, 40, 45, 61])
def test_a_last_block_whose_tail_was_cut_off_is_made_whole_when_it_is_needed(kind: Kind, sectors: int) -> None:
    chain = chain_over(kind, put(36, 1, 9), Snapshot(sector_count=sectors), put(sectors - 1, 1, 7), sectors=37)
    folder, paths = in_memory(chain, mend={1: with_cut_last_block})
    expected = chain.view().tobytes()
    plan, _ = fold(folder, paths, Merge())
    raw = bytes(folder[paths[1]].content)
    assert plain_view(folder, paths[1:]) == vhdkit_view(folder, paths[1]) == expected
    assert len(raw) == plan.destination_size
    assert parse(raw).footer_place == "trailing"
    if sectors != 37:
        assert validate(raw) == []


# What the destination may be like


@pytest.mark.parametrize("kind", GROWING)
@pytest.mark.parametrize("footer", ["none", "511"])
@pytest.mark.parametrize("sectors", [40, 61])
@pytest.mark.parametrize("moves", [True, False])
def test_a_destination_without_whole_trailing_footer_gets_one(
    kind: Kind, footer: str, sectors: int, moves: bool
) -> None:
    writes = [put(20, 9, 7)] if moves else []
    chain = chain_over(kind, put(0, 3, 9), Snapshot(sector_count=sectors), *writes)
    assert_folds(chain, vary={1: changed(trailing_footer=footer)})


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("gap", [100, 7 * SECTOR])
def test_figures_are_exact_where_the_footer_lies_apart(gap: int, moves: bool) -> None:
    chain = chain_over(Kind.DYNAMIC, put(0, 3, 9), Snapshot(), *([put(20, 9, 7)] if moves else []))
    folder, paths = in_memory(chain, vary={1: changed(footer_gap=gap)})
    plan, result = fold(folder, paths, Merge())
    assert plan.destination_size == result.destination_size == len(folder[paths[1]].content)
    assert plain_view(folder, paths[1:]) == chain.view().tobytes()


def test_a_fixed_destination_refuses_to_grow() -> None:
    folder, paths = in_memory(chain_over(Kind.FIXED, Snapshot(sector_count=41), put(3, 1, 1)))
    assert_refused(folder, paths, vhdkit.MergeError)


@pytest.mark.parametrize("kind", [*BASES, Kind.DIFFERENCING])
def test_a_child_smaller_than_the_destination_is_refused(kind: Kind) -> None:
    folder, paths = in_memory(chain_over(kind, Snapshot(sector_count=39), put(3, 1, 1)))
    assert_refused(folder, paths, vhdkit.MergeError)


def test_a_raw_file_is_not_merged_into() -> None:
    chain = ModelChain.run([Create(kind=Kind.RAW, sector_count=8), Snapshot(), put(1, 1, 4)])
    (child, spec), (base, raw) = specs(chain)
    assert isinstance(spec, ImageSpec)
    assert isinstance(raw, bytes)
    folder = MemoryFolder({f"/vms/{child}": build(spec), f"/vms/{base}": raw})
    before = contents(folder)
    with pytest.raises(vhdkit.MergeError):
        vhdkit.plan_merge(f"/vms/{child}", parent=f"/vms/{base}", folder=folder)
    assert contents(folder) == before


def test_an_image_without_parent_has_nothing_to_be_merged_into() -> None:
    folder, paths = in_memory(chain_over(Kind.DYNAMIC, put(0, 1, 1)))
    with pytest.raises(vhdkit.MergeError, match="no parent"):
        vhdkit.plan_merge(paths[0], folder=folder)


def test_only_an_ancestor_can_be_merged_into() -> None:
    folder, paths = in_memory(chain_over(Kind.DYNAMIC, Snapshot(), put(0, 1, 1), Snapshot()))
    for into in (paths[0], paths[1]):
        with pytest.raises(vhdkit.MergeError, match="ancestor"):
            vhdkit.plan_merge(paths[1], into=into, folder=folder)


def test_into_and_to_exclude_each_other() -> None:
    folder, paths = in_memory(chain_over(Kind.DYNAMIC, Snapshot()))
    with pytest.raises(vhdkit.MergeError):
        vhdkit.plan_merge(paths[0], into=paths[1], to="/vms/new.vhd", folder=folder)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_saved_state_of_any_participant_refuses_the_merge(depth: int) -> None:
    chain = chain_over(Kind.DYNAMIC, Snapshot(), put(0, 1, 1), Snapshot(), put(9, 1, 2))
    folder, paths = in_memory(chain, vary={depth: changed(saved_state=1)})
    assert_refused(folder, paths, vhdkit.MergeError, Merge(depth_from=0, depth_to=2))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_overlapping_blocks_of_any_participant_refuse_the_merge(depth: int) -> None:
    def overlapping(raw: bytes) -> bytes:
        return raw[:1536] + raw[1540:1544] + raw[1540:]

    writes = (put(0, 1, 1), put(8, 1, 1))
    chain = chain_over(Kind.DYNAMIC, *writes, Snapshot(), *writes, Snapshot(), *writes)
    folder, paths = in_memory(chain, mend={depth: overlapping})
    error = assert_refused(folder, paths, vhdkit.CorruptImageError, Merge(depth_from=0, depth_to=2))
    assert isinstance(error, vhdkit.CorruptImageError)
    assert error.corruption is Corruption.BLOCKS_OVERLAP
    assert error.path == paths[depth]


def test_a_read_only_destination_refuses_the_merge() -> None:
    folder, paths = in_memory(chain_over(Kind.DYNAMIC, Snapshot(), put(0, 1, 1)))
    folder[paths[1]].read_only = True
    assert_refused(folder, paths, vhdkit.ReadOnlyImageError)


@pytest.mark.parametrize("role", ["destination", "relinked child", "source", "undo image"])
def test_a_folder_that_may_not_be_written_refuses_the_merge_that_needs_it(role: str) -> None:
    chain = chain_over(Kind.DYNAMIC, Snapshot(), put(0, 1, 1), Snapshot(), put(9, 1, 2))
    files = contents(in_memory(chain)[0])
    leaf, source, destination = ("/vms/leafs/layer-2.avhd", "/vms/sources/layer-1.avhd", "/vms/base/layer-0.vhd")
    moved = {leaf: files["/vms/layer-2.avhd"], source: files["/vms/layer-1.avhd"]}
    folder = MemoryFolder({**moved, destination: files["/vms/layer-0.vhd"]})
    closed = {"destination": "/vms/base", "relinked child": "/vms/leafs", "source": "/vms/sources", "undo image": "/u"}

    class Closed(SpyFolder):
        def may_write(self, path: str) -> bool:
            return path != closed[role]

    spy = Closed(folder)
    options: dict[str, Any] = {"into": destination, "search": ["/vms"], "folder": spy}
    plan = vhdkit.plan_merge(source, undo="/u/undo.avhd" if role == "undo image" else None, **options)
    (obstacle,) = plan.obstacles
    assert isinstance(obstacle, vhdkit.ReadOnlyImageError)
    assert closed[role] in str(obstacle)
    with pytest.raises(vhdkit.ReadOnlyImageError):
        vhdkit.merge(plan, folder=spy)
    assert spy.changes() == []
    if role == "source":
        vhdkit.merge(vhdkit.plan_merge(source, keep_sources=True, **options), folder=spy)


def test_every_obstacle_is_told_at_once() -> None:
    chain = chain_over(Kind.FIXED, Snapshot(sector_count=41), put(0, 1, 1))
    folder, paths = in_memory(chain, vary={0: changed(saved_state=1)})
    folder[paths[1]].read_only = True
    error = assert_refused(folder, paths, vhdkit.VhdError)
    assert len(planned(folder, paths, Merge()).obstacles) == 3
    assert len(error.__notes__) == 2


# Into a new file


def failure_of(action: Callable[[], object]) -> OSError | None:
    """Return the OSError of an action, or None where it ends well."""
    try:
        action()
    except OSError as error:
        return error
    return None


def of_three_layers() -> ModelChain:
    operations = (put(0, 30, 9), Snapshot(block_size=8192), put(7, 3, 0), Snapshot(sector_count=50), put(45, 5, 4))
    return chain_over(Kind.FIXED, *operations)


def test_a_new_file_leaves_every_input_untouched(tmp_path: Path) -> None:
    chain = of_three_layers()
    paths = write_files(chain, tmp_path)
    for path in paths:
        os.utime(path, ns=(1_000_000_001, 1_600_000_000_123_456_789))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}
    new = tmp_path / "merged.vhd"
    plan = vhdkit.plan_merge(str(paths[0]), to=str(new))
    result = vhdkit.merge(plan)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in paths} == before
    assert sorted(tmp_path.iterdir()) == sorted([*paths, new])
    image = parse(new)
    assert flat([image]).tobytes() == chain.view().tobytes()
    assert validate(new) == []
    assert (result.destination, result.removed, result.relinked) == (str(new), (), ())
    assert new.stat().st_size == plan.destination_size == result.destination_size == plan.space_needed
    assert image.allocated == plan.blocks_added.tolist()


def test_a_new_file_never_replaces_one(tmp_path: Path) -> None:
    paths = write_files(of_three_layers(), tmp_path)
    new = tmp_path / "merged.vhd"
    plan = vhdkit.plan_merge(str(paths[0]), to=str(new))
    new.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        vhdkit.plan_merge(str(paths[0]), to=str(new))
    with pytest.raises(FileExistsError):
        vhdkit.merge(plan)
    assert new.read_bytes() == b"mine"
    assert sorted(tmp_path.iterdir()) == sorted([*paths, new])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_new_file_that_fails_leaves_nothing_behind(code: int) -> None:
    for failing in itertools.count():
        folder, paths = in_memory(of_three_layers())
        before, number = contents(folder), itertools.count()

        def fail(event: Event, number: Iterator[int] = number, failing: int = failing) -> None:
            if event.operation in CHANGES - {"remove", "sync folder"} and next(number) == failing:
                raise OSError(code, os.strerror(code), event.path)

        spy = SpyFolder(folder, fail)
        plan = vhdkit.plan_merge(paths[0], to="/vms/merged.vhd", folder=spy)
        caught = failure_of(partial(vhdkit.merge, plan, folder=spy))
        if caught is None:
            assert failing > 5
            break
        assert caught.errno == code
        assert contents(folder) == before


def test_a_new_file_carries_the_whole_chain_from_a_layer_in_the_middle() -> None:
    folder, paths = in_memory(of_three_layers())
    expected = plain_view(folder, paths[1:])
    vhdkit.merge(vhdkit.plan_merge(paths[1], to="/vms/merged.vhd", folder=folder), folder=folder)
    assert plain_view(folder, ["/vms/merged.vhd"]) == expected


def test_a_new_file_is_told_of_by_what_was_copied_wherever_it_lies_in_the_disk(tmp_path: Path) -> None:
    """Of an empty disk with 12 MiB at its end most is not done before the first of them."""
    base, leaf, size = str(tmp_path / "a.vhd"), str(tmp_path / "a.avhd"), 256 << 20
    vhdkit.create_image(base, size=size)
    vhdkit.create_image(leaf, parent=base)
    with vhdkit.open_chain(leaf, writable=True) as chain:
        chain.write(size - (12 << 20), b"x" * (12 << 20))
    plan = vhdkit.plan_merge(leaf, to=str(tmp_path / "new.vhd"))
    told: list[int] = []
    vhdkit.merge(plan, progress=lambda state: told.append(state.bytes_done))
    assert plan.payload_bytes == 12 << 20
    assert told == [done << 20 for done in range(0, 13, 2)]
    plan = vhdkit.plan_merge(leaf, to=str(tmp_path / "slow.vhd"))
    begun = time.monotonic()
    vhdkit.merge(plan, rate=24 << 20)
    assert time.monotonic() - begun > 0.4


def test_a_new_file_that_is_cancelled_says_that_it_was_not_made() -> None:
    folder, paths = in_memory(of_three_layers())
    before = contents(folder)
    plan = vhdkit.plan_merge(paths[0], to="/vms/merged.vhd", folder=folder)

    def stop(state: vhdkit.Progress) -> None:
        if state.bytes_done:
            raise vhdkit.MergeCancelled("enough")

    with pytest.raises(vhdkit.MergeCancelled) as caught:
        vhdkit.merge(plan, progress=stop, folder=folder)
    assert caught.value.__notes__ == ["The chain was only read, and /vms/merged.vhd was not made."]
    assert contents(folder) == before


# Kept sources, and merging again


@pytest.mark.parametrize("kind", [*BASES, Kind.DIFFERENCING])
def test_kept_sources_stay_byte_for_byte(kind: Kind) -> None:
    chain = chain_over(kind, put(0, 3, 9), Snapshot(), put(1, 9, 7), Snapshot(), put(5, 1, 5))
    folder, paths = in_memory(chain)
    before = contents(folder)
    _, result = fold(folder, paths, Merge(depth_from=0, depth_to=2, keep=True))
    after = contents(folder)
    assert [after[path] for path in paths[:2]] == [before[path] for path in paths[:2]]
    assert result.removed == ()
    assert vhdkit_view(folder, paths[0]) == vhdkit_view(folder, paths[2]) == chain.view().tobytes()


@pytest.mark.parametrize(
    ("kind", "sectors"),
    [
        (kind, sectors)
        for kind in (*BASES, Kind.DIFFERENCING)
        for sectors in (40, 61)
        if kind in GROWING or sectors == 40
    ],
)
def test_a_merge_done_twice_ends_in_the_same_bytes(kind: Kind, sectors: int) -> None:
    chain = chain_over(kind, put(0, 3, 9), Snapshot(sector_count=sectors), put(1, 9, 7), put(30, 9, 0))
    folder, paths = in_memory(chain)
    merge = Merge(keep=True)
    fold(folder, paths, merge)
    once = contents(folder)
    plan, _ = fold(folder, paths, merge)
    assert contents(folder) == once
    assert len(plan.blocks_added) == plan.blocks_moved == plan.space_needed == 0


# A plan that no longer holds


def chain_on_disk(folder: Path) -> list[str]:
    operations = (put(0, 30, 1), Snapshot(), put(3, 9, 2), Snapshot(), put(5, 1, 3), Snapshot(), put(9, 1, 4))
    return [str(path) for path in write_files(chain_over(Kind.DYNAMIC, *operations), folder)]


def write_in_place(path: str) -> None:
    time.sleep(0.02)  # a file's time moves in ticks of the kernel's clock
    with open(path, "r+b") as file:
        file.seek(-SECTOR - 1, os.SEEK_END)
        file.write(b"\x77")


def replace_with_a_copy(path: str) -> None:
    shutil.copy2(path, f"{path}.new")
    os.replace(f"{path}.new", path)


def append_a_sector(path: str) -> None:
    with open(path, "r+b") as file:
        raw = file.read()
        file.write(raw[-SECTOR:])


@pytest.mark.parametrize("change", [write_in_place, replace_with_a_copy, append_a_sector, os.remove])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_plan_made_stale_is_refused_and_nothing_written(
    tmp_path: Path, change: Callable[[str], None], depth: int
) -> None:
    paths = chain_on_disk(tmp_path)
    plan = planned(LocalFolder(), paths, Merge(depth_from=1, depth_to=3))
    change(paths[depth])
    assert_untouched_by_refusal(plan, tmp_path)


def assert_untouched_by_refusal(plan: vhdkit.MergePlan, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises((vhdkit.VhdError, OSError)):
        vhdkit.merge(plan)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_plan_whose_child_to_relink_is_gone_is_refused_and_nothing_written(tmp_path: Path) -> None:
    paths = chain_on_disk(tmp_path)
    plan = planned(LocalFolder(), paths, Merge(depth_from=1, depth_to=3))
    os.remove(paths[0])
    assert_untouched_by_refusal(plan, tmp_path)


@pytest.mark.parametrize("depth", [2, 3])
def test_a_plan_since_which_a_sibling_was_made_is_refused_and_nothing_written(tmp_path: Path, depth: int) -> None:
    paths = chain_on_disk(tmp_path)
    plan = planned(LocalFolder(), paths, Merge(depth_from=1, depth_to=3))
    vhdkit.create_image(str(tmp_path / "sibling.avhd"), parent=paths[depth])
    assert_untouched_by_refusal(plan, tmp_path)


def test_a_plan_since_which_the_source_got_a_child_does_not_orphan_it(tmp_path: Path) -> None:
    paths = chain_on_disk(tmp_path)
    os.remove(paths[0])
    plan = planned(LocalFolder(), paths, Merge(depth_from=1, depth_to=3))
    late = str(tmp_path / "late.avhd")
    vhdkit.create_image(late, parent=paths[1])
    expected = vhdkit_view(LocalFolder(), late)
    with contextlib.suppress(vhdkit.MergeError):
        vhdkit.merge(plan)
    assert vhdkit_view(LocalFolder(), late) == expected


# Progress


@pytest.mark.parametrize("kind", [*BASES, Kind.DIFFERENCING])
@pytest.mark.parametrize("sectors", [9001, 9500])
def test_progress_is_monotonic_and_ends_at_the_total(kind: Kind, sectors: int) -> None:
    chain = chain_over(kind, put(5, 9000 - 5, 9), Snapshot(sector_count=9001), put(0, 3, 9), sectors=9001)
    scattered = (Snapshot(sector_count=sectors), put(0, 100, 7), put(3000, 2000, 0), put(9000, 1, 2))
    for operation in scattered:
        chain.apply(operation)
    folder, paths = in_memory(chain)
    seen: list[vhdkit.Progress] = []
    into_new_file = kind is Kind.FIXED and sectors > 9001
    plan = (
        vhdkit.plan_merge(paths[0], to="/vms/new.vhd", folder=folder)
        if into_new_file
        else planned(folder, paths, Merge(depth_from=0, depth_to=2))
    )
    vhdkit.merge(plan, progress=seen.append, folder=folder)
    done = [progress.bytes_done for progress in seen]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, plan.payload_bytes)
    assert {progress.bytes_total for progress in seen} == {plan.payload_bytes}


@pytest.mark.fast_path("together")
def test_progress_counts_what_is_moved_and_not_what_lies_between() -> None:
    scattered = [put(first + 2 * number, 1, 7) for first in (0, 5000) for number in range(25)]
    folder, paths = in_memory(chain_over(Kind.FIXED, Snapshot(), *scattered, sectors=6000))
    seen: list[vhdkit.Progress] = []
    vhdkit.merge(planned(folder, paths, Merge()), progress=seen.append, folder=folder)
    assert {progress.bytes_done for progress in seen} == {0, 25 * SECTOR, 50 * SECTOR}


# Cut off: tests/crash has every cut


Case = tuple[ModelChain, Merge, Vary]


def relinked_leaf() -> Case:
    """Single runs, which are copied, and many close together, which become one write, in two blocks each."""
    close = [put(sector, 1, sector) for first in (36, 100) for sector in range(first, first + 20, 2)]
    middle = [put(3, 9, 2), put(66, 3, 4), *close]
    operations: list[Write | Snapshot] = [put(0, 70, 1), Snapshot(), *middle, Snapshot(), put(12, 2, 3)]
    return chain_over(Kind.DYNAMIC, *operations, sectors=140, block_size=16384), Merge(depth_from=1, depth_to=2), {}


@pytest.mark.parametrize("operation", ["sync", "write", pytest.param("copy", marks=pytest.mark.fast_path("alone"))])
def test_after_a_failed_write_nothing_more_is_written(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the journal gets a word of it; an extension that failed is taken back, and durable before a journal goes."""
    for name in ("_FEW_BYTES", "_MANY_BYTES"):
        monkeypatch.setattr(f"vhdkit.merging.run.sector_copier.{name}", SECTOR)
    chain, merge, _ = relinked_leaf()
    folder, paths = in_memory(chain)
    counted = SpyFolder(folder)
    fold(counted, paths, merge)
    journal = paths[2] + ".vhdkit-journal"
    calls = [event for event in counted.events if event.operation == operation and event.path == paths[2]]
    assert len(calls) >= 3
    destination = paths[2]
    for number in range(len(calls)):
        folder, paths = in_memory(chain)
        passed = itertools.count()

        def fail_once(event: Event, number: int = number, passed: Iterator[int] = passed) -> None:
            if event.operation == operation and event.path == destination and next(passed) == number:
                raise OSError(errno.EIO, "lost", event.path)

        spy = SpyFolder(folder, fail_once)
        with pytest.raises(OSError, match="lost"):
            fold(spy, paths, merge)
        changes = spy.changes()
        failed = max(i for i, event in enumerate(changes) if event.operation == operation and event.path == paths[2])
        after = [(event.operation, event.path) for event in changes[failed + 1 :]]
        assert {path for _, path in after} <= {journal, "/vms", paths[2]}
        assert [op for op, path in after if path == paths[2]] in ([], ["truncate"], ["sync"], ["truncate", "sync"])
        assert after[-1] in {("write", journal), ("sync folder", "/vms")}
        assert plain_view(folder, paths) == chain.view().tobytes()
        assert paths[1] in contents(folder)
