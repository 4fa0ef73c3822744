"""`check` holds a VHDX against every row of section 5 of the VHDX reference: a file, or a chain, for each."""

from __future__ import annotations

import inspect
import re
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import pytest

import vhdkit
from tests import plainvhdx
from tests.keeping import keep
from tests.plainvhdx import (
    BAT_AT,
    FULL,
    LOG_AT,
    METADATA_AT,
    METADATA_REGION,
    PAGE,
    PARTIAL,
    UNMAPPED,
    ZERO,
    Disk,
    guid,
    linked,
    log_entry,
    sealed,
)
from vhdkit.chain import chain as chains
from vhdkit.chain.check import CheckReport, check
from vhdkit.corruption import Corruption
from vhdkit.errors import ReadOnlyImageError
from vhdkit.findings import Level
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhdx.constants import MAX_FILE_SIZE
from vhdkit.vhdx.corruption import VhdxCorruption

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.running import Outcome

C: Final = VhdxCorruption
ERROR, WARNING, INFO = Level.ERROR, Level.WARNING, Level.INFO
MIB: Final = 1 << 20
HEADERS: Final = (64 << 10, 128 << 10)
TABLES: Final = (192 << 10, 256 << 10)
ITEMS_AT: Final = METADATA_AT + (64 << 10)
A, B, LOG = b"a" * 16, b"b" * 16, b"L" * 16
UNKNOWN: Final = "01234567-89ab-cdef-0123-456789abcdef"
CHS: Final = "DA02D7BC-3D3A-423C-AC88-2A36AB21479B"
INCOMPLETE: Final = "71CC85F0-1B69-4E28-9558-C3BF83AE75D3"
# Blocks 1 and 3 at 4 and 5 MiB; of the child the bitmap block at 4 MiB, and block 0 at 5 MiB.
BASE: Final = Disk(size=4 * MIB, data_id=A, blocks={1: (FULL, b"\x77" * MIB), 3: (FULL, b"\x55" * MIB)})
LINK: Final = linked(A, relative="base.vhdx")
CHILD: Final = Disk(size=4 * MIB, data_id=B, texts=LINK, blocks={0: (PARTIAL, {9: b"\x99" * 512})})
PLAIN: Final = plainvhdx.write(BASE)
PLAIN_CHILD: Final = plainvhdx.write(CHILD)
BITMAP_ENTRY: Final = 4096  # of the child's BAT


def put(raw: bytes, at: int, data: bytes) -> bytes:
    return raw[:at] + data + raw[at + len(data) :]


def with_header(raw: bytes, *fields: tuple[int, bytes]) -> bytes:
    """The file with fields of both headers changed, their checksums right again."""
    for place in HEADERS:
        one = raw[place : place + PAGE]
        for at, data in fields:
            one = put(one, at, data)
        raw = put(raw, place, sealed(one))
    return raw


def with_regions(*regions: tuple[str, int, int, int], reserved: int = 0) -> bytes:
    table = plainvhdx.region_table(list(regions))
    table = sealed(put(table, 12, struct.pack("<I", reserved)))
    return put(put(PLAIN, TABLES[0], table), TABLES[1], table)


def entry(raw: bytes, index: int, value: int) -> bytes:
    return put(raw, BAT_AT + 8 * index, struct.pack("<Q", value))


def item(number: int, offset: int, data: bytes, raw: bytes = PLAIN) -> bytes:
    """The file with a field of an entry of the metadata table changed."""
    return put(raw, METADATA_AT + 32 + 32 * number + offset, data)


def added(raw: bytes, *items: tuple[str, int, int, int]) -> bytes:
    """The file with more entries in its metadata table: id, offset, length, flags."""
    count = int.from_bytes(raw[METADATA_AT + 10 : METADATA_AT + 12], "little")
    entries = (guid(name) + struct.pack("<IIII", offset, length, flags, 0) for name, offset, length, flags in items)
    raw = item(count, 0, b"".join(entries), raw)
    return put(raw, METADATA_AT + 10, struct.pack("<H", count + len(items)))


def with_log(*changes: tuple[int, bytes | int], flushed: int = 0, last: int = 0, torn: bool = False) -> bytes:
    log = log_entry(LOG, 7, 0, list(changes), flushed=flushed, last=last)
    return plainvhdx.write(replace(BASE, log_guid=LOG, log=log[:-1] + b"\xff" if torn else log))


def with_texts(texts: dict[str, str]) -> bytes:
    return plainvhdx.write(replace(CHILD, texts=texts))


def with_locator(offset: int, data: bytes) -> bytes:
    """The child with bytes of its locator changed."""
    return put(PLAIN_CHILD, ITEMS_AT + 40 + offset, data)


BAT: Final = (plainvhdx.BAT_REGION, BAT_AT, MIB, 1)
METADATA: Final = (METADATA_REGION, METADATA_AT, MIB, 1)
TABLE: Final = PLAIN[BAT_AT : BAT_AT + PAGE]
USER_ITEMS: Final = tuple((f"01234567-89ab-cdef-0123-{number:012x}", 0, 0, 1) for number in range(1025))
BITS: Final = 4 * MIB  # where the child's bitmap block lies
SHORT_DISK: Final = plainvhdx.write(replace(BASE, size=3 * MIB + 4096))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file, or a chain, that breaks a row, and where that is reported (`path` names the file)."""

    row: int
    level: Level
    leaf: bytes
    offset: int | None = None
    path: str = "/vms/leaf.avhdx"
    beside: dict[str, bytes] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def chained(row: int, level: Level, leaf: bytes = PLAIN_CHILD, base: bytes = PLAIN, **more: Any) -> Case:
    beside = {"/vms/base.vhdx": base} | more.pop("beside", {})
    options = {"chain": True} | more.pop("options", {})
    return Case(row=row, level=level, leaf=leaf, beside=beside, options=options, **more)


def vhd() -> bytes:
    folder = MemoryFolder()
    vhdkit.create_image("/b.vhd", size=4 * MIB, unique_id=A, folder=folder)
    return bytes(folder["/b.vhd"].content)


DIRTY_BASE: Final = with_log((BAT_AT, TABLE))
CASES: Final[dict[VhdxCorruption, Case | tuple[Case, ...]]] = {
    C.IMAGE_CUT: Case(row=1, level=ERROR, leaf=PLAIN[:700_000]),
    C.FILE_SIGNATURE: Case(row=2, level=ERROR, offset=0, leaf=put(PLAIN, 0, b"x")),
    C.RESERVED_BYTES: (
        Case(row=3, level=INFO, offset=1000, leaf=put(PLAIN, 1000, b"\1")),
        Case(row=3, level=INFO, offset=HEADERS[0] + 90, leaf=with_header(PLAIN, (90, b"\1"))),
        Case(row=3, level=INFO, offset=MIB - 1, leaf=put(PLAIN, MIB - 1, b"\1")),
    ),
    C.HEADERS_LOST: Case(row=4, level=ERROR, offset=HEADERS[0] + 4, leaf=put(put(PLAIN, 65632, b"x"), 131168, b"x")),
    C.HEADER_DAMAGED: Case(row=5, level=WARNING, offset=HEADERS[1] + 4, leaf=put(PLAIN, HEADERS[1] + 100, b"x")),
    C.HEADERS_ALIKE: Case(row=6, level=WARNING, offset=HEADERS[0], leaf=put(PLAIN, HEADERS[1], PLAIN[65536:69632])),
    C.HEADERS_DIFFER: Case(
        row=7,
        level=ERROR,
        offset=HEADERS[0],
        leaf=put(PLAIN, HEADERS[1], plainvhdx.header(replace(BASE, data_id=B), 7)),
    ),
    C.HEADERS_APART: (
        Case(row=8, level=INFO, offset=HEADERS[0], leaf=put(PLAIN, HEADERS[1], plainvhdx.header(BASE, 9))),
        Case(
            row=8,
            level=INFO,
            offset=HEADERS[0],
            leaf=put(PLAIN, HEADERS[1], plainvhdx.header(replace(BASE, data_id=B), 8)),
        ),
    ),
    C.FORMAT_VERSION: Case(row=9, level=ERROR, leaf=with_header(PLAIN, (66, b"\2"))),
    C.LOG_VERSION: Case(row=10, level=ERROR, leaf=with_header(DIRTY_BASE, (64, b"\1"))),
    C.LOG_PLACE: (
        Case(row=11, level=ERROR, leaf=with_header(PLAIN, (72, struct.pack("<Q", MIB + PAGE)))),
        Case(row=11, level=ERROR, leaf=with_header(DIRTY_BASE, (68, struct.pack("<I", PAGE)))),
        Case(row=12, level=ERROR, leaf=with_header(PLAIN, (72, bytes(8)))),
        Case(row=12, level=ERROR, leaf=with_header(PLAIN, (72, struct.pack("<Q", 1 << 60)))),
        Case(row=12, level=ERROR, leaf=with_header(PLAIN, (68, struct.pack("<I", 2 << 30)))),
    ),
    C.LOG_LENGTH_NULL: Case(row=13, level=ERROR, leaf=with_header(DIRTY_BASE, (68, bytes(4)))),
    C.LOG_TO_REPLAY: Case(row=14, level=WARNING, offset=LOG_AT, leaf=DIRTY_BASE),
    C.LOG_WITHOUT_ENTRIES: Case(row=15, level=ERROR, offset=LOG_AT, leaf=with_header(PLAIN, (48, LOG))),
    C.LOG_DAMAGED: Case(row=15, level=ERROR, offset=LOG_AT, leaf=with_log((BAT_AT, TABLE), torn=True)),
    C.LOG_FILE_CUT: Case(row=16, level=ERROR, offset=LOG_AT, leaf=with_log((BAT_AT, TABLE), flushed=7 * MIB)),
    C.LOG_TARGET: (
        Case(row=17, level=ERROR, offset=LOG_AT, leaf=with_log((HEADERS[0], bytes(PAGE)))),
        Case(row=17, level=ERROR, offset=LOG_AT, leaf=with_log((LOG_AT, bytes(PAGE)))),
    ),
    C.LOG_TARGET_FAR: (
        Case(row=18, level=ERROR, offset=LOG_AT, leaf=with_log((1 << 62, bytes(PAGE)))),
        Case(row=18, level=ERROR, offset=LOG_AT, leaf=with_log((BAT_AT, TABLE), last=MAX_FILE_SIZE + MIB)),
    ),
    C.LOG_COSTLY: Case(
        row=18,
        level=ERROR,
        offset=LOG_AT,
        leaf=put(
            with_header(PLAIN, (48, LOG)),
            LOG_AT,
            log_entry(LOG, 3, 0, [(BAT_AT, TABLE)] * 126)[:PAGE] * (MIB // PAGE),
        ),
    ),
    C.LOG_EXTENDS: Case(row=19, level=INFO, offset=6 * MIB, leaf=with_log((BAT_AT, TABLE), last=7 * MIB)),
    C.REGION_TABLES_LOST: Case(
        row=20, level=ERROR, offset=TABLES[0] + 4, leaf=put(put(PLAIN, TABLES[0] + 500, b"x"), TABLES[1] + 500, b"x")
    ),
    C.REGION_TABLES_DIFFER: (
        Case(row=21, level=WARNING, offset=TABLES[0] + 4, leaf=put(PLAIN, TABLES[0] + 500, b"x")),
        Case(
            row=21,
            level=WARNING,
            offset=TABLES[1],
            leaf=put(PLAIN, TABLES[1], plainvhdx.region_table([METADATA, BAT])),
        ),
    ),
    C.REGION_TABLE: (
        Case(row=22, level=ERROR, offset=TABLES[0] + 12, leaf=with_regions(BAT, METADATA, reserved=1)),
        Case(
            row=22,
            level=ERROR,
            offset=TABLES[0] + 8,
            leaf=put(
                put(PLAIN, TABLES[0], (many := sealed(put(PLAIN[TABLES[0] : TABLES[1]], 8, b"\xff\xff")))),
                TABLES[1],
                many,
            ),
        ),
    ),
    C.REGION_DUPLICATE: Case(row=23, level=ERROR, offset=TABLES[0], leaf=with_regions(BAT, METADATA, BAT)),
    C.REGION_PLACE: (
        Case(row=24, level=ERROR, offset=TABLES[0], leaf=with_regions(BAT, METADATA, (UNKNOWN, 1 << 62, MIB, 0))),
        Case(row=24, level=ERROR, offset=TABLES[0], leaf=with_regions((BAT[0], BAT_AT, 4096, 1), METADATA)),
        Case(row=24, level=ERROR, offset=TABLES[0], leaf=with_regions(BAT, METADATA, (UNKNOWN, 0, MIB, 0))),
        Case(row=24, level=ERROR, offset=TABLES[0], leaf=with_regions(BAT, METADATA, (UNKNOWN, 4 * MIB, 0, 0))),
    ),
    C.REGIONS_OVERLAP: (
        Case(row=25, level=ERROR, offset=METADATA_AT, leaf=with_regions((BAT[0], METADATA_AT, MIB, 1), METADATA)),
        Case(row=25, level=ERROR, offset=LOG_AT, leaf=with_regions((BAT[0], LOG_AT, MIB, 1), METADATA)),
    ),
    C.REGION_MISSING: (
        Case(row=26, level=ERROR, offset=TABLES[0], leaf=with_regions(METADATA)),
        Case(row=26, level=ERROR, offset=TABLES[0], leaf=with_regions(BAT)),
    ),
    C.REGION_REQUIRED: Case(
        row=27, level=ERROR, offset=TABLES[0], leaf=with_regions(BAT, METADATA, (UNKNOWN, 6 * MIB, MIB, 1)) + bytes(MIB)
    ),
    C.REGION_UNKNOWN: Case(
        row=28,
        level=INFO,
        offset=TABLES[0] + 80,
        leaf=with_regions(BAT, METADATA, (UNKNOWN, 6 * MIB, MIB, 0)) + bytes(MIB),
    ),
    C.REGION_OPTIONAL: Case(row=29, level=INFO, offset=TABLES[0] + 44, leaf=with_regions((*BAT[:3], 0), METADATA)),
    C.REGION_FLAGS: Case(row=30, level=WARNING, offset=TABLES[0] + 76, leaf=with_regions(BAT, (*METADATA[:3], 3))),
    C.METADATA_TABLE: (
        Case(row=31, level=ERROR, offset=METADATA_AT, leaf=put(PLAIN, METADATA_AT, b"M")),
        Case(row=31, level=ERROR, offset=METADATA_AT + 10, leaf=put(PLAIN, METADATA_AT + 10, b"\xff\xff")),
        Case(row=31, level=ERROR, offset=METADATA_AT + 8, leaf=put(PLAIN, METADATA_AT + 9, b"\1")),
        Case(row=31, level=ERROR, offset=METADATA_AT + 8, leaf=put(PLAIN, METADATA_AT + 31, b"\1")),
    ),
    C.ITEM_DUPLICATE: Case(
        row=32, level=ERROR, offset=METADATA_AT, leaf=added(PLAIN, (UNKNOWN, 0, 0, 0), (UNKNOWN, 0, 0, 0))
    ),
    C.ITEM_PLACE: (
        Case(row=33, level=ERROR, offset=METADATA_AT, leaf=added(PLAIN, (UNKNOWN, MIB - 8, 16, 0))),
        Case(row=33, level=ERROR, offset=METADATA_AT, leaf=added(PLAIN, (UNKNOWN, 32, 16, 0))),
        Case(row=33, level=ERROR, offset=ITEMS_AT + 20, leaf=added(PLAIN, (UNKNOWN, (64 << 10) + 20, 16, 0))),
    ),
    C.ITEM_EMPTY: Case(
        row=34, level=WARNING, offset=METADATA_AT + 32 + 160 + 16, leaf=added(PLAIN, (UNKNOWN, 1 << 17, 0, 0))
    ),
    C.USER_ITEMS: (
        Case(row=35, level=WARNING, offset=METADATA_AT, leaf=added(PLAIN, *USER_ITEMS)),
        Case(row=35, level=WARNING, offset=METADATA_AT + 32 + 160 + 24, leaf=added(PLAIN, (UNKNOWN, 0, 0, 5))),
    ),
    C.ITEM_REQUIRED: (
        Case(row=36, level=ERROR, offset=METADATA_AT, leaf=added(PLAIN, (UNKNOWN, 0, 0, 4))),
        Case(row=36, level=ERROR, offset=METADATA_AT, leaf=added(PLAIN, (UNKNOWN, 0, 0, 5))),
    ),
    C.FILE_INCOMPLETE: Case(row=37, level=ERROR, offset=METADATA_AT, leaf=added(PLAIN, (INCOMPLETE, 0, 0, 4))),
    C.ITEM_FLAGS: (
        Case(row=38, level=WARNING, offset=METADATA_AT + 32 + 96 + 24, leaf=item(3, 24, b"\2")),
        Case(row=38, level=WARNING, offset=METADATA_AT + 32 + 160 + 24, leaf=added(PLAIN, (UNKNOWN, 0, 0, 8))),
    ),
    C.METADATA_MISSING: tuple(
        Case(row=39, level=ERROR, offset=METADATA_AT, leaf=item(number, 24, b"\0", item(number, 0, guid(UNKNOWN))))
        for number in range(3)
    ),
    C.ITEM_LENGTH: Case(row=39, level=ERROR, offset=METADATA_AT, leaf=item(1, 20, b"\4")),
    C.PHYSICAL_SIZE_MISSING: Case(row=40, level=WARNING, leaf=item(3, 24, b"\0", item(3, 0, guid(UNKNOWN)))),
    C.DISK_ID_MISSING: Case(row=40, level=WARNING, leaf=item(4, 24, b"\0", item(4, 0, guid(UNKNOWN)))),
    C.BLOCK_SIZE: tuple(
        Case(row=41, level=ERROR, offset=METADATA_AT, leaf=put(PLAIN, ITEMS_AT, struct.pack("<I", size)))
        for size in (0, MIB // 2, 3 * MIB, 512 * MIB)
    ),
    C.PARAMETER_FLAGS: Case(row=41, level=ERROR, offset=METADATA_AT, leaf=put(PLAIN, ITEMS_AT + 4, b"\4")),
    C.SECTOR_SIZE: (
        Case(row=42, level=ERROR, offset=METADATA_AT, leaf=put(PLAIN, ITEMS_AT + 16, struct.pack("<I", 1024))),
        Case(row=42, level=ERROR, offset=METADATA_AT, leaf=put(PLAIN, ITEMS_AT + 20, struct.pack("<I", 1024))),
    ),
    C.DISK_SIZE: (
        Case(row=43, level=ERROR, offset=METADATA_AT, leaf=put(PLAIN, ITEMS_AT + 8, bytes(8))),
        Case(
            row=43, level=ERROR, offset=METADATA_AT, leaf=put(PLAIN, ITEMS_AT + 8, struct.pack("<Q", (64 << 40) + 512))
        ),
        Case(row=43, level=ERROR, leaf=put(PLAIN, ITEMS_AT + 8, struct.pack("<Q", 1000))),
    ),
    C.LOCATOR_MISSING: Case(row=44, level=ERROR, offset=METADATA_AT, leaf=put(PLAIN, ITEMS_AT + 4, b"\2")),
    C.LOCATOR_UNUSED: Case(
        row=44, level=WARNING, leaf=entry(entry(put(PLAIN_CHILD, ITEMS_AT + 4, b"\0"), 0, 0), BITMAP_ENTRY, 0)
    ),
    C.LOCATOR_TYPE: Case(row=45, level=ERROR, offset=ITEMS_AT + 40, leaf=with_locator(0, b"x")),
    C.LOCATOR_TABLE: (
        Case(row=46, level=ERROR, offset=ITEMS_AT + 40, leaf=with_locator(18, b"\xff\xff")),
        Case(row=46, level=ERROR, offset=ITEMS_AT + 40 + 9999, leaf=with_locator(20, struct.pack("<I", 9999))),
        Case(row=46, level=ERROR, offset=ITEMS_AT + 40 + 44, leaf=with_locator(28, struct.pack("<H", 0))),
        Case(row=46, level=ERROR, offset=ITEMS_AT + 40 + 44, leaf=with_locator(28, struct.pack("<H", 27))),
        Case(
            row=46,
            level=ERROR,
            offset=ITEMS_AT + 40,
            leaf=with_locator(32, with_locator(20, b"")[ITEMS_AT + 60 :][:12]),
        ),
        Case(row=46, level=ERROR, offset=ITEMS_AT + 40 + 44, leaf=with_locator(44 + 2, bytes(2))),
    ),
    C.LOCATOR_LINKAGE: (
        Case(row=47, level=ERROR, offset=ITEMS_AT + 40, leaf=with_texts({"relative_path": "base.vhdx"})),
        Case(row=47, level=ERROR, offset=ITEMS_AT + 40, leaf=with_texts(LINK | {"parent_linkage": "no GUID"})),
        Case(row=47, level=ERROR, offset=ITEMS_AT + 40, leaf=with_texts(linked(bytes(16), relative="base.vhdx"))),
    ),
    C.LOCATOR_SECOND_LINKAGE: Case(
        row=48, level=WARNING, offset=ITEMS_AT + 40, leaf=with_texts(linked(A, relative="base.vhdx", other=B))
    ),
    C.LOCATOR_PATHS: Case(row=49, level=WARNING, leaf=with_texts(linked(A))),
    C.LOCATOR_PREFIX: Case(row=50, level=INFO, leaf=with_texts(linked(A, absolute="C:\\VMs\\base.vhdx"))),
    C.LOCATOR_KEY: Case(row=51, level=INFO, leaf=with_texts(LINK | {"note": "x"})),
    C.BAT_TOO_SHORT: Case(
        row=52, level=ERROR, offset=BAT_AT, leaf=put(PLAIN, ITEMS_AT + 8, struct.pack("<Q", 1 << 40))
    ),
    C.BAT_RESERVED: (
        Case(row=53, level=ERROR, offset=BAT_AT + 8, leaf=entry(PLAIN, 1, 4 * MIB | FULL | 8)),
        Case(row=53, level=ERROR, offset=BAT_AT, leaf=entry(PLAIN, 0, 1 << 19)),
        Case(
            row=53,
            level=ERROR,
            offset=BAT_AT + 8 * BITMAP_ENTRY,
            leaf=entry(PLAIN_CHILD, BITMAP_ENTRY, 4 * MIB | FULL | 16),
        ),
    ),
    C.BLOCK_STATE: (
        Case(row=54, level=ERROR, offset=BAT_AT, leaf=entry(PLAIN, 0, 4)),
        Case(row=54, level=ERROR, offset=BAT_AT + 16, leaf=entry(PLAIN, 2, 5)),
    ),
    C.BLOCK_OUTSIDE_FILE: (
        Case(row=55, level=ERROR, offset=BAT_AT, leaf=entry(PLAIN, 0, FULL)),
        Case(row=55, level=ERROR, offset=BAT_AT, leaf=entry(PLAIN, 0, 6 * MIB | FULL)),
        Case(row=55, level=ERROR, offset=BAT_AT, leaf=entry(PLAIN, 0, (1 << 64) - MIB | FULL)),
        Case(
            row=55, level=ERROR, offset=BAT_AT + 8 * BITMAP_ENTRY, leaf=entry(PLAIN_CHILD, BITMAP_ENTRY, 6 * MIB | FULL)
        ),
    ),
    C.BLOCK_TAIL_CUT: Case(row=56, level=WARNING, offset=BAT_AT + 24, leaf=SHORT_DISK[: -MIB // 2]),
    C.PARTIAL_WITHOUT_PARENT: Case(row=57, level=ERROR, offset=BAT_AT + 8, leaf=entry(PLAIN, 1, 4 * MIB | PARTIAL)),
    C.BITMAP_MISSING: Case(
        row=58, level=ERROR, offset=BAT_AT + 8 * BITMAP_ENTRY, leaf=entry(PLAIN_CHILD, BITMAP_ENTRY, 0)
    ),
    C.BITMAP_STATE: (
        Case(row=59, level=ERROR, offset=BAT_AT + 8 * BITMAP_ENTRY, leaf=entry(PLAIN_CHILD, BITMAP_ENTRY, BITS | 7)),
        Case(
            row=59,
            level=ERROR,
            offset=BAT_AT + 8 * BITMAP_ENTRY,
            leaf=entry(plainvhdx.write(Disk(size=4097 * MIB)), BITMAP_ENTRY, 3),
        ),
    ),
    C.BITMAP_WITHOUT_PARENT: Case(
        row=60,
        level=WARNING,
        offset=BAT_AT + 8 * BITMAP_ENTRY,
        leaf=entry(plainvhdx.write(Disk(size=4097 * MIB)) + bytes(MIB), BITMAP_ENTRY, 4 * MIB | FULL),
    ),
    C.BLOCKS_OVERLAP: (
        Case(row=61, level=ERROR, offset=BAT_AT + 8, leaf=entry(PLAIN, 0, 4 * MIB | FULL)),
        Case(row=61, level=ERROR, offset=BAT_AT, leaf=entry(PLAIN, 0, 3 * MIB | FULL)),
        Case(row=61, level=ERROR, offset=BAT_AT + 8 * BITMAP_ENTRY, leaf=entry(PLAIN_CHILD, 1, BITS | FULL)),
    ),
    C.ABSENT_WITH_OFFSET: (
        Case(row=62, level=WARNING, offset=BAT_AT, leaf=entry(PLAIN, 0, 4 * MIB)),
        Case(row=62, level=WARNING, offset=BAT_AT, leaf=entry(PLAIN, 0, 4 * MIB | ZERO)),
    ),
    C.KEPT_PLACE: (
        Case(row=63, level=WARNING, offset=BAT_AT, leaf=entry(PLAIN, 0, 4 * MIB | UNMAPPED)),
        Case(row=63, level=WARNING, offset=BAT_AT, leaf=entry(PLAIN, 0, 9 * MIB | UNMAPPED)),
    ),
    C.BAT_BEHIND: (
        Case(row=64, level=WARNING, offset=BAT_AT + 33, leaf=entry(PLAIN, 4, ZERO << 8)),
        Case(row=64, level=WARNING, offset=BAT_AT + 40, leaf=entry(PLAIN_CHILD, 5, ZERO)),
    ),
    C.BLOCK_BEYOND_DISK: Case(
        row=65, level=ERROR, offset=BAT_AT + 40, leaf=entry(PLAIN_CHILD + bytes(MIB), 5, 6 * MIB | FULL)
    ),
    C.BITMAP_FULL: Case(
        row=66, level=INFO, offset=BAT_AT, leaf=put(PLAIN_CHILD, BITS, b"\xff" * 256), options={"deep": True}
    ),
    C.BITMAP_EMPTY: Case(
        row=67, level=INFO, offset=BAT_AT, leaf=put(PLAIN_CHILD, BITS, bytes(256)), options={"deep": True}
    ),
    C.LEAKED_SPACE: Case(row=68, level=INFO, offset=6 * MIB, leaf=PLAIN + bytes(2 * MIB)),
    C.FILE_LENGTH: Case(row=69, level=INFO, offset=6 * MIB, leaf=PLAIN + bytes(512)),
    C.FIXED_WITHOUT_BLOCKS: Case(row=70, level=INFO, offset=BAT_AT, leaf=plainvhdx.write(replace(BASE, is_fixed=True))),
    C.PARENT_ID_DIFFERS: chained(71, ERROR, base=plainvhdx.write(replace(BASE, data_id=b"c" * 16))),
    C.PARENT_NOT_FOUND: Case(row=71, level=ERROR, leaf=PLAIN_CHILD, options={"chain": True}),
    C.PARENT_REFUSED: Case(
        row=71, level=ERROR, leaf=with_texts(linked(A, relative="..\\a\\b.vhdx")), options={"chain": True}
    ),
    C.PARENT_FOUND_ELSEWHERE: Case(
        row=71, level=WARNING, leaf=PLAIN_CHILD, beside={"/vms/moved.vhdx": PLAIN}, options={"chain": True}
    ),
    C.PARENT_ID_IS_OWN: chained(71, WARNING, leaf=plainvhdx.write(replace(CHILD, data_id=A))),
    C.ID_SHARED: chained(71, WARNING, path="/vms/base.vhdx", beside={"/vms/copy.vhdx": PLAIN}),
    C.SIBLINGS: chained(
        71, INFO, path="/vms/base.vhdx", beside={"/vms/other.avhdx": plainvhdx.write(replace(CHILD, data_id=b"o" * 16))}
    ),
    C.PARENT_SECTORS: chained(72, ERROR, base=plainvhdx.write(replace(BASE, sector=4096))),
    C.PARENT_FORMAT: chained(72, ERROR, base=vhd()),
    C.PARENT_SIZE: chained(73, WARNING, leaf=plainvhdx.write(replace(CHILD, size=5 * MIB))),
    C.DISK_ID_DIFFERS: chained(74, INFO, base=put(PLAIN, ITEMS_AT + 24, b"another identity")),
    C.PARENT_LOG: chained(75, WARNING, base=DIRTY_BASE),
    C.CHAIN_LOOP: chained(
        76,
        ERROR,
        path="/vms/base.vhdx",
        base=plainvhdx.write(replace(CHILD, data_id=A, texts=linked(B, relative="leaf.avhdx"))),
    ),
    C.CHAIN_TOO_LONG: chained(76, ERROR),
    C.UNIQUE_ID_NULL: Case(row=77, level=WARNING, leaf=with_header(PLAIN, (32, bytes(16)))),
    C.CHANGE_TRACKING: Case(row=78, level=WARNING, leaf=PLAIN, beside={"/vms/leaf.avhdx.rct": b""}),
    C.BITMAP_IDLE: Case(
        row=79, level=INFO, offset=BAT_AT + 8 * BITMAP_ENTRY, leaf=entry(PLAIN_CHILD, 0, 5 * MIB | FULL)
    ),
    C.BITS_BEYOND_END: Case(row=80, level=INFO, offset=BITS + 1024, leaf=put(PLAIN_CHILD, BITS + 1024, b"\xff" * 3072)),
    C.IN_USE: Case(row=0, level=WARNING, leaf=PLAIN),
}
EVERY: Final = [
    (rule, case) for rule, cases in CASES.items() for case in (cases if isinstance(cases, tuple) else [cases])
]
NO_FAULTS: Final = {
    C.IMAGE_CUT,
    C.REGION_REQUIRED,
    C.ITEM_REQUIRED,
    C.LOCATOR_TYPE,
    C.PARENT_NOT_FOUND,
    C.PARENT_REFUSED,
}


def folder_of(case: Case) -> MemoryFolder:
    return MemoryFolder({"/vms/leaf.avhdx": case.leaf, **case.beside})


def checked(raw: bytes, **options: Any) -> CheckReport:
    return check("/vms/leaf.avhdx", folder=MemoryFolder({"/vms/leaf.avhdx": raw}), **options)


def kinds(report: CheckReport) -> set[str]:
    return {finding.corruption for finding in report.findings}


def test_every_rule_and_every_row_has_a_file() -> None:
    assert set(CASES) == set(VhdxCorruption)
    assert {case.row for _, case in EVERY} == {*range(81)}


def test_every_row_of_the_reference_has_a_member() -> None:
    lines = inspect.getsource(VhdxCorruption).splitlines()
    said = {
        line.partition(" = ")[0].strip(): {int(row) for row in re.findall(r"\d+", line.partition("#")[2])}
        for line in lines
    }
    assert set.union(*said.values()) == {*range(1, 81)}
    assert all(case.row in said[rule.name] or not case.row for rule, case in EVERY)


@pytest.mark.parametrize(("rule", "case"), EVERY, ids=[f"{case.row}-{rule}" for rule, case in EVERY])
def test_each_rule_that_is_broken_is_told(rule: VhdxCorruption, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(case)
    before = {path: bytes(folder[path].content) for path in ("/vms/leaf.avhdx", *case.beside)}
    if rule is C.CHAIN_TOO_LONG:
        monkeypatch.setattr(chains, "MAX_LAYERS", 1)
    if rule is C.IN_USE:
        keep(folder.open("/vms/leaf.avhdx")).lock(exclusive=True)
    report = check("/vms/leaf.avhdx", folder=folder, **case.options)
    found = [(item.level, item.path, item.offset) for item in report.findings if item.corruption is rule]
    wanted = (case.level, case.path, case.offset)
    assert wanted in found, [str(item) for item in report.findings]
    assert all(isinstance(item.corruption, VhdxCorruption) for item in report.findings)
    errors = {item.corruption for item in report.findings if item.level is ERROR}
    expected = 2 if errors - NO_FAULTS else 1 if errors else 3 if report.leaked_bytes else 0
    assert report.exit_code == expected
    assert (case.level is ERROR) <= (report.exit_code == (1 if rule in NO_FAULTS else 2))
    assert {path: bytes(folder[path].content) for path in before} == before


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("block_size", [MIB, 2 * MIB, 32 * MIB])
def test_of_a_good_chain_nothing_is_said(sector: int, block_size: int) -> None:
    base, child = (replace(disk, sector=sector, block_size=block_size) for disk in (BASE, CHILD))
    base = replace(base, blocks={0: (FULL, b"\x77" * 4096)})
    child = replace(child, blocks={0: (PARTIAL, {3: b"\x99" * sector})})
    folder = MemoryFolder({"/vms/leaf.avhdx": plainvhdx.write(child), "/vms/base.vhdx": plainvhdx.write(base)})
    report = check("/vms/leaf.avhdx", folder=folder, chain=True, deep=True)
    assert [str(item) for item in report.findings] == []
    assert report.paths == ("/vms/leaf.avhdx", "/vms/base.vhdx")
    assert report.file_format == "VHDX"


def test_one_error_does_not_hide_another() -> None:
    raw = entry(entry(entry(with_regions(BAT, METADATA, BAT, reserved=1), 0, 5), 1, 9 * MIB | FULL), 2, 5 * MIB | FULL)
    raw = put(put(raw, 0, b"x"), ITEMS_AT + 4, b"\4")
    assert kinds(checked(raw)) >= {
        C.FILE_SIGNATURE,
        C.REGION_TABLE,
        C.REGION_DUPLICATE,
        C.PARAMETER_FLAGS,
        C.BLOCK_STATE,
        C.BLOCK_OUTSIDE_FILE,
        C.BLOCKS_OVERLAP,
    }


def test_a_file_is_judged_as_its_log_leaves_it() -> None:
    # The table in the file is wrong, and that in the log is right; then the other way round.
    wrong = put(TABLE, 0, struct.pack("<Q", 5))
    mended = put(with_log((BAT_AT, TABLE)), BAT_AT, wrong)
    assert kinds(checked(mended)) == {C.LOG_TO_REPLAY}
    assert kinds(checked(with_log((BAT_AT, wrong)))) == {C.LOG_TO_REPLAY, C.BLOCK_STATE}
    assert checked(mended).exit_code == 0
    assert checked(with_log((BAT_AT, wrong))).exit_code == 2


def test_behind_a_damaged_log_nothing_is_judged_and_behind_one_that_was_not_begun_all_is() -> None:
    wrong = put(TABLE, 0, struct.pack("<Q", 5))
    torn = put(with_log((BAT_AT, TABLE), torn=True), BAT_AT, wrong)
    assert kinds(checked(torn)) == {C.LOG_DAMAGED}
    begun = put(with_header(PLAIN, (48, LOG)), BAT_AT, wrong)
    assert kinds(checked(begun)) == {C.LOG_WITHOUT_ENTRIES, C.BLOCK_STATE}


def test_a_rule_broken_everywhere_is_told_a_few_times_and_counted() -> None:
    raw = put(plainvhdx.write(Disk(size=3000 * MIB)), BAT_AT, struct.pack("<Q", 5) * 3000)
    report = checked(raw)
    assert len(report.findings) == 10
    assert report.counts == {(C.BLOCK_STATE, ERROR): 3000}


def test_lost_space_is_told_in_bytes() -> None:
    report = checked(PLAIN + bytes(2 * MIB))
    assert (report.exit_code, report.leaks, report.leaked_bytes) == (3, 1, 2 * MIB)
    # qemu leaves 4 MiB before the first block; of a fixed disk that lacks blocks their room is no loss.
    lifted = entry(entry(put(PLAIN + bytes(4 * MIB), 8 * MIB, PLAIN[4 * MIB :]), 1, 8 * MIB | FULL), 3, 9 * MIB | FULL)
    assert checked(lifted).leaked_bytes == 0
    assert checked(plainvhdx.write(replace(BASE, is_fixed=True)) + bytes(2 * MIB)).leaked_bytes == 0


def test_a_kept_place_is_no_lost_space() -> None:
    report = checked(entry(PLAIN + bytes(MIB), 0, 6 * MIB | UNMAPPED))
    assert (kinds(report), report.leaked_bytes) == (set(), 0)


def test_every_rule_that_checks_of_chains_tell_has_a_name_of_this_format() -> None:
    source = inspect.getsource(chains) + "".join(
        inspect.getsource(module)
        for module in (vhdkit.chain.check, vhdkit.chain.parent_check, vhdkit.chain.parent_search)
    )
    reported = set(re.findall(r"\bCorruption\.([A-Z_]+)\b", source))
    # Stamps and undo images are a VHD's; a parent without an id is refused here, by LOCATOR_LINKAGE.
    of_vhd = {"PARENT_TIMESTAMP", "UNDO_IMAGE", "PARENT_ID_NULL", "NOT_A_VHD", "FILE_TOO_SHORT"}
    assert reported - of_vhd <= set(VhdxCorruption.__members__)
    assert all(Corruption[name].value == VhdxCorruption[name].value for name in reported - of_vhd)


# The verb


def test_the_verb_tells_it_as_of_a_vhd(tmp_path: Any, cli: Callable[..., Outcome]) -> None:
    bad = entry(with_header(PLAIN, (32, b"c" * 16)), 0, 5)
    for name, raw in (("base.vhdx", PLAIN), ("leaf.avhdx", PLAIN_CHILD), ("bad.vhdx", bad)):
        (tmp_path / name).write_bytes(raw)
    done = cli("check", "--chain", "--deep", tmp_path / "leaf.avhdx")
    assert (done.code, done.out) == (0, f"{tmp_path}/leaf.avhdx (2 files): clean: 0 errors, 0 warnings, 0 notes\n")
    done = cli("check", "--json", tmp_path / "bad.vhdx")
    assert done.code == 2
    assert '"format": "vhdx"' in done.out
    assert '"corruption": "block-state"' in done.out
    refused = cli("check", "--repair-footers", tmp_path / "bad.vhdx")
    assert refused.code == 1
    assert "VHDX files are read here, and not written yet" in refused.err
    assert (tmp_path / "bad.vhdx").read_bytes() == bad


def test_footers_that_a_guest_wrote_are_not_repaired() -> None:
    """A VHDX of any name that ends as a VHD does, its footer damaged: nothing of it is written."""
    guest = vhd()[:-512] + put(vhd()[-512:], 100, b"\1")
    raw = PLAIN[:-512] + guest[-512:]
    for name in ("/d.vhdx", "/d", "/d.vhd"):
        folder = MemoryFolder({name: raw})
        with pytest.raises(ReadOnlyImageError, match="not written yet"):
            vhdkit.repair_footers(name, folder=folder)
        assert folder[name].content == raw
