"""What is read of a VHDX's records comes out byte for byte; checksums are those of the reference."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import plainvhdx
from tests.plainvhdx import Disk, linked
from vhdkit.errors import CorruptImageError, UnsupportedImageError
from vhdkit.vhdx import checksum
from vhdkit.vhdx.bat import BatLayout
from vhdkit.vhdx.header import Header
from vhdkit.vhdx.identifier import FileIdentifier
from vhdkit.vhdx.log_entry import Descriptor, LogEntryHeader
from vhdkit.vhdx.metadata_table import FileParameters, MetadataTable
from vhdkit.vhdx.parent_locator import VhdxLocator, parent_link
from vhdkit.vhdx.region_table import RegionTable

DISK: Final = Disk(size=2 << 20, texts=linked(b"p" * 16, relative=".\\a.vhdx"))


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"", 0),
        (bytes(4), 0x48674BC7),
        (b"123456789", 0xE3069283),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(4096), 0x98F94189),
        (bytes(65536), 0x72C0C4A4),
        (b"vhdxfile", 0xFE8155FC),
    ],
)
def test_the_checksum_is_crc_32c(raw: bytes, value: int) -> None:
    assert checksum.extended(0, raw) == plainvhdx.crc32c(raw) == value


@given(
    sequence=st.integers(0, (1 << 64) - 1),
    ids=st.binary(min_size=48, max_size=48),
    numbers=st.binary(min_size=16, max_size=16),
    reserved=st.binary(max_size=40),
)
def test_a_header_comes_out_as_it_went_in(sequence: int, ids: bytes, numbers: bytes, reserved: bytes) -> None:
    raw = b"head" + bytes(4) + sequence.to_bytes(8, "little") + ids + numbers + reserved
    raw = checksum.sealed(raw.ljust(4096, b"\0"))
    assert Header.from_bytes(raw).to_bytes() == raw
    wrong = raw[:-1] + bytes([raw[-1] ^ 1])
    with pytest.raises(CorruptImageError):
        Header.from_bytes(wrong)


@settings(max_examples=20)
@given(
    regions=st.lists(st.binary(min_size=32, max_size=32), max_size=30),
    rest=st.binary(max_size=64),
    odd=st.integers(0, 9),
)
def test_tables_come_out_as_they_went_in(regions: list[bytes], rest: bytes, odd: int) -> None:
    count = len(regions).to_bytes(4, "little")
    raw = b"regi" + bytes(4) + count + odd.to_bytes(4, "little") + b"".join(regions) + rest
    raw = checksum.sealed(raw.ljust(65536, b"\0"))
    assert RegionTable.from_bytes(raw).to_bytes() == raw
    raw = b"metadata" + odd.to_bytes(2, "little") + count[:2] + bytes([odd] * 20) + b"".join(regions) + rest
    raw = raw.ljust(65536, b"\0")
    assert MetadataTable.from_bytes(raw).to_bytes() == raw


@given(raw=st.binary(min_size=520, max_size=520))
def test_small_records_come_out_as_they_went_in(raw: bytes) -> None:
    assert FileParameters.from_bytes(raw[:8]).to_bytes() == raw[:8]
    identifier = b"vhdxfile" + raw[8:]
    assert FileIdentifier.from_bytes(identifier).to_bytes() == identifier
    entry = b"loge" + raw[4:64]
    assert LogEntryHeader.from_bytes(entry).to_bytes() == entry
    for at in (64, 96):
        whole = (raw[at + 1] << 4).to_bytes(2, "little") + bytes(6)
        zero = b"zero" + raw[at + 4 : at + 8] + bytes(1) + whole[:7] + bytes(1) + whole[:7] + raw[at + 24 : at + 32]
        data = b"desc" + raw[at + 4 : at + 16] + bytes(1) + whole[:7] + raw[at + 24 : at + 32]
        for descriptor in (zero, data):
            found = Descriptor.from_bytes(descriptor)
            assert found is None or found.to_bytes() == descriptor


@given(texts=st.dictionaries(st.text(min_size=1, max_size=9), st.text(min_size=1, max_size=99), max_size=6))
def test_a_locator_comes_out_as_it_went_in_and_says_what_it_says(texts: dict[str, str]) -> None:
    texts = {key.replace("\0", "x"): value.replace("\0", "x") for key, value in texts.items()}
    raw = plainvhdx.locator(texts) + b"behind"
    found = VhdxLocator.from_bytes(raw)
    assert found.to_bytes() == raw
    assert found.texts() == texts


def test_a_second_linkage_of_zeros_fits_nothing() -> None:
    link = parent_link(linked(b"p" * 16, other=bytes(16)))
    assert link.ids == (b"p" * 16,)
    assert parent_link(linked(bytes(16), other=b"q" * 16)).ids == (b"q" * 16,)
    for texts in ({}, linked(bytes(16)), {"parent_linkage": "{1234}"}):
        with pytest.raises(CorruptImageError) as caught:
            parent_link(texts)
        assert caught.value.corruption == "locator-linkage"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda raw: bytes(16) + raw[16:], UnsupportedImageError),
        (lambda raw: raw[:18] + b"\xff\xff" + raw[20:], CorruptImageError),
        (lambda raw: raw[:20] + b"\xff" * 8 + raw[28:], CorruptImageError),
        (lambda raw: raw[:28] + b"\0\0" + raw[30:], CorruptImageError),
        (lambda raw: raw[:28] + b"\x03\0" + raw[30:], CorruptImageError),
        (lambda raw: raw[:-2] + b"\0\0", CorruptImageError),
        (lambda raw: raw[:10], CorruptImageError),
    ],
)
def test_a_locator_that_lies_is_refused(change: object, kind: type[Exception]) -> None:
    raw = plainvhdx.locator(linked(b"p" * 16, relative="a"))
    with pytest.raises(kind):
        VhdxLocator.from_bytes(change(raw)).texts()  # type: ignore[operator]


def test_a_log_entry_is_the_one_of_the_reference() -> None:
    guid = bytes(range(0x50, 0x60))
    page = bytes(range(256)) * 16
    changes: list[tuple[int, bytes | int]] = [(0x300000, page), (0x310000, 0x2000)]
    raw = plainvhdx.log_entry(guid, 0x1122334455667788, 0, changes, flushed=5 << 20, last=6 << 20)
    assert hashlib.sha256(raw).hexdigest() == "17502ab9e13db13e0f982dbe1718d03d104a120a7a9c5511d4177a69f4552b04"
    found = LogEntryHeader.from_bytes(raw)
    assert (found.checksum, found.descriptor_pages, found.entry_length) == (0x52FA9737, 1, 8192)


@pytest.mark.parametrize(
    ("size", "block", "sector", "plain", "child"),
    [
        (2 << 20, 1 << 20, 512, 2, 4097),
        (4 << 20, 2 << 20, 512, 2, 2049),
        ((4 << 30) + (1 << 20), 1 << 20, 512, 4098, 8194),
        (17 << 28, 256 << 20, 512, 18, 34),
        (127 << 30, 32 << 20, 512, 4095, 4128),
        (64 << 40, 1 << 20, 512, 67125247, 67125248),
        (64 << 40, 1 << 20, 4096, 67110911, 67110912),
    ],
)
def test_a_table_has_the_entries_of_the_reference(size: int, block: int, sector: int, plain: int, child: int) -> None:
    assert BatLayout.of(size, block, sector, has_bitmaps=False).entry_count == plain
    assert BatLayout.of(size, block, sector, has_bitmaps=True).entry_count == child


def test_what_the_oracle_writes_has_records_that_come_out_as_they_went_in() -> None:
    raw = plainvhdx.write(replace(DISK, size=3 << 20))
    assert RegionTable.from_bytes(raw[192 << 10 : 256 << 10]).to_bytes() == raw[192 << 10 : 256 << 10]
    assert MetadataTable.from_bytes(raw[2 << 20 : (2 << 20) + 65536]).to_bytes() == raw[2 << 20 : (2 << 20) + 65536]
