"""Who else reads through the files of a merge: siblings stop it, children of the topmost source are relinked."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import vhdkit
from tests.plainbuild import ImageSpec, LocatorSpec, build, locator
from tests.plaincheck import validate
from tests.plainvhd import DIFFERENCING, DYNAMIC, SECTOR, flat, parse
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.storage.protocols import Storage

SECTORS = 64
BLOCK = 8 * SECTOR


@dataclass
class Family:
    """Images in a folder, made one by one; `view` reads a chain of them, leaf first, with the tests' own reader."""

    folder: Path

    def base(self, name: str = "base.vhd", ident: int = 1) -> Path:
        return self._store(name, ImageSpec(disk_type=DYNAMIC, **self._content(ident)))

    def child(self, name: str, parent: Path, ident: int, **changes: object) -> Path:
        return self._store(name, replace(self.child_spec(name, parent, ident), **changes))  # type: ignore[arg-type]

    def child_spec(self, name: str, parent: Path, ident: int) -> ImageSpec:
        relative = os.path.relpath(parent, (self.folder / name).parent).replace("/", "\\")
        path = relative if relative.startswith("..") else f".\\{relative}"
        return ImageSpec(
            disk_type=DIFFERENCING,
            parent_id=parse(parent).unique_id,
            parent_name=parent.name,
            parent_timestamp=1,
            locators=(roomy(0, b"W2ku", f"C:\\vms\\{relative}"), roomy(1, b"W2ru", path)),
            **self._content(ident),
        )

    def view(self, *paths: Path) -> bytes:
        return flat([parse(path) for path in paths]).tobytes()

    def bytes(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def _store(self, name: str, spec: ImageSpec) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(build(spec))
        return path

    @staticmethod
    def _content(ident: int) -> dict[str, Any]:
        sectors = {number: bytes([16 * ident + number % 16]) * SECTOR for number in range(ident, SECTORS, 3 + ident)}
        return {
            "size": SECTORS * SECTOR,
            "block_size": BLOCK,
            "sectors": sectors,
            "unique_id": bytes([ident]) * 16,
        }


def roomy(slot: int, code: bytes, text: str) -> LocatorSpec:
    return replace(locator(slot, code, text), room=2048, space=2048)


@pytest.fixture
def family(tmp_path: Path) -> Family:
    (tmp_path / "vms").mkdir()
    return Family(tmp_path / "vms")


def merged(source: Path, destination: Path, *, search: Sequence[Path] = ()) -> vhdkit.MergeResult:
    plan = vhdkit.plan_merge(str(source), into=str(destination), search=[str(path) for path in search])
    return vhdkit.merge(plan)


def view(path: Path) -> bytes:
    with vhdkit.open_chain(str(path)) as chain:
        return chain.read(0, chain.size)


def assert_refused_for(family: Family, siblings: set[Path], *, search: Sequence[Path] = ()) -> None:
    """Merge c, b into base: see it refused for exactly these siblings, and nothing written."""
    before = family.bytes()
    source, destination = family.folder / "c.avhd", family.folder / "base.vhd"
    plan = vhdkit.plan_merge(str(source), into=str(destination), search=[str(path) for path in search])
    with pytest.raises(vhdkit.SiblingsError) as caught:
        vhdkit.merge(plan)
    assert set(caught.value.siblings) == {str(path) for path in siblings}
    assert all(str(path) in str(caught.value) for path in siblings)
    assert family.bytes() == before


def chain_of_three(family: Family) -> tuple[Path, Path, Path]:
    base = family.base()
    b = family.child("b.avhd", base, 2)
    return family.child("c.avhd", b, 3), b, base


# Siblings


@pytest.mark.parametrize("where", ["s.avhd", "below/s.avhd", "below/far/s.avhd"])
@pytest.mark.parametrize("of", ["base", "b"])
def test_siblings_of_the_destination_and_of_lower_sources_stop_the_merge(family: Family, where: str, of: str) -> None:
    _, b, base = chain_of_three(family)
    sibling = family.child(where, {"base": base, "b": b}[of], 4)
    assert_refused_for(family, {sibling})


def test_all_siblings_are_named(family: Family) -> None:
    _, b, base = chain_of_three(family)
    siblings = {family.child("s.avhd", base, 4), family.child("sub/t.avhd", b, 5), family.child("u.vhd", base, 6)}
    assert_refused_for(family, siblings)


def test_siblings_in_the_folder_of_a_lower_layer_are_found(tmp_path: Path) -> None:
    family = Family(tmp_path)
    base = family.base("store/base.vhd")
    b = family.child("store/b.avhd", base, 2)
    c = family.child("c.avhd", b, 3)
    sibling = family.child("store/s.avhd", base, 4)
    before = family.bytes()
    plan = vhdkit.plan_merge(str(c), into=str(base), search=[str(tmp_path / "store")])
    with pytest.raises(vhdkit.SiblingsError) as caught:
        vhdkit.merge(plan)
    assert caught.value.siblings == (str(sibling),)
    assert family.bytes() == before


@pytest.mark.parametrize("below", ["", "far/"])
def test_siblings_in_search_folders_are_found(family: Family, below: str) -> None:
    chain_of_three(family)
    elsewhere = Family(family.folder.parent / "elsewhere")
    sibling = elsewhere.child(f"{below}s.avhd", family.folder / "base.vhd", 4)
    assert_refused_for(family, {sibling}, search=[elsewhere.folder])
    merged(family.folder / "c.avhd", family.folder / "base.vhd")  # nobody told where to look


def test_a_sibling_whose_names_lead_nowhere_is_known_by_its_parents_id(family: Family) -> None:
    _, _, base = chain_of_three(family)
    spec = {"parent_name": "old.vhd", "locators": (locator(0, b"W2ru", ".\\old.vhd"),)}
    assert_refused_for(family, {family.child("s.dat", base, 4, **spec)})


def test_a_child_of_the_topmost_source_of_one_level_is_no_sibling(family: Family) -> None:
    c, b, base = chain_of_three(family)
    expected = view(c)
    result = merged(b, base)
    assert result.relinked == (str(c),)
    assert view(c) == expected


def test_a_copy_of_the_whole_chain_in_another_folder_is_no_sibling(family: Family) -> None:
    c, _, base = chain_of_three(family)
    expected = view(c)
    shutil.copytree(family.folder, family.folder / "backup")
    copies = {path: path.read_bytes() for path in (family.folder / "backup").iterdir()}
    result = merged(c, base)
    assert view(base) == expected
    assert result.relinked == ()
    assert {path: path.read_bytes() for path in (family.folder / "backup").iterdir()} == copies


def test_a_copy_of_a_child_alone_is_a_sibling(family: Family) -> None:
    chain_of_three(family)
    (family.folder / "backup").mkdir()
    copy = Path(shutil.copy2(family.folder / "b.avhd", family.folder / "backup"))
    assert_refused_for(family, {copy})


def test_a_second_name_of_a_source_is_no_sibling(family: Family) -> None:
    c, b, base = chain_of_three(family)
    expected = view(c)
    os.link(b, family.folder / "b-again.avhd")
    merged(c, base)
    assert view(base) == expected


def test_a_merge_that_changes_nothing_harms_no_sibling(family: Family) -> None:
    c, b, base = chain_of_three(family)
    vhdkit.merge(vhdkit.plan_merge(str(c), into=str(base), keep_sources=True))
    sibling = family.child("s.avhd", base, 4)
    views = {path: view(path) for path in (c, sibling)}
    merged(c, base)
    assert (view(base), view(sibling)) == (views[c], views[sibling])
    assert not b.exists()


def test_damaged_and_foreign_files_stop_nothing(family: Family) -> None:
    c, _, base = chain_of_three(family)
    expected = view(c)
    (family.folder / "torn.avhd").write_bytes(c.read_bytes()[:700])
    (family.folder / "notes.txt").write_bytes(b"conectix" * 100)
    os.mkfifo(family.folder / "pipe.avhd")
    merged(c, base)
    assert view(base) == expected


# One id for several files, as MiniVHD and DOSBox-X give to files made in one second


def twins(family: Family) -> tuple[Path, Path, Path]:
    base = family.base(ident=1)
    same = {"unique_id": bytes([1]) * 16}
    b = family.child("b.avhd", base, 2, **same)
    return family.child("c.avhd", b, 3, **same), b, base


def test_files_with_one_id_are_told_apart_by_names(family: Family) -> None:
    c, b, base = twins(family)
    expected = family.view(c, b, base)
    merged(c, base)
    assert family.view(base) == expected


def test_a_sibling_among_files_with_one_id_is_found_by_name(family: Family) -> None:
    _, _, base = twins(family)
    assert_refused_for(family, {family.child("s.avhd", base, 4, unique_id=bytes([1]) * 16)})


def test_a_child_among_files_with_one_id_is_relinked(family: Family) -> None:
    c, b, base = twins(family)
    expected = family.view(c, b, base)
    result = merged(b, base)
    assert result.relinked == (str(c),)
    assert family.view(c, base) == view(c) == expected
    assert parse(c).parent_name == "base.vhd"


# Relinking


def relinked(family: Family, **changes: object) -> Path:
    """Merge b into base under a child c that has the given fields; return c, read again and judged."""
    base = family.base()
    b = family.child("b.avhd", base, 2)
    c = family.child("c.avhd", b, 3, **changes)
    expected, before = family.view(c, b, base), parse(c)
    result = merged(b, base)
    assert result.relinked == (str(c),)
    assert not b.exists()
    after = parse(c)
    assert validate(c) == []
    assert after.parent_id == bytes([1]) * 16
    assert after.parent_name == "base.vhd"
    assert after.footer.raw == before.footer.raw
    assert np.array_equal(after.bat, before.bat)
    assert family.view(c, base) == view(c) == expected
    return c


def texts(path: Path) -> dict[bytes, str | None]:
    return {item.code: item.text for item in parse(path).locators}


def test_a_relinked_child_says_so_in_every_way_it_can(family: Family) -> None:
    locators = (
        roomy(0, b"W2ku", "D:\\Hyper-V\\disks\\b.avhd"),
        roomy(2, b"W2ru", ".\\b.avhd"),
        roomy(3, b"MacX", "file://./b.avhd"),
        roomy(5, b"Wi2k", "D:\\Hyper-V\\disks\\b.avhd"),
        roomy(7, b"Wi2r", ".\\b.avhd"),
    )
    c = relinked(family, locators=locators)
    assert texts(c) == {
        b"W2ku": "D:\\Hyper-V\\disks\\base.vhd",
        b"W2ru": ".\\base.vhd",
        b"MacX": "file://./base.vhd",
        b"Wi2k": "D:\\Hyper-V\\disks\\base.vhd",
        b"Wi2r": ".\\base.vhd",
    }
    assert [item.slot for item in parse(c).locators] == [0, 2, 3, 5, 7]


def test_a_relinked_child_keeps_no_rest_of_a_longer_path(family: Family) -> None:
    c = relinked(family, locators=(roomy(0, b"W2ru", ".\\" + "b" * 90 + ".avhd"),), parent_name="b.avhd")
    item = parse(c).locators[0]
    rest = c.read_bytes()[item.offset + item.length : item.offset + item.space]
    assert rest == bytes(len(rest))


def test_an_absolute_path_that_tells_nothing_becomes_the_relative_one(family: Family) -> None:
    c = relinked(family, locators=(roomy(0, b"W2ku", "C:\\elsewhere\\other.vhd"), roomy(1, b"W2ru", ".\\b.avhd")))
    assert texts(c)[b"W2ku"] == ".\\base.vhd"


def test_locators_of_unknown_kinds_are_emptied_rather_than_left_to_mislead(family: Family) -> None:
    odd = (LocatorSpec(slot=4, code=b"Zz1x", data=b"b.avhd"), LocatorSpec(slot=6, code=b"Mac ", data=b"alias"))
    c = relinked(family, locators=(roomy(0, b"W2ru", ".\\b.avhd"), *odd))
    assert texts(c) == {b"W2ru": ".\\base.vhd"}


def test_an_8_bit_locator_that_cannot_say_the_path_is_emptied(tmp_path: Path) -> None:
    family = Family(tmp_path / "vms")
    base = family.base("Grundgerät.vhd")
    b = family.child("b.avhd", base, 2)
    locators = (roomy(0, b"W2ru", ".\\b.avhd"), roomy(1, b"Wi2r", ".\\b.avhd"))
    c = family.child("c.avhd", b, 3, locators=locators)
    expected = family.view(c, b, base)
    merged(b, base)
    assert texts(c) == {b"W2ru": ".\\Grundgerät.vhd"}
    assert view(c) == expected


def test_a_relinked_child_remembers_its_new_parents_time(family: Family) -> None:
    c = relinked(family)
    header = parse(c).header
    assert header is not None
    written = int((family.folder / "base.vhd").stat().st_mtime) - 946_684_800
    assert abs(header.parent_timestamp - written) <= 1
    with vhdkit.open_chain(str(c)) as chain:
        assert not [found for found in chain.findings if "time" in found.corruption]


def test_every_child_of_the_topmost_source_is_relinked(family: Family) -> None:
    c, b, base = chain_of_three(family)
    others = [family.child("d.avhd", b, 4), family.child("below/e.avhd", b, 5)]
    views = {path: family.view(path, b, base) for path in (c, *others)}
    result = merged(b, base)
    assert set(result.relinked) == {str(path) for path in views}
    assert {path: view(path) for path in others[:1]} == {path: views[path] for path in others[:1]}
    assert {path: family.view(path, base) for path in views} == views
    assert texts(family.folder / "below" / "e.avhd")[b"W2ru"] == "..\\base.vhd"


def test_a_path_across_folders_is_relative_to_the_child(tmp_path: Path) -> None:
    family = Family(tmp_path)
    base = family.base("disks/base.vhd")
    b = family.child("snaps/b.avhd", base, 2)
    c = family.child("snaps/c.avhd", b, 3)
    expected = family.view(c, b, base)
    merged(b, base, search=[tmp_path])
    assert texts(c) == {b"W2ku": "C:\\disks\\base.vhd", b"W2ru": "..\\disks\\base.vhd"}
    with vhdkit.open_chain(str(c), search=[str(tmp_path)]) as chain:
        assert chain.read(0, chain.size) == expected


@pytest.mark.skipif(shutil.which("7zz") is None, reason="7zz is not installed")
@pytest.mark.parametrize("codes", [(b"W2ru",), (b"W2ku", b"W2ru"), (b"W2ku",), (b"MacX", b"W2ku", b"W2ru")])
def test_7_zip_reads_a_relinked_child_as_before(family: Family, codes: tuple[bytes, ...]) -> None:
    names = {b"W2ru": ".\\b.avhd", b"W2ku": "C:\\vms\\b.avhd", b"MacX": "file://./b.avhd"}
    c = relinked(family, locators=tuple(roomy(slot, code, names[code]) for slot, code in enumerate(codes)))
    command = ["7zz", "e", "-so", "-tvhd", str(c)]
    shown = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    assert shown == family.view(c, family.folder / "base.vhd")


# Relinking that cannot be done


def assert_nothing_written(
    family: Family, source: Path, destination: Path, error: type[vhdkit.VhdError], reason: str
) -> None:
    before = family.bytes()
    with pytest.raises(error, match=reason):
        merged(source, destination)
    assert family.bytes() == before


def test_a_relinking_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    family = Family(tmp_path / "vms")
    base = family.base("b" * 120 + ".vhd")
    b = family.child("b.avhd", base, 2)
    tight = replace(locator(1, b"W2ru", ".\\b.avhd"), room=64, space=64)
    # The next locator follows closely, so that the room is what it seems.
    follower = roomy(2, b"W2ku", "C:\\vms\\b.avhd")
    family.child("c.avhd", b, 3, locators=(tight, follower), data_alignment=SECTOR, gap=SECTOR - 64)
    assert_nothing_written(family, b, base, vhdkit.MergeError, "room for")


def test_a_locator_that_claims_the_room_of_its_neighbour_is_not_believed(tmp_path: Path) -> None:
    family = Family(tmp_path / "vms")
    base = family.base("b" * 200 + ".vhd")  # 408 bytes as W2ru
    b = family.child("b.avhd", base, 2)
    greedy = replace(locator(1, b"W2ru", ".\\b.avhd"), room=256, space=4096)
    follower = replace(locator(2, b"W2ku", "C:\\vms\\b.avhd"), room=256 + SECTOR)
    family.child("c.avhd", b, 3, locators=(greedy, follower))
    assert_nothing_written(family, b, base, vhdkit.MergeError, "room for")


def test_a_read_only_child_is_refused_before_anything_is_written(family: Family) -> None:
    c, b, base = chain_of_three(family)
    c.chmod(0o444)
    assert_nothing_written(family, b, base, vhdkit.ReadOnlyImageError, "read-only")


def test_kept_sources_and_their_relinked_children_read_as_before(family: Family) -> None:
    c, b, base = chain_of_three(family)
    views = {path: view(path) for path in (c, b)}
    result = vhdkit.merge(vhdkit.plan_merge(str(b), into=str(base), keep_sources=True))
    assert result.removed == ()
    assert {path: view(path) for path in (c, b)} == views
    assert view(base) == views[b]


class Vanishing(LocalFolder):
    """A folder where one file goes between being listed and being opened, as the sources of another merge do."""

    def __init__(self, victim: Path) -> None:
        super().__init__()
        self.victim = victim

    def open(self, path: str, *, writable: bool = False) -> Storage:
        if path == str(self.victim):
            self.victim.unlink(missing_ok=True)
        return super().open(path, writable=writable)


def test_an_image_that_goes_while_siblings_are_looked_for_is_no_obstacle(family: Family) -> None:
    source = family.child("c.avhd", family.base(), 2)
    victim = family.base("zz.vhd", 3)
    plan = vhdkit.plan_merge(str(source), folder=Vanishing(victim))
    assert not victim.exists()
    assert plan.obstacles == ()
    assert plan.relatives.unknown == ()
