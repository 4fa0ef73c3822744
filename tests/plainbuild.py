"""A slow, obviously right writer of VHD files, able to write every odd thing that real writers do.

Part of the tests' oracle (tests/plainvhd.py says what that means).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from tests.plainvhd import (
    ALL_ONES,
    DYNAMIC,
    ENCODINGS,
    FIXED,
    FOOTER,
    FOOTER_CHECKSUM,
    HEADER,
    HEADER_CHECKSUM,
    HEADERS_LENGTH,
    LOCATOR,
    SECTOR,
    VERSION,
    ZERO_ID,
    ZERO_SECTOR,
    bitmap_length,
    geometry,
    round_up,
    seal,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatorSpec:
    """A locator to write. `space` is what the field says (None: the reserved room in bytes)."""

    slot: int
    code: bytes
    data: bytes
    room: int = SECTOR
    space: int | None = None
    length: int | None = None
    offset: int | None = None


def locator(slot: int, code: bytes, text: str, *, unit: Literal["bytes", "sectors"] = "bytes") -> LocatorSpec:
    """Encode a path as its platform code asks (2.1), with the space in either unit (B1)."""
    data = text.encode(ENCODINGS[code], "surrogatepass" if code.startswith(b"W2") else "strict")
    room = max(round_up(len(data), SECTOR), SECTOR)
    return LocatorSpec(slot=slot, code=code, data=data, room=room, space=room // SECTOR if unit == "sectors" else room)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """What to build. Nothing is checked: wrong things can be asked for.

    `sectors` holds the written sectors; numbers past the disk's end but inside the last block are junk in
    its unused tail. `empty_blocks` are allocated without a set bit. `order` is the blocks' order in the file.
    """

    disk_type: int = DYNAMIC
    size: int
    block_size: int = 2 * 1024 * 1024
    sectors: Mapping[int, bytes] = field(default_factory=dict)
    empty_blocks: frozenset[int] = frozenset()
    order: Sequence[int] | None = None
    all_ones: bool = False
    bits_past_end: bool = False
    data_alignment: int = SECTOR
    gap: int = 0
    footer_gap: int = 0
    table_multiple: int = SECTOR
    table_fill: int = 0xFF
    extra_entries: int = 0
    locators_first: bool = False
    locators: tuple[LocatorSpec, ...] = ()
    unique_id: bytes = bytes(range(16))
    parent_id: bytes = ZERO_ID
    parent_name: str = ""
    parent_timestamp: int = 0
    features: int = 2
    timestamp: int = 0
    creator_app: bytes = b"vkit"
    creator_version: int = VERSION
    creator_os: bytes = b"Wi2k"
    original_size: int | None = None
    chs: tuple[int, int, int] | None = None
    saved_state: int = 0
    reserved: bytes = b""
    header_reserved: bytes = b""
    trailing_footer: Literal["whole", "511", "none"] = "whole"

    @property
    def sector_count(self) -> int:
        """Sectors of the virtual disk."""
        return self.size // SECTOR

    @property
    def blocks(self) -> list[int]:
        """The allocated blocks, in file order."""
        per_block = self.block_size // SECTOR
        used = sorted({number // per_block for number in self.sectors} | self.empty_blocks)
        return used if self.order is None else list(self.order)


def build(spec: ImageSpec) -> bytes:
    """Lay out a whole file, byte for byte as the spec says (1.1)."""
    out = bytearray()
    if spec.disk_type == FIXED:
        out += b"".join(spec.sectors.get(number, ZERO_SECTOR) for number in range(spec.sector_count))
    else:
        _build_dynamic(spec, out)
    out += bytes(spec.footer_gap)
    footer = footer_bytes(spec)
    keep = {"whole": SECTOR, "511": SECTOR - 1, "none": 0}[spec.trailing_footer]
    return bytes(out + footer[:keep])


def footer_bytes(spec: ImageSpec) -> bytes:
    """Encode the footer of a spec (1.2)."""
    data_offset = ALL_ONES if spec.disk_type == FIXED else FOOTER.size
    original = spec.size if spec.original_size is None else spec.original_size
    chs = geometry(spec.sector_count) if spec.chs is None else spec.chs
    creator = (spec.creator_app, spec.creator_version, spec.creator_os)
    start = (b"conectix", spec.features, VERSION, data_offset, spec.timestamp, *creator, original, spec.size)
    raw = FOOTER.pack(*start, *chs, spec.disk_type, 0, spec.unique_id, spec.saved_state, spec.reserved)
    return seal(raw, FOOTER_CHECKSUM)


def _build_dynamic(spec: ImageSpec, out: bytearray) -> None:
    out += bytes(HEADERS_LENGTH)
    entries = -(-spec.size // spec.block_size) + spec.extra_entries
    locators = _place_locators(spec, out) if spec.locators_first else b""
    out += bytes(-len(out) % spec.table_multiple) if spec.locators_first else b""
    table_offset = len(out)
    table = b"\xff" * (4 * entries)
    padding = round_up(table_offset + len(table), spec.table_multiple) - table_offset - len(table)
    out += table + bytes([spec.table_fill]) * padding
    locators = locators if spec.locators_first else _place_locators(spec, out)
    for index in spec.blocks:
        _place_block(spec, out, index, table_offset)
    out[: FOOTER.size] = footer_bytes(spec)
    out[FOOTER.size : HEADERS_LENGTH] = _header_bytes(spec, table_offset, entries, locators)


def _header_bytes(spec: ImageSpec, table_offset: int, entries: int, locators: bytes) -> bytes:
    name = spec.parent_name.encode("utf-16-be", "surrogatepass")
    start = (b"cxsparse", ALL_ONES, table_offset, VERSION, entries, spec.block_size, 0)
    raw = HEADER.pack(*start, spec.parent_id, spec.parent_timestamp, 0, name, locators, spec.header_reserved)
    return seal(raw, HEADER_CHECKSUM)


def _place_locators(spec: ImageSpec, out: bytearray) -> bytes:
    entries = bytearray(8 * LOCATOR.size)
    for item in spec.locators:
        offset = len(out) if item.offset is None else item.offset
        space = item.room if item.space is None else item.space
        length = len(item.data) if item.length is None else item.length
        LOCATOR.pack_into(entries, item.slot * LOCATOR.size, item.code, space, length, 0, offset)
        if item.offset is None:
            out += item.data.ljust(item.room, b"\0")
    return bytes(entries)


def _place_block(spec: ImageSpec, out: bytearray, index: int, table_offset: int) -> None:
    per_block = spec.block_size // SECTOR
    numbers = range(index * per_block, (index + 1) * per_block)
    bits = [
        (spec.all_ones or number in spec.sectors) if number < spec.sector_count else spec.bits_past_end
        for number in numbers
    ]
    bitmap = np.packbits(bits, bitorder="big").tobytes().ljust(bitmap_length(spec.block_size), b"\0")
    out += bytes(spec.gap)
    out += bytes(-(len(out) + len(bitmap)) % spec.data_alignment)
    struct.pack_into(">I", out, table_offset + 4 * index, len(out) // SECTOR)
    out += bitmap
    out += b"".join(spec.sectors.get(number, ZERO_SECTOR) for number in numbers)
