"""What a merge takes: space, told exactly and before; syncs, few and in order; memory and calls, by what is held."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import vhdkit
from tests.model import Kind, Merge, Snapshot, write_files
from tests.plainbuild import ImageSpec, build, footer_bytes, locator
from tests.plaincheck import validate
from tests.plainvhd import DIFFERENCING, DYNAMIC, FIXED, SECTOR, bitmap_length, flat, parse
from tests.unit.test_merge_laws import (
    CHANGES,
    Event,
    SpyFolder,
    chain_over,
    contents,
    fold,
    in_memory,
    long_growth,
    plain_view,
    planned,
    put,
)
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.model import ModelChain

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
GIB = 1 << 30
BLOCK = 2 * MIB
# What memory promises (docs/reference/limits.md), in KiB as the kernel counts it.
LIMIT = 128 * 1024
# Tables are read in pieces of this size; their volume is the one thing that follows the disk's size: 4 MiB a layer.
TABLE_WINDOW = 65536


# Space


def growing_by_blocks() -> ModelChain:
    return chain_over(Kind.DYNAMIC, put(0, 3, 9), Snapshot(), put(3, 30, 2))


@pytest.mark.parametrize("missing", [1, 4608, 10**9])
def test_too_little_space_is_told_to_the_byte_before_anything_is_written(missing: int) -> None:
    folder, paths = in_memory(growing_by_blocks())
    before = contents(folder)
    needed = planned(folder, paths, Merge()).space_needed
    spy = SpyFolder(folder, free=max(0, needed - missing))
    with pytest.raises(vhdkit.NotEnoughSpaceError) as caught:
        fold(spy, paths, Merge())
    assert (caught.value.needed, caught.value.available) == (needed, max(0, needed - missing))
    assert caught.value.windows_code == 0x80070070
    assert str(needed) in str(caught.value)
    assert spy.changes() == []
    assert contents(folder) == before


@pytest.mark.parametrize("growth", [False, True])
def test_exactly_enough_space_is_enough(growth: bool) -> None:
    chain = long_growth(Kind.DYNAMIC, 0, 1) if growth else growing_by_blocks()
    folder, paths = in_memory(chain)
    size = len(folder[paths[1]].content)
    plan = planned(folder, paths, Merge())
    fold(SpyFolder(folder, free=plan.space_needed), paths, Merge())
    assert len(folder[paths[1]].content) - size == plan.space_needed > 0


def test_a_merge_into_what_is_there_needs_no_space() -> None:
    folder, paths = in_memory(chain_over(Kind.FIXED, Snapshot(), put(3, 30, 2)))
    plan, _ = fold(SpyFolder(folder, free=0), paths, Merge())
    assert plan.space_needed == 0


def test_a_new_file_without_room_is_told_to_the_byte() -> None:
    folder, paths = in_memory(growing_by_blocks())
    spy = SpyFolder(folder, free=1000)
    plan = vhdkit.plan_merge(paths[0], to="/vms/new.vhd", folder=spy)
    with pytest.raises(vhdkit.NotEnoughSpaceError) as caught:
        vhdkit.merge(plan, folder=spy)
    assert (caught.value.needed, caught.value.available) == (plan.destination_size, 1000)
    assert spy.changes() == []


@pytest.mark.parametrize("kind", [Kind.DYNAMIC, Kind.DIFFERENCING])
def test_space_that_was_taken_in_part_is_given_back(kind: Kind) -> None:
    folder, paths = in_memory(chain_over(kind, put(0, 3, 9), Snapshot(), put(3, 30, 2)))
    before = contents(folder)

    def run_full(event: Event) -> None:
        if event.operation == "reserve":
            folder[event.path].content.extend(bytes(1000))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), event.path)

    with pytest.raises(vhdkit.NotEnoughSpaceError):
        fold(SpyFolder(folder, run_full), paths, Merge())
    assert contents(folder) == before


def test_no_space_to_write_over_what_is_there_is_told_with_what_may_take_it() -> None:
    """So it is where a file system gives space anew to what is written over, since another file has the old."""
    folder, paths = in_memory(chain_over(Kind.DYNAMIC, put(0, 30, 9), Snapshot(), put(3, 20, 2)))
    plan = vhdkit.plan_merge(paths[0], into=paths[1], folder=folder)
    assert plan.space_needed == 0

    def run_full(event: Event) -> None:
        if event.operation in {"write", "copy"} and event.path == paths[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), event.path)

    with pytest.raises(vhdkit.NotEnoughSpaceError) as caught:
        vhdkit.merge(plan, folder=SpyFolder(folder, run_full, free=700))
    assert (caught.value.needed, caught.value.available) == (20 * SECTOR, 700)
    assert "shares with another file" in "".join(caught.value.__notes__)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 10 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(where)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting takes root")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def on_small_disk(folder: Path, kind: Kind) -> tuple[list[Path], ModelChain]:
    """Return a chain whose merge takes 1 MiB more: in new blocks, or in the holes of a sparse fixed disk."""
    sectors = 2 * MIB // SECTOR
    chain = chain_over(kind, put(0, 9, 9), Snapshot(), put(0, MIB // SECTOR, 5), sectors=sectors)
    paths = write_files(chain, folder)
    if kind is Kind.FIXED:
        raw = paths[1].read_bytes()
        with paths[1].open("wb") as file:
            file.write(raw[: 9 * SECTOR])
            file.seek(len(raw) - SECTOR)
            file.write(raw[-SECTOR:])
    return paths, chain


def fill(folder: Path, left: int) -> None:
    status = os.statvfs(folder)
    (folder / "ballast").write_bytes(bytes(status.f_bavail * status.f_frsize - left))


@pytest.mark.parametrize("kind", [Kind.DYNAMIC, Kind.DIFFERENCING, Kind.FIXED])
@pytest.mark.parametrize("left", [0, 64 * 1024, 900 * 1024])
def test_a_disk_that_fills_up_after_the_plan_loses_nothing(small_disk: Path, kind: Kind, left: int) -> None:
    paths, chain = on_small_disk(small_disk, kind)
    plan = vhdkit.plan_merge(str(paths[0]), into=str(paths[1]))
    fill(small_disk, left)
    before = flat([parse(path) for path in paths[1:]])
    with pytest.raises(vhdkit.NotEnoughSpaceError) as caught:
        vhdkit.merge(plan)
    assert caught.value.available < caught.value.needed
    assert np.array_equal(flat([parse(path) for path in paths]), chain.view())
    assert np.array_equal(flat([parse(path) for path in paths[1:]]), before)
    assert all(validate(path) == [] for path in paths)
    (small_disk / "ballast").unlink()
    vhdkit.merge(vhdkit.plan_merge(str(paths[0]), into=str(paths[1])))
    assert np.array_equal(flat([parse(path) for path in paths[1:]]), chain.view())


def test_a_full_disk_is_told_in_the_plan(small_disk: Path) -> None:
    paths, _ = on_small_disk(small_disk, Kind.DYNAMIC)
    fill(small_disk, 64 * 1024)
    plan = vhdkit.plan_merge(str(paths[0]), into=str(paths[1]))
    (obstacle,) = plan.obstacles
    assert isinstance(obstacle, vhdkit.NotEnoughSpaceError)
    assert (obstacle.needed, obstacle.available) == (plan.space_needed, 64 * 1024)


def test_a_full_disk_leaves_nothing_of_a_new_file(small_disk: Path) -> None:
    paths, chain = on_small_disk(small_disk, Kind.FIXED)
    new = small_disk / "new.vhd"
    plan = vhdkit.plan_merge(str(paths[0]), to=str(new))
    fill(small_disk, 64 * 1024)
    with pytest.raises(OSError, match="space") as caught:
        vhdkit.merge(plan)
    assert caught.value.errno == errno.ENOSPC
    assert sorted(path.name for path in small_disk.iterdir()) == sorted(["ballast", *(path.name for path in paths)])
    assert np.array_equal(flat([parse(path) for path in paths]), chain.view())


# The order of writes


def relinked_leaf() -> ModelChain:
    top = (Snapshot(), put(12, 2, 3))
    return chain_over(Kind.DYNAMIC, put(0, 9, 1), Snapshot(), put(3, 9, 2), put(20, 9, 2), *top)


def recorded() -> tuple[list[Event], list[str], bytes, bytes]:
    """Merge the middle of three layers under a leaf; return what was done, the paths, the destination's bytes."""
    folder, paths = in_memory(relinked_leaf())
    before = bytes(folder[paths[2]].content)
    spy = SpyFolder(folder)
    fold(spy, paths, Merge(depth_from=1, depth_to=2))
    return spy.changes(), paths, before, bytes(folder[paths[2]].content)


def test_writes_come_in_the_promised_order_each_step_durable_before_the_next() -> None:
    events, (leaf, source, destination), before, after = recorded()
    image, old = parse(after), parse(before)
    assert image.header is not None
    bitmaps = {int(at) * SECTOR for at in old.bat[old.allocated]}
    table = range(image.header.table_offset, image.header.table_offset + 4 * len(image.bat))
    footer_end = len(after) - SECTOR
    journal = destination + ".vhdkit-journal"
    header_step = leaf + ".vhdkit-header"

    def step(event: Event) -> str:
        name = {journal: "journal", header_step: "step file", destination: "data", leaf: "child", source: "source"}
        what = name.get(event.path, event.path)
        if event.operation != "write" or event.path != destination:
            return f"{event.operation} {what}"
        if event.offset == footer_end:
            return "footer"
        if event.offset in bitmaps or event.offset in table:
            return "reference"
        return "clean" if event.offset == len(before) - SECTOR and event.length == SECTOR else "data"

    steps = [step(event) for event in events if event.operation != "copy"]
    runs = [name for name, before_it in zip(steps, ["", *steps], strict=False) if name != before_it]
    said, folder = ["write journal", "sync journal"], "sync folder /vms"
    assert runs == [
        *["create journal", *said, folder],
        *["footer", "sync data", "reserve data", "clean", "sync data", *said],
        *["data", "sync data", "reference", "sync data", *said],
        *["create step file", "write step file", "sync step file", folder],
        *["write child", "sync child", "write child", "sync child"],
        *["remove step file", folder],
        *["remove source", folder],
        *["remove journal", folder],
    ]


def test_syncs_are_a_handful_however_many_blocks_are_written() -> None:
    counts = []
    for blocks in (2, 200):
        chain = chain_over(Kind.DYNAMIC, Snapshot(), put(0, 8 * blocks, 2), sectors=1600)
        folder, paths = in_memory(chain)
        spy = SpyFolder(folder)
        fold(spy, paths, Merge())
        counts.append(Counter(event.operation for event in spy.events if event.operation.startswith("sync")))
    assert counts[0] == counts[1]
    # The journal's first word, its name, room, "reserved", payload, references, "merged", two removals.
    assert counts[0]["sync"] <= 7
    assert counts[0]["sync folder"] <= 3


def test_an_undo_image_adds_a_handful_of_syncs_and_not_one_per_block() -> None:
    counts = []
    for blocks in (2, 200):
        chain = chain_over(Kind.DYNAMIC, put(0, 1600, 1), Snapshot(), put(0, 8 * blocks, 2), sectors=1600)
        folder, paths = in_memory(chain)
        spy = SpyFolder(folder)
        vhdkit.merge(vhdkit.plan_merge(paths[0], undo="/vms/undo.avhd", folder=spy), folder=spy)
        counts.append(sum(event.operation.startswith("sync") for event in spy.events))
    assert counts[0] == counts[1] <= 18


@pytest.mark.parametrize("kind", [Kind.DYNAMIC, Kind.DIFFERENCING, Kind.FIXED])
def test_nothing_but_the_destination_and_its_new_children_is_written(kind: Kind) -> None:
    chain = chain_over(kind, put(0, 9, 1), Snapshot(), put(3, 9, 2), Snapshot(), put(1, 9, 4), Snapshot())
    folder, paths = in_memory(chain)
    spy = SpyFolder(folder)
    fold(spy, paths, Merge(depth_from=1, depth_to=3))
    touched = {event.path for event in spy.events if event.operation in CHANGES - {"remove", "sync folder"}}
    assert touched == {paths[0], paths[3], paths[3] + ".vhdkit-journal", paths[0] + ".vhdkit-header"}
    for source in paths[1:3]:
        assert [event.operation for event in spy.changes(source)] == ["remove"]
    removed = [event.path for event in spy.events if event.operation == "remove"]
    assert removed[-3:] == [paths[1], paths[2], paths[3] + ".vhdkit-journal"], "leaf first, and the journal last"
    assert set(contents(folder)) == {paths[0], *paths[3:]}


def test_the_size_of_a_growing_disk_is_written_after_all_that_it_brings_into_view() -> None:
    folder, paths = in_memory(long_growth(Kind.DYNAMIC, 0, 1))
    expected = plain_view(folder, paths)
    sizes: list[int] = []

    def look(event: Event) -> None:
        if event.path == paths[1] and event.operation in CHANGES:
            sizes.append(parse(bytes(folder[paths[1]].content)).size)
            if sizes[-1] == len(expected):
                assert event.operation in {"write", "sync"}
                assert plain_view(folder, paths[1:]) == expected

    fold(SpyFolder(folder, look), paths, Merge())
    assert sizes == sorted(sizes)
    assert sizes[0] < len(expected) == sizes[-1]


# Memory and calls: large disks, sparse on disk


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """A large image: some blocks allocated, the same bitmap in each, bytes of data only in the first sector of each."""

    name: str
    size: int
    blocks: Sequence[int] = ()
    bitmap: bytes = b""
    parent: str = ""
    ident: int = 1
    mark: int = 0

    def write(self, folder: Path) -> Path:
        locators = (locator(0, b"W2ru", f".\\{self.parent}"),) if self.parent else ()
        spec = ImageSpec(
            disk_type=DIFFERENCING if self.parent else DYNAMIC,
            size=self.size,
            block_size=BLOCK,
            unique_id=bytes([self.ident]) * 16,
            parent_id=bytes([self.ident - 1]) * 16 if self.parent else bytes(16),
            parent_name=self.parent,
            locators=locators,
        )
        raw = build(spec)
        stride, end = bitmap_length(BLOCK) + BLOCK, len(raw) - SECTOR
        table = np.frombuffer(raw[1536 : 1536 + 4 * (-(-self.size // BLOCK))], dtype=">u4").copy()
        table[list(self.blocks)] = (end + np.arange(len(self.blocks), dtype=np.int64) * stride) // SECTOR
        path = folder / self.name
        with path.open("wb") as file:
            file.write(raw[:end])
            file.seek(1536)
            file.write(table.tobytes())
            for rank in range(len(self.blocks)):
                file.seek(end + rank * stride)
                file.write(self.bitmap.ljust(SECTOR, b"\0") + bytes([self.mark]) * SECTOR)
            file.seek(end + len(self.blocks) * stride)
            file.write(raw[-SECTOR:])
        return path


def peak_memory(source: Path, destination: Path) -> tuple[int, dict[str, int]]:
    """Merge in a process of its own; return its peak in KiB and some figures. Space is not really taken there.

    The peak is the kernel's for this program alone: ru_maxrss starts at what the process that forked it had.
    """
    if not os.path.exists("/proc/self/status"):
        pytest.skip("the peak is read from Linux's /proc")
    program = (
        "import json, os, sys\n"
        "os.posix_fallocate = lambda *_: None\n"
        "import vhdkit\n"
        "result = vhdkit.merge(vhdkit.plan_merge(sys.argv[1], into=sys.argv[2], keep_sources=True))\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "peak = int(status['VmHWM'].split()[0])\n"
        "print(json.dumps({'peak': peak, 'copied': result.bytes_copied, 'added': result.blocks_added}))\n"
    )
    command = [sys.executable, "-c", program, str(source), str(destination)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=600, cwd=ROOT)
    figures = json.loads(done.stdout)
    return figures.pop("peak"), figures


def sparse_fixed(folder: Path, size: int) -> Path:
    path = folder / "base.vhd"
    with path.open("wb") as file:
        file.seek(size)
        file.write(footer_bytes(ImageSpec(disk_type=FIXED, size=size, unique_id=bytes([1]) * 16)))
    return path


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [Kind.DYNAMIC, Kind.FIXED])
def test_memory_is_bounded_for_a_child_that_is_scattered_all_over(tmp_path: Path, kind: Kind) -> None:
    fixed = kind is Kind.FIXED
    base = sparse_fixed(tmp_path, GIB) if fixed else Sparse(name="base.vhd", size=GIB).write(tmp_path)
    every_other = Sparse(
        name="leaf.avhd", size=GIB, blocks=range(512), bitmap=b"\xaa" * 512, parent="base.vhd", ident=2, mark=7
    )
    peak, figures = peak_memory(every_other.write(tmp_path), base)
    assert figures == {"copied": GIB // 2, "added": 0 if fixed else 512}
    assert peak < LIMIT


@pytest.mark.parametrize("present", [True, False], ids=["blocks there", "blocks added"])
def test_memory_is_bounded_for_the_largest_disk(tmp_path: Path, present: bool) -> None:
    blocks = range(0, 1_044_480, 348)
    held = blocks if present else ()
    base = Sparse(name="base.vhd", size=2040 * GIB, blocks=held, bitmap=b"\xff" * 512).write(tmp_path)
    leaf = Sparse(
        name="leaf.avhd", size=2040 * GIB, blocks=blocks, bitmap=b"\xf0", parent="base.vhd", ident=2, mark=7
    ).write(tmp_path)
    peak, figures = peak_memory(leaf, base)
    assert figures == {"copied": len(blocks) * 2048, "added": 0 if present else len(blocks)}
    assert peak < LIMIT


def test_memory_is_bounded_for_many_layers(tmp_path: Path) -> None:
    base = Sparse(name="layer0", size=128 * GIB).write(tmp_path)
    for ident in range(2, 12):
        blocks = range(ident, 65536, 2560)
        top = Sparse(
            name=f"layer{ident - 1}",
            size=128 * GIB,
            blocks=blocks,
            bitmap=b"\xcc" * 512,
            parent=f"layer{ident - 2}",
            ident=ident,
            mark=ident,
        ).write(tmp_path)
    peak, figures = peak_memory(top, base)
    assert figures["copied"] == sum(len(range(ident, 65536, 2560)) for ident in range(2, 12)) * MIB
    assert peak < LIMIT


def of_3000_blocks(folder: Path, size: int) -> tuple[Path, Path]:
    """Return (leaf, base) of a disk in which both hold 3,000 blocks spread evenly, one of three in common."""
    folder.mkdir()
    count = size // BLOCK
    spread = np.linspace(0, count - 2, 3000).astype(np.int64)
    base = Sparse(
        name="base.vhd", size=size, blocks=(spread + (np.arange(3000) % 3 > 0)).tolist(), bitmap=b"\xff" * 512
    )
    leaf = Sparse(
        name="leaf.avhd", size=size, blocks=spread.tolist(), bitmap=b"\xf0\x0f", parent="base.vhd", ident=2, mark=7
    )
    return leaf.write(folder), base.write(folder)


@pytest.fixture
def without_reserving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep sparse files sparse: 6 GiB would really be taken otherwise."""
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: None, raising=False)


@pytest.mark.usefixtures("without_reserving")
def test_calls_depend_on_what_layers_hold_and_not_on_the_disks_size(tmp_path: Path) -> None:
    calls, volumes = [], []
    for size in (8 * GIB, 2040 * GIB):
        leaf, base = of_3000_blocks(tmp_path / str(size), size)
        spy = SpyFolder(LocalFolder())
        plan = vhdkit.plan_merge(str(leaf), into=str(base), keep_sources=True, folder=spy)
        vhdkit.merge(plan, folder=spy)
        assert plan.payload_bytes == 3000 * 8 * SECTOR
        calls.append(len(spy.events))
        reads = [event.length for event in spy.events if event.operation == "read"]
        volumes.append(sum(length for length in reads if length < TABLE_WINDOW))
    assert calls[1] <= 1.5 * calls[0]
    assert volumes[1] <= 1.5 * volumes[0]


@pytest.mark.slow
@pytest.mark.usefixtures("without_reserving")
def test_time_depends_on_what_layers_hold_and_not_on_the_disks_size(tmp_path: Path) -> None:
    seconds = []
    for size in (8 * GIB, 2040 * GIB):
        best = float("inf")
        for attempt in range(3):
            leaf, base = of_3000_blocks(tmp_path / f"{size}-{attempt}", size)
            begun = time.process_time()
            vhdkit.merge(vhdkit.plan_merge(str(leaf), into=str(base), keep_sources=True))
            best = min(best, time.process_time() - begun)
        seconds.append(best)
    assert seconds[1] <= 1.5 * seconds[0], seconds
