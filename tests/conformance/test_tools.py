"""What vhdkit created, wrote, merged and relinked is what qemu-img, libvhdi and 7-Zip take it for.

The bytes that qemu-img and 7-Zip give are those of the tests' own oracle, not only those that vhdkit reads. What each
program cannot do is in tests/conformance/tools.py, in the corpus' README and beside the tables here.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import vhdkit
from tests.conformance.tools import (
    qemu_finds_equal,
    qemu_flat,
    qemu_size,
    requires,
    sevenzip_size,
    sevenzip_view,
    size_for_qemu,
    vhdi_id,
    vhdi_size,
    vhdiinfo,
)
from tests.model import Create, Kind, Merge, ModelChain, Operation, Snapshot, Write
from tests.plaincheck import validate
from tests.plainvhd import DIFFERENCING, SECTOR, Footer, flat, geometry, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FIXTURES: Final = Path(__file__).resolve().parents[2] / "fixtures"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZES: Final = {"1 sector": SECTOR, "12345 sectors": 12345 * SECTOR, "40 MiB": 40 * MIB, "33 GiB": 33 * GIB + SECTOR}
SMALL: Final = {name: size for name, size in SIZES.items() if size < GIB}
# Files of one folder, leaf first, that all three programs can follow. Not: children larger than their parents (7-Zip
# stops where the parent ends), parents in other folders (7-Zip looks beside the child only), raw parents.
FIXTURE_CHAINS: Final = {
    "three layers of Windows": (
        "web01_3A7F2C10-5D0E-4B7B-9C55-0D1E6A3B9F42.avhd",
        "web01_1CE6964B-29B6-4D37-97AA-E847195217F3.avhd",
        "web01.vhd",
    ),
    "over a fixed disk": ("fixed-child.vhd", "fixed.vhd"),
    "blktap over Virtual PC": ("macx-child.vhd", "unaligned.vhd"),
    "Virtual PC": ("xp-child.vhd", "unaligned.vhd"),
}
# Of the corpus, each maker once and its longest chain in one folder that 7-Zip opens (not simh: reserved bytes).
MAKERS: Final = {
    "Windows 10, fixed": ("dfvfs/fat-parent.vhd",),
    "Windows 10, over fixed": ("dfvfs/fat-differential.vhd", "dfvfs/fat-parent.vhd"),
    "Windows 8.1, dynamic": ("go-vhd/win8.vhd",),
    "qemu": ("qemu-made/dyn-16M.vhd",),
    "blktap": ("vhdutil-made/grand.vhd", "vhdutil-made/child.vhd", "vhdutil-made/base.vhd"),
    "DOSBox-X": ("dosbox-x-made/grand.vhd", "dosbox-x-made/child.vhd", "dosbox-x-made/base.vhd"),
    "VirtualBox": ("virtualbox-made/child1.vhd", "virtualbox-made/base.vhd"),
    "MiniVHD": ("minivhd-made/childfix.vhd", "minivhd-made/fixed.vhd"),
}


def table(name: str, values: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(name, list(values))


each_size = table("size", SIZES)
each_small_size = table("size", SMALL)
each_kind = table("kind", ["fixed", "dynamic"])
# A fixed disk holds all of its 33 GiB: exporting them takes a minute.
each_exported = pytest.mark.parametrize(
    ("kind", "size"), [*(("dynamic", size) for size in SIZES), *(("fixed", size) for size in SMALL)]
)
each_base = table("base", ["fixed", "dynamic", "differencing"])
each_chain = table("chain", FIXTURE_CHAINS)
each_maker = table("maker", MAKERS)
each_way = table("way", ["one level", "to the base", "to a new file"])


# Making things with vhdkit


def pattern(offset: int, length: int, fill: int) -> bytes:
    return Write(offset=offset, length=length, fill=fill).data


def fill_disk(path: Path, fill: int) -> None:
    """Write to a disk at its ends and over a seam of blocks, in whole sectors and in parts."""
    with vhdkit.open_chain(str(path), writable=True) as chain:
        for middle in (0, min(2 * MIB, chain.size // 2), chain.size // 3, chain.size):
            start, stop = max(0, middle - 3000 - fill), min(chain.size, middle + 70_000)
            chain.write(start, pattern(start, stop - start, fill))
        chain.sync()


def created(folder: Path, kind: Any, size: str) -> Path:
    path = folder / f"{kind}.vhd"
    vhdkit.create_image(str(path), size=SIZES[size], disk_type=kind)
    return path


def written(folder: Path, kind: str, size: str) -> Path:
    path = created(folder, kind, size)
    fill_disk(path, 1)
    return path


def child_of(parent: Path, name: str) -> Path:
    path = parent.with_name(name)
    vhdkit.create_image(str(path), parent=str(parent))
    return path


def family(folder: Path, base: str, size: str) -> list[Path]:
    """Make a child over each kind of parent, all of them written; leaf first."""
    chain = [written(folder, "dynamic" if base == "differencing" else base, size)]
    for depth in range(2 if base == "differencing" else 1):
        chain.insert(0, child_of(chain[0], f"child-{depth}.avhd"))
        fill_disk(chain[0], 2 + depth)
    return chain


def copied(source: Path, names: Sequence[str], folder: Path) -> list[Path]:
    """Copy a chain out of a folder that must not change, into one of its own."""
    for name in names:
        shutil.copyfile(source / name, folder / Path(name).name)
    return [folder / Path(name).name for name in names]


def merged(chain: Sequence[Path], way: str) -> Path:
    """Merge a leaf; return the destination."""
    new = chain[0].with_name("new.vhd")
    into, to = (chain[-1] if way == "to the base" else chain[1]), (new if way == "to a new file" else None)
    plan = vhdkit.plan_merge(str(chain[0]), into=None if to else str(into), to=str(to) if to else None)
    return Path(vhdkit.merge(plan).destination)


def raw_of(path: Path) -> Path:
    raw = path.with_suffix(".raw")
    vhdkit.convert(str(path), str(raw), output_format="raw")
    return raw


def plain_view(chain: Sequence[Path]) -> bytes:
    return flat([parse(path) for path in chain]).tobytes()


def footer_of(path: Path) -> Footer:
    """Take the last 512 bytes of a file that may be too large to be read as a whole."""
    with path.open("rb") as stream:
        offset = stream.seek(-SECTOR, os.SEEK_END)
        return Footer.decode(stream.read(), offset)


# What the programs should say of any file


def assert_libvhdi_tells(path: Path, parent: Path | None) -> None:
    """libvhdi knows type, size and id of a disk, and of a child's parent the id and the file."""
    footer, told = footer_of(path), vhdiinfo(path)
    names = {2: "Fixed", 3: "Dynamic", 4: "Differential"}
    assert (told["Disk type"], vhdi_size(told)) == (names[footer.disk_type], footer.current_size)
    assert told["Identifier"] == vhdi_id(footer.unique_id)
    assert told.get("Parent identifier") == (None if parent is None else vhdi_id(footer_of(parent).unique_id))
    assert told.get("Parent filename") == (None if parent is None else parent.name)


def assert_qemu_reads(path: Path, expected: bytes) -> None:
    """qemu-img gives a flat image's bytes: all of them, or as many as it believes there are (tools.py)."""
    seen = size_for_qemu(footer_of(path))
    assert qemu_size(path) == seen
    assert qemu_flat(path, path.with_suffix(".qemu")).read_bytes() == expected[:seen]
    if seen == len(expected):
        qemu_finds_equal(path, raw_of(path))


# Created


@each_kind
@each_size
def test_qemu_img_gives_a_created_disk_its_exact_size(tmp_path: Path, kind: str, size: str) -> None:
    assert qemu_size(created(tmp_path, kind, size)) == SIZES[size]


@each_kind
@each_size
def test_libvhdi_gives_a_created_disk_its_type_and_exact_size(tmp_path: Path, kind: str, size: str) -> None:
    assert_libvhdi_tells(created(tmp_path, kind, size), None)


@each_kind
@each_size
def test_7zip_gives_a_created_disk_its_exact_size(tmp_path: Path, kind: str, size: str) -> None:
    assert sevenzip_size(created(tmp_path, kind, size)) == SIZES[size]


@each_kind
@each_small_size
def test_7zip_reads_a_created_disk_as_zeros(tmp_path: Path, kind: str, size: str) -> None:
    assert sevenzip_view(created(tmp_path, kind, size)) == bytes(SIZES[size])


@each_exported
def test_qemu_img_finds_a_created_disk_equal_to_its_raw_export(tmp_path: Path, kind: str, size: str) -> None:
    requires("qemu-img")
    path = created(tmp_path, kind, size)
    qemu_finds_equal(path, raw_of(path))


@each_base
@each_size
def test_qemu_img_gives_a_created_child_its_exact_size(tmp_path: Path, base: str, size: str) -> None:
    assert qemu_size(family(tmp_path, base, size)[0]) == SIZES[size]


@each_base
@each_size
def test_libvhdi_knows_the_parents_of_created_children(tmp_path: Path, base: str, size: str) -> None:
    requires("vhdiinfo")
    chain = family(tmp_path, base, size)
    for child, parent in zip(chain, [*chain[1:], None], strict=True):
        assert_libvhdi_tells(child, parent)


# Written


@each_exported
def test_qemu_img_finds_a_written_disk_equal_to_its_raw_export(tmp_path: Path, kind: str, size: str) -> None:
    requires("qemu-img")
    path = written(tmp_path, kind, size)
    qemu_finds_equal(path, raw_of(path))
    qemu_finds_equal(path, qemu_flat(path, tmp_path / "by-qemu.raw"))


@each_kind
@each_small_size
@table("block_size", ["4096", "65536", "524288"])
def test_qemu_img_and_7zip_read_what_was_written(tmp_path: Path, kind: Any, size: str, block_size: str) -> None:
    path = tmp_path / "disk.vhd"
    vhdkit.create_image(str(path), size=SMALL[size], disk_type=kind, block_size=int(block_size))
    fill_disk(path, 9)
    assert_qemu_reads(path, plain_view([path]))
    assert sevenzip_view(path) == plain_view([path])


@each_base
@each_small_size
def test_7zip_reads_through_created_children(tmp_path: Path, base: str, size: str) -> None:
    requires("7zz")
    chain = family(tmp_path, base, size)
    for depth in range(len(chain)):
        assert sevenzip_view(chain[depth]) == plain_view(chain[depth:])


@table("output_format", ["raw", "fixed", "dynamic"])
@each_base
def test_qemu_img_finds_what_vhdkit_converts_to_equal(tmp_path: Path, base: str, output_format: Any) -> None:
    requires("qemu-img")
    leaf, *_ = chain = family(tmp_path, base, "12345 sectors")
    path = tmp_path / f"converted.{output_format}"
    vhdkit.convert(str(leaf), str(path), output_format=output_format)
    raw = path if output_format == "raw" else qemu_flat(path, tmp_path / "by-qemu.raw")
    assert raw.read_bytes() == plain_view(chain)


# Merged


@each_chain
@each_way
def test_7zip_reads_a_merged_disk_as_the_leaf_was(tmp_path: Path, chain: str, way: str) -> None:
    requires("7zz")
    paths = copied(FIXTURES, FIXTURE_CHAINS[chain], tmp_path)
    before = plain_view(paths)
    assert sevenzip_view(merged(paths, way)) == before


@each_chain
@table("way", ["to the base", "to a new file"])
def test_qemu_img_reads_a_disk_that_was_merged_flat(tmp_path: Path, chain: str, way: str) -> None:
    requires("qemu-img")
    paths = copied(FIXTURES, FIXTURE_CHAINS[chain], tmp_path)
    before = plain_view(paths)
    assert_qemu_reads(merged(paths, way), before)


@each_chain
@each_way
def test_libvhdi_tells_what_a_merged_disk_is(tmp_path: Path, chain: str, way: str) -> None:
    requires("vhdiinfo")
    paths = copied(FIXTURES, FIXTURE_CHAINS[chain], tmp_path)
    destination = merged(paths, way)
    is_differencing = footer_of(destination).disk_type == DIFFERENCING
    assert_libvhdi_tells(destination, paths[-1] if is_differencing else None)


def test_qemu_img_and_7zip_see_how_far_a_merge_grew_a_disk(tmp_path: Path) -> None:
    chain = copied(FIXTURES, ("larger-child.vhd", "small-base.vhd"), tmp_path)
    before = plain_view(chain)
    destination = merged(chain, "one level")
    footer = footer_of(destination)
    assert (footer.cylinders, footer.heads, footer.sectors_per_track) == geometry(len(before) // SECTOR)
    assert_qemu_reads(destination, before)
    assert sevenzip_view(destination) == before


@each_size
def test_qemu_img_finds_a_created_and_merged_disk_equal_to_its_raw_export(tmp_path: Path, size: str) -> None:
    requires("qemu-img")
    chain = family(tmp_path, "differencing", size)
    before = raw_of(chain[0])
    destination = merged(chain, "to the base")
    qemu_finds_equal(destination, before)
    assert qemu_size(destination) == SIZES[size]


# Relinked


@dataclass(frozen=True, slots=True)
class Relinked:
    """A chain of which a middle layer was merged away: what the leaf was, and the files that are left."""

    before: bytes
    chain: list[Path]


def relinked(paths: Sequence[Path]) -> Relinked:
    leaf, middle, parent, *below = paths
    before = plain_view(paths)
    result = vhdkit.merge(vhdkit.plan_merge(str(middle), into=str(parent)))
    assert result.relinked == (str(leaf),)
    return Relinked(before, [leaf, parent, *below])


def relinked_maker(corpus: Path, maker: str, folder: Path) -> Relinked:
    """Relink the maker's own leaf, or one of vhdkit's where the maker's chain is too short."""
    paths = copied(corpus, MAKERS[maker], folder)
    while len(paths) < 3:
        paths.insert(0, child_of(paths[0], f"ours-{len(paths)}.avhd"))
        fill_disk(paths[0], len(paths))
    return relinked(paths)


def test_7zip_and_libvhdi_follow_a_relinked_fixture(tmp_path: Path) -> None:
    done = relinked(copied(FIXTURES, FIXTURE_CHAINS["three layers of Windows"], tmp_path))
    assert sevenzip_view(done.chain[0]) == done.before
    assert_libvhdi_tells(*done.chain)


@each_maker
def test_7zip_follows_relinked_children_of_every_maker(tmp_path: Path, corpus: Path, maker: str) -> None:
    requires("7zz")
    done = relinked_maker(corpus, maker, tmp_path)
    assert plain_view(done.chain) == done.before
    assert sevenzip_view(done.chain[0]) == done.before


@each_maker
def test_libvhdi_names_the_new_parent_of_relinked_children(tmp_path: Path, corpus: Path, maker: str) -> None:
    requires("vhdiinfo")
    done = relinked_maker(corpus, maker, tmp_path)
    assert_libvhdi_tells(done.chain[0], done.chain[1])


# The locators themselves, which none of the three programs needs where the parent's name is right


def locators(path: Path) -> dict[bytes, str | None]:
    return {item.code: item.text for item in parse(path).locators}


def test_created_children_name_their_parent_as_windows_and_blktap_do(tmp_path: Path) -> None:
    base, below = created(tmp_path, "dynamic", "1 sector"), tmp_path / "snapshots" / "deep"
    below.mkdir(parents=True)
    beside, deep = child_of(base, "beside.avhd"), below / "deep.avhd"
    vhdkit.create_image(str(deep), parent=str(base))
    assert list(locators(beside).items()) == [(b"W2ku", ".\\dynamic.vhd"), (b"W2ru", ".\\dynamic.vhd")]
    assert list(locators(deep).items()) == [(b"W2ku", "..\\..\\dynamic.vhd"), (b"W2ru", "..\\..\\dynamic.vhd")]
    assert [parse(child).parent_name for child in (beside, deep)] == ["dynamic.vhd"] * 2


@each_maker
def test_relinked_children_keep_no_path_to_the_merged_layer(tmp_path: Path, corpus: Path, maker: str) -> None:
    leaf, parent, *_ = relinked_maker(corpus, maker, tmp_path).chain
    texts = locators(leaf)
    assert texts[b"W2ru"] == f".\\{parent.name}"
    assert {re.split(r"[\\/]", text or "")[-1] for text in texts.values()} == {parent.name}


# Over other makers' parents


@each_maker
def test_7zip_reads_children_of_other_makers_parents(tmp_path: Path, corpus: Path, maker: str) -> None:
    requires("7zz")
    parents = copied(corpus, MAKERS[maker], tmp_path)
    expected = bytearray(plain_view(parents))
    child = child_of(parents[0], "ours.avhd")
    with vhdkit.open_chain(str(child), writable=True) as chain:
        for offset in (700, len(expected) // 2, len(expected) - 1300):
            data = pattern(offset, 1300, 7)
            chain.write(offset, data)
            expected[offset : offset + 1300] = data
    assert validate(child) == []
    assert sevenzip_view(child) == bytes(expected)


@each_maker
def test_libvhdi_knows_other_makers_parents(tmp_path: Path, corpus: Path, maker: str) -> None:
    requires("vhdiinfo")
    parent, *_ = copied(corpus, MAKERS[maker], tmp_path)
    assert_libvhdi_tells(child_of(parent, "ours.avhd"), parent)


# Any order of doing things


class Workshop:
    """Does with vhdkit, on files, what the model does with arrays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = ModelChain()
        self.paths: list[Path] = []

    def do(self, operation: Operation) -> None:
        self.model.apply(operation)
        name = self.folder / f"layer-{len(os.listdir(self.folder))}-{len(self.paths)}.vhd"
        match operation:
            case Create():
                kind: Any = operation.kind
                size = operation.sector_count * SECTOR
                vhdkit.create_image(str(name), size=size, disk_type=kind, block_size=operation.block_size)
                self.paths = [name]
            case Snapshot():
                vhdkit.create_image(str(name), parent=str(self.paths[0]), block_size=operation.block_size)
                self.paths.insert(0, name)
            case Write():
                with vhdkit.open_chain(str(self.paths[0]), writable=True) as chain:
                    chain.write(operation.offset, operation.data)
            case Merge():
                top, destination = self.paths[operation.depth_from], self.paths[operation.depth_to]
                vhdkit.merge(vhdkit.plan_merge(str(top), into=str(destination)))
                del self.paths[operation.depth_from : operation.depth_to]


def random_layers(dice: random.Random) -> list[Operation]:
    """Draw a chain of three to five layers, each written here and there; all of one size, for 7-Zip's sake."""
    blocks = (4 * KIB, 64 * KIB, 512 * KIB, 2 * MIB)
    count = dice.choice([1, 100, 4097, 12_345, dice.randrange(1, 9000)])
    program: list[Operation] = []
    for depth in range(dice.randrange(3, 6)):
        kind = dice.choice([Kind.FIXED, Kind.DYNAMIC])
        block_size = dice.choice(blocks)
        program.append(
            Snapshot(block_size=block_size) if depth else Create(kind=kind, sector_count=count, block_size=block_size)
        )
        for _ in range(dice.randrange(5)):
            offset = dice.randrange(count * SECTOR)
            length = min(dice.choice([1, SECTOR, 3000, 100_000]), count * SECTOR - offset)
            program.append(Write(offset=offset, length=length, fill=dice.choice([0, dice.randrange(1, 256)])))
    return program


@pytest.mark.parametrize("seed", range(12))
def test_any_chain_made_and_merged_step_by_step_reads_the_same_everywhere(tmp_path: Path, seed: int) -> None:
    requires("7zz")
    requires("qemu-img")
    dice = random.Random(seed)
    workshop = Workshop(tmp_path)
    for operation in random_layers(dice):
        workshop.do(operation)
    expected = workshop.model.view().tobytes()
    while len(workshop.paths) > 1:
        assert sevenzip_view(workshop.paths[0]) == expected
        depth_to = dice.randrange(1, len(workshop.paths))
        workshop.do(Merge(depth_from=dice.randrange(depth_to), depth_to=depth_to))
        assert [validate(path) for path in workshop.paths] == [[]] * len(workshop.paths)
    assert sevenzip_view(workshop.paths[0]) == expected
    assert_qemu_reads(workshop.paths[0], expected)
