"""`check` holds a file against every rule: one file for each that breaks it, and what may come of any damage at all."""

from __future__ import annotations

import inspect
import re
import struct
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests import plainvhdx
from tests.keeping import keep
from tests.plainbuild import ImageSpec, LocatorSpec, build, locator
from tests.plainvhd import (
    DIFFERENCING,
    FIXED,
    FOOTER_CHECKSUM,
    HEADER_CHECKSUM,
    HEADERS_LENGTH,
    SECTOR,
    ZERO_ID,
    seal,
)
from tests.plainvhdx import Disk
from vhdkit.chain import chain as chains
from vhdkit.chain.chain import open_chain
from vhdkit.chain.check import CheckReport, check
from vhdkit.chain.convert import convert
from vhdkit.chain.repair_footers import repair_footers
from vhdkit.corruption import Corruption
from vhdkit.errors import VhdError
from vhdkit.findings import Level, Rule
from vhdkit.journal import records
from vhdkit.journal.patch import Patch
from vhdkit.merging.plan.planner import plan_merge
from vhdkit.merging.run.engine import merge
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhd.create import create_image

if TYPE_CHECKING:
    from pathlib import Path

BLOCK: Final = 512 << 10
TABLE: Final = HEADERS_LENGTH
FIRST: Final = 3584  # where the bitmap of the first block lies, so that its data begin at 4 KiB
NOW: Final = 946_684_800 + 10_000
ERROR, WARNING, INFO = Level.ERROR, Level.WARNING, Level.INFO


def data(numbers: list[int], fill: int) -> dict[int, bytes]:
    return {number: bytes([fill, number % 251 + 1]) * (SECTOR // 2) for number in numbers}


BASE: Final = ImageSpec(
    size=4 * BLOCK, block_size=BLOCK, unique_id=b"base" * 4, sectors=data([0, 7, 2049], 1), data_alignment=4096
)
CHILD: Final = replace(
    BASE,
    disk_type=DIFFERENCING,
    unique_id=b"leaf" * 4,
    parent_id=BASE.unique_id,
    parent_name="base.vhd",
    sectors=data([1, 3000], 2),
    locators=(locator(0, b"W2ru", ".\\base.vhd"),),
)
FIXED_DISK: Final = ImageSpec(disk_type=FIXED, size=69632, sectors=data([0, 1, 9], 3))


def patched(raw: bytes, offset: int, new: bytes) -> bytes:
    return raw[:offset] + new + raw[offset + len(new) :]


def footers(raw: bytes, at: int, new: bytes, *, sealed: bool = True) -> bytes:
    """Change a field of both footers, the checksums right again."""
    one = patched(raw[:SECTOR], at, new)
    one = seal(one, FOOTER_CHECKSUM) if sealed else one
    return one + raw[SECTOR:-SECTOR] + one


def trailing(raw: bytes, at: int, new: bytes) -> bytes:
    """Change a field of a fixed disk's footer, its checksum right again."""
    return raw[:-SECTOR] + seal(patched(raw[-SECTOR:], at, new), FOOTER_CHECKSUM)


def header(raw: bytes, at: int, new: bytes) -> bytes:
    """Change a field of the dynamic header, its checksum right again."""
    one = seal(patched(raw[SECTOR:HEADERS_LENGTH], at, new), HEADER_CHECKSUM)
    return raw[:SECTOR] + one + raw[HEADERS_LENGTH:]


def entry(raw: bytes, index: int, sector: int) -> bytes:
    return patched(raw, TABLE + 4 * index, struct.pack(">I", sector))


def blktap(*, checksum: int, map_offset: int = 2560, version: int = 0x0001_0002, first: int = 0) -> bytes:
    """Return a disk with blktap's map of full blocks behind its BAT."""
    raw = build(replace(BASE, creator_app=b"tap\0", creator_version=0x0001_0003))
    batmap = struct.pack(">8sQIII", b"tdbatmap", map_offset, 1, version, checksum)
    return patched(patched(raw, 2048, batmap), 2560, bytes([first]))


def alone(spec: ImageSpec, **changes: Any) -> bytes:
    return build(replace(spec, **changes))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A damaged file, or a chain of them, and what is to be said of it (`path` is the file that it is said of)."""

    level: Level
    offset: int | None
    leaf: bytes
    path: str = "/vms/leaf.vhd"
    beside: dict[str, bytes] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


GOOD: Final = build(BASE)
GOOD_CHILD: Final = build(CHILD)
GOOD_FIXED: Final = build(FIXED_DISK)
END: Final = len(GOOD) - SECTOR
LAST: Final = END - BLOCK - SECTOR  # where the bitmap of the last block lies
CHILD_END: Final = len(GOOD_CHILD) - SECTOR
FIXED_END: Final = len(GOOD_FIXED) - SECTOR
CUT: Final = build(replace(BASE, size=3 * BLOCK + 4 * SECTOR, sectors=data([3072], 1)))
LOCATOR: Final = SECTOR + 576
CHAIN: Final = {"chain": True}


def linked(leaf: bytes, level: Level, offset: int | None = None, **more: Any) -> Case:
    """Return a case of a child beside its parent."""
    beside = more.pop("beside", {"/vms/base.vhd": GOOD})
    return Case(level=level, offset=offset, leaf=leaf, beside=beside, options=CHAIN | more.pop("options", {}), **more)


def with_undo_image() -> dict[str, bytes]:
    """Return the files of a merge that is complete and can be taken back."""
    folder = MemoryFolder({"/vms/leaf.vhd": GOOD_CHILD, "/vms/base.vhd": GOOD})
    merge(plan_merge("/vms/leaf.vhd", undo="/vms/undo.vhd", folder=folder), folder=folder)
    names = ("leaf.vhd", "base.vhd", "base.vhd.vhdkit-journal", "undo.vhd")
    return {f"/vms/{name}": bytes(folder[f"/vms/{name}"].content) for name in names}


UNDOABLE: Final = with_undo_image()
C: Final = Corruption
UNFINISHED: Final = Patch(offset=512, before=GOOD[512:1536], after=header(GOOD, 48, b"\x01")[512:1536])
CASES: Final[dict[Corruption, Case]] = {
    C.UNSUPPORTED: Case(level=ERROR, offset=None, leaf=b"QFI\xfb" + bytes(70000)),
    C.NOT_A_VHD: Case(level=ERROR, offset=None, leaf=b"raw " * 1024),
    C.FILE_TOO_SHORT: Case(level=ERROR, offset=None, leaf=b"conectix"),
    C.FILE_LENGTH: Case(level=WARNING, offset=END + 100, leaf=GOOD[:-SECTOR] + bytes(100) + GOOD[-SECTOR:]),
    C.FOOTER_CHECKSUM: Case(level=ERROR, offset=END + 64, leaf=footers(GOOD, 300, b"\1", sealed=False)),
    C.FOOTER_POISONED: Case(level=ERROR, offset=END, leaf=footers(GOOD, 0, b"v_poison")),
    C.FOOTER_TRAILING_LOST: Case(level=ERROR, offset=END - SECTOR, leaf=GOOD[:-SECTOR]),
    C.FOOTER_COPY_DIFFERS: Case(level=ERROR, offset=0, leaf=patched(GOOD, 100, b"\1")),
    C.FOOTER_MISPLACED: Case(level=ERROR, offset=FIXED_END, leaf=GOOD_FIXED + bytes(5000)),
    C.FOOTERS_LOST: Case(level=ERROR, offset=0, leaf=bytes(SECTOR) + GOOD[SECTOR:-SECTOR]),
    C.FOOTER_511_BYTES: Case(level=WARNING, offset=END, leaf=alone(BASE, trailing_footer="511")),
    C.FOOTER_RESERVED: Case(level=WARNING, offset=END + 85, leaf=footers(GOOD, 300, b"\1")),
    C.FEATURES: Case(level=WARNING, offset=END + 8, leaf=alone(BASE, features=0)),
    C.FORMAT_VERSION: Case(level=WARNING, offset=END + 12, leaf=footers(GOOD, 12, b"\0\1\0\1")),
    C.DISK_TYPE: Case(level=ERROR, offset=END + 60, leaf=footers(GOOD, 60, b"\0\0\0\5")),
    C.DISK_SIZE: Case(level=ERROR, offset=END + 48, leaf=footers(GOOD, 48, bytes(8))),
    C.ORIGINAL_SIZE: Case(level=INFO, offset=END + 40, leaf=alone(BASE, original_size=BLOCK)),
    C.GEOMETRY: Case(level=INFO, offset=END + 56, leaf=alone(BASE, chs=(1, 1, 1))),
    C.GEOMETRY_SIZE: Case(level=WARNING, offset=END + 56, leaf=alone(BASE, creator_app=b"qemu")),
    C.TIMESTAMP_FUTURE: Case(level=WARNING, offset=END + 24, leaf=alone(BASE, timestamp=10_000 + 1801)),
    C.SAVED_STATE: Case(level=WARNING, offset=END + 84, leaf=alone(BASE, saved_state=1)),
    C.UNIQUE_ID_NULL: Case(level=WARNING, offset=END + 68, leaf=alone(BASE, unique_id=ZERO_ID)),
    C.CREATOR_HOST_OS: Case(level=INFO, offset=END + 36, leaf=alone(BASE, creator_os=b"Amig")),
    C.CREATOR_VERSION: Case(
        level=WARNING, offset=END + 32, leaf=alone(BASE, creator_app=b"tap\0", creator_version=0x0001_0004)
    ),
    C.FIXED_DATA_OFFSET: Case(
        level=WARNING, offset=FIXED_END + 16, leaf=trailing(GOOD_FIXED, 16, b"\0\0\0\0\xff\xff\xff\xff")
    ),
    C.FIXED_DATA_MISSING: Case(level=ERROR, offset=FIXED_END - SECTOR + 48, leaf=GOOD_FIXED[SECTOR:]),
    C.FIXED_DATA_EXTRA: Case(level=WARNING, offset=FIXED_END + SECTOR + 48, leaf=bytes(SECTOR) + GOOD_FIXED),
    C.HEADER_OFFSET: Case(level=ERROR, offset=END + 16, leaf=footers(GOOD, 16, b"\0\0\0\0\0\0\2\1")),
    C.HEADER_COOKIE: Case(level=ERROR, offset=SECTOR, leaf=patched(GOOD, SECTOR, b"X")),
    C.HEADER_CHECKSUM: Case(level=ERROR, offset=SECTOR + 36, leaf=patched(GOOD, SECTOR + 900, b"\1")),
    C.HEADER_VERSION: Case(level=WARNING, offset=SECTOR + 24, leaf=header(GOOD, 24, b"\0\1\0\1")),
    C.HEADER_DATA_OFFSET: Case(level=WARNING, offset=SECTOR + 8, leaf=header(GOOD, 8, bytes(8))),
    C.HEADER_RESERVED: Case(level=WARNING, offset=SECTOR + 768, leaf=header(GOOD, 900, b"\1")),
    C.BLOCK_SIZE: Case(level=ERROR, offset=SECTOR + 32, leaf=header(GOOD, 32, struct.pack(">I", 3 << 18))),
    C.BLOCK_SIZE_UNUSUAL: Case(level=WARNING, offset=SECTOR + 32, leaf=alone(BASE, block_size=1 << 20)),
    C.BAT_TOO_SHORT: Case(level=ERROR, offset=SECTOR + 28, leaf=header(GOOD, 28, struct.pack(">I", 3))),
    C.BAT_LARGER: Case(level=INFO, offset=SECTOR + 28, leaf=alone(BASE, extra_entries=2)),
    C.BAT_TOO_LONG: Case(level=ERROR, offset=SECTOR + 28, leaf=header(GOOD, 28, b"\xff\xff\xff\xff")),
    C.BAT_OUTSIDE_FILE: Case(level=ERROR, offset=SECTOR + 16, leaf=header(GOOD, 16, struct.pack(">Q", 1 << 62))),
    C.BAT_OFFSET: Case(level=ERROR, offset=SECTOR + 16, leaf=header(GOOD, 16, struct.pack(">Q", SECTOR))),
    C.BAT_PADDING: Case(level=INFO, offset=TABLE + 16, leaf=alone(BASE, table_fill=0)),
    C.PARENT_FIELDS: Case(level=WARNING, offset=SECTOR + 40, leaf=alone(BASE, parent_name="base.vhd")),
    C.BLOCK_IN_HEADERS: Case(level=ERROR, offset=0, leaf=entry(GOOD, 0, 0)),
    C.BLOCK_OUTSIDE_FILE: Case(level=ERROR, offset=0x7FFF_FFFF * SECTOR, leaf=entry(GOOD, 0, 0x7FFF_FFFF)),
    C.BLOCK_IN_FOOTER: Case(level=ERROR, offset=LAST, leaf=alone(BASE, sectors=data([0, 3071], 1))[:-SECTOR]),
    C.BLOCK_TAIL_CUT: Case(level=WARNING, offset=FIRST, leaf=CUT[: -500 * SECTOR] + CUT[-SECTOR:]),
    C.BLOCKS_OVERLAP: Case(level=ERROR, offset=FIRST + 7 * SECTOR, leaf=entry(GOOD, 1, FIRST // SECTOR + 7)),
    C.BLOCK_BEYOND_DISK: Case(
        level=WARNING, offset=FIRST, leaf=alone(BASE, extra_entries=1, empty_blocks=frozenset({4}), sectors={})
    ),
    C.BLOCK_ALIGNMENT: Case(level=INFO, offset=None, leaf=alone(BASE, data_alignment=SECTOR)),
    C.CLEAR_SECTOR_DATA: Case(
        level=WARNING,
        offset=FIRST + SECTOR + 9 * SECTOR,
        leaf=patched(GOOD, FIRST + SECTOR + 9 * SECTOR + 5, b"\1"),
        options={"deep": True},
    ),
    C.BITS_BEYOND_END: Case(
        level=INFO,
        offset=FIRST,
        leaf=alone(BASE, size=3 * BLOCK + 4 * SECTOR, sectors=data([3072], 1), bits_past_end=True),
    ),
    C.LEAKED_SPACE: Case(level=INFO, offset=END, leaf=alone(BASE, footer_gap=8192)),
    C.BATMAP: Case(level=WARNING, offset=2048 + 24, leaf=blktap(checksum=17)),
    C.PARENT_ID_NULL: Case(level=WARNING, offset=SECTOR + 40, leaf=alone(CHILD, parent_id=ZERO_ID)),
    C.PARENT_UNNAMED: Case(level=WARNING, offset=SECTOR + 64, leaf=alone(CHILD, parent_name="", locators=())),
    C.LOCATOR_UNREADABLE: Case(
        level=WARNING, offset=LOCATOR, leaf=header(GOOD_CHILD, 576 + 16, struct.pack(">Q", 1 << 40))
    ),
    C.LOCATOR_CODE: Case(level=WARNING, offset=LOCATOR, leaf=header(GOOD_CHILD, 576, b"W3ru")),
    C.LOCATOR_DUPLICATE: Case(
        level=WARNING,
        offset=LOCATOR + 24,
        leaf=alone(CHILD, locators=(locator(0, b"W2ru", ".\\base.vhd"), locator(1, b"W2ru", ".\\base.vhd"))),
    ),
    C.LOCATOR_RESERVED: Case(level=WARNING, offset=LOCATOR + 12, leaf=header(GOOD_CHILD, 576 + 12, b"\1")),
    C.LOCATOR_OVERLAPS: Case(
        level=WARNING, offset=LOCATOR + 16, leaf=header(GOOD_CHILD, 576 + 16, struct.pack(">Q", TABLE))
    ),
    C.LOCATOR_LENGTH: Case(
        level=WARNING, offset=LOCATOR + 4, leaf=header(GOOD_CHILD, 576 + 4, struct.pack(">II", 1, 514))
    ),
    C.LOCATOR_TEXT: Case(level=INFO, offset=2048, leaf=patched(GOOD_CHILD, 2048, bytes(4))),
    C.LOCATOR_NAME: Case(level=INFO, offset=LOCATOR, leaf=alone(CHILD, parent_name="other.vhd")),
    C.PARENT_NOT_FOUND: linked(GOOD_CHILD, ERROR, beside={}),
    C.PARENT_REFUSED: linked(
        alone(CHILD, locators=(locator(0, b"W2ru", "..\\a\\b.vhd"),), parent_name="b.vhd"), ERROR, beside={}
    ),
    C.PARENT_FOUND_ELSEWHERE: linked(GOOD_CHILD, WARNING, beside={"/vms/moved.vhd": GOOD}),
    C.PARENT_ID_DIFFERS: linked(GOOD_CHILD, ERROR, beside={"/vms/base.vhd": alone(BASE, unique_id=b"else" * 4)}),
    C.PARENT_TIMESTAMP: linked(alone(CHILD, parent_timestamp=9000), WARNING),
    C.PARENT_TIMESTAMP_FUTURE: Case(
        level=WARNING, offset=SECTOR + 56, leaf=alone(CHILD, parent_timestamp=10_000 + 1801)
    ),
    C.PARENT_SIZE: linked(alone(CHILD, size=5 * BLOCK), WARNING),
    C.PARENT_FORMAT: linked(
        GOOD_CHILD, ERROR, beside={"/vms/base.vhd": plainvhdx.write(Disk(size=4 * BLOCK, data_id=BASE.unique_id))}
    ),
    C.PARENT_ID_IS_OWN: Case(level=WARNING, offset=SECTOR + 40, leaf=alone(CHILD, unique_id=CHILD.parent_id)),
    C.ID_SHARED: linked(
        GOOD_CHILD, WARNING, path="/vms/base.vhd", beside={"/vms/base.vhd": GOOD, "/vms/copy.vhd": GOOD}
    ),
    C.CHAIN_LOOP: linked(
        GOOD_CHILD,
        ERROR,
        path="/vms/base.vhd",
        beside={
            "/vms/base.vhd": alone(
                CHILD,
                unique_id=BASE.unique_id,
                parent_id=CHILD.unique_id,
                parent_name="leaf.vhd",
                locators=(locator(0, b"W2ru", ".\\leaf.vhd"),),
            )
        },
    ),
    C.CHAIN_TOO_LONG: linked(GOOD_CHILD, ERROR),
    C.SIBLINGS: linked(
        GOOD_CHILD,
        INFO,
        path="/vms/base.vhd",
        beside={"/vms/base.vhd": GOOD, "/vms/other.vhd": alone(CHILD, unique_id=b"othr" * 4)},
    ),
    C.UNDO_IMAGE: linked(UNDOABLE["/vms/leaf.vhd"], INFO, path="/vms/undo.vhd", beside=UNDOABLE),
    C.IN_USE: Case(level=WARNING, offset=None, leaf=GOOD),
    C.MERGE_UNFINISHED: Case(
        level=WARNING, offset=None, leaf=GOOD, beside={"/vms/leaf.vhd.vhdkit-journal": records.encode([{"kind": "?"}])}
    ),
    C.HEADER_UNFINISHED: Case(
        level=INFO,
        offset=None,
        leaf=GOOD,
        beside={"/vms/leaf.vhd.vhdkit-header": records.encode([{"patches": [UNFINISHED.to_record()]}])},
    ),
}


# What is no fault of an image: it could not be checked.
NOT_JUDGED: Final = {C.UNSUPPORTED, C.NOT_A_VHD, C.FILE_TOO_SHORT, C.PARENT_NOT_FOUND, C.PARENT_REFUSED}


def folder_of(case: Case) -> MemoryFolder:
    return MemoryFolder({"/vms/leaf.vhd": case.leaf, **case.beside})


def checked(leaf: bytes, **options: Any) -> CheckReport:
    return check("/vms/leaf.vhd", folder=MemoryFolder({"/vms/leaf.vhd": leaf}), now=NOW, **options)


def kinds(report: CheckReport) -> set[Rule]:
    return {finding.corruption for finding in report.findings}


# What plans of merges say, and no check of a file.
OF_PLANS: Final = {C.VIEW_ENDED, C.UNDO_DOUBTED}


def test_every_rule_has_its_file() -> None:
    assert set(CASES) == set(Corruption) - OF_PLANS


def test_every_row_of_the_reference_has_a_member() -> None:
    """Rows 1 to 42 and 50 to 64; that row 62 needs none, the enum's docstring says."""
    lines = inspect.getsource(Corruption).splitlines()
    rows = {
        int(row)
        for line in lines
        if '" # ' in line.replace("  ", " ")
        for row in re.findall(r"\d+", line.split("#")[1])
    }
    assert rows == {*range(1, 43), *range(50, 65)} - {62}


@pytest.mark.parametrize("corruption", list(CASES))
def test_each_rule_that_is_broken_is_told(corruption: Corruption, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[corruption]
    folder = folder_of(case)
    if corruption is Corruption.CHAIN_TOO_LONG:
        monkeypatch.setattr(chains, "MAX_LAYERS", 1)
    if corruption is Corruption.IN_USE:
        keep(folder.open("/vms/leaf.vhd")).lock(exclusive=True)
    report = check("/vms/leaf.vhd", folder=folder, now=NOW, **case.options)
    found = [(item.level, item.path, item.offset) for item in report.findings if item.corruption is corruption]
    assert (case.level, case.path, case.offset) in found, [str(item) for item in report.findings]
    assert all(item.message for item in report.findings)
    assert sum(report.counts.values()) >= len(report.findings)


@pytest.mark.parametrize("raw", [GOOD, GOOD_CHILD, GOOD_FIXED], ids=["dynamic", "differencing", "fixed"])
def test_of_a_good_file_nothing_is_said(raw: bytes) -> None:
    report = checked(raw, deep=True)
    assert [str(item) for item in report.findings] == []
    assert report.exit_code == 0


def test_of_a_good_chain_nothing_is_said() -> None:
    folder = MemoryFolder({"/vms/leaf.vhd": GOOD_CHILD, "/vms/base.vhd": GOOD})
    report = check("/vms/leaf.vhd", folder=folder, now=NOW, chain=True, deep=True)
    assert [str(item) for item in report.findings] == []
    assert report.paths == ("/vms/leaf.vhd", "/vms/base.vhd")


# Exit codes


@pytest.mark.parametrize("corruption", sorted(set(CASES) - {C.UNSUPPORTED, C.LEAKED_SPACE, C.CHAIN_TOO_LONG, C.IN_USE}))
def test_only_errors_change_the_exit_code(corruption: Corruption) -> None:
    case = CASES[corruption]
    report = check("/vms/leaf.vhd", folder=folder_of(case), now=NOW, **case.options)
    errors = {item.corruption for item in report.findings if item.level is Level.ERROR}
    # Dropping an entry from a table leaves its block to nobody.
    expected = 2 if errors - NOT_JUDGED else 1 if errors else 3 if report.leaked_bytes else 0
    assert report.exit_code == expected
    assert (case.level is ERROR) <= (report.exit_code == (1 if corruption in NOT_JUDGED else 2))


def test_what_is_no_vhd_of_a_known_kind_could_not_be_checked() -> None:
    report = checked(CASES[C.UNSUPPORTED].leaf)
    assert (report.exit_code, report.not_checked) == (1, 1)


def test_lost_space_is_told_in_bytes_and_has_a_code_of_its_own() -> None:
    report = checked(CASES[C.LEAKED_SPACE].leaf)
    assert (report.exit_code, report.leaks, report.leaked_bytes) == (3, 1, 8192)


def test_a_file_that_is_not_there_is_the_systems_error() -> None:
    with pytest.raises(FileNotFoundError):
        check("/nowhere.vhd", folder=MemoryFolder())


# Going on behind an error


def test_one_error_does_not_hide_another() -> None:
    raw = footers(patched(GOOD, SECTOR + 900, b"\1"), 300, b"\1", sealed=False)
    raw = entry(entry(entry(raw, 0, 0), 1, FIRST // SECTOR + BLOCK // SECTOR), 3, 0x7FFF_FFFF)
    expected = {
        C.FOOTER_CHECKSUM,
        C.HEADER_CHECKSUM,
        C.BLOCK_IN_HEADERS,
        C.BLOCKS_OVERLAP,
        C.BLOCK_OUTSIDE_FILE,
    }
    assert kinds(checked(raw)) >= expected


def test_a_poisoned_end_is_told_though_the_copy_is_whole() -> None:
    report = checked(GOOD[:-SECTOR] + b"v_poison" + GOOD[-SECTOR + 8 :])
    assert {C.FOOTER_POISONED, C.FOOTER_TRAILING_LOST} <= kinds(report)
    assert report.exit_code == 2


@pytest.mark.parametrize(
    ("raw", "corruption"),
    [
        (footers(GOOD, 12, b"\0\2\0\0"), C.FORMAT_VERSION),
        (header(GOOD, 24, b"\0\2\0\0"), C.HEADER_VERSION),
        (alone(BASE, creator_app=b"tap\0", creator_version=1), C.CREATOR_VERSION),
    ],
)
def test_versions_that_would_be_read_wrongly_are_errors(raw: bytes, corruption: Corruption) -> None:
    report = checked(raw)
    assert [item.level for item in report.findings if item.corruption is corruption] == [ERROR]
    assert report.exit_code == 2


def test_a_rule_broken_everywhere_is_told_a_few_times_and_counted() -> None:
    spec = replace(BASE, size=300 * BLOCK, sectors={}, table_fill=0)
    raw = build(spec)
    raw = patched(raw, TABLE, struct.pack(">300I", *[FIRST // SECTOR] * 300))
    report = checked(raw)
    listed = [item for item in report.findings if item.corruption is C.BLOCKS_OVERLAP]
    assert len(listed) == 10
    assert report.counts[C.BLOCKS_OVERLAP, ERROR] == 299
    assert report.count(ERROR) == 299 + 300  # and all lie behind the file's end


@pytest.mark.parametrize("gap", [0, 512, 3584, 4095 // 512 * 512])
def test_gaps_of_less_than_a_page_are_not_lost(gap: int) -> None:
    report = checked(alone(BASE, data_alignment=SECTOR, gap=gap, footer_gap=gap))
    assert report.exit_code == 0


@pytest.mark.parametrize("gap", [4096, BLOCK])
def test_gaps_between_blocks_of_a_page_or_more_are_lost(gap: int) -> None:
    # The gap before the first block is somebody's room if no block fits into it.
    report = checked(alone(BASE, data_alignment=SECTOR, gap=gap))
    assert report.leaked_bytes == gap
    assert report.leaks == 1


def test_a_whole_block_before_the_first_is_lost() -> None:
    assert checked(alone(BASE, data_alignment=SECTOR, gap=BLOCK + SECTOR)).leaks == 2


@pytest.mark.parametrize("block_size", [512, 1024, 2048, 4096])
def test_what_is_made_here_loses_no_space(block_size: int) -> None:
    folder = MemoryFolder({})
    create_image("/vms/base.vhd", size=1 << 20, block_size=block_size, folder=folder)
    create_image("/vms/leaf.avhd", parent="/vms/base.vhd", folder=folder)
    with open_chain("/vms/leaf.avhd", writable=True, folder=folder) as chain:
        for at in range(0, 1 << 20, 1 << 13):
            chain.write(at, b"x" * SECTOR)
    convert("/vms/leaf.avhd", "/vms/flat.vhd", folder=folder)
    for name in ("base.vhd", "leaf.avhd", "flat.vhd"):
        assert check(f"/vms/{name}", folder=folder).exit_code == 0, name


def test_a_room_behind_the_table_that_is_no_padding_of_ones_is_lost() -> None:
    folder = MemoryFolder({})
    create_image("/vms/base.vhd", size=1 << 20, block_size=512, folder=folder)
    raw = folder["/vms/base.vhd"].content
    raw[-SECTOR - 1] = 0
    assert check("/vms/base.vhd", folder=folder).leaked_bytes == 2560


def test_rooms_of_locators_are_not_lost() -> None:
    room = LocatorSpec(slot=0, code=b"W2ru", data=".\\base.vhd".encode("utf-16-le"), room=2 * BLOCK)
    assert checked(alone(CHILD, locators=(room,))).exit_code == 0


def test_a_block_that_the_table_has_forgotten_is_lost() -> None:
    report = checked(entry(GOOD, 0, 0xFFFF_FFFF))
    assert report.exit_code == 3
    assert report.leaked_bytes >= BLOCK + SECTOR


# blktap's map of full blocks


@pytest.mark.parametrize(
    ("raw", "offset"),
    [
        (blktap(checksum=0xFFFF_FFFF), None),
        (blktap(checksum=~0x80 & 0xFFFF_FFFF, first=0x80), None),
        (blktap(checksum=0x7F, first=0x80, version=0x0001_0001), None),
        (blktap(checksum=~0x40 & 0xFFFF_FFFF, first=0x40), 2560),
        (blktap(checksum=0xFFFF_FFFF, version=0x0001_0003), 2048 + 20),
        (blktap(checksum=0xFFFF_FFFF, map_offset=1 << 60), 2048 + 8),
    ],
    ids=["empty", "full", "signed", "not allocated", "version", "outside"],
)
def test_the_map_of_full_blocks_is_held_against_the_table(raw: bytes, offset: int | None) -> None:
    # One block of the map's two mebibytes is allocated here, the second entry of the table is not.
    found = [item.offset for item in checked(raw).findings if item.corruption is C.BATMAP]
    assert found == ([] if offset is None else [offset])


# Chains


def test_a_damaged_parent_is_found_and_judged_too() -> None:
    folder = MemoryFolder({"/vms/leaf.vhd": GOOD_CHILD, "/vms/base.vhd": entry(GOOD, 0, 0)})
    report = check("/vms/leaf.vhd", folder=folder, now=NOW, chain=True)
    assert [(item.path, item.corruption) for item in report.findings if item.level is ERROR] == [
        ("/vms/base.vhd", C.BLOCK_IN_HEADERS)
    ]


def test_a_parent_whose_checksum_is_wrong_is_judged_and_not_trusted() -> None:
    broken = footers(GOOD, 300, b"\1", sealed=False)
    folder = MemoryFolder({"/vms/leaf.vhd": GOOD_CHILD, "/vms/base.vhd": broken})
    report = check("/vms/leaf.vhd", folder=folder, now=NOW, chain=True)
    assert kinds(report) >= {C.PARENT_NOT_FOUND, C.FOOTER_CHECKSUM}
    assert report.paths == ("/vms/leaf.vhd", "/vms/base.vhd")


def test_a_damaged_leaf_does_not_hide_what_is_below() -> None:
    folder = MemoryFolder({"/vms/leaf.vhd": entry(GOOD_CHILD, 0, 0), "/vms/base.vhd": entry(GOOD, 0, 0)})
    report = check("/vms/leaf.vhd", folder=folder, now=NOW, chain=True)
    assert {item.path for item in report.findings if item.level is ERROR} == {"/vms/leaf.vhd", "/vms/base.vhd"}


def test_a_raw_parent_is_taken_if_it_is_named() -> None:
    files = {"/vms/leaf.vhd": alone(CHILD, parent_id=ZERO_ID), "/vms/disk.img": bytes(CHILD.size)}
    options: dict[str, Any] = {"folder": MemoryFolder(files), "now": NOW, "chain": True}
    report = check("/vms/leaf.vhd", parent="/vms/disk.img", **options)
    assert kinds(report) == {C.PARENT_ID_NULL}
    assert kinds(check("/vms/leaf.vhd", **options)) == {C.PARENT_ID_NULL, C.PARENT_REFUSED}


def test_a_parent_that_was_given_and_fits_nowhere_is_an_error() -> None:
    files = {"/vms/leaf.vhd": GOOD_CHILD, "/vms/base.vhd": GOOD, "/vms/x.vhd": alone(BASE, unique_id=b"else" * 4)}
    report = check("/vms/leaf.vhd", folder=MemoryFolder(files), now=NOW, chain=True, parent="/vms/x.vhd")
    assert C.PARENT_ID_DIFFERS in kinds(report)


def test_a_file_with_its_parents_id_is_told_once_for_each() -> None:
    twin = alone(CHILD, unique_id=CHILD.parent_id)
    folder = MemoryFolder({"/vms/leaf.vhd": twin, "/vms/base.vhd": GOOD})
    report = check("/vms/leaf.vhd", folder=folder, now=NOW, chain=True)
    assert [item.corruption for item in report.findings] == [C.PARENT_ID_IS_OWN]


# Whatever happens to a file

SMALL: Final = replace(BASE, size=6 * 4096, block_size=4096, sectors=data([0, 9, 20, 33], 1))
SMALL_CHILD: Final = replace(CHILD, size=6 * 4096, block_size=4096, sectors=data([1, 17], 2))
SOURCES: Final = {
    "dynamic": build(SMALL),
    "differencing": build(SMALL_CHILD),
    "fixed": build(FIXED_DISK),
    "blktap": blktap(checksum=0xFFFF_FFFF)[: 8 * 4096],
}
INTERESTING: Final = st.one_of(st.integers(0, 4096), st.integers(-SECTOR, -1), st.integers(0, 1 << 16))
DAMAGE: Final = st.lists(st.tuples(INTERESTING, st.binary(min_size=1, max_size=8)), max_size=6)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(SOURCES)),
    damage=DAMAGE,
    cut=st.none() | st.integers(0, 1 << 16),
    forged=st.booleans(),
    deep=st.booleans(),
)
@example(name="dynamic", damage=[(SECTOR + 16, b"\xff" * 8), (48, b"\xff" * 8)], cut=None, forged=True, deep=True)
def test_no_damage_raises_or_takes_long(
    name: str, damage: list[tuple[int, bytes]], cut: int | None, forged: bool, deep: bool
) -> None:
    raw = SOURCES[name]
    for offset, new in damage:
        at = offset % len(raw)
        raw = patched(raw, at, new)[: len(raw)]
    raw = raw if cut is None else raw[: cut % (len(raw) + 1)]
    if forged and len(raw) >= HEADERS_LENGTH + SECTOR and name != "fixed":
        raw = footers(header(raw, 0, b""), 0, b"")
    folder = MemoryFolder({"/vms/leaf.vhd": raw, "/vms/base.vhd": SOURCES["dynamic"]})
    began = time.process_time()
    report = check("/vms/leaf.vhd", folder=folder, now=NOW, chain=True, deep=deep)
    assert time.process_time() - began < 5
    assert report.exit_code in {0, 1, 2, 3}
    assert len(report.findings) < 500
    # What cannot be opened is never called sound.
    assert opens(folder) or report.exit_code in {1, 2}


@pytest.mark.parametrize(("at", "new"), [(16, b"\x7f" + b"\xff" * 7), (32, bytes(4))], ids=["BAT offset", "block size"])
def test_no_repair_is_advised_for_a_file_whose_blocks_cannot_be_found(tmp_path: Path, at: int, new: bytes) -> None:
    path = tmp_path / "disk.vhd"
    path.write_bytes(patched(header(GOOD, at, new), 8, bytes(8)))
    report = check(path)
    assert report.exit_code == 2
    assert C.FOOTER_COPY_DIFFERS in {item.corruption for item in report.findings}
    assert not any(item.hint for item in report.findings)
    with pytest.raises(VhdError):
        repair_footers(path)


def opens(folder: MemoryFolder) -> bool:
    try:
        open_chain("/vms/leaf.vhd", folder=folder).close()
    except VhdError:
        return False
    return True


def test_a_table_of_garbage_takes_no_longer_than_the_file_is_long() -> None:
    count = 200_000
    raw = bytearray(build(ImageSpec(size=count * BLOCK, block_size=BLOCK)))
    raw[TABLE : TABLE + 4 * count] = np.random.default_rng(1).integers(1, 2000, count).astype(">u4").tobytes()
    began = time.process_time()
    report = checked(bytes(raw), deep=True)
    assert time.process_time() - began < 5
    assert report.counts[C.BLOCKS_OVERLAP, ERROR] == count - 1
    assert len(report.findings) < 100


def test_a_full_table_of_two_tebibytes_is_judged_in_seconds(tmp_path: Path) -> None:
    size, block = 2040 << 30, 2 << 20
    count = size // block
    raw = build(ImageSpec(size=size, block_size=block))
    first = -(-(TABLE + 4 * count) // 4096) * 8 + 7
    order = np.random.default_rng(1).permutation(count).astype(np.int64)
    sectors = first + order * 4104
    end = (first + count * 4104) * SECTOR
    path = tmp_path / "huge.vhd"
    with path.open("wb") as file:
        file.write(raw[:TABLE] + sectors.astype(">u4").tobytes())
        file.seek(end)
        file.write(raw[-SECTOR:])
    began = time.process_time()
    report = check(str(path), now=NOW)
    assert time.process_time() - began < 10
    assert [str(item) for item in report.findings] == []
