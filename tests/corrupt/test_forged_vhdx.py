"""No field of a VHDX, whatever its value, makes a verb raise, write, or show what is not there: see `forged_vhdx`.

In full, by hand: `pytest -m slow tests/corrupt/test_forged_vhdx.py -s`.
"""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.corrupt.forged_vhdx import ORIGINALS, VhdxTally, fields, forgeries, put, try_content, try_vhdx
from tests.plainvhdx import BAT_AT, LOG_AT, METADATA_AT, PAGE

# Where structures lie that are flipped bit by bit, and their bytes in use.
STRUCTURES: Final = (
    (0, 520),
    (64 << 10, 96),
    (128 << 10, 96),
    (192 << 10, 112),
    (256 << 10, 112),
    (LOG_AT, 4 * PAGE),
    (METADATA_AT, 288),
    (METADATA_AT + 65536, 640),
    (BAT_AT, 48),
    (BAT_AT + 8 * 4096, 8),
)


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_fields_of_a_file_are_all_there(name: str) -> None:
    found = fields(name)
    assert len({each.name for each in found}) > 100
    assert {each.record for each in found} >= {0, 64 << 10, 128 << 10, 192 << 10, 256 << 10}
    assert any(each.record >= LOG_AT and each.name.startswith("entry") for each in found)


@pytest.mark.parametrize("name", ORIGINALS)
def test_an_original_reads_without_a_word(name: str) -> None:
    tally = VhdxTally()
    try_content(name, ORIGINALS[name], tally)
    assert (tally.faults, dict(tally.ends)) == ([], {"read": 1})


@pytest.mark.parametrize("name", ORIGINALS)
def test_some_forgeries_gain_nothing(name: str) -> None:
    tally = VhdxTally()
    for number, forgery in enumerate(forgeries(name)):
        if number % 487 == 11:
            try_vhdx(forgery, tally)
    assert tally.faults == []
    assert tally.forgeries > 15
    assert set(tally.ends) == {"read", "CorruptImageError", "UnsupportedImageError"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ORIGINALS)
def test_every_forgery_gains_nothing(name: str) -> None:
    tally = VhdxTally()
    for forgery in forgeries(name):
        try_vhdx(forgery, tally)
    print(f"{name}: {tally}")  # noqa: T201 - the figures
    assert tally.faults == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(ORIGINALS)),
    places=st.lists(st.tuples(st.sampled_from(STRUCTURES), st.integers(0, 1 << 17)), min_size=1, max_size=3),
    length=st.one_of(st.none(), st.integers(0, 8 << 20), st.sampled_from([0, 1, 519, 1 << 20, (3 << 20) + 31])),
)
def test_flipped_bits_and_truncations_gain_nothing(
    name: str, places: list[tuple[tuple[int, int], int]], length: int | None
) -> None:
    raw = ORIGINALS[name]
    for (start, used), bit in places:
        at = start + bit // 8 % used
        raw = put(raw, at, bytes([raw[at] ^ 1 << bit % 8]))
    tally = VhdxTally()
    try_content(name, raw[:length], tally)
    assert tally.faults == []
