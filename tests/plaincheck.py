"""A strict judge of single VHD files: what is wrong with one, by the rules of docs/reference/vhd.md 4.1.

Part of the tests' oracle (tests/plainvhd.py says what that means).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.plainvhd import (
    ALL_ONES,
    DIFFERENCING,
    FIXED,
    HEADER,
    SECTOR,
    UNALLOCATED,
    VERSION,
    ZERO_ID,
    FormatError,
    Header,
    PlainImage,
    bitmap_length,
    parse,
    round_up,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def validate(source: bytes | str | Path, *, raw_parent: bool = False) -> list[str]:
    """List what is wrong with one file, strictly: the errors of 4.1 and what vhdkit promises to write.

    `raw_parent` allows a differencing disk with a null parent id (2.5).
    """
    raw = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        image = parse(raw)
    except FormatError as error:
        return [str(error)]
    problems = [*_footer_problems(image)]
    if image.header is None:
        return problems
    problems += [*_header_problems(image, image.header), *_region_problems(image, image.header)]
    if image.disk_type == DIFFERENCING:
        problems += _parent_problems(image, raw_parent=raw_parent)
    if not problems:
        problems += _clear_sector_problems(image)
    return problems


def _footer_problems(image: PlainImage) -> Iterator[str]:
    footer, length = image.footer, len(image.raw)
    rules = [
        (length % SECTOR == 0, f"file length {length} is no multiple of 512 (37)"),
        (image.footer_place == "trailing", f"no valid trailing footer, {image.footer_place} used (2)"),
        (footer.checksum_ok, "footer checksum is wrong (3)"),
        (footer.features & ~1 == 2, f"features {footer.features:#x} (5)"),
        (footer.version == VERSION, f"format version {footer.version:#x} (6)"),
        (footer.current_size > 0, "the disk has no size (10)"),
        (footer.current_size % SECTOR == 0, f"size {footer.current_size} is no multiple of 512 (10)"),
        (footer.current_size <= 1 << 41, f"size {footer.current_size} is above 2 TiB (10)"),
        (footer.saved_state in {0, 1}, f"saved state {footer.saved_state} (15)"),
    ]
    if image.disk_type == FIXED:
        rules += [
            (footer.data_offset == ALL_ONES, f"data offset {footer.data_offset:#x} of a fixed disk (8)"),
            (footer.current_size == length - SECTOR, f"size {footer.current_size} in {length} bytes (9)"),
        ]
    else:
        copy = image.footer_copy
        rules += [(copy is not None and copy.raw == footer.raw, "footer and its copy differ (4)")]
    yield from (text for right, text in rules if not right)


def _header_problems(image: PlainImage, header: Header) -> Iterator[str]:
    offset, needed = image.footer.data_offset, -(-image.size // header.block_size)
    rules = [
        (offset % SECTOR == 0 and offset >= SECTOR, f"header at {offset:#x} (20)"),
        (header.checksum_ok, "header checksum is wrong (21)"),
        (header.version == VERSION, f"header version {header.version:#x} (22)"),
        (header.block_size <= 1 << 28, f"block size {header.block_size} (25)"),
        (header.max_table_entries >= needed, f"{header.max_table_entries} BAT entries of {needed} (26)"),
        (header.table_offset % SECTOR == 0, f"BAT at {header.table_offset:#x} (28)"),
        (not (image.bat[needed:] != UNALLOCATED).any(), "a block beyond the disk's end is allocated (33)"),
    ]
    yield from (text for right, text in rules if not right)


def _parent_problems(image: PlainImage, *, raw_parent: bool) -> Iterator[str]:
    if image.parent_id == ZERO_ID and not raw_parent:
        yield "a differencing disk without a parent id (50)"
    if not image.parent_name and not any(item.text for item in image.locators):
        yield "a differencing disk that names no parent (51)"
    for item in image.locators:
        if item.length == 0 or item.length > item.space_bytes or item.reserved != 0:
            yield f"locator {item.slot}: length {item.length} in {item.space_bytes} bytes (52, 53)"
    if len({item.code for item in image.locators}) != len(image.locators):
        yield "two locators have one platform code (52)"


def _region_problems(image: PlainImage, header: Header) -> Iterator[str]:
    """Find what lies outside the file or on top of something else (28, 30, 31, 32, 52)."""
    previous_end, previous_name = 0, ""
    for start, end, name in sorted(_regions(image, header)):
        if end > len(image.raw):
            yield f"{name} at {start:#x} ends outside the file"
        if start < previous_end:
            yield f"{name} at {start:#x} overlaps {previous_name}"
        if end > previous_end:
            previous_end, previous_name = end, name


def _regions(image: PlainImage, header: Header) -> Iterator[tuple[int, int, str]]:
    yield 0, SECTOR, "footer copy"
    yield image.footer.data_offset, image.footer.data_offset + HEADER.size, "dynamic header"
    table_end = header.table_offset + round_up(4 * header.max_table_entries, SECTOR)
    yield header.table_offset, table_end, "BAT"
    if image.footer_place != "copy":
        yield image.footer.offset, len(image.raw), "footer"
    for item in header.locators:
        yield item.offset, item.offset + max(item.space_bytes, item.length), f"locator {item.slot}"
    if image.raw[table_end : table_end + 8] == b"tdbatmap":  # blktap's own area (3.7)
        offset, sectors = struct.unpack_from(">QI", image.raw, table_end + 8)
        yield table_end, table_end + SECTOR, "batmap header"
        yield offset, offset + sectors * SECTOR, "batmap"
    length = bitmap_length(header.block_size) + header.block_size
    for index in image.allocated:
        start = int(image.bat[index]) * SECTOR
        yield start, start + length, f"block {index}"


def _clear_sector_problems(image: PlainImage) -> Iterator[str]:
    for index in image.allocated:
        block = image.block(index)
        if block is not None:
            data = np.frombuffer(block.data, dtype=np.uint8).reshape(-1, SECTOR)
            wrong = np.flatnonzero(~block.bitmap & data.any(axis=1))
            if len(wrong):
                yield f"block {index}: {len(wrong)} sectors with clear bits hold data, first {wrong[0]} (35)"
