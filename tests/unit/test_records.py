"""Lines that can be believed or not: whatever happens to a file, what is read is a prefix of what was written."""

from __future__ import annotations

import json
from hashlib import sha256
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.keeping import keep
from tests.side_files import taken_apart
from vhdkit.errors import JournalError
from vhdkit.journal import records
from vhdkit.storage.memory import MemoryFolder

SECTOR = 512
RECORDS: list[dict[str, Any]] = [
    {"kind": "begin", "sources": ["a.avhd", "b.avhd"], "note": "x" * 900},
    {"kind": "mark", "offset": 4096},
    {"kind": "mark", "offset": 8192, "text": "Größe \n \x00 \u2028"},
    {"kind": "merged", "after": [1, 2.5, None, True]},
]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
record_lists = st.lists(st.dictionaries(st.text(max_size=8), values, max_size=4), max_size=5)


def is_prefix(found: list[dict[str, Any]], of: list[dict[str, Any]]) -> bool:
    return found == of[: len(found)]


@given(record_lists)
def test_what_was_written_is_read_and_lines_are_whole_sectors(written: list[dict[str, Any]]) -> None:
    raw = records.encode(written)
    found, end, checksum = taken_apart(raw)
    assert found == written
    assert end == len(raw)
    assert len(raw) % SECTOR == 0
    assert (checksum != "") == bool(written)


@given(record_lists, record_lists)
def test_lines_that_are_appended_follow_the_last(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    raw = records.encode(first)
    raw += records.encode(second, taken_apart(raw)[2])
    assert taken_apart(raw)[0] == first + second
    assert raw == records.encode(first + second)


def test_a_line_is_a_checksum_over_all_before_it_and_json() -> None:
    raw = records.encode(RECORDS)
    previous = ""
    for line, record in zip(raw.split(b"\n"), RECORDS, strict=False):
        checksum, text = line.rstrip().decode().split(" ", 1)
        assert json.loads(text) == record
        previous = sha256((previous + text).encode()).hexdigest()
        assert checksum == previous


def test_a_line_never_shares_a_sector_with_another() -> None:
    starts = [len(records.encode(RECORDS[:count])) for count in range(len(RECORDS) + 1)]
    assert all(start % SECTOR == 0 for start in starts)
    assert all(low < high for low, high in pairwise(starts))


@pytest.mark.parametrize("length", range(430, 460))
def test_a_record_of_any_length_is_read(length: int) -> None:
    """Around the length that fills a sector exactly."""
    written: list[dict[str, Any]] = [{"k": "x" * length}, {"k": 1}]
    assert taken_apart(records.encode(written))[0] == written


def test_every_truncation_leaves_the_whole_lines() -> None:
    raw = records.encode(RECORDS)
    ends = [len(records.encode(RECORDS[:count])) for count in range(len(RECORDS) + 1)]
    for length in range(len(raw) + 1):
        found, end, _ = taken_apart(raw[:length])
        count = max(index for index, at in enumerate(ends) if at <= length)
        assert (found, end) == (RECORDS[:count], ends[count])


@given(record_lists, st.data())
def test_lost_sectors_leave_a_prefix(written: list[dict[str, Any]], data: st.DataObject) -> None:
    raw = bytearray(records.encode(written))
    sectors = len(raw) // SECTOR
    lost = data.draw(st.sets(st.integers(0, max(0, sectors - 1)), min_size=min(1, sectors)))
    for sector in lost:
        if sector < sectors:
            fill = data.draw(st.sampled_from([b"\0", b"\xff", b" ", b"\n"]))
            raw[sector * SECTOR : (sector + 1) * SECTOR] = fill * SECTOR
    found, end, _ = taken_apart(bytes(raw))
    assert is_prefix(found, written)
    assert end == len(records.encode(written[: len(found)]))
    if sectors:
        assert end <= min(lost) * SECTOR


@given(record_lists.filter(bool), st.data())
def test_a_flipped_bit_ends_the_reading_at_its_line_or_changes_padding_only(
    written: list[dict[str, Any]], data: st.DataObject
) -> None:
    raw = bytearray(records.encode(written))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    found, _, _ = taken_apart(bytes(raw))
    assert is_prefix(found, written)


@given(st.binary(max_size=3 * SECTOR))
def test_garbage_is_no_record(raw: bytes) -> None:
    assert taken_apart(raw) == ([], 0, "")


@given(record_lists, st.binary(min_size=1, max_size=2 * SECTOR))
def test_garbage_behind_the_last_line_is_not_read(written: list[dict[str, Any]], tail: bytes) -> None:
    raw = records.encode(written)
    found, end, _ = taken_apart(raw + tail)
    assert (found, end) == (written, len(raw))


def test_a_line_put_in_anothers_place_is_not_believed() -> None:
    lines = [records.encode(RECORDS[:1]), records.encode([{"kind": "mark", "offset": 1 << 40}])]
    assert taken_apart(b"".join(lines))[0] == RECORDS[:1]
    whole = records.encode(RECORDS)
    first = len(records.encode(RECORDS[:1]))
    second = len(records.encode(RECORDS[:2]))
    assert taken_apart(whole[:first] + whole[second:])[0] == RECORDS[:1], "a line is missing"
    swapped = whole[:first] + whole[second : second + SECTOR] + whole[first:second]
    assert taken_apart(swapped)[0] == RECORDS[:1]


def test_old_lines_behind_a_new_one_do_not_count() -> None:
    """The journal was begun anew over an older one: what the older had further on has another past."""
    old = records.encode(RECORDS)
    new = records.encode([{"kind": "mark", "offset": 1}])
    assert taken_apart(new + old[len(new) :])[0] == [{"kind": "mark", "offset": 1}]


@pytest.mark.parametrize("text", ["[1]", "1", "null", '"begin"'])
def test_a_line_with_a_right_checksum_that_holds_no_object_ends_the_reading(text: str) -> None:
    line = f"{sha256(text.encode()).hexdigest()} {text}".encode()
    assert taken_apart(line.ljust(SECTOR - 1) + b"\n") == ([], 0, "")


@pytest.mark.parametrize("text", ["{", "{'a': 1}", '{"a": 1} x', "\udcff", '{"a": ' + "9" * 9999 + "}", "[" * 99_999])
def test_a_line_with_a_right_checksum_that_is_no_json_ends_the_reading(text: str) -> None:
    raw = text.encode("utf-8", "surrogateescape")
    line = sha256(raw).hexdigest().encode() + b" " + raw
    assert taken_apart(line.ljust(SECTOR * (1 + len(line) // SECTOR) - 1) + b"\n") == ([], 0, "")


def test_a_file_that_is_far_too_long_is_not_read() -> None:
    folder = MemoryFolder({"/j": records.encode(RECORDS)})
    storage = keep(folder.open("/j", writable=True))
    assert [json.loads(line.text) for line in records.read_lines(storage)] == RECORDS
    storage.truncate((64 << 20) + 1)
    with pytest.raises(JournalError, match="too many") as caught:
        next(records.read_lines(storage))
    assert caught.value.path == "/j"
