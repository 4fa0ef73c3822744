"""VHDX files as a forger would have them, and what the verbs that read do with them: counted, with the faults.

A forgery gives one field another value; the checksums are right again, or not. What is read without an error has to be
what the oracle reads of the same bytes; of what `check` finds nothing wrong with all has to be read. No verb changes a
byte, and nothing but VhdError and OSError comes out of one.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import vhdkit
from tests import plainvhdx
from tests.plainvhdx import BAT_AT, FULL, LOG_AT, METADATA_AT, PAGE, PARTIAL, UNMAPPED, ZERO, Disk, linked
from tests.vhdx_chains import left_dirty
from vhdkit.findings import Level
from vhdkit.formats import examine, read_summary
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhdx.checksum import sealed

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
LEAF, BASE_PATH = "/vms/d.avhdx", "/vms/base.vhdx"
READ_BYTES = 4 * MIB  # of a disk that says that it is large
BASE = plainvhdx.write(Disk(size=3 * MIB, data_id=b"a" * 16, blocks={1: (FULL, b"\x77" * MIB)}))
LEAF_DISK = Disk(
    size=3 * MIB,
    data_id=b"b" * 16,
    texts=linked(b"a" * 16, relative="base.vhdx", other=bytes(16), absolute="C:\\VMs\\base.vhdx"),
    blocks={0: (PARTIAL, {9: b"\x99" * 512}), 1: (UNMAPPED, b""), 2: (FULL, b"\x22" * MIB)},
)
FLAT_DISK = Disk(
    size=3 * MIB,
    data_id=b"b" * 16,
    is_fixed=True,
    blocks={0: (FULL, b"\x99" * 512), 1: (ZERO, b""), 2: (FULL, b"\x22" * 9)},
)
ORIGINALS = {
    "clean": plainvhdx.write(LEAF_DISK),
    "dirty": left_dirty(LEAF_DISK),
    "flat": plainvhdx.write(FLAT_DISK),
}
# What a record's checksum is over.
SUMMED = {64 << 10: PAGE, 128 << 10: PAGE, 192 << 10: 65536, 256 << 10: 65536}
COPIES = {64 << 10: 128 << 10, 192 << 10: 256 << 10}


class Field(NamedTuple):
    """A field of the file: where the record lies that it is in, where in that, and how many bytes."""

    name: str
    record: int
    offset: int
    length: int

    @property
    def at(self) -> int:
        return self.record + self.offset


def _fields(name: str, record: int, layout: tuple[tuple[int, int], ...], start: int = 0) -> Iterator[Field]:
    yield from (Field(f"{name}+{start + offset}", record, start + offset, length) for offset, length in layout)


HEADER = ((0, 4), (4, 4), (8, 8), (16, 16), (32, 16), (48, 16), (64, 2), (66, 2), (68, 4), (72, 8), (80, 8))
REGION_HEAD, REGION = ((0, 4), (4, 4), (8, 4), (12, 4)), ((0, 16), (16, 8), (24, 4), (28, 4))
ITEM_HEAD, ITEM = ((0, 8), (8, 2), (10, 2), (12, 8)), ((0, 16), (16, 4), (20, 4), (24, 4), (28, 4))
ITEMS = ((0, 4), (4, 4), (8, 8), (16, 4), (20, 4), (24, 16))
LOCATOR_HEAD, LOCATOR = ((0, 16), (16, 2), (18, 2)), ((0, 4), (4, 4), (8, 2), (10, 2))
ENTRY = ((0, 4), (4, 4), (8, 4), (12, 4), (16, 8), (24, 4), (28, 4), (32, 16), (48, 8), (56, 8))
DESCRIPTOR = ((0, 4), (4, 4), (8, 8), (16, 8), (24, 8))


def fields(name: str) -> list[Field]:
    """Every field of an original."""
    found = [*_fields("identifier", 0, ((0, 8), (8, 8), (516, 8)))]
    for record in (64 << 10, 128 << 10):
        found += _fields(f"header {record:#x}", record, HEADER)
    for record in (192 << 10, 256 << 10):
        found += _fields(f"regions {record:#x}", record, REGION_HEAD)
        found += (each for n in (0, 1, 2) for each in _fields(f"region {record:#x}", record, REGION, 16 + 32 * n))
    if name == "dirty":
        found += _fields("log entry", LOG_AT, ENTRY)
        found += (each for n in range(5) for each in _fields(f"descriptor {n}", LOG_AT, DESCRIPTOR, 64 + 32 * n))
        pages = range(PAGE, 6 * PAGE, PAGE)
        found += (
            each for at in pages for each in _fields(f"page {at:#x}", LOG_AT, ((0, 4), (4, 4), (8, 8), (4092, 4)), at)
        )
        # The log's pages of the metadata table, the items and the table stand in their places.
        table, items, bat = LOG_AT + PAGE, LOG_AT + 2 * PAGE, LOG_AT + 3 * PAGE
    else:
        table, items, bat = METADATA_AT, METADATA_AT + 65536, BAT_AT
    found += _fields("metadata", table, ITEM_HEAD[1 if name == "dirty" else 0 :])
    found += (each for n in range(7) for each in _fields(f"entry {n}", table, ITEM, 32 + 32 * n))
    found += _fields("item", items, ITEMS[2 if name == "dirty" else 0 :])
    if name != "flat":
        found += _fields("locator", items, LOCATOR_HEAD, 40)
        found += (each for n in range(5) for each in _fields(f"text {n}", items, LOCATOR, 60 + 12 * n))
        found += _fields("linkage", items, ((0, 2), (2, 8)), 120)
    found += _fields("BAT", bat, tuple((8 * n, 8) for n in range(1 if name == "dirty" else 0, 5)))
    if name != "flat":
        found += _fields("bitmap entry", BAT_AT, ((8 * 4096, 8),))
        found += _fields("bitmap", 4 * MIB, ((0, 8), (255, 1)))
    return found


def values(old: bytes) -> Iterator[bytes]:
    """What a forger writes into a field: the ends of its range, neighbours, telling numbers, single bits."""
    length, number = len(old), int.from_bytes(old, "little")
    telling = {
        0,
        1,
        2,
        3,
        4,
        5,
        7,
        8,
        511,
        512,
        2047,
        2048,
        4096,
        65535,
        65536,
        1 << 20,
        (1 << 20) - 1,
        2 << 20,
        3 << 20,
    }
    telling |= {
        4 << 20,
        5 << 20,
        7 << 20,
        1 << 31,
        (1 << 32) - 1,
        1 << 44,
        1 << 63,
        (1 << 64) - 1,
        (1 << 64) - (1 << 20),
    }
    telling |= {at << 20 | state for at in (0, 1, 3, 4, 5, 6, 7, 8, (1 << 44) - 1) for state in range(8)}
    telling |= {number + 1, number - 1, number ^ 1, number ^ 1 << (8 * length - 1), number << 1}
    for value in sorted(each for each in telling if 0 <= each < 1 << 8 * length and each != number):
        yield value.to_bytes(length, "little")


class Forgery(NamedTuple):
    """A field of an original and another value for it; its file is made when it is asked for."""

    original: str
    field: Field
    value: bytes
    sums: str

    def __str__(self) -> str:
        return f"{self.original}: {self.field.name} = {self.value.hex()}, {self.sums}"

    @property
    def content(self) -> bytes:
        """The file."""
        record = self.field.record
        changed = put(ORIGINALS[self.original], self.field.at, self.value)
        if self.sums == "wrong":
            return changed
        changed = with_sums(changed, record)
        if self.sums == "right":
            return changed
        other = COPIES[record]
        return with_sums(put(changed, other + self.field.offset, self.value), other)


def forgeries(name: str) -> Iterator[Forgery]:
    """Every forgery of an original: each field with each value, checksums right and wrong, in one copy and in both."""
    raw = ORIGINALS[name]
    for each in fields(name):
        for value in values(raw[each.at : each.at + each.length]):
            is_summed = each.record in SUMMED or each.record == LOG_AT
            for sums in ("wrong", *(("right",) * is_summed), *(("right in both",) * (each.record in COPIES))):
                yield Forgery(name, each, value, sums)


def put(raw: bytes, at: int, data: bytes) -> bytes:
    return raw[:at] + data + raw[at + len(data) :]


def with_sums(raw: bytes, record: int) -> bytes:
    """The file with the checksum of the record at a place right again."""
    length = SUMMED.get(record, 0)
    if LOG_AT <= record < LOG_AT + MIB:
        record, length = LOG_AT, int.from_bytes(raw[LOG_AT + 8 : LOG_AT + 12], "little")
        length = min(length, MIB)
    return put(raw, record, sealed(raw[record : record + length])) if length > 8 else raw


@dataclass(slots=True)
class VhdxTally:
    """How many forgeries there were, how reading them ended, what took longest, and what must not be."""

    forgeries: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        slow = f"slowest {self.slowest[0]:.2f} s ({self.slowest[1]})"
        return f"{self.forgeries:,} forgeries, ended {dict(self.ends)}, {slow}, {len(self.faults)} faults"


def try_vhdx(forgery: Forgery, tally: VhdxTally) -> None:
    """Put a forged file through the verbs that read."""
    try_content(str(forgery), forgery.content, tally)


def try_content(name: str, content: bytes, tally: VhdxTally) -> None:
    """Put a file through the verbs that read."""
    folder = MemoryFolder({LEAF: content, BASE_PATH: BASE})
    began = time.process_time()
    tally.forgeries += 1
    tally.faults += (f"{name}: {fault}" for fault in _faults(content, folder, tally))
    tally.slowest = max(tally.slowest, (time.process_time() - began, name))
    for path, original in ((LEAF, content), (BASE_PATH, BASE)):
        if folder[path].content != original:
            tally.faults.append(f"{name}: {path} was changed")


def _faults(content: bytes, folder: MemoryFolder, tally: VhdxTally) -> Iterator[str]:
    try:
        # A check raises nothing for what is wrong with a file.
        report = vhdkit.check(LEAF, chain=True, deep=True, folder=folder)
        vhdkit.scan("/vms", folder=folder)
        with folder.open(LEAF) as storage:
            examine(folder, storage)
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        yield f"{type(error).__name__}: {str(error)[:200]}"
        return
    errors = [finding for finding in report.findings if finding.level is Level.ERROR]
    try:
        size, view = _read(folder)
    except (vhdkit.VhdError, OSError) as error:
        tally.ends[type(error).__name__] += 1
        if not errors:
            yield f"nothing is wrong with it by check, and it is refused: {error}"
        return
    except Exception as error:  # noqa: BLE001 - the same
        yield f"{type(error).__name__}: {str(error)[:200]}"
        return
    tally.ends["read"] += 1
    yield from _against_oracle(content, report, size, view)


def _against_oracle(content: bytes, report: vhdkit.CheckReport, size: int, view: bytes) -> Iterator[str]:
    files = [content, BASE][: max(1, len(report.paths))]
    try:
        expected = plainvhdx.read(files, READ_BYTES)
    except Exception as error:  # noqa: BLE001 - the oracle is no model of errors
        yield f"it was read, and the oracle cannot: {type(error).__name__} {error}"
        return
    if expected[:READ_BYTES] != view:
        yield f"what was read of {size} bytes is not what the oracle reads"


def _read(folder: MemoryFolder) -> tuple[int, bytes]:
    for verify in (False, True):
        with folder.open(LEAF) as storage:
            read_summary(folder, storage, verify=verify)
    with vhdkit.open_chain(LEAF, folder=folder) as chain:
        chain.leaf.checksums()
        chain.leaf.is_empty()
        for item in chain.extents(0, READ_BYTES):
            assert item.total
        return chain.size, chain.read(0, READ_BYTES)
