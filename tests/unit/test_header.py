"""The dynamic header and its parent locators (docs/reference/vhd.md 1.4, 1.5, 2.1, 2.2, B1, B5)."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.plainbuild import ImageSpec, build, locator
from tests.plainvhd import HEADER, HEADER_CHECKSUM, LOCATOR, SECTOR, parse, round_up, seal
from vhdkit.corruption import Corruption
from vhdkit.errors import CorruptImageError, UnsupportedImageError
from vhdkit.vhd.header import DynamicHeader, encode_parent_name
from vhdkit.vhd.locator import ParentLocator, PlatformCode, decode_locator, encode_locator

if TYPE_CHECKING:
    from collections.abc import Mapping

COOKIE, VERSION, NAME, LOCATORS = 0, 24, 64, 576
VALID = build(ImageSpec(size=4 << 20))[512:1536]
TEXT_CODES = [b"W2ru", b"W2ku", b"Wi2r", b"Wi2k", b"MacX"]


def patched(raw: bytes, changes: Mapping[int, bytes]) -> bytes:
    """Return the header with bytes replaced, and with a right checksum."""
    out = bytearray(raw)
    for offset, data in changes.items():
        out[offset : offset + len(data)] = data
    return seal(bytes(out), HEADER_CHECKSUM)


@st.composite
def valid_headers(draw: st.DrawFn) -> bytes:
    """Anything at all in the fields that a reader need not understand, reserved bytes too."""
    seed = draw(st.binary(min_size=64, max_size=64))
    tail = draw(st.binary(min_size=448, max_size=448))
    name = draw(st.binary(max_size=512))
    noise = seed + name.ljust(512, b"\0") + tail
    version = 0x10000 | draw(st.integers(0, 0xFFFF))
    return patched(noise, {COOKIE: b"cxsparse", VERSION: version.to_bytes(4, "big")})


@given(valid_headers())
def test_every_valid_header_comes_back_byte_for_byte(raw: bytes) -> None:
    assert DynamicHeader.from_bytes(raw).to_bytes() == raw


@given(valid_headers())
def test_every_field_is_where_the_reference_puts_it(raw: bytes) -> None:
    header = DynamicHeader.from_bytes(raw)
    locators = b"".join(
        LOCATOR.pack(at.platform_code, at.data_space, at.data_length, at.reserved, at.data_offset)
        for at in header.locators
    )
    assert HEADER.unpack(raw) == (
        b"cxsparse",
        header.data_offset,
        header.table_offset,
        header.version,
        header.max_table_entries,
        header.block_size,
        int.from_bytes(raw[36:40], "big"),
        header.parent_unique_id,
        header.parent_timestamp,
        header.reserved_word,
        header.parent_name_bytes,
        locators,
        header.reserved,
    )


def test_the_checksum_is_that_of_the_reference() -> None:
    raw = DynamicHeader(table_offset=1536, max_table_entries=2, block_size=0x200000).to_bytes()
    assert raw[36:40] == bytes.fromhex("FFFFF475")


@pytest.mark.parametrize("length", [0, 8, 256, 512, 1023, 1025])
@pytest.mark.parametrize("verify", [True, False])
def test_a_header_that_was_read_in_part_is_refused(length: int, verify: bool) -> None:
    raw = DynamicHeader(table_offset=1536, max_table_entries=2, block_size=0x200000).to_bytes().ljust(1025, b"\0")
    with pytest.raises(CorruptImageError, match=f"found {length}"):
        DynamicHeader.from_bytes(raw[:length], verify=verify)


@given(valid_headers(), st.integers(0, 1023), st.integers(1, 255))
def test_no_header_with_one_changed_byte_is_believed(raw: bytes, at: int, change: int) -> None:
    broken = raw[:at] + bytes([raw[at] ^ change]) + raw[at + 1 :]
    with pytest.raises(CorruptImageError):
        DynamicHeader.from_bytes(broken)


@pytest.mark.parametrize(
    ("raw", "corruption", "windows_code", "offset"),
    [
        (patched(VALID, {COOKIE: b"cxsparsE"}), Corruption.HEADER_COOKIE, 0xC03A0008, 0),
        (bytes(1024), Corruption.HEADER_COOKIE, 0xC03A0008, 0),
        (VALID[:-1] + b"\1", Corruption.HEADER_CHECKSUM, 0xC03A0006, 36),
    ],
)
def test_a_broken_header_is_refused(raw: bytes, corruption: Corruption, windows_code: int, offset: int) -> None:
    with pytest.raises(CorruptImageError) as caught:
        DynamicHeader.from_bytes(raw)
    assert caught.value.corruption is corruption
    assert caught.value.windows_code == windows_code
    assert caught.value.offset == offset


@pytest.mark.parametrize("version", [0, 0xFFFF, 0x20000])
def test_another_major_version_is_unsupported(version: int) -> None:
    with pytest.raises(UnsupportedImageError, match="version"):
        DynamicHeader.from_bytes(patched(VALID, {VERSION: version.to_bytes(4, "big")}))


def test_an_unsupported_version_has_the_code_that_windows_gives_it() -> None:
    with pytest.raises(UnsupportedImageError) as caught:
        DynamicHeader.from_bytes(patched(VALID, {VERSION: bytes(4)}))
    assert caught.value.windows_code == 0xC03A0007  # ERROR_VHD_SPARSE_HEADER_UNSUPPORTED_VERSION


@given(valid_headers(), st.integers(0, 0xFFFFFFFF))
def test_a_wrong_checksum_is_put_up_with_if_asked(raw: bytes, checksum: int) -> None:
    wrong = raw[:36] + checksum.to_bytes(4, "big") + raw[40:]
    assert DynamicHeader.from_bytes(wrong, verify=False) == DynamicHeader.from_bytes(raw)


@given(st.integers(1, 1 << 22))
def test_the_table_takes_whole_sectors(entries: int) -> None:
    header = DynamicHeader(table_offset=1536, max_table_entries=entries, block_size=512)
    assert header.table_bytes == round_up(4 * entries, SECTOR)


# The name field


@given(valid_headers())
def test_any_512_bytes_are_a_parent_name(raw: bytes) -> None:
    name = DynamicHeader.from_bytes(raw).parent_name
    assert "\0" not in name
    assert raw[NAME:LOCATORS].startswith(name.encode("utf-16-be", "surrogatepass"))


@given(st.text(max_size=128) | st.text(st.characters(categories=["Cs"]), max_size=256))
@example("Grüße 日本 \U0001f600.vhd")
@example("x" * 256)
@example("\ud800")
def test_a_parent_name_is_big_endian_and_comes_back(name: str) -> None:
    raw = encode_parent_name(name)
    assert raw == name.encode("utf-16-be", "surrogatepass").ljust(512, b"\0")
    header = replace(DynamicHeader.from_bytes(VALID), parent_name_bytes=raw)
    expected = name.partition("\0")[0].encode("utf-16-be", "surrogatepass")
    assert header.parent_name.encode("utf-16-be", "surrogatepass") == expected


@pytest.mark.parametrize("name", ["x" * 300, "x" * 255 + "\U0001f600", "\U0001f600" * 200])
def test_a_parent_name_too_long_keeps_its_beginning(name: str) -> None:
    raw = encode_parent_name(name)
    assert len(raw) == 512
    assert DynamicHeader.from_bytes(patched(VALID, {NAME: raw})).parent_name.startswith(name[:128])


# Locators


@pytest.mark.parametrize(
    ("field", "size"),
    [(0, 0), (1, 512), (8, 4096), (511, 511 * 512), (512, 512), (513, 513), (4096, 4096), (65536, 65536)],
)
def test_a_small_locator_space_counts_sectors_and_a_large_one_bytes(field: int, size: int) -> None:
    assert ParentLocator(platform_code=b"W2ru", data_space=field).space == size


@pytest.mark.parametrize("code", [code.value for code in PlatformCode if code is not PlatformCode.NONE])
def test_a_slot_with_any_code_is_used(code: bytes) -> None:
    assert ParentLocator(platform_code=code).is_used
    assert not ParentLocator(platform_code=bytes(4), data_length=9).is_used


@pytest.mark.parametrize(
    ("code", "data", "text"),
    [
        (b"W2ru", b".\0\\\0b\0a\0s\0e\0.\0v\0h\0d\0", ".\\base.vhd"),
        (b"W2ru", "..\\é日\U0001f600.vhd".encode("utf-16-le"), "..\\é日\U0001f600.vhd"),
        (b"W2ku", "C:\\vms\\a b.vhd".encode("utf-16-le"), "C:\\vms\\a b.vhd"),
        (b"W2ku", "C:\\a.vhd\0\0".encode("utf-16-le"), "C:\\a.vhd"),
        (b"W2ku", "a.vhd".encode("utf-16-le") + b"x", "a.vhd"),
        (b"W2ku", b"a\0\x00\xd8b\0", "a\ud800b"),
        (b"W2ku", b"a\0\x00\xd8", "a\ud800"),
        (b"W2ku", "a\0b".encode("utf-16-le"), None),
        (b"W2ku", b"", None),
        (b"W2ku", bytes(8), None),
        (b"Wi2r", b".\\base.vhd", ".\\base.vhd"),
        (b"Wi2k", b"C:\\gr\xfc\xdfe.vhd\0", "C:\\grüße.vhd"),
        (b"Wi2k", b"a\0b", None),
        (b"MacX", b"file://localhost/directory/parent.vhd", "/directory/parent.vhd"),
        (b"MacX", b"file:///vms/a.vhd", "/vms/a.vhd"),
        (b"MacX", b"file://./base.vhd", "./base.vhd"),
        (b"MacX", b"file://../base.vhd\0\0", "../base.vhd"),
        (b"MacX", b"file:///a%20b%25%C3%A9.vhd", "/a b%é.vhd"),
        (b"MacX", "file:///é.vhd".encode(), "/é.vhd"),
        (b"MacX", b"file:///a%FF\xfe.vhd", "/a\udcff\udcfe.vhd"),
        (b"MacX", b"file:///a%00b", None),
        (b"MacX", b"file://", None),
        (b"MacX", b"http://x/y.vhd", None),
        (b"Mac ", b"alias", None),
        (b"\0\0\0\0", b"anything", None),
        (b"????", b"a\0", None),
    ],
)
def test_a_locator_decodes_to_its_path(code: bytes, data: bytes, text: str | None) -> None:
    assert decode_locator(code, data) == text


@given(st.sampled_from([*TEXT_CODES, b"Mac ", b"????"]), st.binary(max_size=200))
def test_no_locator_data_is_too_broken_to_decode(code: bytes, data: bytes) -> None:
    prefix = b"file://" if code == b"MacX" else b""
    text = decode_locator(code, prefix + data)
    assert text is None or (text != "" and "\0" not in text)


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
file_names = st.binary(min_size=1).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"?")))


@given(st.sampled_from(TEXT_CODES), names | file_names)
@example(b"MacX", "/a%20b #?.vhd")
@example(b"W2ru", ".\\\ud800.vhd")
@example(b"W2ku", "C:\\\udfff\U0001f600.vhd")
def test_what_is_encoded_decodes_to_the_same_path(code: bytes, path: str) -> None:
    data = encode_locator(code, path)
    assert data is None or decode_locator(code, data) == path


@pytest.mark.parametrize("path", ["localhost.vhd", "localhost/a.vhd", "\ud800.vhd", "a\udc00.vhd"])
def test_a_path_that_a_url_cannot_hold_is_not_encoded_as_another(path: str) -> None:
    data = encode_locator(b"MacX", path)
    assert data is None or decode_locator(b"MacX", data) == path


@given(st.sampled_from([b"W2ru", b"W2ku"]), st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_utf16_locators_hold_any_path_even_unpaired_surrogates(code: bytes, path: str) -> None:
    path = re.sub("[\ud800-\udbff](?=[\udc00-\udfff])", "", path)
    data = encode_locator(code, path)
    assert data == path.encode("utf-16-le", "surrogatepass")
    assert decode_locator(code, data) == path


@pytest.mark.parametrize(
    ("code", "path"),
    [(b"Wi2r", "é.vhd"), (b"Wi2k", "C:\\日.vhd"), (b"Mac ", "a"), (b"\0\0\0\0", "a"), (b"????", "a")],
)
def test_a_path_that_a_code_cannot_hold_is_not_encoded(code: bytes, path: str) -> None:
    assert encode_locator(code, path) is None


@pytest.mark.parametrize("path", ["./base.vhd", "/vms/a b.vhd", ".\\..\\child.vhd"])
def test_a_url_escapes_no_more_than_it_must(path: str) -> None:
    assert encode_locator(b"MacX", path) == b"file://" + path.encode()


@pytest.mark.parametrize("code", TEXT_CODES)
def test_locators_agree_with_the_plain_reader(code: bytes) -> None:
    spec = ImageSpec(disk_type=4, size=512, locators=(locator(3, code, "file://./x.vhd"),))
    image = parse(build(spec))
    assert image.header is not None
    entry = DynamicHeader.from_bytes(image.header.raw).locators[3]
    plain = image.locators[0]
    assert (entry.platform_code, entry.data_length, entry.data_offset) == (code, plain.length, plain.offset)
    assert decode_locator(code, plain.data) == ("./x.vhd" if code == b"MacX" else plain.text)
