"""What a VHDX may not say is refused by name; and no verb writes to one, whatever it is asked."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

import vhdkit
from tests import plainvhdx
from tests.plainvhdx import BAT_AT, FULL, METADATA_AT, METADATA_REGION, PARTIAL, Disk, guid, linked, sealed
from vhdkit.chain.chain import open_chain
from vhdkit.errors import CorruptImageError, ReadOnlyImageError, UnsupportedImageError, VhdError
from vhdkit.storage.memory import MemoryFolder
from vhdkit.vhdx.corruption import VhdxCorruption

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

MIB: Final = 1 << 20
A, B = b"a" * 16, b"b" * 16
BASE: Final = Disk(size=4 * MIB, data_id=A, blocks={1: (FULL, b"\x77" * MIB), 3: (FULL, b"\x55" * MIB)})
CHILD: Final = Disk(
    size=4 * MIB, data_id=B, texts=linked(A, relative="base.vhdx"), blocks={0: (PARTIAL, {9: b"\x99" * 512})}
)
PLAIN: Final = plainvhdx.write(BASE)
TABLES: Final = (192 << 10, 256 << 10)


def put(raw: bytes, at: int, data: bytes) -> bytes:
    return raw[:at] + data + raw[at + len(data) :]


def with_header(raw: bytes, at: int, data: bytes) -> bytes:
    for place in (64 << 10, 128 << 10):
        raw = put(raw, place, sealed(put(raw[place : place + 4096], at, data)))
    return raw


def with_regions(raw: bytes, regions: list[tuple[str, int, int, int]]) -> bytes:
    for place in TABLES:
        raw = put(raw, place, plainvhdx.region_table(regions))
    return raw


def entry(index: int, value: int) -> bytes:
    return put(PLAIN, BAT_AT + 8 * index, struct.pack("<Q", value))


def item(number: int, offset: int, data: bytes) -> bytes:
    """The file with a field of an entry of the metadata table changed."""
    return put(PLAIN, METADATA_AT + 32 + 32 * number + offset, data)


UNKNOWN: Final = "01234567-89ab-cdef-0123-456789abcdef"
BAT: Final = (plainvhdx.BAT_REGION, BAT_AT, MIB, 1)
METADATA: Final = (METADATA_REGION, METADATA_AT, MIB, 1)
CASES: Final[dict[str, tuple[bytes, str]]] = {
    "short": (PLAIN[:700000], VhdxCorruption.IMAGE_CUT),
    "no header": (put(put(PLAIN, 65536, bytes(4)), 131072, bytes(4)), VhdxCorruption.HEADERS_LOST),
    "headers differ": (
        put(PLAIN, 131072, plainvhdx.header(replace(BASE, data_id=B), 7)),
        VhdxCorruption.HEADERS_DIFFER,
    ),
    "version": (with_header(PLAIN, 66, b"\x02\0"), "version 2"),
    "log version": (with_header(with_header(PLAIN, 48, b"x" * 16), 64, b"\x01\0"), "log version 1"),
    "log place": (with_header(PLAIN, 72, struct.pack("<Q", 1 << 60)), VhdxCorruption.LOG_PLACE),
    "log length": (with_header(PLAIN, 68, struct.pack("<I", 4096)), VhdxCorruption.LOG_PLACE),
    "no log": (with_header(with_header(PLAIN, 48, b"x" * 16), 68, bytes(4)), VhdxCorruption.LOG_LENGTH_NULL),
    "tables": (put(put(PLAIN, TABLES[0], b"x"), TABLES[1], b"x"), VhdxCorruption.REGION_TABLES_LOST),
    "required region": (with_regions(PLAIN, [BAT, METADATA, (UNKNOWN, 4 * MIB, MIB, 1)]), UNKNOWN),
    "twice": (with_regions(PLAIN, [BAT, METADATA, BAT]), VhdxCorruption.REGION_DUPLICATE),
    "no BAT": (with_regions(PLAIN, [METADATA]), VhdxCorruption.REGION_MISSING),
    "BAT far": (with_regions(PLAIN, [(BAT[0], 1 << 62, MIB, 1), METADATA]), VhdxCorruption.REGION_PLACE),
    "overlap": (with_regions(PLAIN, [(BAT[0], METADATA_AT, MIB, 1), METADATA]), VhdxCorruption.REGIONS_OVERLAP),
    "on the log": (with_regions(PLAIN, [(BAT[0], MIB, MIB, 1), METADATA]), VhdxCorruption.REGIONS_OVERLAP),
    "no metadata": (put(PLAIN, METADATA_AT, b"M"), VhdxCorruption.METADATA_TABLE),
    "many items": (put(PLAIN, METADATA_AT + 10, b"\xff\xff"), VhdxCorruption.METADATA_TABLE),
    "required item": (item(4, 0, guid(UNKNOWN)), UNKNOWN),
    "user item": (item(4, 24, b"\x05"), "required"),
    "same item": (item(4, 0, guid(plainvhdx.ITEMS["size"])), VhdxCorruption.ITEM_DUPLICATE),
    "item outside": (item(4, 16, struct.pack("<I", MIB - 8)), VhdxCorruption.ITEM_PLACE),
    "items overlap": (item(4, 16, struct.pack("<I", 1 << 16)), VhdxCorruption.ITEM_PLACE),
    "no size": (put(item(1, 0, guid(UNKNOWN)), METADATA_AT + 64 + 24, b"\0"), VhdxCorruption.METADATA_MISSING),
    "size length": (item(1, 20, b"\x04"), VhdxCorruption.ITEM_LENGTH),
    "incomplete": (item(4, 0, guid("71CC85F0-1B69-4E28-9558-C3BF83AE75D3")), VhdxCorruption.FILE_INCOMPLETE),
    "block size": (put(PLAIN, METADATA_AT + 65536, struct.pack("<I", 3 * MIB)), VhdxCorruption.BLOCK_SIZE),
    "disk size": (put(PLAIN, METADATA_AT + 65544, struct.pack("<Q", (64 << 40) + 512)), VhdxCorruption.DISK_SIZE),
    "part of a sector": (put(PLAIN, METADATA_AT + 65544, struct.pack("<Q", 1000)), VhdxCorruption.DISK_SIZE),
    "sector": (put(PLAIN, METADATA_AT + 65552, struct.pack("<I", 1024)), VhdxCorruption.SECTOR_SIZE),
    "no locator": (put(PLAIN, METADATA_AT + 65540, b"\x02"), VhdxCorruption.LOCATOR_MISSING),
    "short BAT": (put(PLAIN, METADATA_AT + 65544, struct.pack("<Q", 1 << 40)), VhdxCorruption.BAT_TOO_SHORT),
    "state 4": (entry(0, 4 * MIB | 4), VhdxCorruption.BLOCK_STATE),
    "state 5": (entry(0, 5), VhdxCorruption.BLOCK_STATE),
    "partial": (entry(1, 4 * MIB | PARTIAL), VhdxCorruption.PARTIAL_WITHOUT_PARENT),
    "reserved": (entry(0, 6 * MIB | FULL | 8), VhdxCorruption.BAT_RESERVED),
    "nowhere": (entry(0, FULL), VhdxCorruption.BLOCK_OUTSIDE_FILE),
    "outside": (entry(0, 6 * MIB | FULL), VhdxCorruption.BLOCK_OUTSIDE_FILE),
    "far": (entry(0, (1 << 64) - MIB | FULL), VhdxCorruption.BLOCK_OUTSIDE_FILE),
    "same block": (entry(0, 4 * MIB | FULL), VhdxCorruption.BLOCKS_OVERLAP),
    "on the BAT": (entry(0, 3 * MIB | FULL), VhdxCorruption.BLOCKS_OVERLAP),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_vhdx_may_not_say_is_refused(name: str) -> None:
    raw, why = CASES[name]
    place = MemoryFolder({"/d.vhdx": raw})
    with (
        pytest.raises((CorruptImageError, UnsupportedImageError)) as caught,
        open_chain("/d.vhdx", folder=place) as chain,
    ):
        chain.read(0, chain.size)
    assert why in str(caught.value)
    assert "/d.vhdx" in str(caught.value)
    assert place["/d.vhdx"].content == raw


def test_a_damaged_entry_keeps_no_other_block_from_being_read() -> None:
    with open_chain("/d.vhdx", folder=MemoryFolder({"/d.vhdx": entry(0, 5)})) as chain:
        assert chain.leaf.resolve(MIB, MIB).total == MIB
        with pytest.raises(CorruptImageError):
            chain.leaf.resolve(0, MIB)


def test_a_partial_block_without_a_bitmap_is_refused() -> None:
    raw = put(plainvhdx.write(CHILD), BAT_AT + 8 * 4096, bytes(8))
    with (
        open_chain("/c.vhdx", folder=MemoryFolder({"/c.vhdx": raw, "/base.vhdx": PLAIN})) as chain,
        pytest.raises(CorruptImageError) as caught,
    ):
        chain.read(0, 512)
    assert caught.value.corruption is VhdxCorruption.BITMAP_MISSING


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (put(PLAIN, 65536 + 100, b"x"), VhdxCorruption.HEADER_DAMAGED),
        (put(PLAIN, 131072 + 100, b"x"), VhdxCorruption.HEADER_DAMAGED),
        (put(PLAIN, 131072, PLAIN[65536 : 65536 + 4096]), VhdxCorruption.HEADERS_ALIKE),
        (put(PLAIN, TABLES[0], b"x"), VhdxCorruption.REGION_TABLES_DIFFER),
        (put(PLAIN, TABLES[1], b"x"), VhdxCorruption.REGION_TABLES_DIFFER),
        (item(4, 24, b"\0" * 4).replace(guid(plainvhdx.ITEMS["id"]), guid(UNKNOWN)), VhdxCorruption.DISK_ID_MISSING),
    ],
)
def test_what_is_odd_is_told_and_read(raw: bytes, rule: VhdxCorruption) -> None:
    with open_chain("/d.vhdx", folder=MemoryFolder({"/d.vhdx": raw})) as chain:
        assert [finding.corruption for finding in chain.findings] == [rule]
        assert chain.read(0, chain.size) == plainvhdx.read([PLAIN])


def test_a_guest_cannot_make_one_format_of_another() -> None:
    # A VHDX whose last block ends as a VHD does, and a fixed VHD that begins as a VHDX does.
    place = MemoryFolder()
    vhdkit.create_image("/made.vhd", size=4 * MIB, disk_type="fixed", folder=place)
    fixed = bytes(place["/made.vhd"].content)
    both = PLAIN[:-512] + fixed[-512:]
    with open_chain("/x.vhdx", folder=MemoryFolder({"/x.vhdx": both})) as chain:
        assert chain.leaf.file_format == "VHDX"
    with open_chain("/x.vhd", folder=MemoryFolder({"/x.vhd": put(fixed, 0, b"vhdxfile")})) as chain:
        assert chain.leaf.file_format == "VHD"
        assert chain.read(0, 8) == b"vhdxfile"
    for raw in (both, put(fixed, 0, b"vhdxfile")):
        with pytest.raises(UnsupportedImageError, match="rename it"):
            open_chain("/x", folder=MemoryFolder({"/x": raw}))


# The verbs


@pytest.fixture
def vms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chain of two VHDX files, and two VHD files, in a folder that is the current one."""
    folder = tmp_path / "vms"
    folder.mkdir()
    (folder / "base.vhdx").write_bytes(PLAIN)
    (folder / "child.avhdx").write_bytes(plainvhdx.write(CHILD))
    vhdkit.create_image(folder / "b.vhd", size=4 * MIB)
    vhdkit.create_image(folder / "c.avhd", parent=folder / "b.vhd")
    monkeypatch.chdir(folder)
    return folder


def state(folder: Path) -> dict[str, tuple[str, int, int]]:
    found = {
        path.name: (path.read_bytes(), path.stat()) for path in folder.iterdir() if path.suffix in {".vhdx", ".avhdx"}
    }
    return {
        name: (hashlib.sha256(raw).hexdigest(), stat.st_mtime_ns, stat.st_mode) for name, (raw, stat) in found.items()
    }


VIEW: Final = plainvhdx.read([plainvhdx.write(CHILD), PLAIN])
READING: Final = (
    "info child.avhdx",
    "info --json child.avhdx",
    "info --backing-chain base.vhdx",
    "chain child.avhdx",
    "scan .",
    "map child.avhdx",
    "map --json child.avhdx",
    "compare child.avhdx child.avhdx",
    "hash --layers child.avhdx",
    "check --chain --deep child.avhdx",
    "check --json base.vhdx",
    "convert child.avhdx new.vhd",
    "convert -O fixed child.avhdx fixed.vhd",
    "convert -O raw child.avhdx new.raw",
    "merge child.avhdx --to merged.vhd",
    "merge child.avhdx --to planned.vhd --dry-run",
)
WRITING: Final = (
    "merge child.avhdx",
    "merge child.avhdx --dry-run",
    "merge child.avhdx --undo undo.vhd",
    "create --parent base.vhdx new.avhd",
    "create --parent base.vhdx new.avhdx",
    "create --size 4M new.vhdx",
    "convert child.avhdx new.vhdx",
    "rebase child.avhdx -b base.vhdx",
    "rebase c.avhd -b base.vhdx --ignore-id-mismatch",
    "rollback child.avhdx",
    "snapshot init child.avhdx",
    "snapshot take child.avhdx one",
    "check --repair-footers child.avhdx",
)


@pytest.mark.parametrize("line", READING)
def test_a_verb_that_reads_reads_a_vhdx_and_leaves_it_as_it_is(
    vms: Path, cli: Callable[..., Outcome], line: str
) -> None:
    before = state(vms)
    done = cli(*line.split())
    assert done.code == 0, done.err
    assert state(vms) == before
    for name in ("new.vhd", "fixed.vhd", "merged.vhd"):
        if (vms / name).exists():
            with open_chain(str(vms / name)) as chain:
                assert chain.read(0, chain.size) == VIEW
    if (vms / "new.raw").exists():
        assert (vms / "new.raw").read_bytes() == VIEW


@pytest.mark.parametrize("line", WRITING)
def test_a_verb_that_would_write_is_refused_and_leaves_all_as_it_is(
    vms: Path, cli: Callable[..., Outcome], line: str
) -> None:
    before, names = state(vms), sorted(path.name for path in vms.iterdir())
    done = cli(*line.split())
    assert done.code in {1, 64}, done.err
    assert "Traceback" not in done.err
    assert state(vms) == before
    assert sorted(path.name for path in vms.iterdir()) == names


@pytest.mark.parametrize(
    "line", [line for line in WRITING if line.startswith(("merge", "create --parent", "rebase child", "check"))]
)
def test_the_refusal_names_the_format(vms: Path, cli: Callable[..., Outcome], line: str) -> None:
    assert vms
    done = cli(*line.split())
    assert "VHDX" in done.err
    assert "not written yet" in done.err
    if line.startswith("create --parent"):
        assert f"`vhdkit convert {vms}/base.vhdx {vms}/base.vhd` makes one of it" in done.err


@pytest.mark.usefixtures("vms")
def test_a_merge_says_what_works() -> None:
    with pytest.raises(VhdError) as caught:
        vhdkit.plan_merge("child.avhdx")
    assert "to=" in str(caught.value)


def test_a_disk_with_sectors_of_4096_bytes_becomes_raw_but_no_vhd(vms: Path, cli: Callable[..., Outcome]) -> None:
    (vms / "big.vhdx").write_bytes(plainvhdx.write(replace(BASE, sector=4096)))
    assert cli("convert", "-O", "raw", "big.vhdx", "big.raw").code == 0
    assert (vms / "big.raw").read_bytes() == plainvhdx.read([PLAIN])
    for line in ("convert big.vhdx x.vhd", "convert -O fixed big.vhdx x.vhd", "merge big.vhdx --to x.vhd"):
        done = cli(*line.split())
        assert "its sectors have 4096 bytes" in done.err
        assert not (vms / "x.vhd").exists()


@pytest.mark.usefixtures("vms")
def test_an_image_is_opened_to_be_read_and_not_to_be_written() -> None:
    with vhdkit.open_image("child.avhdx") as image:
        assert (image.file_format, image.unique_id) == ("VHDX", B)
    for opening in (vhdkit.open_image, vhdkit.open_chain):
        with pytest.raises(ReadOnlyImageError, match="not written yet"):
            opening("child.avhdx", writable=True)
