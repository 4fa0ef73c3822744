"""The pages on the formats say what the code does: test vectors, and a row for every rule."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vhdkit
from vhdkit.corruption import Corruption
from vhdkit.findings import Advice
from vhdkit.units import SECTOR, MiB
from vhdkit.vhd import checksum
from vhdkit.vhd.footer import DiskType, Footer
from vhdkit.vhd.geometry import Geometry
from vhdkit.vhdx import checksum as vhdx_checksum
from vhdkit.vhdx.bat import BatLayout
from vhdkit.vhdx.corruption import VhdxCorruption

if TYPE_CHECKING:
    from vhdkit.findings import Rule

DOCS = Path(__file__).resolve().parents[2] / "docs"
VHD = (DOCS / "reference" / "vhd.md").read_text(encoding="utf-8")
VHDX = (DOCS / "reference" / "vhdx.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("rules", "page"), [(Corruption, VHD), (VhdxCorruption, VHDX)])
def test_every_rule_is_on_the_page_of_its_format(rules: type[Rule], page: str) -> None:
    named = set(re.findall(r"`([a-z0-9-]+)`", page))
    assert {rule.value for rule in rules} - named == set()


def test_the_geometries_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+)/(\d+)/(\d+) \|$", VHD, re.MULTILINE)
    assert len(rows) == 16
    for sectors, *expected in rows:
        assert tuple(Geometry.for_size(int(sectors) * SECTOR)) == tuple(map(int, expected))


def test_the_checksums_are_those_of_the_page() -> None:
    footer = Footer(
        disk_type=DiskType.FIXED,
        current_size=4 * MiB,
        original_size=4 * MiB,
        data_offset=0xFFFF_FFFF_FFFF_FFFF,
        timestamp=0,
        unique_id=bytes(range(16)),
        geometry=Geometry(120, 4, 17),
        creator_application=b"vkit",
        creator_version=0x10000,
        creator_host_os=b"Wi2k",
    )
    dynamic = replace(footer, data_offset=512, disk_type=DiskType.DYNAMIC)
    header = b"cxsparse" + b"\xff" * 8 + struct.pack(">QIII", 1536, 0x10000, 2, 2 * MiB) + bytes(1024 - 36)
    computed = [checksum.checksum(raw) for raw in (footer.to_bytes(), dynamic.to_bytes(), header)]
    section = VHD[VHD.index("### 1.8") : VHD.index("### 1.9")]
    assert [int(text, 16) for text in re.findall(r"`(0x[0-9A-F]{8})` \|$", section, re.MULTILINE)] == computed


def test_the_crcs_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| (`\w+`|\d+ zero bytes) \| `(0x[0-9A-F]{8})` \|$", VHDX, re.MULTILINE)
    assert len(rows) == 5
    for text, expected in rows:
        raw = text.strip("`").encode() if "`" in text else bytes(int(text.split()[0]))
        assert vhdx_checksum.extended(0, raw) == int(expected, 16)


def test_the_tables_have_as_many_entries_as_the_page_says() -> None:
    pattern = r"^\| (\d+) MiB \| (\d+) MiB \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$"
    rows = [tuple(map(int, row)) for row in re.findall(pattern, VHDX, re.MULTILINE)]
    assert len(rows) == 7
    for disk, block, sector, ratio, blocks, entries, of_child in rows:
        plain, child = (BatLayout.of(disk * MiB, block * MiB, sector, has_bitmaps=has) for has in (False, True))
        assert (plain.ratio, plain.block_count, plain.entry_count) == (ratio, blocks, entries)
        assert child.entry_count == of_child


def test_every_advice_is_on_the_page_of_errors() -> None:
    page = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([A-Z_]+) \| `(.*?)` \| `.*` \|$", page, re.MULTILINE))
    written = {each.name: re.sub(r"!r\}", "}", each.value).replace("{{", "{").replace("}}", "}") for each in Advice}
    assert rows == written


def test_every_public_name_is_on_the_page_of_python() -> None:
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r":: vhdkit\.(\w+)$", page, re.MULTILINE))
    public = {name: getattr(vhdkit, name) for name in vhdkit.__all__}
    errors = {name for name, thing in public.items() if isinstance(thing, type) and issubclass(thing, vhdkit.VhdError)}
    assert documented | errors == set(public)
