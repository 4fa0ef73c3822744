"""A log that was not replayed is read as if it had been, and nothing is written."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import plainvhdx
from tests.counting import CountingFolder
from tests.plainvhdx import BAT_AT, FULL, LOG_AT, PAGE, Disk, log_entry
from vhdkit.chain.chain import open_chain
from vhdkit.errors import CorruptImageError
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhdx.corruption import VhdxCorruption
from vhdkit.vhdx.log_overlay import LogOverlay
from vhdkit.vhdx.metadata_reader import read_vhdx

if TYPE_CHECKING:
    from pathlib import Path

MIB: Final = 1 << 20
GUID: Final = b"L" * 16
OLD: Final = b"O" * 16
SIZE: Final = 5 * MIB  # of the file: one block at 4 MiB


def bat_page(*entries: int) -> bytes:
    return struct.pack(f"<{len(entries)}Q", *entries).ljust(PAGE, b"\0")


def file_of(log: dict[int, bytes], *, guid: bytes = GUID) -> bytes:
    """A file whose one block holds ones, with entries at places of its log, over the end to the start."""
    disk = Disk(size=4 * MIB, blocks={0: (FULL, b"\1" * MIB)}, log_guid=guid)
    raw = bytearray(plainvhdx.write(disk))
    for at, entry in log.items():
        first = entry[: MIB - at]
        raw[LOG_AT + at : LOG_AT + at + len(first)] = first
        raw[LOG_AT : LOG_AT + len(entry) - len(first)] = entry[len(first) :]
    return bytes(raw)


def view(raw: bytes) -> bytes:
    folder = MemoryFolder({"/d.vhdx": raw})
    with open_chain("/d.vhdx", folder=folder) as chain:
        found = chain.read(0, chain.size)
        assert [finding.corruption for finding in chain.findings] == [VhdxCorruption.LOG_TO_REPLAY]
    assert folder["/d.vhdx"].content == raw
    assert found == plainvhdx.read([raw])
    return found


def refusal(raw: bytes) -> CorruptImageError:
    folder = MemoryFolder({"/d.vhdx": raw})
    with pytest.raises(CorruptImageError) as caught:
        open_chain("/d.vhdx", folder=folder)
    assert folder["/d.vhdx"].content == raw
    return caught.value


MOVED: Final = bat_page(0, 4 * MIB | FULL)
GONE: Final = bat_page(0, 0, 4 * MIB | FULL)


def test_an_entry_changes_the_table() -> None:
    assert view(file_of({0: log_entry(GUID, 9, 0, [(BAT_AT, MOVED)])})) == bytes(MIB) + b"\1" * MIB + bytes(2 * MIB)


def test_the_last_of_several_entries_wins_and_those_before_the_tail_do_not_count() -> None:
    first = log_entry(GUID, 5, 0, [(BAT_AT, bat_page(7)), (BAT_AT + PAGE, bat_page(7))])
    second = log_entry(GUID, 6, len(first), [(BAT_AT, MOVED)])
    third = log_entry(GUID, 7, len(first), [(BAT_AT, GONE)])
    log = {0: first, len(first): second, len(first) + len(second): third}
    assert view(file_of(log)) == bytes(2 * MIB) + b"\1" * MIB + bytes(MIB)


@pytest.mark.parametrize("at", [MIB - PAGE, MIB - 2 * PAGE])
def test_entries_go_over_the_end_of_the_ring(at: int) -> None:
    first = log_entry(GUID, 5, at, [(BAT_AT, GONE)])
    second = log_entry(GUID, 6, at, [(BAT_AT, MOVED)])
    assert view(file_of({at: first, (at + len(first)) % MIB: second}))[MIB : 2 * MIB] == b"\1" * MIB


def test_a_torn_entry_ends_the_log_before_it() -> None:
    first = log_entry(GUID, 5, 0, [(BAT_AT, MOVED)])
    second = log_entry(GUID, 6, 0, [(BAT_AT, GONE)])
    for torn in (second[:PAGE], second[:-1] + b"\xff", second[:100] + b"\xff" + second[101:]):
        assert view(file_of({0: first, len(first): torn}))[MIB : 2 * MIB] == b"\1" * MIB


def test_what_other_sessions_left_in_the_ring_does_not_count() -> None:
    first = log_entry(GUID, 5, 0, [(BAT_AT, MOVED)])
    old = log_entry(OLD, 6, len(first), [(BAT_AT, GONE)])
    assert view(file_of({0: first, len(first): old}))[MIB : 2 * MIB] == b"\1" * MIB
    gap = log_entry(GUID, 8, 0, [(BAT_AT, GONE)])
    assert view(file_of({0: first, len(first): gap}))[MIB : 2 * MIB] == b"\1" * MIB


def test_an_entry_may_make_the_file_longer() -> None:
    # As if a power cut had come before the new block's room was there: it reads as zeros.
    table = bat_page(5 * MIB | FULL, 4 * MIB | FULL)
    raw = file_of({0: log_entry(GUID, 1, 0, [(BAT_AT, table)], flushed=SIZE, last=6 * MIB)})
    assert view(raw)[: 2 * MIB] == bytes(MIB) + b"\1" * MIB


def test_zeros_and_pages_come_in_their_order() -> None:
    entry = log_entry(
        GUID, 3, 0, [(BAT_AT, GONE), (BAT_AT, 2 * PAGE), (BAT_AT, MOVED), (BAT_AT + PAGE, PAGE), (BAT_AT, 0)]
    )
    assert view(file_of({0: entry}))[MIB : 2 * MIB] == b"\1" * MIB
    assert view(file_of({0: log_entry(GUID, 3, 0, [(BAT_AT, MOVED), (BAT_AT, 2 * PAGE)])})) == bytes(4 * MIB)


def test_an_entry_of_many_descriptors_takes_pages_for_them() -> None:
    changes: list[tuple[int, bytes | int]] = [(BAT_AT + PAGE * number, bat_page(0)) for number in range(1, 130)]
    entry = log_entry(GUID, 3, 0, [*changes, (BAT_AT, MOVED)])
    assert len(entry) == (2 + 130) * PAGE
    assert view(file_of({0: entry}))[MIB : 2 * MIB] == b"\1" * MIB


def test_a_log_without_entries_is_refused_with_words_of_its_own() -> None:
    error = refusal(file_of({}))
    assert error.corruption is VhdxCorruption.LOG_WITHOUT_ENTRIES
    assert "qemu" in str(error)
    entry = log_entry(GUID, 3, 0, [(BAT_AT, MOVED)])
    damaged = refusal(file_of({0: entry[:-1] + b"\xff"}))
    assert damaged.corruption is VhdxCorruption.LOG_DAMAGED
    assert "in part" in str(damaged)


@pytest.mark.parametrize(
    ("changes", "flushed", "last", "rule"),
    [
        ([(64 << 10, bytes(PAGE))], 0, 0, VhdxCorruption.LOG_TARGET),
        ([(LOG_AT, bytes(PAGE))], 0, 0, VhdxCorruption.LOG_TARGET),
        ([(LOG_AT - PAGE, 2 * PAGE)], 0, 0, VhdxCorruption.LOG_TARGET),
        ([(BAT_AT, 1 << 62)], 0, 0, VhdxCorruption.LOG_TARGET_FAR),
        ([((1 << 64) - PAGE, 1 << 63)], 0, 0, VhdxCorruption.LOG_TARGET_FAR),
        ([(BAT_AT, MOVED)], 0, 1 << 63, VhdxCorruption.LOG_TARGET_FAR),
        ([(BAT_AT, MOVED)], SIZE + 1, 0, VhdxCorruption.LOG_FILE_CUT),
    ],
)
def test_an_entry_that_no_program_writes_is_refused(
    changes: list[tuple[int, bytes | int]], flushed: int, last: int, rule: VhdxCorruption
) -> None:
    assert refusal(file_of({0: log_entry(GUID, 3, 0, changes, flushed=flushed, last=last)})).corruption is rule


def test_entries_upon_entries_are_given_up() -> None:
    # Each page begins an entry of half the ring: summing all of them would take the ring's square.
    page = log_entry(GUID, 3, 0, [(BAT_AT, MOVED)] * 126)[:PAGE]
    assert refusal(file_of(dict.fromkeys(range(0, MIB, PAGE), page))).corruption is VhdxCorruption.LOG_COSTLY


def test_zeros_without_number_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhdkit.vhdx.log._MOST_ZEROS", 2)
    zeros: list[tuple[int, bytes | int]] = [(BAT_AT + 2 * PAGE * at, PAGE) for at in range(3)]
    assert refusal(file_of({0: log_entry(GUID, 3, 0, zeros)})).corruption is VhdxCorruption.LOG_COSTLY
    assert view(file_of({0: log_entry(GUID, 3, 0, zeros[:2])}))


def test_an_entry_that_only_says_that_it_is_long_is_not_summed() -> None:
    page = log_entry(GUID, 3, 0, [])
    page = page[:8] + struct.pack("<I", MIB) + page[12:]
    assert refusal(file_of(dict.fromkeys(range(0, MIB, PAGE), page))).corruption is VhdxCorruption.LOG_DAMAGED


def test_a_ring_of_a_gibibyte_that_is_a_hole_is_not_read(tmp_path: Path) -> None:
    path, ring = tmp_path / "d.vhdx", 1 << 30
    small = file_of({})
    entry = log_entry(GUID, 3, 0, [(BAT_AT, MOVED)])
    for entries, outcome in ((b"", "no entry of it is whole"), (entry, "")):
        with path.open("wb") as file:
            file.write(small)
            for at in (64 << 10, 128 << 10):
                header = small[at : at + PAGE]
                file.seek(at)
                file.write(plainvhdx.sealed(header[:68] + struct.pack("<IQ", ring, 16 * MIB) + header[80:]))
            file.seek(16 * MIB)
            file.write(entries)
            file.truncate(16 * MIB + ring)
        if path.stat().st_blocks * 512 > 64 * MIB:
            pytest.skip("the file system has no holes")
        folder = CountingFolder()
        if outcome:
            with pytest.raises(CorruptImageError, match=outcome):
                open_chain(str(path), folder=folder)
        else:
            open_chain(str(path), folder=folder).close()
        assert folder.calls["bytes"] < 8 * MIB


CHANGES: Final = st.lists(
    st.tuples(
        st.integers(0, 7).map(lambda page: BAT_AT + (64 << 10) + page * PAGE),
        st.one_of(
            st.integers(0, 4).map(lambda count: count * PAGE),
            st.integers(1, 255).map(lambda fill: bytes([fill]) * PAGE),
        ),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(entries=st.lists(CHANGES, min_size=1, max_size=4), start=st.sampled_from([0, MIB - 3 * PAGE]), offset=st.data())
def test_a_file_under_its_log_is_the_file_that_replaying_makes(
    entries: list[list[tuple[int, bytes | int]]], start: int, offset: st.DataObject
) -> None:
    log, at = {}, start
    for number, changes in enumerate(entries):
        log[at] = log_entry(GUID, 40 + number, start, changes, last=7 * MIB)
        at = (at + len(log[at])) % MIB
    raw = file_of(log)
    expected = plainvhdx.replayed(raw)
    storage = MemoryFolder({"/d.vhdx": raw}).open("/d.vhdx")
    replay = read_vhdx(storage).replay
    assert replay is not None
    with LogOverlay(storage, replay) as overlay:
        assert overlay.size() == len(expected)
        whole = bytearray(len(expected) + 5)
        assert overlay.read_into(0, whole) == len(expected)
        assert whole[: len(expected)] == expected
        first = offset.draw(st.integers(BAT_AT + (60 << 10), BAT_AT + (100 << 10)))
        piece = bytearray(offset.draw(st.integers(0, 9000)))
        assert overlay.read_into(first, piece) == len(piece)
        assert piece == expected[first : first + len(piece)]
