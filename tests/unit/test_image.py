"""One image by itself: what is believed, what is refused, what is written and in which order."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import plainvhd
from tests.keeping import keep
from tests.model import Write
from tests.plainbuild import ImageSpec, build, footer_bytes, locator
from tests.plaincheck import validate
from tests.plainvhd import (
    ALL_ONES,
    DIFFERENCING,
    DYNAMIC,
    FIXED,
    FOOTER_CHECKSUM,
    HEADER_CHECKSUM,
    SECTOR,
    ZERO_SECTOR,
    bitmap_length,
    geometry,
    parse,
    seal,
)
from tests.strategies import image_specs
from tests.through import ThroughStorage
from vhdkit.corruption import Corruption
from vhdkit.disk.extents import Kind
from vhdkit.errors import CorruptImageError, ReadOnlyImageError, UnsupportedImageError
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhd.create import create_image
from vhdkit.vhd.open_image import Vhd, open_image
from vhdkit.vhd.sparse_image import SparseImage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typing_extensions import Buffer

    from vhdkit.storage.protocols import Folder, Storage

PATH = "/vms/a.vhd"
BLOCK = 8 * SECTOR
HEADER, TABLE = 512, 1536
LARGEST = 2040 << 30
CHILD = ImageSpec(
    disk_type=DIFFERENCING,
    size=15 * SECTOR,
    block_size=BLOCK,
    sectors={0: b"a" * SECTOR, 14: b"b" * SECTOR},
    parent_id=b"p" * 16,
    parent_name="parent.vhd",
    locators=(locator(1, b"W2ru", ".\\parent.vhd"),),
)
DISK = ImageSpec(size=32 * SECTOR, block_size=BLOCK, sectors={0: b"a" * SECTOR, 9: b"b" * SECTOR})
FLAT = ImageSpec(disk_type=FIXED, size=9 * SECTOR, sectors={3: b"c" * SECTOR})


def opened(raw: bytes, *, writable: bool = False, path: str = PATH) -> Vhd:
    return keep(open_image(path, writable=writable, folder=MemoryFolder({path: raw})))


def patched(raw: bytes, offset: int, data: bytes) -> bytes:
    offset %= len(raw)
    return raw[:offset] + data + raw[offset + len(data) :]


def number(value: int, size: int = 4) -> bytes:
    return value.to_bytes(size, "big")


def with_footers(raw: bytes, offset: int, data: bytes) -> bytes:
    """Change a field of both footers of a dynamic disk, or of the one of a fixed disk."""
    footer = seal(patched(raw[-SECTOR:], offset, data), FOOTER_CHECKSUM)
    is_fixed = raw[-SECTOR + 60 :][:4] == number(FIXED)
    return patched(raw if is_fixed else patched(raw, 0, footer), -SECTOR, footer)


def with_header(raw: bytes, offset: int, data: bytes) -> bytes:
    return patched(raw, HEADER, seal(patched(raw[HEADER:TABLE], offset, data), HEADER_CHECKSUM))


def with_entry(raw: bytes, block: int, sector: int) -> bytes:
    return patched(raw, TABLE + 4 * block, number(sector))


# Which footer is trusted


def test_the_trailing_footer_is_trusted_before_the_copy() -> None:
    raw = build(DISK)
    other = footer_bytes(replace(DISK, size=8 * SECTOR))
    image = opened(patched(raw, 0, other))
    assert image.size == DISK.size
    assert image.metadata.footer_place == "trailing"
    assert [finding.corruption for finding in image.findings] == [Corruption.FOOTER_COPY_DIFFERS]


def test_equal_footers_are_no_finding() -> None:
    assert opened(build(DISK)).findings == ()
    assert opened(build(FLAT)).findings == ()


@pytest.mark.parametrize("spec", [DISK, CHILD])
@pytest.mark.parametrize("damage", [bytes(SECTOR), b"\xc7" * SECTOR, b"v_poison", b"conectix\0\0\0\1", None])
def test_the_copy_serves_where_the_trailing_footer_is_lost(spec: ImageSpec, damage: bytes | None) -> None:
    raw = build(spec)
    image = opened(raw[:-SECTOR] if damage is None else patched(raw, -SECTOR, damage))
    assert image.metadata.footer_place == "copy"
    assert image.footer.to_bytes() == raw[:SECTOR]
    assert [finding.corruption for finding in image.findings] == [Corruption.FOOTER_TRAILING_LOST]


@pytest.mark.parametrize("spec", [DISK, CHILD, FLAT])
def test_a_footer_of_511_bytes_is_read(spec: ImageSpec) -> None:
    raw = build(replace(spec, trailing_footer="511"))
    image = opened(raw)
    assert image.metadata.footer_place == "trailing-511"
    assert image.metadata.footer_start == len(raw) - 511
    assert image.footer.to_bytes() == raw[-511:] + b"\0"
    assert [finding.corruption for finding in image.findings] == [Corruption.FOOTER_511_BYTES]


def guest_footer(**fields: Any) -> bytes:
    """Return a fixed disk whose guest wrote a footer into its first sector."""
    guest = footer_bytes(ImageSpec(size=SECTOR, **fields))
    return build(replace(FLAT, sectors={0: guest}))


@pytest.mark.parametrize("disk_type", [FIXED, DYNAMIC, DIFFERENCING])
def test_a_footer_written_by_the_guest_of_a_fixed_disk_is_data(disk_type: int) -> None:
    image = opened(guest_footer(disk_type=disk_type))
    assert (image.size, image.kind, image.findings) == (FLAT.size, "fixed", ())


@pytest.mark.parametrize("disk_type", [FIXED, DYNAMIC, DIFFERENCING])
def test_it_is_not_believed_even_if_the_true_footer_is_lost(disk_type: int) -> None:
    with pytest.raises(CorruptImageError) as caught:
        opened(guest_footer(disk_type=disk_type)[:-SECTOR])
    assert caught.value.corruption is Corruption.NOT_A_VHD


def test_a_copy_that_says_fixed_is_not_believed_even_if_a_header_follows() -> None:
    guest = with_footers(build(DISK), 60, number(FIXED))[:TABLE]
    sectors = {at: guest[at * SECTOR : (at + 1) * SECTOR] for at in range(3)}
    with pytest.raises(CorruptImageError) as caught:
        opened(build(replace(FLAT, sectors=sectors))[:-SECTOR])
    assert caught.value.corruption is Corruption.NOT_A_VHD


@pytest.mark.parametrize("data_offset", [ALL_ONES, 1 << 63, (1 << 63) - 1, 1 << 40, 0])
@pytest.mark.parametrize("folder", [LocalFolder(), LocalFolder(portable=True), None])
def test_a_footer_copy_that_leads_nowhere_is_not_believed(
    tmp_path: Path, folder: LocalFolder | None, data_offset: int
) -> None:
    footer = seal(patched(footer_bytes(DISK), 16, number(data_offset, 8)), FOOTER_CHECKSUM)
    (tmp_path / "a.vhd").write_bytes(footer + bytes(4096))
    place: Folder = folder or MemoryFolder({str(tmp_path / "a.vhd"): footer + bytes(4096)})
    with pytest.raises(CorruptImageError) as caught:
        open_image(str(tmp_path / "a.vhd"), folder=place)
    assert caught.value.corruption is Corruption.NOT_A_VHD


# What is refused


def cut_child(cut: int, **changes: Any) -> bytes:
    """Return the child without the last `cut` bytes before its footer."""
    raw = build(replace(CHILD, **changes))
    return raw[: len(raw) - SECTOR - cut] + raw[-SECTOR:]


C = Corruption
REFUSED: dict[str, tuple[Corruption, int, Callable[[], bytes]]] = {
    "empty": (C.FILE_TOO_SHORT, 0xC03A0013, lambda: b""),
    "510 bytes": (C.FILE_TOO_SHORT, 0xC03A0013, lambda: build(DISK)[:510]),
    "511 zeros": (C.NOT_A_VHD, 0xC03A0001, lambda: bytes(511)),
    "zeros": (C.NOT_A_VHD, 0xC03A0001, lambda: bytes(9999)),
    "shifted": (C.NOT_A_VHD, 0xC03A0001, lambda: b"x" + build(DISK) + b"x"),
    "checksums": (C.FOOTER_CHECKSUM, 0xC03A0002, lambda: broken_footers(build(DISK), 500)),
    "fixed checksum": (C.FOOTER_CHECKSUM, 0xC03A0002, lambda: build(FLAT)[:-1] + b"\1"),
    "poisoned": (C.FOOTER_POISONED, 0xC03A0003, lambda: with_footers(build(DISK), 0, b"v_poison")),
    "type 0": (C.DISK_TYPE, 0xC03A0003, lambda: with_footers(build(DISK), 60, number(0))),
    "type 1": (C.DISK_TYPE, 0xC03A0003, lambda: with_footers(build(DISK), 60, number(1))),
    "type 5": (C.DISK_TYPE, 0xC03A0003, lambda: with_footers(build(DISK), 60, number(5))),
    "size 0": (C.DISK_SIZE, 0xC03A0012, lambda: with_footers(build(DISK), 48, number(0, 8))),
    "fixed size 0": (C.DISK_SIZE, 0xC03A0012, lambda: with_footers(build(FLAT), 48, number(0, 8))),
    "odd size": (C.DISK_SIZE, 0xC03A0012, lambda: with_footers(build(DISK), 48, number(4097, 8))),
    "too large": (C.DISK_SIZE, 0xC03A0012, lambda: with_footers(build(DISK), 48, number((1 << 41) + 512, 8))),
    "all ones": (C.DISK_SIZE, 0xC03A0012, lambda: with_footers(build(DISK), 48, number(ALL_ONES, 8))),
    "fixed cut": (C.FIXED_DATA_MISSING, 0xC03A0013, lambda: build(FLAT)[SECTOR:]),
    "fixed 511 cut": (C.FIXED_DATA_MISSING, 0xC03A0013, lambda: build(FLAT)[SECTOR:-1]),
    "header odd": (C.HEADER_OFFSET, 0xC03A0003, lambda: with_footers(build(DISK), 16, number(513, 8))),
    "header at 0": (C.HEADER_OFFSET, 0xC03A0003, lambda: with_footers(build(DISK), 16, number(0, 8))),
    "header outside": (C.HEADER_OFFSET, 0xC03A0003, lambda: with_footers(build(DISK), 16, number(1 << 40, 8))),
    "header nowhere": (C.HEADER_OFFSET, 0xC03A0003, lambda: with_footers(build(DISK), 16, number(ALL_ONES, 8))),
    "header elsewhere": (C.HEADER_COOKIE, 0xC03A0008, lambda: with_footers(build(DISK), 16, number(1024, 8))),
    "header cookie": (C.HEADER_COOKIE, 0xC03A0008, lambda: with_header(build(DISK), 0, b"CXSPARSE")),
    "header checksum": (C.HEADER_CHECKSUM, 0xC03A0006, lambda: patched(build(DISK), HEADER + 800, b"\1")),
    "block size 0": (C.BLOCK_SIZE, 0xC03A000B, lambda: with_header(build(DISK), 32, number(0))),
    "block size 256": (C.BLOCK_SIZE, 0xC03A000B, lambda: with_header(build(DISK), 32, number(256))),
    "block size 1536": (C.BLOCK_SIZE, 0xC03A000B, lambda: with_header(build(DISK), 32, number(1536))),
    "block size huge": (C.BLOCK_SIZE, 0xC03A000B, lambda: with_header(build(DISK), 32, number(1 << 29))),
    "block size ones": (C.BLOCK_SIZE, 0xC03A000B, lambda: with_header(build(DISK), 32, number(0xFFFFFFFF))),
    "BAT too short": (C.BAT_TOO_SHORT, 0xC03A000A, lambda: with_header(build(DISK), 28, number(3))),
    "BAT empty": (C.BAT_TOO_SHORT, 0xC03A000A, lambda: with_header(build(DISK), 28, number(0))),
    "BAT too long": (C.BAT_TOO_LONG, 0xC03A000A, lambda: with_header(build(DISK), 28, number(4194305))),
    "BAT endless": (C.BAT_TOO_LONG, 0xC03A000A, lambda: with_header(build(DISK), 28, number(0xFFFFFFFF))),
    "BAT at 0": (C.BAT_OFFSET, 0xC03A000A, lambda: with_header(build(DISK), 16, number(0, 8))),
    "BAT odd": (C.BAT_OFFSET, 0xC03A000A, lambda: with_header(build(DISK), 16, number(1537, 8))),
    "BAT on the header": (C.BAT_OFFSET, 0xC03A000A, lambda: with_header(build(DISK), 16, number(1024, 8))),
    "BAT outside": (C.BAT_OUTSIDE_FILE, 0xC03A000A, lambda: with_header(build(DISK), 16, number(1 << 40, 8))),
    "BAT ends outside": (C.BAT_OUTSIDE_FILE, 0xC03A000A, lambda: with_header(build(DISK), 28, number(4194304))),
    "entry 0": (C.BLOCK_IN_HEADERS, 0xC03A000A, lambda: with_entry(build(DISK), 2, 0)),
    "block in the header": (C.BLOCK_IN_HEADERS, 0xC03A000A, lambda: with_entry(build(DISK), 2, 1)),
    "block in the BAT": (C.BLOCK_IN_HEADERS, 0xC03A000A, lambda: with_entry(build(DISK), 2, TABLE // SECTOR)),
    "block outside": (C.BLOCK_OUTSIDE_FILE, 0xC03A000A, lambda: with_entry(build(DISK), 2, 0xFFFFFFFE)),
    "block on the footer": (C.BLOCK_OUTSIDE_FILE, 0xC03A000A, lambda: with_entry(build(DISK), 2, 14)),
    "last block cut": (C.BLOCK_OUTSIDE_FILE, 0xC03A000A, lambda: cut_child(2 * SECTOR)),
    "another block cut": (C.BLOCK_OUTSIDE_FILE, 0xC03A000A, lambda: cut_child(SECTOR, order=[1, 0])),
    "whole last block cut": (
        C.BLOCK_OUTSIDE_FILE,
        0xC03A000A,
        lambda: cut_child(SECTOR, size=16 * SECTOR),
    ),
}


def broken_footers(raw: bytes, offset: int) -> bytes:
    return patched(patched(raw, offset, b"\1"), len(raw) - SECTOR + offset, b"\1")


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_breaks_a_rule_is_refused(name: str) -> None:
    corruption, windows_code, make = REFUSED[name]
    with pytest.raises(CorruptImageError) as caught:
        opened(make())
    assert caught.value.corruption is corruption
    assert caught.value.windows_code == windows_code
    assert caught.value.path == PATH


def test_a_refusal_says_where_in_the_file_the_fault_is() -> None:
    with pytest.raises(CorruptImageError) as footer:
        opened(broken_footers(build(DISK), 500))
    assert footer.value.offset == len(build(DISK)) - SECTOR + 64
    with pytest.raises(CorruptImageError) as header:
        opened(patched(build(DISK), HEADER + 800, b"\1"))
    assert header.value.offset == HEADER + 36


def test_a_refused_file_is_closed(tmp_path: Path) -> None:
    (tmp_path / "a.vhd").write_bytes(bytes(4096))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CorruptImageError):
        open_image(str(tmp_path / "a.vhd"))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("raw", "path", "said"),
    [
        (b"vhdxfile" + bytes(65536), PATH, "VHDX"),
        (b"QFI\xfb" + bytes(600), PATH, "qcow2"),
        (b"KDMV" + bytes(600), PATH, "VMDK"),
        (b"# Disk DescriptorFile\n", PATH, "VMDK"),
        (b"7z\xbc\xaf\x27\x1c", PATH, "7z"),
        (b"PK\x03\x04" + bytes(600), PATH, "ZIP"),
        (b"\x1f\x8b" + bytes(600), PATH, "gzip"),
        (bytes(1024), "/vms/a.v01", "split"),
        (with_footers(build(DISK), 12, number(0x20000)), PATH, "version"),
        (with_header(build(DISK), 24, number(0x20000)), PATH, "version"),
    ],
)
def test_what_is_valid_but_not_ours_is_named(raw: bytes, path: str, said: str) -> None:
    with pytest.raises(UnsupportedImageError, match=said) as caught:
        opened(raw, path=path)
    assert caught.value.path == path


def test_wrong_checksums_are_put_up_with_if_asked_and_told() -> None:
    raw = patched(broken_footers(build(DISK), 500), HEADER + 800, b"\1")
    image = keep(open_image(PATH, verify=False, folder=MemoryFolder({PATH: raw})))
    assert not image.metadata.checksum_ok
    assert opened(build(DISK)).metadata.checksum_ok


@pytest.mark.parametrize("cut", [1, 100, SECTOR])
def test_the_unused_tail_of_the_last_block_may_be_cut(cut: int) -> None:
    raw = cut_child(cut)
    image = opened(raw[:-SECTOR] if cut < SECTOR else raw)
    (extent,) = image.resolve(14 * SECTOR, SECTOR)
    assert raw[extent.file_offset : extent.file_offset + SECTOR] == b"b" * SECTOR


@pytest.mark.parametrize("size", [LARGEST, 200 << 40])
def test_a_disk_may_have_2040_gib_and_no_more(size: int) -> None:
    blocks = -(-LARGEST // (2 << 20))
    raw = build(ImageSpec(size=SECTOR, extra_entries=blocks - 1))
    if size > LARGEST:
        with pytest.raises(CorruptImageError):
            opened(with_footers(raw, 48, number(size, 8)))
    else:
        assert opened(with_footers(raw, 48, number(size, 8))).size == size


def test_blocks_that_share_bytes_are_found_and_not_read() -> None:
    raw = build(DISK)
    opened(raw).check_sound()
    first = struct.unpack_from(">I", raw, TABLE)[0]
    for shift in (0, 1, 8):
        image = opened(with_entry(raw, 2, first + shift))
        assert [finding.corruption for finding in image.findings] == [Corruption.BLOCKS_OVERLAP]
        for look in (image.check_sound, lambda image=image: image.resolve(0, SECTOR)):
            with pytest.raises(CorruptImageError) as caught:
                look()
            assert caught.value.corruption is Corruption.BLOCKS_OVERLAP


@pytest.mark.parametrize("sector", [0, 1, TABLE // SECTOR, 1 << 20, 0xFFFFFFFE, None])
def test_entries_that_no_sector_can_reach_stop_no_reader(sector: int | None) -> None:
    raw = build(replace(DISK, extra_entries=1))
    good = opened(raw)
    at = struct.unpack_from(">I", raw, TABLE)[0] if sector is None else sector  # None: that of another block
    image = opened(with_entry(raw, 4, at))
    stray = [] if sector is None else [Corruption.BLOCK_BEYOND_DISK]
    assert [finding.corruption for finding in image.findings] == stray
    image.check_sound()
    assert isinstance(image, SparseImage)
    assert isinstance(good, SparseImage)
    assert image.data_end == good.data_end
    assert list(image.resolve(0, image.size)) == list(good.resolve(0, good.size))


def test_a_saved_machine_state_is_a_finding() -> None:
    image = opened(build(replace(DISK, saved_state=1)))
    assert [finding.corruption for finding in image.findings] == [Corruption.SAVED_STATE]


@pytest.mark.parametrize(
    "change",
    [{"length": 0}, {"length": 65537}, {"offset": 1 << 40}, {"offset": ALL_ONES}, {"offset": 0}],
)
def test_a_locator_that_points_nowhere_is_a_finding_and_the_others_serve(change: dict[str, int]) -> None:
    bad = replace(locator(0, b"W2ku", "C:\\x.vhd"), **change)  # type: ignore[arg-type] # numbers all
    image = opened(build(replace(CHILD, locators=(bad, *CHILD.locators))))
    assert [finding.corruption for finding in image.findings] == [Corruption.LOCATOR_UNREADABLE]
    assert image.parent is not None
    assert [path.text for path in image.parent.paths if not path.is_bare_name] == [".\\parent.vhd"]


def batmap_image(key_hash: int) -> bytes:
    raw = build(replace(DISK, creator_app=b"tap\0", sectors={}, empty_blocks=frozenset([0]), gap=2 * SECTOR))
    fields = struct.pack(">8sQIIIBB", b"tdbatmap", 2560, 1, 0x10002, ALL_ONES & 0xFFFFFFFF, 0, key_hash)
    return patched(raw, TABLE + SECTOR, fields)


def test_a_block_may_not_lie_in_the_map_of_full_blocks() -> None:
    raw = batmap_image(0)
    image = opened(raw)
    assert isinstance(image, SparseImage)
    assert image.metadata.batmap == (TABLE + SECTOR, TABLE + 3 * SECTOR)
    with pytest.raises(CorruptImageError) as caught:
        opened(with_entry(raw, 0, 5))
    assert caught.value.corruption is Corruption.BLOCK_IN_HEADERS
    with pytest.raises(UnsupportedImageError, match="encrypted"):
        opened(batmap_image(1))


# Opening to write


@pytest.mark.parametrize("folder", [LocalFolder(), MemoryFolder()])
@pytest.mark.parametrize("writable", [False, True])
def test_a_missing_file_is_not_found(tmp_path: Path, folder: Folder, writable: bool) -> None:
    with pytest.raises(FileNotFoundError):
        open_image(str(tmp_path / "missing.vhd"), writable=writable, folder=folder)


def test_a_file_marked_read_only_is_not_opened_for_writing() -> None:
    folder = MemoryFolder({PATH: build(DISK)})
    folder[PATH].read_only = True
    open_image(PATH, folder=folder).close()
    with pytest.raises(ReadOnlyImageError) as caught:
        open_image(PATH, writable=True, folder=folder)
    assert caught.value.windows_code == 0x80070005


# Resolving


def held(raw: bytes) -> dict[int, int]:
    """Return the file offset of every sector that a file holds, by the plain reader."""
    image = parse(raw)
    if image.header is None:
        return {sector: sector * SECTOR for sector in range(image.sector_count)}
    found = {}
    for index in image.allocated:
        block = image.block(index)
        assert block is not None
        data = block.offset + bitmap_length(image.block_size)
        for inside in np.flatnonzero(block.bitmap).tolist():
            found[index * len(block.bitmap) + inside] = data + inside * SECTOR
    return found


@settings(deadline=None)
@given(image_specs(), st.data())
def test_an_image_resolves_as_its_bitmaps_say(spec: ImageSpec, data: st.DataObject) -> None:
    raw = build(spec)
    image, where = opened(raw), held(raw)
    hole = Kind.PARENT if spec.disk_type == DIFFERENCING else Kind.ZERO
    edges = st.sampled_from([0, spec.size, spec.size // 2]) | st.integers(0, spec.size)
    first, last = sorted((data.draw(edges), data.draw(edges)))
    position = first
    for extent in image.resolve(first, last - first):
        assert extent.start == position
        assert extent.depth == 0
        position += extent.length
        for sector in range(extent.start // SECTOR, -(-position // SECTOR)):
            assert extent.kind is (Kind.DATA if sector in where else hole)
            if extent.kind is Kind.DATA:
                assert where[sector] - sector * SECTOR == extent.file_offset - extent.start
    assert position == last


@settings(deadline=None)
@given(image_specs())
def test_every_allocated_block_is_in_some_window(spec: ImageSpec) -> None:
    raw = build(spec)
    image, plain = opened(raw), parse(raw)
    if isinstance(image, SparseImage):
        found = [pair for blocks, at in image.windows() for pair in zip(blocks.tolist(), at.tolist(), strict=True)]
        assert found == [(index, int(plain.bat[index]) * SECTOR) for index in plain.allocated]


# Creating


def created(folder: Folder, path: str = PATH, **options: Any) -> bytes:
    create_image(path, folder=folder, **options)
    storage = folder.open(path)
    buffer = bytearray(storage.size())
    storage.read_into(0, buffer)
    storage.close()
    return bytes(buffer)


SIZES = [SECTOR, 4 << 20, (4 << 20) + SECTOR, 17 * 68 * SECTOR]


@pytest.mark.parametrize("size", SIZES)
def test_a_new_fixed_disk_is_zeros_and_a_footer(tmp_path: Path, size: int) -> None:
    raw = created(LocalFolder(), str(tmp_path / "a.vhd"), size=size, disk_type="fixed")
    assert validate(raw) == []
    assert raw[:-SECTOR] == bytes(size)
    assert parse(raw).disk_type == FIXED


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block_size", [None, SECTOR, 4096, 512 << 10, 4 << 20, 256 << 20])
def test_a_new_dynamic_disk_holds_nothing(tmp_path: Path, size: int, block_size: int | None) -> None:
    raw = created(LocalFolder(), str(tmp_path / "a.vhd"), size=size, block_size=block_size)
    image = parse(raw)
    assert validate(raw) == []
    assert image.header is not None
    assert (image.disk_type, image.size, image.allocated) == (DYNAMIC, size, [])
    assert image.block_size == (block_size or 2 << 20)
    assert image.header.max_table_entries == -(-size // image.block_size)
    assert image.header.table_offset == TABLE
    assert (image.footer.offset % 4096, set(raw[TABLE : image.footer.offset])) == (0, {0xFF})


@pytest.mark.parametrize("size", [*SIZES, LARGEST])
def test_a_new_footer_tells_the_truth(size: int) -> None:
    footer = parse(created(MemoryFolder(), size=size, stamp=77, unique_id=b"u" * 16)).footer
    assert (footer.current_size, footer.original_size, footer.timestamp) == (size, size, 77)
    assert (footer.cylinders, footer.heads, footer.sectors_per_track) == geometry(size // SECTOR)
    assert (footer.unique_id, footer.features, footer.saved_state) == (b"u" * 16, 2, 0)
    # The creator of which qemu believes the size (docs/reference/vhd.md 1.10).
    assert (footer.creator_app, footer.creator_os) == (b"win ", b"Wi2k")


def test_equal_stamps_and_ids_make_equal_files_and_ids_differ_by_themselves() -> None:
    same: dict[str, Any] = {"size": 4 << 20, "stamp": 5, "unique_id": b"u" * 16}
    assert created(MemoryFolder(), **same) == created(MemoryFolder(), **same)
    ids = {parse(created(MemoryFolder(), size=SECTOR)).unique_id for _ in range(9)}
    assert len(ids) == 9


@pytest.mark.parametrize("parent", [DISK, FLAT, CHILD])
@pytest.mark.parametrize("larger", [0, SECTOR, 4 << 20])
def test_a_new_child_names_its_parent_and_holds_nothing(parent: ImageSpec, larger: int) -> None:
    folder = MemoryFolder({"/vms/base.vhd": build(parent)})
    folder["/vms/base.vhd"].mtime = 946_684_800 + 99
    size = parent.size + larger if larger else None
    raw = created(folder, parent="/vms/base.vhd", size=size)
    image = parse(raw)
    assert validate(raw) == []
    assert (image.disk_type, image.size, image.allocated) == (DIFFERENCING, parent.size + larger, [])
    assert image.header is not None
    assert (image.parent_id, image.parent_name) == (parent.unique_id, "base.vhd")
    assert image.header.parent_timestamp == 99
    assert image.unique_id != parent.unique_id
    assert [(at.code, at.text) for at in image.locators] == [(b"W2ku", ".\\base.vhd"), (b"W2ru", ".\\base.vhd")]
    assert image.block_size == (2 << 20 if parent is FLAT else BLOCK)


@pytest.mark.parametrize(
    ("path", "relative", "absolute"),
    [
        ("/vms/a.avhd", ".\\base.vhd", "C:\\disks\\base.vhd"),
        ("/vms/deep/er/a.avhd", "..\\..\\base.vhd", "C:\\disks\\base.vhd"),
        ("/a.avhd", ".\\vms\\base.vhd", "C:\\disks\\base.vhd"),
    ],
)
def test_a_child_names_its_parent_relative_to_itself_and_as_windows_would(
    path: str, relative: str, absolute: str
) -> None:
    folder = MemoryFolder({"/vms/base.vhd": build(DISK)})
    raw = created(folder, path, parent="/vms/base.vhd", parent_map={"C:\\disks": "/vms"})
    texts = {at.code: at.text for at in parse(raw).locators}
    assert texts == {b"W2ru": relative, b"W2ku": absolute}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 0},
        {"size": -SECTOR},
        {"size": 1000},
        {"size": LARGEST + SECTOR},
        {"size": 4096, "block_size": 1536},
        {"size": 4096, "block_size": 256},
        {"size": 4096, "block_size": 512 << 20},
        {"size": LARGEST, "block_size": 4096},
        {"size": 4096, "disk_type": "differencing"},
        {"parent": "/vms/base.vhd", "size": DISK.size - SECTOR},
    ],
)
def test_what_the_format_does_not_allow_is_not_created(options: dict[str, Any]) -> None:
    folder = MemoryFolder({"/vms/base.vhd": build(DISK)})
    with pytest.raises(ValueError, match=r"."):
        create_image(PATH, folder=folder, **options)
    assert folder.names("/vms") == ("base.vhd",)


def test_a_disk_type_that_does_not_exist_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="sparse"):
        create_image(PATH, folder=MemoryFolder(), size=4096, disk_type="sparse")  # type: ignore[arg-type]


def test_no_child_is_made_of_a_saved_machine_state_or_of_what_is_no_image() -> None:
    saved = build(replace(DISK, saved_state=1))
    folder = MemoryFolder({"/vms/base.vhd": saved, "/vms/raw.img": bytes(4096)})
    with pytest.raises(ReadOnlyImageError):
        create_image(PATH, parent="/vms/base.vhd", folder=folder)
    with pytest.raises(CorruptImageError):
        create_image(PATH, parent="/vms/raw.img", folder=folder)
    assert folder.names("/vms") == ("base.vhd", "raw.img")


@pytest.mark.parametrize("disk_type", ["fixed", "dynamic"])
def test_creating_never_replaces(tmp_path: Path, disk_type: Any) -> None:
    (tmp_path / "a.vhd").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        create_image(str(tmp_path / "a.vhd"), size=4096, disk_type=disk_type)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.vhd", b"precious")]


# A storage that takes notes


class Recorder(ThroughStorage):
    """A storage that notes every change, and fails at a chosen one, having done half of it."""

    def __init__(self, inner: Storage, fail_at: int = -1) -> None:
        super().__init__(inner)
        self.fail_at = fail_at
        self.events: list[tuple[str, int, int]] = []

    def write_at(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        half = view[: len(view) // 2 // SECTOR * SECTOR]
        self._note("write", offset, len(view), lambda: self.inner.write_at(offset, half))
        self.inner.write_at(offset, view)

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> None:
        self._note("copy", offset, length, lambda: None)
        self.inner.copy_from(source, source_offset, offset, length)

    def reserve(self, offset: int, length: int) -> None:
        self._note("reserve", offset, length, lambda: None)
        self.inner.reserve(offset, length)

    def truncate(self, size: int) -> None:
        self._note("truncate", size, 0, lambda: None)
        self.inner.truncate(size)

    def sync(self) -> None:
        self._note("sync", 0, 0, lambda: None)
        self.inner.sync()

    def _note(self, name: str, offset: int, length: int, half: Callable[[], None]) -> None:
        self.events.append((name, offset, length))
        if len(self.events) == self.fail_at:
            half()
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.path)

    def groups(self) -> list[list[tuple[int, int]]]:
        """Return the writes as (offset, length), those before each sync in one list."""
        found: list[list[tuple[int, int]]] = [[]]
        for name, offset, length in self.events:
            if name == "sync":
                found.append([])
            else:
                assert name == "write"
                found[-1].append((offset, length))
        return found


class RecordingFolder(MemoryFolder):
    """A memory whose storages take notes and fail."""

    def __init__(self, files: dict[str, bytes] | None = None, *, fail_at: int = -1) -> None:
        super().__init__(files)
        self.fail_at = fail_at
        self.recorders: list[Recorder] = []

    def open(self, path: str, *, writable: bool = False) -> Storage:
        return self._recorded(super().open(path, writable=writable))

    def create(self, path: str, *, private: bool = False) -> Storage:
        return self._recorded(super().create(path, private=private))

    def _recorded(self, storage: Storage) -> Storage:
        self.recorders.append(Recorder(storage, self.fail_at))
        return self.recorders[-1]

    def content(self, path: str = PATH) -> bytes:
        return bytes(self[path].content)


def failures(files: dict[str, bytes], act: Callable[[RecordingFolder], None]) -> Iterator[RecordingFolder]:
    """Do the same with the first change failing, then the second, and so on; yield what each left."""
    for fail_at in range(1, 100):
        folder = RecordingFolder(files, fail_at=fail_at)
        try:
            act(folder)
        except OSError:
            yield folder
        else:
            assert fail_at > 1
            return
    pytest.fail("it never ends well")


@pytest.mark.parametrize("options", [{"disk_type": "fixed"}, {"disk_type": "dynamic"}, {"parent": "/vms/base.vhd"}])
def test_whatever_fails_in_creating_nothing_is_left_behind(options: dict[str, str]) -> None:
    files = {"/vms/base.vhd": build(DISK)}
    for folder in failures(files, lambda folder: create_image(PATH, size=1 << 20, folder=folder, **options)):  # type: ignore[arg-type] # words all
        assert folder.names("/vms") == ("base.vhd",)


@pytest.mark.parametrize("options", [{"disk_type": "fixed"}, {"disk_type": "dynamic"}, {"parent": "/vms/base.vhd"}])
def test_a_new_file_is_durable_before_it_has_its_name(options: dict[str, str]) -> None:
    folder = RecordingFolder({"/vms/base.vhd": build(DISK)})
    created(folder, size=1 << 20, **options)
    made = folder.recorders[-2]  # the last was opened to read it
    assert made.path != PATH
    assert made.events[-1][0] == "sync"


# Writing


def written(raw: bytes, *writes: tuple[int, bytes], sync: bool = False) -> tuple[bytes, Recorder]:
    """Write sectors (number, data) one call after the other; return the file and the notes taken."""
    folder = RecordingFolder({PATH: raw})
    with open_image(PATH, writable=True, folder=folder) as image:
        for sector, data in writes:
            image.write(sector * SECTOR, data, sync=sync)
    return folder.content(), folder.recorders[0]


def parts(raw: bytes, group: list[tuple[int, int]]) -> set[str]:
    """Say which parts of a file some writes touched: footer, header, BAT, bitmap, data, or nothing's."""
    image = parse(raw)
    assert image.header is not None
    length = bitmap_length(image.block_size)
    regions = [(0, SECTOR, "copy"), (SECTOR, TABLE, "header"), (TABLE, TABLE + SECTOR, "BAT")]
    regions.append((len(raw) - SECTOR, len(raw), "footer"))
    for index in image.allocated:
        at = int(image.bat[index]) * SECTOR
        regions += [(at, at + length, "bitmap"), (at + length, at + length + image.block_size, "data")]
    return {name for start, stop, name in regions for at, size in group if at < stop and start < at + size}


X = b"x" * SECTOR


@pytest.mark.parametrize(
    ("spec", "sector", "order"),
    [
        (DISK, 20, [{"footer"}, {"bitmap", "data"}, {"BAT"}, set()]),
        (replace(DISK, all_ones=True), 0, [{"data"}, set(), set()]),
        (DISK, 3, [{"data"}, {"bitmap"}, set()]),
        (CHILD, 3, [{"data"}, {"bitmap"}, set()]),
        (CHILD, 0, [{"data"}, set(), set()]),
    ],
)
def test_each_step_of_a_write_is_durable_before_the_next(spec: ImageSpec, sector: int, order: list[set[str]]) -> None:
    raw, notes = written(build(spec), (sector, X), sync=True)
    assert [parts(raw, group) for group in notes.groups()] == order
    assert parse(raw).sector(sector) == X


def test_a_new_block_of_a_child_is_linked_after_its_data() -> None:
    spec = replace(CHILD, sectors={0: X})
    raw, notes = written(build(spec), (9, X), sync=True)
    order = [parts(raw, group) for group in notes.groups()]
    assert order[0] == {"footer"}
    assert order[1] == {"bitmap", "data"}
    assert "BAT" in order[2]
    assert "data" not in order[2]
    assert parse(raw).sector(9) == X


def test_bitmap_and_data_of_a_new_block_are_written_behind_the_durable_footer() -> None:
    raw, notes = written(build(DISK), (20, X), sync=True)
    footer, rest = notes.groups()[0], notes.groups()[1]
    assert footer == [(len(raw) - SECTOR, SECTOR)]
    assert all(offset + length <= len(raw) - SECTOR for offset, length in rest)


def test_without_sync_nothing_waits() -> None:
    _, notes = written(build(DISK), (20, X), (21, X))
    assert len(notes.groups()) == 1


def test_a_fixed_disk_is_written_in_place() -> None:
    before = build(FLAT)
    raw, notes = written(before, (2, X + X), sync=True)
    assert raw == patched(before, 2 * SECTOR, X + X)
    assert notes.events == [("write", 2 * SECTOR, 2 * SECTOR), ("sync", 0, 0)]


def test_a_new_block_of_a_dynamic_disk_has_all_bits_and_of_a_child_those_written() -> None:
    block = parse(written(build(DISK), (20, X))[0]).block(2)
    assert block is not None
    assert block.bitmap.all()
    child = parse(written(build(replace(CHILD, sectors={})), (2, X + X))[0]).block(0)
    assert child is not None
    assert np.flatnonzero(child.bitmap).tolist() == [2, 3]


@pytest.mark.parametrize("block_size", [4096, 32 << 10, 512 << 10, 2 << 20, 4 << 20])
@pytest.mark.parametrize("parent", [None, "/vms/base.vhd"])
def test_data_of_new_blocks_begin_at_4_kib_boundaries(block_size: int, parent: str | None) -> None:
    folder = RecordingFolder({"/vms/base.vhd": build(replace(DISK, size=8 * block_size, block_size=block_size))})
    create_image(PATH, size=8 * block_size, block_size=block_size, parent=parent, folder=folder)
    with open_image(PATH, writable=True, folder=folder) as image:
        for block in (5, 0, 7):
            image.write(block * block_size, X)
        image.write(2 * block_size, bytes(2 * block_size))
    plain = parse(folder.content())
    assert validate(folder.content()) == []
    assert plain.allocated == [0, 2, 3, 5, 7]
    for index in plain.allocated:
        assert (int(plain.bat[index]) * SECTOR + bitmap_length(block_size)) % 4096 == 0


@st.composite
def sector_writes(draw: st.DrawFn, count: int) -> tuple[int, bytes]:
    first = draw(st.integers(0, count - 1))
    length = min(draw(st.integers(1, 3) | st.integers(1, 100)), count - first)
    return first, Write(offset=first * SECTOR, length=length * SECTOR, fill=draw(st.integers(0, 255))).data


@settings(deadline=None)
@given(image_specs(block_sizes=(SECTOR, 4096, 32 << 10)), st.data())
def test_written_sectors_are_held_and_all_others_stay(spec: ImageSpec, data: st.DataObject) -> None:
    before = build(spec)
    writes = data.draw(st.lists(sector_writes(spec.sector_count), max_size=4))
    raw, _ = written(before, *writes, sync=data.draw(st.booleans()))
    expected = {sector: before[at : at + SECTOR] for sector, at in held(before).items()}
    for first, content in writes:
        for inside in range(len(content) // SECTOR):
            expected[first + inside] = content[inside * SECTOR : (inside + 1) * SECTOR]
    found = {sector: raw[at : at + SECTOR] for sector, at in held(raw).items()}
    if spec.disk_type == DYNAMIC:
        # A new block of a dynamic disk has all its bits set: there held zeros and none are the same.
        expected, found = ({at: x for at, x in view.items() if x != ZERO_SECTOR} for view in (expected, found))
    assert found == expected
    assert validate(raw) == []
    assert raw[-SECTOR:] == before[-SECTOR:]


@pytest.mark.parametrize(
    ("offset", "length"), [(1, SECTOR), (0, 1), (-SECTOR, SECTOR), (32 * SECTOR, SECTOR), (0, 33 * SECTOR)]
)
def test_only_whole_sectors_inside_the_disk_are_written(offset: int, length: int) -> None:
    folder = RecordingFolder({PATH: build(DISK)})
    with open_image(PATH, writable=True, folder=folder) as image, pytest.raises(ValueError, match="whole sectors"):
        image.write(offset, bytes(length))
    assert folder.recorders[0].events == []


@pytest.mark.parametrize("spec", [DISK, FLAT])
def test_what_was_opened_for_reading_is_not_written(spec: ImageSpec) -> None:
    folder = RecordingFolder({PATH: build(spec)})
    with open_image(PATH, folder=folder) as image, pytest.raises(ReadOnlyImageError):
        image.write(0, X)
    assert folder.recorders[0].events == []


def test_space_behind_the_last_block_is_used_again_and_cleaned() -> None:
    raw = build(replace(DISK, footer_gap=64 * SECTOR))
    junk = patched(raw, len(raw) - 65 * SECTOR, b"\xee" * (64 * SECTOR))
    after, _ = written(junk, (20, X))
    assert len(after) == len(junk)
    assert validate(after) == []
    assert [parse(after).sector(sector) for sector in (19, 20, 21)] == [ZERO_SECTOR, X, ZERO_SECTOR]


def test_space_behind_the_last_block_is_cleaned_only_once() -> None:
    gap = 8192 * SECTOR
    raw = build(replace(DISK, size=32 * BLOCK, footer_gap=gap))
    after, notes = written(raw, *((block * 8, X) for block in range(4, 32)))
    assert len(after) == len(raw)
    assert sum(length for _, _, length in notes.events) < 2 * gap


@pytest.mark.parametrize("footer", ["511", "none"])
def test_writing_a_new_block_gives_the_file_a_whole_footer(footer: Any) -> None:
    raw, _ = written(build(replace(DISK, trailing_footer=footer)), (20, X))
    assert validate(raw) == []
    assert parse(raw).sector(20) == X


def test_writing_a_new_block_makes_a_cut_tail_whole() -> None:
    raw = cut_child(SECTOR, size=23 * SECTOR, sectors={0: X, 22: X})
    after, _ = written(raw, (9, X))
    assert [parse(after).sector(sector) for sector in (0, 9, 22)] == [X, X, X]
    assert validate(after) == []


def test_the_footer_copy_is_right_before_the_trailing_footer_is_moved() -> None:
    # A cut that keeps the file's new length and loses the new footer leaves nothing but the copy (vhd.md 3.4).
    broken = patched(build(DISK), 0, bytes(SECTOR))
    raw, notes = written(broken, (20, X), sync=True)
    assert [parts(raw, group) for group in notes.groups()][:2] == [{"copy"}, {"footer"}]


WRITES = [
    (DISK, 20, X),
    (DISK, 2, X * 20),
    (CHILD, 2, X * 10),
    (replace(CHILD, sectors={}), 5, X * 6),
    (FLAT, 1, X),
]


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize(("spec", "sector", "data"), WRITES)
def test_after_a_failed_write_every_other_is_refused(spec: ImageSpec, sector: int, data: bytes, sync: bool) -> None:
    def act(folder: RecordingFolder) -> None:
        with open_image(PATH, writable=True, folder=folder) as image:
            try:
                image.write(sector * SECTOR, data, sync=sync)
            except OSError:
                count = len(folder.recorders[0].events)
                for change in (
                    partial(image.write, 0, X),
                    partial(image.write, sector * SECTOR, data),
                    partial(image.write_at, 0, X),
                    image.sync,
                ):
                    with pytest.raises(ReadOnlyImageError, match="earlier write failed"):
                        change()
                assert len(folder.recorders[0].events) == count
                raise

    assert list(failures({PATH: build(spec)}, act))


@pytest.mark.parametrize(("spec", "sector", "data"), WRITES)
def test_wherever_a_write_fails_each_sector_is_old_or_new(spec: ImageSpec, sector: int, data: bytes) -> None:
    before = parse(build(spec))

    def act(folder: RecordingFolder) -> None:
        with open_image(PATH, writable=True, folder=folder) as image:
            image.write(sector * SECTOR, data)

    nothing = ZERO_SECTOR if spec.disk_type == DYNAMIC else None
    for folder in failures({PATH: build(spec)}, act):
        opened(folder.content()).check_sound()
        after = parse(folder.content())
        for inside in range(spec.sector_count):
            is_new = sector <= inside < sector + len(data) // SECTOR
            old, found = before.sector(inside) or nothing, after.sector(inside) or nothing
            assert found == old or (is_new and found == X)


# Large tables


@pytest.mark.parametrize("parent", [None, "/vms/base.vhd"])
def test_a_table_of_many_windows_is_written_and_read(parent: str | None) -> None:
    size, numbers = 40000 * SECTOR, [0, 1, 127, 128, 16383, 16384, 16385, 32768, 39999]
    base = build(ImageSpec(size=size, block_size=SECTOR))
    folder = RecordingFolder({"/vms/base.vhd": base})
    create_image(PATH, size=size, block_size=SECTOR, parent=parent, folder=folder)
    with open_image(PATH, writable=True, folder=folder) as image:
        image.write(16383 * SECTOR, X * 3)
        for sector in reversed(numbers):
            image.write(sector * SECTOR, X)
        plain = parse(folder.content())
        assert plain.allocated == numbers
        for first, stop in [(0, 40000), (16380, 16390), (100, 33000), (39990, 40005), (50000, 50010), (5, 5)]:
            expected = [int(entry) for entry in plain.bat[first:stop]]
            expected += [0xFFFFFFFF] * (stop - first - len(expected))
            assert isinstance(image, SparseImage)
            assert image.table.entries(first, stop).tolist() == expected
    assert validate(folder.content()) == []


def test_a_block_that_the_table_could_not_address_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    raw = with_entry(build(DISK), 0, 0xFFFFFFE0)
    with path.open("wb") as file:
        file.write(raw[:-SECTOR])
        file.seek(0xFFFFFFF0 * SECTOR)
        file.write(raw[-SECTOR:])
    with open_image(str(path), writable=True) as image:
        with pytest.raises(OSError, match="2 TiB") as caught:
            image.write(20 * SECTOR, X)
        assert caught.value.errno == errno.EFBIG
        image.write(0, X)
    assert path.stat().st_size == 0xFFFFFFF1 * SECTOR
    assert plainvhd.Footer.decode(raw[-SECTOR:], 0).checksum_ok
