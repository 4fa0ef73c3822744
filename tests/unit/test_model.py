"""The oracle judged: against the corpus, against figures of the reference, and against itself."""

from __future__ import annotations

import csv
import hashlib
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import plainvhd
from tests.model import Create, Kind, Merge, ModelChain, RefusedError, Snapshot, Write, specs, write_files
from tests.plainbuild import ImageSpec, build, footer_bytes, locator
from tests.plaincheck import validate
from tests.plainvhd import DIFFERENCING, DYNAMIC, FIXED, SECTOR, ZERO_SECTOR, flat, parse, seal
from tests.strategies import image_specs, programs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model import Program

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT.parent / "shared" / "corpus"
WRONG_CHECKSUMS = {"dfvfs/image.vhd", "dfvfs/image-differential.vhd"}
# The manifest's note has 66 digits for this chain; without an extra "36" they are this SHA-256.
RAW_PARENT_CHAIN = (
    "vhdutil-made/child-of-raw.vhd",
    "5ef33a61af876268d94f128fbf18a3ddcc3f9d161100c693004d7ce35667c238",
)


def manifest() -> dict[str, dict[str, str]]:
    if not (CORPUS / "MANIFEST.tsv").exists():
        return {}
    with (CORPUS / "MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


MANIFEST = manifest()
READABLE = {path: row["flat_sha256_own"] for path, row in MANIFEST.items() if row["flat_sha256_own"]}


def corpus_chain(path: str) -> list[plainvhd.PlainImage | bytes]:
    chain: list[plainvhd.PlainImage | bytes] = []
    while path:
        row, raw = MANIFEST[path], (CORPUS / path).read_bytes()
        chain.append(raw if row["type"] == "other" else parse(raw))
        path = row["parent_present"]
    return chain


def held_sectors(spec: ImageSpec) -> dict[int, bytes]:
    """What a spec's file holds, thought of sector by sector."""
    held = {number: data for number, data in spec.sectors.items() if number < spec.sector_count}
    if spec.disk_type == FIXED:
        return {number: held.get(number, ZERO_SECTOR) for number in range(spec.sector_count)}
    if spec.all_ones:
        per_block = spec.block_size // SECTOR
        for index in spec.blocks:
            for number in range(index * per_block, min((index + 1) * per_block, spec.sector_count)):
                held.setdefault(number, ZERO_SECTOR)
    return held


def example(**changes: object) -> ImageSpec:
    """A differencing disk of two blocks in reverse order."""
    spec = ImageSpec(
        disk_type=DIFFERENCING,
        size=15 * SECTOR,
        block_size=8 * SECTOR,
        sectors={0: b"a" * SECTOR, 14: b"b" * SECTOR},
        order=[1, 0],
        parent_id=b"p" * 16,
        parent_name="parent.vhd",
        locators=(locator(1, b"W2ru", ".\\parent.vhd"),),
    )
    return replace(spec, **changes)  # type: ignore[arg-type] # any field may be changed


def patched(raw: bytes, offset: int, data: bytes) -> bytes:
    return raw[:offset] + data + raw[offset + len(data) :]


# The corpus


@pytest.mark.skipif(not MANIFEST, reason="the corpus folder is not beside the repository")
@pytest.mark.parametrize("path", READABLE)
def test_corpus_chains_read_as_their_makers_read_them(path: str) -> None:
    assert hashlib.sha256(flat(corpus_chain(path)).data).hexdigest() == READABLE[path]


@pytest.mark.skipif(not MANIFEST, reason="the corpus folder is not beside the repository")
def test_a_raw_parent_is_read_as_plain_bytes() -> None:
    path, digest = RAW_PARENT_CHAIN
    assert hashlib.sha256(flat(corpus_chain(path)).data).hexdigest() == digest


@pytest.mark.skipif(not MANIFEST, reason="the corpus folder is not beside the repository")
@pytest.mark.parametrize("path", sorted(set(READABLE) - WRONG_CHECKSUMS))
def test_files_of_other_tools_pass_the_judge(path: str) -> None:
    assert validate(CORPUS / path) == []


@pytest.mark.skipif(not MANIFEST, reason="the corpus folder is not beside the repository")
@pytest.mark.parametrize("path", sorted(READABLE))
def test_corpus_fields_are_those_of_the_manifest(path: str) -> None:
    row, image = MANIFEST[path], parse(CORPUS / path)
    assert image.size == int(row["current_size"])
    assert image.footer.original_size == int(row["original_size"])
    assert image.checksums_ok == (path not in WRONG_CHECKSUMS)
    assert image.unique_id.hex() == row["uuid"].replace("-", "")
    if image.header is not None:
        assert len(image.bat) == int(row["max_entries"])
        assert len(image.allocated) == int(row["allocated"])
        assert image.block_size == int(row["block_size"])
    if image.disk_type == DIFFERENCING:
        assert image.parent_id.hex() == row["parent_uuid"].replace("-", "")
        assert image.parent_name == row["parent_name"]
        expected = [
            f"{at.slot}:{at.code.decode()} space={at.space} len={at.length} off={at.offset} {at.text!r}"
            for at in image.locators
        ]
        assert "; ".join(expected) == row["locators"]


# Figures of the reference


@pytest.mark.parametrize(
    ("sectors", "chs"),
    [
        (1, (0, 4, 17)),
        (68, (1, 4, 17)),
        (8_192, (120, 4, 17)),
        (69_631, (1023, 4, 17)),
        (69_632, (140, 16, 31)),
        (278_527, (1023, 16, 17)),
        (278_528, (561, 16, 31)),
        (507_903, (1023, 16, 31)),
        (507_904, (503, 16, 63)),
        (66_059_279, (65534, 16, 63)),
        (66_059_280, (16191, 16, 255)),
        (266_338_304, (65278, 16, 255)),
        (10**9, (65535, 16, 255)),
    ],
)
def test_geometry_is_that_of_the_table(sectors: int, chs: tuple[int, int, int]) -> None:
    assert plainvhd.geometry(sectors) == chs


@pytest.mark.parametrize(("disk_type", "expected"), [(FIXED, 0xFFFFF004), (DYNAMIC, 0xFFFFF7F9)])
def test_footer_checksum_is_the_test_vector(disk_type: int, expected: int) -> None:
    raw = footer_bytes(ImageSpec(disk_type=disk_type, size=4194304))
    assert plainvhd.Footer.decode(raw, 0).checksum == expected


def test_header_checksum_is_the_test_vector() -> None:
    header = parse(build(ImageSpec(size=4194304))).header
    assert header is not None
    assert (header.table_offset, header.max_table_entries) == (1536, 2)
    assert header.checksum == 0xFFFFF475


# Files


@settings(deadline=None)
@given(image_specs())
def test_a_built_file_reads_as_its_spec(spec: ImageSpec) -> None:
    image, held = parse(build(spec)), held_sectors(spec)
    assert (image.disk_type, image.size) == (spec.disk_type, spec.size)
    for number in {0, spec.sector_count - 1, *spec.sectors, *(n + 1 for n in spec.sectors)}:
        if number < spec.sector_count:
            assert image.sector(number) == held.get(number)
    if spec.disk_type != DIFFERENCING:
        expected = b"".join(held.get(number, ZERO_SECTOR) for number in range(spec.sector_count))
        assert flat([image]).tobytes() == expected
    if spec.disk_type == DIFFERENCING:
        assert (image.parent_id, image.parent_name) == (spec.parent_id, spec.parent_name)
        assert {item.text for item in image.locators} == {spec.parent_name}


@settings(deadline=None)
@given(image_specs())
def test_a_built_file_passes_the_judge(spec: ImageSpec) -> None:
    assert validate(build(spec)) == []


BREAKERS: dict[str, Callable[[bytes], bytes]] = {
    "no footer": lambda raw: raw[:-SECTOR],
    "511 bytes": lambda raw: raw[:-1],
    "trailing checksum": lambda raw: patched(raw, len(raw) - 1, b"\1"),
    "footers differ": lambda raw: raw[:-SECTOR] + seal(patched(raw[-SECTOR:], 24, b"\1"), 64),
    "copy missing": lambda raw: bytes(SECTOR) + raw[SECTOR:],
    "header checksum": lambda raw: patched(raw, 0x200 + 800, b"\1"),
    "header cookie": lambda raw: patched(raw, 0x200, b"x"),
    "BAT too short": lambda raw: resealed_header(raw, 28, 1),
    "BAT outside the file": lambda raw: resealed_header(raw, 28, 1 << 20),
    "BAT over the header": lambda raw: resealed_header(raw, 20, 512),
    "block size 0": lambda raw: resealed_header(raw, 32, 0),
    "block over the footer copy": lambda raw: patched(raw, 1536, bytes(4)),
    "block over the locators": lambda raw: patched(raw, 1536, struct.pack(">I", 4)),
    "block over the footer": lambda raw: patched(raw, 1536, struct.pack(">I", len(raw) // SECTOR - 9)),
    "block outside the file": lambda raw: patched(raw, 1536, struct.pack(">I", 1 << 24)),
    "two blocks in one place": lambda raw: patched(raw, 1536, raw[1540:1544]),
    "blocks overlap by a sector": lambda raw: patched(raw, 1536, struct.pack(">I", 13)),
    "locator outside the file": lambda raw: resealed_header(raw, 576 + 24 + 20, 1 << 30),
    "data under a clear bit": lambda raw: patched(raw, len(raw) - SECTOR - 1, b"\1"),
    "no parent id": lambda raw: resealed_header(raw, 40, 0, 0, 0, 0),
    "bytes behind the footer": lambda raw: raw + b"\0",
}


def resealed_header(raw: bytes, offset: int, *values: int) -> bytes:
    header = patched(raw[512:1536], offset, struct.pack(f">{len(values)}I", *values))
    return patched(raw, 512, seal(header, 36))


@pytest.mark.parametrize("name", BREAKERS)
def test_the_judge_finds_what_is_broken(name: str) -> None:
    raw = build(example())
    assert validate(raw) == []
    broken = BREAKERS[name](raw)
    assert broken != raw
    assert validate(broken) != []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({}, "trailing"),
        ({"trailing_footer": "511"}, "trailing-511"),
        ({"trailing_footer": "none"}, "copy"),
    ],
)
def test_the_footer_is_looked_for_at_the_end_first(change: dict[str, object], place: str) -> None:
    image = parse(build(example(**change)))
    assert image.footer_place == place
    assert image.sector(14) == b"b" * SECTOR


def test_a_footer_written_by_the_guest_of_a_fixed_disk_is_data() -> None:
    guest = footer_bytes(ImageSpec(disk_type=DYNAMIC, size=SECTOR))
    raw = build(ImageSpec(disk_type=FIXED, size=9 * SECTOR, sectors={0: guest}))
    assert parse(raw).sector(0) == guest
    with pytest.raises(plainvhd.FormatError, match="no footer"):
        parse(raw[:-SECTOR])


def test_bits_past_the_end_are_ignored() -> None:
    spec = ImageSpec(size=3 * SECTOR, block_size=8 * SECTOR, sectors={1: b"x" * SECTOR, 5: b"y" * SECTOR})
    for past_end in (False, True):
        view = flat([parse(build(replace(spec, bits_past_end=past_end)))])
        assert view.tobytes() == ZERO_SECTOR + b"x" * SECTOR + ZERO_SECTOR


# The model


@settings(deadline=None)
@given(programs(kinds=[Kind.DYNAMIC, Kind.FIXED, Kind.RAW], shorter=True, refused=True))
def test_views_agree_sector_by_sector(program: Program) -> None:
    chain = ModelChain.run(program)
    chain.assert_sound()
    for depth, layer in enumerate(chain.layers):
        view = chain.view(depth).reshape(-1, SECTOR)
        numbers = {0, layer.sector_count - 1, *np.flatnonzero(view.any(axis=1))[:50].tolist()}
        numbers |= {below.sector_count for below in chain.layers if below.sector_count < layer.sector_count}
        assert all(view[number].tobytes() == chain.sector(number, depth) for number in numbers)


@settings(deadline=None)
@given(programs(shorter=True))
def test_a_write_changes_what_it_covers_and_nothing_else(program: Program) -> None:
    chain = ModelChain()
    for operation in program:
        before = chain.copy()
        chain.apply(operation)
        if isinstance(operation, Write):
            expected = before.view().copy()
            expected[operation.offset :][: operation.length] = np.frombuffer(operation.data, dtype=np.uint8)
            assert np.array_equal(chain.view(), expected)


@settings(deadline=None)
@given(programs(kinds=[Kind.DYNAMIC, Kind.FIXED, Kind.RAW], shorter=True, refused=True))
def test_merges_keep_the_laws_or_are_refused(program: Program) -> None:
    chain = ModelChain()
    for operation in program:
        if isinstance(operation, Merge) and chain.refusal(operation) is None:
            chain.assert_merge_keeps_views(operation)
            chain.assert_merge_twice_is_once(operation)
            chain.assert_levels_compose(operation)
        if chain.refusal(operation) is not None:
            before = chain.copy()
            with pytest.raises(RefusedError):
                chain.apply(operation)
            assert np.array_equal(before.view(), chain.view())
        else:
            chain.apply(operation)


@settings(deadline=None)
@given(
    programs(kinds=[Kind.DYNAMIC, Kind.FIXED, Kind.RAW], shorter=True),
    st.booleans(),
    st.sampled_from([SECTOR, 4096]),
)
def test_a_chain_written_as_files_reads_as_its_model(program: Program, past_end: bool, alignment: int) -> None:
    chain = ModelChain.run(program)
    images: list[plainvhd.PlainImage | bytes] = []
    for _, spec in specs(chain):
        if isinstance(spec, bytes):
            images.append(spec)
            continue
        raw = build(replace(spec, bits_past_end=past_end, data_alignment=alignment))
        assert validate(raw, raw_parent=True) == []
        images.append(parse(raw))
    for depth in range(len(images)):
        assert np.array_equal(flat(images[depth:]), chain.view(depth))


def test_files_are_linked_by_their_ids(tmp_path: Path) -> None:
    base = Create(kind=Kind.DYNAMIC, sector_count=9)
    chain = ModelChain.run([base, Snapshot(), Write(offset=700, length=10, fill=3), Snapshot(sector_count=12)])
    leaf, middle, root = (parse(path) for path in write_files(chain, tmp_path))
    assert (leaf.parent_id, middle.parent_id) == (middle.unique_id, root.unique_id)
    assert flat([leaf, middle, root]).tobytes() == chain.read(0, 12 * SECTOR)


def short_middle() -> ModelChain:
    """Four layers: the second from the base ends early and hides the base's tail (B14)."""
    return ModelChain.run(
        [
            Create(kind=Kind.DYNAMIC, sector_count=20),
            Write(offset=0, length=20 * SECTOR, fill=7),
            Snapshot(sector_count=10),
            Snapshot(sector_count=20),
            Snapshot(sector_count=20),
        ]
    )


def test_a_short_layer_hides_what_lies_below_its_end() -> None:
    chain = short_middle()
    assert chain.read(9 * SECTOR, SECTOR) != ZERO_SECTOR
    assert chain.read(10 * SECTOR, 10 * SECTOR) == bytes(10 * SECTOR)


@pytest.mark.parametrize(("depth_from", "depth_to"), [(0, 1), (1, 2), (0, 2), (1, 3), (0, 3)])
def test_a_merge_over_a_short_layer_writes_the_zeros_it_showed(depth_from: int, depth_to: int) -> None:
    chain, merge = short_middle(), Merge(depth_from=depth_from, depth_to=depth_to)
    chain.assert_merge_keeps_views(merge)
    chain.merge(merge)
    assert chain.read(10 * SECTOR, 10 * SECTOR) == bytes(10 * SECTOR)


def test_sizes_decide_what_is_refused() -> None:
    assert short_middle().refusal(Merge(depth_from=2, depth_to=3)) == "the child is smaller than the destination"
    chain = ModelChain.run([Create(kind=Kind.FIXED, sector_count=5), Snapshot(sector_count=6)])
    assert chain.refusal(Merge()) == "a fixed destination cannot grow"
    assert chain.refusal(Merge(depth_from=0, depth_to=2)) == "no such layers"


def test_a_zero_write_over_data_is_merged() -> None:
    chain = ModelChain.run(
        [
            Create(kind=Kind.DYNAMIC, sector_count=3),
            Write(offset=0, length=3 * SECTOR, fill=9),
            Snapshot(),
            Write(offset=SECTOR, length=SECTOR, fill=0),
            Merge(),
        ]
    )
    assert chain.read(SECTOR, SECTOR) == ZERO_SECTOR
    assert chain.sources().tolist() == [0, 0, 0]
