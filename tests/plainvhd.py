"""A slow, obviously right reader of VHD files.

Written from docs/reference/vhd.md with struct, bytes and numpy alone. With tests/plainbuild.py (the writer),
tests/plaincheck.py (the judge) and tests/model.py (the semantics) it is the tests' oracle: none of them
may import vhdkit, nor be mended to agree with it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

SECTOR: Final = 512
PAGE: Final = 4096
FIXED: Final = 2
DYNAMIC: Final = 3
DIFFERENCING: Final = 4
UNALLOCATED: Final = 0xFFFFFFFF
ALL_ONES: Final = 0xFFFFFFFFFFFFFFFF
VERSION: Final = 0x00010000
FOOTER_CHECKSUM: Final = 64
HEADER_CHECKSUM: Final = 36
ZERO_SECTOR: Final = bytes(SECTOR)
ZERO_ID: Final = bytes(16)

FOOTER: Final = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427s")
HEADER: Final = struct.Struct(">8sQQIIII16sII512s192s256s")
LOCATOR: Final = struct.Struct(">4sIIIQ")
HEADERS_LENGTH: Final = FOOTER.size + HEADER.size
ENCODINGS: Final = {
    b"W2ru": "utf-16-le",
    b"W2ku": "utf-16-le",
    b"Wi2r": "latin-1",
    b"Wi2k": "latin-1",
    b"MacX": "utf-8",
}


class FormatError(ValueError):
    """The bytes cannot be read as a VHD at all."""


def checksum(raw: bytes, position: int) -> int:
    """Inverted sum of all bytes, those of the checksum itself taken as zero (1.8)."""
    return ~(sum(raw[:position]) + sum(raw[position + 4 :])) & 0xFFFFFFFF


def seal(raw: bytes, position: int) -> bytes:
    """Return `raw` with a right checksum at `position`."""
    return raw[:position] + struct.pack(">I", checksum(raw, position)) + raw[position + 4 :]


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple not below `value`."""
    return -(-value // multiple) * multiple


def geometry(sector_count: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track (1.10)."""
    total = min(sector_count, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        return total // 255 // 16, 16, 255
    tracks = total // 17
    heads, per_track = max((tracks + 1023) // 1024, 4), 17
    if tracks >= heads * 1024 or heads > 16:
        heads, per_track, tracks = 16, 31, total // 31
    if tracks >= heads * 1024:
        heads, per_track, tracks = 16, 63, total // 63
    return tracks // heads, heads, per_track


def bitmap_length(block_size: int) -> int:
    """Bytes a block's sector bitmap takes in the file (1.7)."""
    return round_up(-(-block_size // SECTOR // 8), SECTOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """The fields of 1.2, as stored."""

    cookie: bytes
    features: int
    version: int
    data_offset: int
    timestamp: int
    creator_app: bytes
    creator_version: int
    creator_os: bytes
    original_size: int
    current_size: int
    cylinders: int
    heads: int
    sectors_per_track: int
    disk_type: int
    checksum: int
    unique_id: bytes
    saved_state: int
    reserved: bytes
    raw: bytes
    offset: int

    @classmethod
    def decode(cls, raw: bytes, offset: int) -> Footer:
        """Take 512 bytes apart; nothing is checked."""
        names = [name for name in cls.__dataclass_fields__ if name not in {"raw", "offset"}]
        return cls(raw=raw, offset=offset, **dict(zip(names, FOOTER.unpack(raw), strict=True)))

    @property
    def checksum_ok(self) -> bool:
        """Whether the stored checksum is the computed one (1.8)."""
        return self.checksum == checksum(self.raw, FOOTER_CHECKSUM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Locator:
    """A used parent locator entry and what it points at (1.5, 2.1)."""

    slot: int
    code: bytes
    space: int
    length: int
    reserved: int
    offset: int
    data: bytes

    @property
    def space_bytes(self) -> int:
        """The reserved space in bytes: values under 512 count sectors (B1)."""
        return self.space * SECTOR if self.space < SECTOR else self.space

    @property
    def text(self) -> str | None:
        """The path, or None for a code that holds none (2.1: locators are little-endian)."""
        encoding = ENCODINGS.get(self.code)
        if encoding is None:
            return None
        errors = "surrogatepass" if encoding.startswith("utf") else "strict"
        return self.data.decode(encoding, errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The dynamic header of 1.4, as stored; `locators` has the used slots only."""

    cookie: bytes
    data_offset: int
    table_offset: int
    version: int
    max_table_entries: int
    block_size: int
    checksum: int
    parent_id: bytes
    parent_timestamp: int
    reserved: int
    parent_name_field: bytes
    locator_field: bytes
    reserved_tail: bytes
    locators: tuple[Locator, ...]
    raw: bytes

    @property
    def checksum_ok(self) -> bool:
        """Whether the stored checksum is the computed one (1.8)."""
        return self.checksum == checksum(self.raw, HEADER_CHECKSUM)

    @property
    def parent_name(self) -> str:
        """The parent's name, UTF-16BE up to the first NUL (2.2)."""
        return self.parent_name_field.decode("utf-16-be", "surrogatepass").split("\0")[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlainBlock:
    """An allocated block: a bool for each sector, and its data (1.7)."""

    index: int
    offset: int
    bitmap: npt.NDArray[np.bool_]
    data: bytes


FooterPlace = Literal["trailing", "trailing-511", "copy"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlainImage:
    """One file, taken apart. `footer_copy` is what lies at offset 0 of types 3 and 4, if it has a cookie."""

    raw: bytes
    footer: Footer
    footer_place: FooterPlace
    footer_copy: Footer | None
    header: Header | None
    bat: npt.NDArray[np.int64]

    @property
    def disk_type(self) -> int:
        """2 fixed, 3 dynamic, 4 differencing."""
        return self.footer.disk_type

    @property
    def size(self) -> int:
        """Bytes of the virtual disk: current_size, always (B15)."""
        return self.footer.current_size

    @property
    def sector_count(self) -> int:
        """Whole sectors of the virtual disk."""
        return self.size // SECTOR

    @property
    def unique_id(self) -> bytes:
        """The raw 16 bytes (1.14)."""
        return self.footer.unique_id

    @property
    def block_size(self) -> int:
        """Bytes of data in a block."""
        return self._dynamic.block_size

    @property
    def parent_id(self) -> bytes:
        """The raw unique id of the parent (2.5)."""
        return self._dynamic.parent_id

    @property
    def parent_name(self) -> str:
        """The parent unicode name (2.2)."""
        return self._dynamic.parent_name

    @property
    def locators(self) -> tuple[Locator, ...]:
        """The used locator entries, in slot order."""
        return self._dynamic.locators

    @property
    def checksums_ok(self) -> bool:
        """Whether the footer in use and the header have right checksums."""
        return self.footer.checksum_ok and (self.header is None or self.header.checksum_ok)

    @property
    def allocated(self) -> list[int]:
        """The blocks that have a BAT entry, in index order."""
        return [int(index) for index in np.flatnonzero(self.bat != UNALLOCATED)]

    @property
    def _dynamic(self) -> Header:
        if self.header is None:
            raise FormatError("a fixed disk has no dynamic header")
        return self.header

    def block(self, index: int) -> PlainBlock | None:
        """Read block `index`; None when it is not allocated (1.6)."""
        if self.bat[index] == UNALLOCATED:
            return None
        start = int(self.bat[index]) * SECTOR
        data_start = start + bitmap_length(self.block_size)
        per_block = self.block_size // SECTOR
        # A file cut inside the unused tail of the last block is readable (1.7).
        used = min(self.block_size, self.size - index * self.block_size)
        if data_start + used > len(self.raw):
            raise FormatError(f"block {index} at {start:#x} lies outside the file")
        packed = np.frombuffer(self.raw[start:data_start], dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="big")[:per_block].astype(np.bool_)
        data = self.raw[data_start : data_start + self.block_size].ljust(self.block_size, b"\0")
        return PlainBlock(index=index, offset=start, bitmap=bits, data=data)

    def sector(self, number: int) -> bytes | None:
        """Return what this file alone holds for a sector; None when it holds nothing (1.7)."""
        if self.header is None:
            return self.raw[number * SECTOR : (number + 1) * SECTOR]
        index, inner = divmod(number, self.block_size // SECTOR)
        block = self.block(index)
        if block is None or not block.bitmap[inner]:
            return None
        return block.data[inner * SECTOR : (inner + 1) * SECTOR]


def parse(source: bytes | str | Path) -> PlainImage:
    """Take a file apart: the trailing footer first, then 511 bytes, then the copy at 0 (1.3, B9)."""
    raw = source if isinstance(source, bytes) else Path(source).read_bytes()
    place, footer = _choose_footer(raw)
    if footer.disk_type not in {FIXED, DYNAMIC, DIFFERENCING}:
        raise FormatError(f"disk type {footer.disk_type}")
    if footer.disk_type == FIXED:
        nothing = np.empty(0, dtype=np.int64)
        return PlainImage(raw=raw, footer=footer, footer_place=place, footer_copy=None, header=None, bat=nothing)
    header = _header(raw, footer.data_offset)
    copy = Footer.decode(raw[:SECTOR], 0) if raw.startswith(b"conectix") else None
    bat = _bat(raw, header)
    return PlainImage(raw=raw, footer=footer, footer_place=place, footer_copy=copy, header=header, bat=bat)


def _choose_footer(raw: bytes) -> tuple[FooterPlace, Footer]:
    """Prefer any place with a right checksum to one with a cookie only (hand-edited files exist)."""
    found = [(place, footer) for place, footer in _footers(raw) if footer.cookie == b"conectix"]
    for place, footer in found:
        if footer.checksum_ok:
            return place, footer
    if not found:
        raise FormatError("no footer")
    return found[0]


def _footers(raw: bytes) -> Iterator[tuple[FooterPlace, Footer]]:
    if len(raw) >= SECTOR:
        yield "trailing", Footer.decode(raw[-SECTOR:], len(raw) - SECTOR)
    if len(raw) % SECTOR == SECTOR - 1:
        yield "trailing-511", Footer.decode(raw[1 - SECTOR :] + b"\0", len(raw) - SECTOR + 1)
    if len(raw) >= HEADERS_LENGTH:
        copy = Footer.decode(raw[:SECTOR], 0)
        leads_to_header = raw[copy.data_offset : copy.data_offset + 8] == b"cxsparse"
        if copy.disk_type in {DYNAMIC, DIFFERENCING} and leads_to_header:  # offset 0 is guest data otherwise
            yield "copy", copy


def _header(raw: bytes, offset: int) -> Header:
    part = raw[offset : offset + HEADER.size]
    if len(part) != HEADER.size or not part.startswith(b"cxsparse"):
        raise FormatError(f"no dynamic header at {offset:#x}")
    names = [name for name in Header.__dataclass_fields__ if name not in {"locators", "raw"}]
    fields = dict(zip(names, HEADER.unpack(part), strict=True))
    block_size = fields["block_size"]
    if block_size < SECTOR or block_size & (block_size - 1):
        raise FormatError(f"block size {block_size}")
    return Header(raw=part, locators=tuple(_locators(raw, fields["locator_field"])), **fields)


def _locators(raw: bytes, entries: bytes) -> Iterator[Locator]:
    for slot, (code, space, length, reserved, offset) in enumerate(LOCATOR.iter_unpack(entries)):
        if code != bytes(4):
            data = raw[offset : offset + length]
            yield Locator(slot=slot, code=code, space=space, length=length, reserved=reserved, offset=offset, data=data)


def _bat(raw: bytes, header: Header) -> npt.NDArray[np.int64]:
    table = raw[header.table_offset : header.table_offset + 4 * header.max_table_entries]
    if len(table) != 4 * header.max_table_entries:
        raise FormatError(
            f"BAT at {header.table_offset:#x} with {header.max_table_entries} entries lies outside the file"
        )
    return np.frombuffer(table, dtype=">u4").astype(np.int64)


def flat(layers: Sequence[PlainImage | bytes]) -> npt.NDArray[np.uint8]:
    """Return what a chain, leaf first, reads as: one byte after another; bytes are a raw parent.

    Painted from the base to the leaf. A layer first cuts, or extends with zeros, what is below it to its
    own size: so a short link hides what lies beyond its end (B14).
    """
    for depth, layer in enumerate(layers):
        is_last = depth == len(layers) - 1
        if (isinstance(layer, PlainImage) and layer.disk_type == DIFFERENCING) == is_last:
            raise FormatError(f"layer {depth}: a differencing disk needs a parent, and no other can have one")
    view = np.zeros((0, SECTOR), dtype=np.uint8)
    for layer in reversed(layers):
        view = _paint_raw(layer) if isinstance(layer, bytes) else _paint(view, layer)
    return view.reshape(-1)


def _paint_raw(content: bytes) -> npt.NDArray[np.uint8]:
    padded = content.ljust(round_up(len(content), SECTOR), b"\0")
    return np.frombuffer(padded, dtype=np.uint8).reshape(-1, SECTOR)


def _paint(below: npt.NDArray[np.uint8], image: PlainImage) -> npt.NDArray[np.uint8]:
    if image.header is None:
        if image.size > len(image.raw) - SECTOR + 1:
            raise FormatError("a fixed disk larger than its file")
        return _paint_raw(image.raw[: image.size])
    view = np.zeros((image.sector_count, SECTOR), dtype=np.uint8)
    shared = min(len(view), len(below))
    view[:shared] = below[:shared]
    per_block = image.block_size // SECTOR
    for index in image.allocated:
        block, first = image.block(index), index * per_block
        if block is None or first >= len(view):
            continue
        window = view[first : first + per_block]  # shorter than a block at the disk's end: bits past it are ignored
        held = block.bitmap[: len(window)]
        window[held] = np.frombuffer(block.data, dtype=np.uint8).reshape(-1, SECTOR)[: len(window)][held]
    return view
