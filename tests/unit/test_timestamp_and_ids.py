"""Time stamps and unique ids (docs/reference/vhd.md 1.9, 1.14)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdkit.disk import timestamp, unique_id

EPOCH = 946_684_800
SAMPLE = bytes(range(16))


@pytest.mark.parametrize(
    ("unix", "stamp"),
    [
        (EPOCH, 0),
        (EPOCH + 1, 1),
        (EPOCH + 1.99, 1),
        (EPOCH - 1, 0),
        (0, 0),
        (-5e9, 0),
        (EPOCH + 0xFFFFFFFF, 0xFFFFFFFF),
        (EPOCH + 0x100000000, 0xFFFFFFFF),
        (1e12, 0xFFFFFFFF),
    ],
)
def test_a_time_becomes_the_nearest_stamp_that_the_field_holds(unix: float, stamp: int) -> None:
    assert timestamp.from_unix(unix) == stamp


@pytest.mark.parametrize(
    ("stamp", "moment"),
    [
        (0, datetime(2000, 1, 1, tzinfo=UTC)),
        (0x2715AB13, datetime(2020, 10, 11, 11, 37, 55, tzinfo=UTC)),
        (0x80000000, datetime(2068, 1, 19, 3, 14, 8, tzinfo=UTC)),
        (0xFFFFFFFF, datetime(2136, 2, 7, 6, 28, 15, tzinfo=UTC)),
    ],
)
def test_a_stamp_counts_seconds_since_2000_in_utc(stamp: int, moment: datetime) -> None:
    assert timestamp.to_datetime(stamp) == moment
    assert timestamp.to_datetime(stamp).utcoffset() == moment.utcoffset()


@given(st.integers(0, 0xFFFFFFFF))
def test_every_stamp_comes_back(stamp: int) -> None:
    assert timestamp.from_unix(timestamp.to_datetime(stamp).timestamp()) == stamp


def test_an_id_is_written_in_both_byte_orders() -> None:
    assert unique_id.big_endian(SAMPLE) == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert unique_id.guid(SAMPLE) == "03020100-0504-0706-0809-0a0b0c0d0e0f"


@given(st.binary(min_size=16, max_size=16))
def test_an_id_can_be_told_from_its_text(raw: bytes) -> None:
    assert bytes.fromhex(unique_id.big_endian(raw).replace("-", "")) == raw
    first, second, third, *rest = unique_id.guid(raw).split("-")
    groups = [bytes.fromhex(group)[::-1] for group in (first, second, third)]
    assert b"".join(groups) + bytes.fromhex("".join(rest)) == raw


def test_the_null_id_is_16_zeros() -> None:
    assert bytes(16) == unique_id.NULL
