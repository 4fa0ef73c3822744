"""The block allocation table (docs/reference/vhd.md 1.6)."""

from __future__ import annotations

import struct
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vhdkit.vhd import bat

NONE = 0xFFFFFFFF
tables = st.lists(st.just(NONE) | st.integers(0, NONE), max_size=300)


def array(entries: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.array(entries, np.uint32)


@given(tables)
def test_entries_are_read_big_endian(entries: list[int]) -> None:
    read = bat.from_bytes(struct.pack(f">{len(entries)}I", *entries))
    assert read.dtype == np.dtype(np.uint32)
    assert read.dtype.isnative
    assert read.tolist() == entries


def test_read_entries_may_be_changed() -> None:
    entries = bat.from_bytes(bytes(8))
    entries[0] = 7
    assert entries.tolist() == [7, 0]


@given(tables)
@example([1] * 127)
@example([1] * 128)
@example([1] * 129)
def test_entries_are_written_big_endian_and_padded_with_ones_to_a_sector(entries: list[int]) -> None:
    raw = bat.to_bytes(array(entries))
    assert len(raw) % 512 == 0
    assert len(raw) - 4 * len(entries) < 512
    assert raw == struct.pack(f">{len(entries)}I", *entries).ljust(len(raw), b"\xff")


@given(tables)
def test_all_but_ones_are_allocated(entries: list[int]) -> None:
    found = bat.allocated(array(entries))
    assert found.dtype == np.int64
    assert found.tolist() == [index for index, entry in enumerate(entries) if entry != NONE]


@given(tables)
@example([0xFFFFFFFE, 0x00800000, 0])
def test_offsets_are_512_times_the_entry_and_never_wrap(entries: list[int]) -> None:
    found = bat.offsets(array(entries))
    assert found.dtype == np.int64
    assert found.tolist() == [entry * 512 for entry in entries]


def overlap(first: int, second: int, span: int) -> bool:
    """Two stretches share a sector exactly if each begins before the other ends."""
    return first < second + span and second < first + span


@given(st.lists(st.integers(0, 200) | st.integers(NONE - 60, NONE - 1), max_size=12), st.integers(1, 40))
@example([0, 10, 20], 10)
@example([0, 10, 19], 10)
@example([20, 0, 20], 10)
@example([0, NONE - 1], 0x10000)
def test_two_blocks_are_found_exactly_if_some_share_bytes(entries: list[int], span: int) -> None:
    found = bat.first_overlap(array(entries), span)
    clashes = [pair for pair in combinations(sorted(entries), 2) if overlap(*pair, span)]
    if found is None:
        assert clashes == []
    else:
        assert found in clashes


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_blocks_never_overlap(count: int) -> None:
    assert bat.first_overlap(array([7] * count), 1 << 20) is None
