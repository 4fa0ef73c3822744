"""Every kernel over arrays, held to a loop that says what it means (vhd.md 1.7, docs/reference/limits.md)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vhdkit.disk import extents, sector_bitmap
from vhdkit.disk.extents import Extents, Kind, intersect
from vhdkit.disk.read_extents import covered
from vhdkit.disk.sector_bitmap import BitOrder, HeldSectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Stretch = tuple[int, int]
    # What stands behind one byte: kind, depth, file offset.
    Source = tuple[int, int, int]

SECTOR = 512
# One sector a block to eight thousand; around the edges of bytes, words and bitmap sectors.
EDGES = [1, 2, 7, 8, 9, 63, 64, 65, 127, 128, 129, 4095, 4096, 4097, 8192]
sector_counts = st.sampled_from(EDGES) | st.integers(1, 300)


def bit(row: Sequence[int], sector: int) -> bool:
    return bool(row[sector >> 3] & 0x80 >> (sector & 7))


def least_first(row: Sequence[int], sector: int) -> bool:
    return bool(row[sector >> 3] & 1 << (sector & 7))


BITS = {BitOrder.MSB_FIRST: bit, BitOrder.LSB_FIRST: least_first}
orders = st.sampled_from(BitOrder)


def set_bit(row: bytearray, sector: int) -> None:
    row[sector >> 3] |= 0x80 >> (sector & 7)


def row_bytes(sectors: int) -> int:
    """Bytes of a bitmap on disk: a bit a sector, in whole sectors."""
    used = (sectors + 7) // 8
    return (used + 511) // 512 * 512


def ints(values: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


@st.composite
def stretches_in(draw: st.DrawFn, stop: int) -> Stretch:
    """A stretch [start, stop), empty ones too, often at the edges."""
    edge = st.sampled_from([0, stop // 2, stop - 1, stop]) | st.integers(0, stop)
    first, second = draw(edge), draw(edge)
    return min(first, second), max(first, second)


@st.composite
def rows(draw: st.DrawFn, sectors: int) -> bytes:
    """One bitmap: empty, full, noise or a few runs; with noise in the padding as well."""
    length = row_bytes(sectors)
    row = bytearray(draw(st.sampled_from([bytes(length), b"\xff" * length])))
    if draw(st.booleans()):
        seed = draw(st.binary(min_size=1, max_size=32))
        row[: len(seed)] = seed[:length]
    for start, stop in draw(st.lists(stretches_in(sectors), max_size=4)):
        for sector in range(start, stop):
            set_bit(row, sector)
    if draw(st.booleans()):
        row[-1] = draw(st.integers(0, 255))
    return bytes(row[:length])


@st.composite
def bitmaps(draw: st.DrawFn) -> tuple[npt.NDArray[np.uint8], int]:
    sectors = draw(sector_counts)
    raw = draw(st.lists(rows(sectors), max_size=4))
    array = np.frombuffer(b"".join(raw), np.uint8).reshape(len(raw), row_bytes(sectors)).copy()
    return array, sectors


# disk.sector_bitmap


@given(st.integers(0, 19))
def test_a_bitmap_takes_whole_sectors(power: int) -> None:
    assert sector_bitmap.bitmap_size(SECTOR << power) == row_bytes(1 << power)


def plain_runs(
    array: npt.NDArray[np.uint8], sectors: int, order: BitOrder = BitOrder.MSB_FIRST
) -> list[tuple[int, int, int]]:
    found = []
    for number, row in enumerate(array.tolist()):
        start = None
        for sector in range(sectors + 1):
            is_set = sector < sectors and BITS[order](row, sector)
            if is_set and start is None:
                start = sector
            if not is_set and start is not None:
                found.append((number, start, sector))
                start = None
    return found


@settings(deadline=None)
@given(bitmaps(), orders)
def test_runs_are_the_longest_stretches_of_set_bits(drawn: tuple[npt.NDArray[np.uint8], int], order: BitOrder) -> None:
    array, sectors = drawn
    before = array.copy()
    found = sector_bitmap.runs(array, sectors, order)
    assert [column.dtype for column in found] == [np.dtype(np.int64)] * 3
    assert list(zip(*(column.tolist() for column in found), strict=True)) == plain_runs(array, sectors, order)
    assert np.array_equal(array, before)


@settings(deadline=None)
@given(st.data())
def test_set_runs_sets_the_bits_of_its_runs_and_no_other(data: st.DataObject) -> None:
    array, sectors = data.draw(bitmaps())
    drawn = []
    if len(array):
        drawn = data.draw(st.lists(st.tuples(st.integers(0, len(array) - 1), stretches_in(sectors))))
    expected = [bytearray(row) for row in array.tolist()]
    for number, (start, stop) in drawn:
        for sector in range(start, stop):
            set_bit(expected[number], sector)
    row, start_stop = ints([number for number, _ in drawn]), [run for _, run in drawn]
    sector_bitmap.set_runs(array, row, ints([run[0] for run in start_stop]), ints([run[1] for run in start_stop]))
    assert [bytes(found) for found in array] == [bytes(wanted) for wanted in expected]


@settings(deadline=None)
@given(bitmaps())
def test_set_runs_of_all_runs_changes_nothing(drawn: tuple[npt.NDArray[np.uint8], int]) -> None:
    array, sectors = drawn
    before = array.copy()
    sector_bitmap.set_runs(array, *sector_bitmap.runs(array, sectors))
    assert np.array_equal(array, before)


@settings(deadline=None)
@given(bitmaps(), orders)
def test_count_counts_the_set_bits_of_the_disk_and_not_the_padding(
    drawn: tuple[npt.NDArray[np.uint8], int], order: BitOrder
) -> None:
    array, sectors = drawn
    found = sector_bitmap.count(array, sectors, order)
    assert found.dtype == np.int64
    assert found.tolist() == [sum(BITS[order](row, sector) for sector in range(sectors)) for row in array.tolist()]


@pytest.mark.parametrize(
    "words", [1, 7, 8, 9, 16, 24, 32, 40, 48, 64, 128, 504, 1000, 1008, 1016, 1023, 1024, 1032, 2048]
)
def test_counting_rows_of_any_width_overflows_nowhere(words: int) -> None:
    array = np.full((3, row_bytes(64 * words)), 0xFF, np.uint8)
    array[1] = 0
    array[2, 8 * words - 1] = 0xFE
    assert sector_bitmap.count(array, 64 * words).tolist() == [64 * words, 0, 64 * words - 1]


@settings(deadline=None)
@given(st.integers(0, 14), st.integers(0, 3))
def test_full_bitmaps_have_every_sector_set_and_the_padding_clear(power: int, count: int) -> None:
    sectors = 1 << power
    expected = bytearray(row_bytes(sectors))
    for sector in range(sectors):
        set_bit(expected, sector)
    assert [bytes(row) for row in sector_bitmap.full(SECTOR * sectors, count)] == [bytes(expected)] * count


@settings(deadline=None)
@given(bitmaps(), st.sampled_from(["every other row", "backwards", "columns first", "unaligned"]))
def test_how_the_rows_lie_in_memory_changes_nothing(drawn: tuple[npt.NDArray[np.uint8], int], how: str) -> None:
    array, sectors = drawn
    if how == "every other row":
        other = np.repeat(array, 2, axis=0)[::2]
    elif how == "backwards":
        other = array[::-1].copy()[::-1]
    elif how == "columns first":
        other = np.asfortranarray(array)
    else:
        raw = b"x" + array.tobytes()
        other = np.frombuffer(raw, np.uint8)[1:].reshape(array.shape)
    assert list(map(list, sector_bitmap.runs(other, sectors))) == list(map(list, sector_bitmap.runs(array, sectors)))
    assert sector_bitmap.count(other, sectors).tolist() == sector_bitmap.count(array, sectors).tolist()
    found = sector_bitmap.owners(len(other), [HeldSectors(np.arange(len(other)), other)], sectors)
    wanted = sector_bitmap.owners(len(other), [HeldSectors(np.arange(len(other)), array)], sectors)
    assert list(map(list, found)) == list(map(list, wanted))


def test_many_slabs_say_what_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    array = random.integers(0, 256, (37, 512), np.uint8) & random.integers(0, 256, (37, 512), np.uint8)
    layers = random.integers(0, 256, (3, 37, 512), np.uint8)
    numbered = [HeldSectors(np.arange(37), layer) for layer in layers]

    def answers() -> list[list[int]]:
        again = np.zeros_like(array)
        runs = sector_bitmap.runs(array, 4095)
        sector_bitmap.set_runs(again, *runs)
        columns = [*runs, sector_bitmap.count(array, 4095), again, *sector_bitmap.owners(37, numbered, 4095)]
        return [column.ravel().tolist() for column in columns]

    once = answers()
    monkeypatch.setattr(sector_bitmap, "_RUN_SLAB", 2048)
    monkeypatch.setattr(sector_bitmap, "_COUNT_SLAB", 2048)
    assert answers() == once
    for dense in (0, 65):
        monkeypatch.setattr(sector_bitmap, "_DENSE", dense)
        assert answers() == once


def plain_owners(
    row_count: int, layers: list[tuple[list[int], list[list[int]], BitOrder]], sectors: int
) -> list[tuple[int, int, int, int]]:
    found: list[tuple[int, int, int, int]] = []
    for row in range(row_count):
        for sector in range(sectors):
            owner = -1
            for number, (held, maps, order) in enumerate(layers):
                if owner < 0 and row in held and BITS[order](maps[held.index(row)], sector):
                    owner = number
            if sector and found[-1][3] == owner:
                found[-1] = (row, found[-1][1], sector + 1, owner)
            else:
                found.append((row, sector, sector + 1, owner))
    return found


@settings(deadline=None)
@given(st.data(), st.integers(0, 4))
def test_a_sectors_owner_is_the_first_layer_that_has_it(data: st.DataObject, depth: int) -> None:
    sectors, row_count = data.draw(sector_counts), data.draw(st.integers(0, 3))
    numbers = st.permutations(range(row_count)).flatmap(lambda all_: st.integers(0, row_count).map(lambda n: all_[:n]))
    drawn = [data.draw(numbers) for _ in range(depth)]
    maps = [[list(data.draw(rows(sectors))) for _ in held] for held in drawn]
    ordered = [data.draw(orders) for _ in drawn]
    layers = [
        HeldSectors(ints(held), np.array(found, np.uint8).reshape(len(held), row_bytes(sectors)), order)
        for held, found, order in zip(drawn, maps, ordered, strict=True)
    ]
    found = sector_bitmap.owners(row_count, layers, sectors)
    assert [column.dtype for column in found] == [np.dtype(np.int64)] * 4
    expected = plain_owners(row_count, list(zip(drawn, maps, ordered, strict=True)), sectors)
    assert list(zip(*(column.tolist() for column in found), strict=True)) == expected


@given(st.binary(max_size=9), st.integers(0, 200))
def test_merging_sectors_takes_the_wanted_ones_and_leaves_the_others(mask: bytes, seed: int) -> None:
    random = np.random.default_rng(seed)
    wanted = np.array([byte & 1 for byte in mask], np.bool_)
    # From a byte on that no word begins with, as a buffer that a file was read into may lie.
    out, other = random.integers(0, 256, (2, len(mask) * SECTOR + 1), np.uint8)[:, 1:]
    expected = [
        (other if wish else out)[at * SECTOR : (at + 1) * SECTOR].tolist() for at, wish in enumerate(wanted.tolist())
    ]
    sector_bitmap.merge_sectors(out, other, wanted)
    assert out.tolist() == [byte for sector in expected for byte in sector]


# disk.extents


def sources(extents: Extents) -> list[Source]:
    """Say of every byte what stands behind it; check that extents follow one another and none is empty."""
    found: list[Source] = []
    position = int(extents.start[0]) if len(extents) else 0
    for item in extents:
        assert item.start == position
        assert item.length > 0
        assert (item.file_offset >= 0) == (item.kind is Kind.DATA)
        for inside in range(item.length):
            at = item.file_offset + inside if item.kind is Kind.DATA else -1
            found.append((item.kind, item.depth, at))
        position += item.length
    return found


@st.composite
def data_stretches(draw: st.DrawFn, stop: int) -> list[tuple[int, int, int]]:
    """Ascending (start, stop, file offset), apart or touching, some touching in the file as well."""
    cuts = sorted(draw(st.sets(st.integers(0, stop), max_size=8)))
    found: list[tuple[int, int, int]] = []
    for start, end in pairwise(cuts):
        if draw(st.booleans()):
            touching = found[-1][2] + found[-1][1] - found[-1][0] if found else 0
            found.append((start, end, draw(st.just(touching) | st.integers(0, 500))))
    return found


def fill(stretches: list[tuple[int, int, int]], first: int, last: int, hole: Kind) -> Extents:
    columns = list(zip(*stretches, strict=True)) if stretches else [(), (), ()]
    return extents.filled(ints(columns[0]), ints(columns[1]), ints(columns[2]), first, last, hole)


@settings(deadline=None)
@given(data_stretches(60), stretches_in(60), st.sampled_from([Kind.ZERO, Kind.PARENT]))
@example([], (5, 5), Kind.ZERO)
@example([(0, 60, 7)], (0, 60), Kind.PARENT)
@example([(0, 10, 100), (10, 20, 110), (20, 30, 200)], (5, 25), Kind.ZERO)
def test_filled_gives_data_where_there_are_some_and_holes_elsewhere(
    stretches: list[tuple[int, int, int]], within: Stretch, hole: Kind
) -> None:
    expected: list[Source] = [(hole, 0, -1)] * 60
    for start, stop, at in stretches:
        for position in range(start, stop):
            expected[position] = (Kind.DATA, 0, at + position - start)
    found = fill(stretches, *within, hole)
    assert sources(found) == expected[within[0] : within[1]]
    assert len(found) == 0 or found.start[0] == within[0]


@settings(deadline=None)
@given(data_stretches(60), stretches_in(60), st.sampled_from([Kind.ZERO, Kind.PARENT]))
def test_filled_never_gives_two_extents_where_one_would_do(
    stretches: list[tuple[int, int, int]], within: Stretch, hole: Kind
) -> None:
    found = list(fill(stretches, *within, hole))
    for left, right in pairwise(found):
        joins = left.kind is right.kind and (
            left.kind is not Kind.DATA or left.file_offset + left.length == right.file_offset
        )
        assert not joins


@given(stretches_in(60), st.sampled_from(Kind))
def test_single_is_one_extent_or_none(within: Stretch, kind: Kind) -> None:
    start, stop = within
    at = 7 if kind is Kind.DATA else -1
    expected = [(start, stop - start, kind, 0, at)] if start < stop else []
    assert [tuple(item) for item in extents.single(start, stop, kind, at)] == expected


@st.composite
def layers(draw: st.DrawFn, depth: int, first: int, last: int) -> Extents:
    """What one layer answers for a range; a short layer has zeros behind its end."""
    end = draw(st.just(last) | st.integers(first + 1, last))
    hole = draw(st.sampled_from([Kind.PARENT, Kind.PARENT, Kind.ZERO]))
    parts = [fill(draw(data_stretches(60)), first, end, hole)]
    if end < last:
        parts.append(extents.single(end, last, Kind.ZERO))
    return extents.concatenate(parts).at_depth(depth)


@settings(deadline=None)
@given(st.data(), st.integers(0, 30), st.integers(1, 30))
def test_overlay_takes_from_below_what_the_upper_leaves_to_its_parent(
    data: st.DataObject, first: int, length: int
) -> None:
    upper = data.draw(layers(0, first, first + length))
    lower = data.draw(layers(1, first, first + length))
    expected = [
        below if above[0] == Kind.PARENT else above for above, below in zip(sources(upper), sources(lower), strict=True)
    ]
    found = extents.overlay(upper, lower)
    assert sources(found) == expected
    assert found.start[0] == first
    assert found.total == length


@settings(deadline=None)
@given(st.data())
def test_overlay_keeps_the_uppers_own_stretches_whole(data: st.DataObject) -> None:
    upper, lower = data.draw(layers(0, 0, 60)), data.draw(layers(1, 0, 60))
    found = [tuple(item) for item in extents.overlay(upper, lower)]
    assert all(tuple(item) in found for item in upper if item.kind is not Kind.PARENT)


@settings(deadline=None)
@given(st.data())
def test_overlaying_three_layers_is_associative(data: st.DataObject) -> None:
    top, middle, base = (data.draw(layers(depth, 0, 60)) for depth in range(3))
    left = extents.overlay(extents.overlay(top, middle), base)
    right = extents.overlay(top, extents.overlay(middle, base))
    assert sources(left) == sources(right)


def pick(extents: Extents, wanted: Sequence[bool]) -> list[tuple[int, Source]]:
    """Say, of the wanted positions alone, what stands behind them; of extents that need not touch."""
    found: list[tuple[int, Source]] = []
    for item in extents:
        assert item.length > 0
        for inside in range(item.length):
            at = item.file_offset + inside if item.kind is Kind.DATA else -1
            found.append((item.start + inside, (item.kind, item.depth, at)))
    return [(position, source) for position, source in found if wanted[position]]


EVERYWHERE = [True] * 60


@settings(deadline=None)
@given(data_stretches(60), st.sampled_from([Kind.ZERO, Kind.PARENT]), st.integers(1, 70))
def test_split_cuts_at_every_multiple_and_nowhere_else(
    stretches: list[tuple[int, int, int]], hole: Kind, size: int
) -> None:
    whole = fill(stretches, 0, 60, hole)
    found = extents.split(whole, size)
    assert pick(found, EVERYWHERE) == pick(whole, EVERYWHERE)
    cuts = {0, *(cut for cut in range(0, 60, size)), *whole.start.tolist()}
    assert found.start.tolist() == sorted(cuts)


@settings(deadline=None)
@given(data_stretches(60), st.booleans(), data_stretches(60))
def test_intersect_keeps_what_lies_in_the_stretches(
    stretches: list[tuple[int, int, int]], only_data: bool, windows: list[tuple[int, int, int]]
) -> None:
    whole = fill(stretches, 0, 60, Kind.PARENT)
    extents = whole.of(Kind.DATA) if only_data else whole
    wanted = [any(start <= position < stop for start, stop, _ in windows) for position in range(60)]
    found = intersect(extents, ints([item[0] for item in windows]), ints([item[1] for item in windows]))
    assert pick(found, EVERYWHERE) == pick(extents, wanted)
    pieces = sum(
        item.start < stop and start < item.start + item.length for item in extents for start, stop, _ in windows
    )
    assert len(found) == pieces


@settings(deadline=None)
@given(data_stretches(60), stretches_in(60))
def test_clipped_keeps_what_lies_in_the_range(stretches: list[tuple[int, int, int]], within: Stretch) -> None:
    whole = fill(stretches, 0, 60, Kind.ZERO)
    wanted = [within[0] <= position < within[1] for position in range(60)]
    assert pick(extents.clipped(whole, *within), EVERYWHERE) == pick(whole, wanted)


def plain_groups(items: list[tuple[int, int, tuple[int, int]]], gap: int) -> list[list[int]]:
    found: list[list[int]] = []
    for index, (start, _, keys) in enumerate(items):
        if index and keys == items[index - 1][2] and start - items[index - 1][1] <= gap:
            found[-1].append(index)
        else:
            found.append([index])
    return found


@settings(deadline=None)
@given(data_stretches(60), st.integers(0, 20), st.integers(0, 0b11111111))
def test_groups_are_neighbours_with_equal_keys_and_small_gaps(
    stretches: list[tuple[int, int, int]], gap: int, other: int
) -> None:
    items = [(start, stop, (at // 250, other >> index & 1)) for index, (start, stop, at) in enumerate(stretches)]
    start, stop = ints([item[0] for item in items]), ints([item[1] for item in items])
    keys = [ints([item[2][0] for item in items]), ints([item[2][1] for item in items])]
    heads, tails = extents.groups(start, stop, gap, *keys)
    found = [list(range(head, tail)) for head, tail in zip(heads.tolist(), tails.tolist(), strict=True)]
    assert found == plain_groups(items, gap)


@settings(deadline=None)
@given(data_stretches(60), st.sampled_from(Kind), st.integers(0, 5))
def test_extents_are_chosen_by_kind_and_moved_to_a_depth(
    stretches: list[tuple[int, int, int]], kind: Kind, depth: int
) -> None:
    whole = fill(stretches, 0, 60, Kind.PARENT)
    assert list(whole.of(kind)) == [item for item in whole if item.kind is kind]
    assert list(whole.at_depth(depth)) == [item._replace(depth=depth) for item in whole]
    assert whole.total == sum(item.length for item in whole) == 60


# image.transfer


@settings(deadline=None)
@given(data_stretches(60))
@example([])
@example([(0, 60, 0)])
def test_covered_marks_the_sectors_inside_the_stretches(stretches: list[tuple[int, int, int]]) -> None:
    expected = [any(start <= sector < stop for start, stop, _ in stretches) for sector in range(60)]
    start, stop = ints([item[0] for item in stretches]), ints([item[1] for item in stretches])
    assert covered(start * SECTOR, stop * SECTOR, 60 * SECTOR).tolist() == expected
