"""CHS geometry (docs/reference/vhd.md 1.10)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import plainvhd
from vhdkit.vhd.geometry import Geometry

SECTOR = 512
LARGEST = 65535 * 16 * 255
TABLE = [
    (1, (0, 4, 17), 0),
    (68, (1, 4, 17), 68),
    (8_192, (120, 4, 17), 8_160),
    (20_480, (301, 4, 17), 20_468),
    (69_631, (1023, 4, 17), 69_564),
    (69_632, (140, 16, 31), 69_440),
    (278_527, (1023, 16, 17), 278_256),
    (278_528, (561, 16, 31), 278_256),
    (507_903, (1023, 16, 31), 507_408),
    (507_904, (503, 16, 63), 507_024),
    (1_048_576, (1040, 16, 63), 1_048_320),
    (4_194_304, (4161, 16, 63), 4_194_288),
    (66_059_279, (65534, 16, 63), 66_058_272),
    (66_059_280, (16191, 16, 255), 66_059_280),
    (266_338_304, (65278, 16, 255), 266_334_240),
    (LARGEST - 1, (65534, 16, 255), LARGEST - 16 * 255),
    (LARGEST, (65535, 16, 255), LARGEST),
    (LARGEST + 1, (65535, 16, 255), LARGEST),
    (4_278_190_080, (65535, 16, 255), LARGEST),
]


@pytest.mark.parametrize(("sectors", "chs", "addressable"), TABLE)
def test_geometry_is_that_of_the_table(sectors: int, chs: tuple[int, int, int], addressable: int) -> None:
    geometry = Geometry.for_size(sectors * SECTOR)
    assert geometry == chs
    assert geometry.size == addressable * SECTOR


# Sizes around those at which another row of the algorithm begins to count.
near_a_boundary = st.builds(lambda row, delta: max(0, row[0] + delta), st.sampled_from(TABLE), st.integers(-2000, 2000))


@given(near_a_boundary | st.integers(0, 1 << 33), st.integers(0, SECTOR - 1))
def test_geometry_is_that_of_the_plain_algorithm(sectors: int, rest: int) -> None:
    assert Geometry.for_size(sectors * SECTOR + rest) == plainvhd.geometry(sectors)


@given(near_a_boundary | st.integers(0, 1 << 33))
def test_geometry_never_addresses_more_than_the_disk_and_fits_its_fields(sectors: int) -> None:
    geometry = Geometry.for_size(sectors * SECTOR)
    assert geometry.size <= sectors * SECTOR
    assert geometry.cylinders <= 0xFFFF
    assert 4 <= geometry.heads <= 16
    assert geometry.sectors_per_track in {17, 31, 63, 255}
