"""The footer: bytes to a record and back, and what is refused (docs/reference/vhd.md 1.2, 1.8, 4.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import plainvhd
from tests.plainbuild import ImageSpec, footer_bytes
from tests.plainvhd import ALL_ONES, DIFFERENCING, DYNAMIC, FIXED, FOOTER_CHECKSUM, seal
from vhdkit.corruption import Corruption
from vhdkit.errors import CorruptImageError, UnsupportedImageError
from vhdkit.vhd.footer import DiskType, Footer
from vhdkit.vhd.geometry import Geometry

if TYPE_CHECKING:
    from collections.abc import Mapping

COOKIE, VERSION, TYPE, RESERVED = 0, 12, 60, 85
VALID = footer_bytes(ImageSpec(size=4 << 20))


def patched(raw: bytes, changes: Mapping[int, bytes]) -> bytes:
    """Return the footer with bytes replaced, and with a right checksum."""
    out = bytearray(raw)
    for offset, data in changes.items():
        out[offset : offset + len(data)] = data
    return seal(bytes(out), FOOTER_CHECKSUM)


@st.composite
def valid_footers(draw: st.DrawFn) -> bytes:
    """Anything at all in the fields that a reader need not understand, reserved bytes too."""
    noise = draw(st.binary(min_size=512, max_size=512) | st.just(VALID))
    version = 0x10000 | draw(st.integers(0, 0xFFFF))
    disk_type = draw(st.sampled_from([FIXED, DYNAMIC, DIFFERENCING]))
    fields = {COOKIE: b"conectix", VERSION: version.to_bytes(4, "big"), TYPE: disk_type.to_bytes(4, "big")}
    return patched(noise, fields)


@given(valid_footers())
def test_every_valid_footer_comes_back_byte_for_byte(raw: bytes) -> None:
    assert Footer.from_bytes(raw).to_bytes() == raw


@given(valid_footers())
def test_every_field_is_where_the_reference_puts_it(raw: bytes) -> None:
    footer, plain = Footer.from_bytes(raw), plainvhd.Footer.decode(raw, 0)
    assert footer.disk_type == plain.disk_type
    assert footer.current_size == plain.current_size
    assert footer.original_size == plain.original_size
    assert footer.data_offset == plain.data_offset
    assert footer.timestamp == plain.timestamp
    assert footer.unique_id == plain.unique_id
    assert footer.geometry == (plain.cylinders, plain.heads, plain.sectors_per_track)
    assert footer.creator_application == plain.creator_app
    assert footer.creator_version == plain.creator_version
    assert footer.creator_host_os == plain.creator_os
    assert footer.features == plain.features
    assert footer.version == plain.version
    assert footer.saved_state == plain.saved_state
    assert footer.reserved == plain.reserved


@pytest.mark.parametrize(
    ("disk_type", "data_offset", "checksum"),
    [(DiskType.FIXED, ALL_ONES, 0xFFFFF004), (DiskType.DYNAMIC, 0x200, 0xFFFFF7F9)],
)
def test_the_checksum_is_that_of_the_reference(disk_type: DiskType, data_offset: int, checksum: int) -> None:
    raw = Footer(
        disk_type=disk_type,
        current_size=4194304,
        original_size=4194304,
        data_offset=data_offset,
        timestamp=0,
        unique_id=bytes(range(16)),
        geometry=Geometry(120, 4, 17),
        creator_application=b"vkit",
        creator_version=0x00010000,
        creator_host_os=b"Wi2k",
    ).to_bytes()
    assert int.from_bytes(raw[64:68], "big") == checksum


@given(valid_footers(), st.integers(0, ALL_ONES), st.binary(min_size=16, max_size=16))
def test_a_changed_footer_is_written_with_a_right_checksum(raw: bytes, size: int, unique_id: bytes) -> None:
    changed = replace(Footer.from_bytes(raw), current_size=size, unique_id=unique_id)
    assert plainvhd.Footer.decode(changed.to_bytes(), 0).checksum_ok
    assert Footer.from_bytes(changed.to_bytes()) == changed


def test_a_511_byte_footer_is_read_with_a_zero_appended() -> None:
    assert Footer.from_bytes(VALID[:511] + b"\0") == Footer.from_bytes(VALID)


def test_bytes_that_makers_keep_in_the_reserved_area_are_kept() -> None:
    hidden = patched(VALID, {RESERVED: b"\1", 96: b"RD51"})
    footer = Footer.from_bytes(hidden)
    assert footer.reserved[0] == 1
    assert footer.reserved[96 - RESERVED :].startswith(b"RD51")


@pytest.mark.parametrize("value", [2, 3, 4])
def test_a_disk_type_has_a_word(value: int) -> None:
    assert DiskType(value).label == {2: "fixed", 3: "dynamic", 4: "differencing"}[value]


@pytest.mark.parametrize("length", [0, 8, 256, 511, 513, 1024])
@pytest.mark.parametrize("verify", [True, False])
def test_a_footer_that_was_read_in_part_is_refused(length: int, verify: bool) -> None:
    raw = footer_bytes(ImageSpec(size=4096, block_size=4096)).ljust(1024, b"\0")
    with pytest.raises(CorruptImageError, match=f"found {length}"):
        Footer.from_bytes(raw[:length], verify=verify)


@given(valid_footers(), st.integers(0, 511), st.integers(1, 255))
def test_no_footer_with_one_changed_byte_is_believed(raw: bytes, at: int, change: int) -> None:
    broken = raw[:at] + bytes([raw[at] ^ change]) + raw[at + 1 :]
    with pytest.raises(CorruptImageError):
        Footer.from_bytes(broken)


@pytest.mark.parametrize(
    ("raw", "corruption", "windows_code", "offset"),
    [
        (bytes(512), Corruption.NOT_A_VHD, 0xC03A0001, 0),
        (patched(VALID, {COOKIE: b"Conectix"}), Corruption.NOT_A_VHD, 0xC03A0001, 0),
        (patched(VALID, {COOKIE: b"v_poison"}), Corruption.FOOTER_POISONED, 0xC03A0003, 0),
        (VALID[:-1] + b"\1", Corruption.FOOTER_CHECKSUM, 0xC03A0002, 64),
        (VALID[:64] + bytes(4) + VALID[68:], Corruption.FOOTER_CHECKSUM, 0xC03A0002, 64),
        *[
            (patched(VALID, {TYPE: value.to_bytes(4, "big")}), Corruption.DISK_TYPE, 0xC03A0003, 60)
            for value in (0, 1, 5, 6, 0x03000000)
        ],
    ],
)
def test_a_broken_footer_is_refused(raw: bytes, corruption: Corruption, windows_code: int, offset: int) -> None:
    with pytest.raises(CorruptImageError) as caught:
        Footer.from_bytes(raw)
    assert caught.value.corruption is corruption
    assert caught.value.windows_code == windows_code
    assert caught.value.offset == offset


@pytest.mark.parametrize("version", [0, 0xFFFF, 0x20000, 0xFFFFFFFF])
def test_another_major_version_is_unsupported(version: int) -> None:
    with pytest.raises(UnsupportedImageError, match="version"):
        Footer.from_bytes(patched(VALID, {VERSION: version.to_bytes(4, "big")}))


def test_an_unsupported_version_has_the_code_that_windows_gives_it() -> None:
    with pytest.raises(UnsupportedImageError) as caught:
        Footer.from_bytes(patched(VALID, {VERSION: bytes(4)}))
    assert caught.value.windows_code == 0xC03A0005  # ERROR_VHD_FORMAT_UNSUPPORTED_VERSION


@given(valid_footers(), st.integers(0, 0xFFFFFFFF))
def test_a_wrong_checksum_is_put_up_with_if_asked(raw: bytes, checksum: int) -> None:
    wrong = raw[:64] + checksum.to_bytes(4, "big") + raw[68:]
    assert Footer.from_bytes(wrong, verify=False) == Footer.from_bytes(raw)
