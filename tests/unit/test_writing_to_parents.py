"""A parent is not written behind its children's backs: they are named, or they say so ever after."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import vhdkit
from tests.cli.running import spawn
from tests.crash.disks import Disk
from tests.crash.survivals import cuts
from tests.crashfs import CrashFolder
from tests.plainbuild import ImageSpec, build
from tests.plaincheck import validate
from tests.plainvhd import DIFFERENCING, DYNAMIC, FIXED, SECTOR, parse
from tests.unit.test_siblings import Family, chain_of_three
from vhdkit.findings import Level
from vhdkit.journal.manifest import Made
from vhdkit.vhd.open_image import open_image as open_alone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WRITERS: dict[str, Callable[..., Any]] = {"open_image": vhdkit.open_image, "open_chain": vhdkit.open_chain}


@pytest.fixture
def family(tmp_path: Path) -> Family:
    (tmp_path / "vms").mkdir()
    return Family(tmp_path / "vms")


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return WRITERS[request.param]


def write(opened: Any) -> None:
    """Write through an image or a chain that is open for writing, as its users do."""
    if isinstance(opened, vhdkit.Chain):
        opened.write(0, b"other" * 100, sync=True)
    else:
        opened.write(0, memoryview(b"o" * SECTOR), sync=True)


# The look


@pytest.mark.parametrize("name", ["kid.avhd", "below/far/kid.avhd", "../kid.avhd"])
def test_an_image_that_others_read_through_is_not_opened_for_writing(
    family: Family, writer: Callable[..., Any], name: str
) -> None:
    base = family.base()
    kids = {family.child(name, base, 2), family.child("other.avhd", base, 3)}
    before = family.bytes()
    with pytest.raises(vhdkit.SiblingsError) as caught:
        writer(str(base), writable=True)
    assert {os.path.normpath(path) for path in caught.value.siblings} == {os.path.normpath(kid) for kid in kids}
    assert all(path in str(caught.value) for path in caught.value.siblings)
    assert family.bytes() == before


def test_a_layer_between_is_not_opened_for_writing(family: Family, writer: Callable[..., Any]) -> None:
    c, b, _ = chain_of_three(family)
    with pytest.raises(vhdkit.SiblingsError) as caught:
        writer(str(b), writable=True)
    assert caught.value.siblings == (str(c),)


def test_children_behind_links_and_in_search_folders_are_found(family: Family, writer: Callable[..., Any]) -> None:
    base = family.base()
    far = family.folder.parent / "a" / "far"
    far.mkdir(parents=True)
    kid = family.child("kid.avhd", base, 2)
    moved = shutil.move(kid, far / "kid.avhd")
    writer(str(base), writable=True).close()
    with pytest.raises(vhdkit.SiblingsError):
        writer(str(base), writable=True, search=[str(far)])
    kid.symlink_to(moved)
    with pytest.raises(vhdkit.SiblingsError):
        writer(str(base), writable=True)


def test_a_leaf_is_written_as_ever(family: Family, writer: Callable[..., Any]) -> None:
    c, b, base = chain_of_three(family)
    before = {path: path.read_bytes() for path in (b, base)}
    for options in ({}, {"break_children": True}):
        with writer(str(c), writable=True, **options) as opened:
            write(opened)
    assert parse(c).unique_id == bytes([3]) * 16
    assert {path: path.read_bytes() for path in (b, base)} == before


def test_to_read_an_image_nothing_is_looked_for(family: Family, writer: Callable[..., Any]) -> None:
    base = family.base()
    family.child("kid.avhd", base, 2)
    writer(str(base)).close()
    writer(str(base), break_children=True).close()
    assert parse(base).unique_id == bytes([1]) * 16


def test_what_cannot_be_looked_into_is_said(family: Family, writer: Callable[..., Any]) -> None:
    base = family.base()
    (family.folder / "gone").symlink_to("nowhere")
    with writer(str(base), writable=True) as opened:
        assert [found.path for found in opened.findings if found.corruption == "siblings"] == [
            str(family.folder / "gone")
        ]


def test_no_child_is_made_of_what_is_held_to_be_written(family: Family) -> None:
    base = family.base()
    with vhdkit.open_chain(str(base), writable=True), pytest.raises(vhdkit.ImageInUseError):
        vhdkit.create_image(str(family.folder / "kid.avhd"), parent=str(base))


# Breaking


@dataclass(frozen=True)
class Broken:
    base: Path
    kid: Path
    grandkid: Path


@pytest.fixture(params=[DYNAMIC, FIXED, DIFFERENCING], ids=["dynamic", "fixed", "differencing"])
def broken(request: pytest.FixtureRequest, family: Family, writer: Callable[..., Any]) -> Broken:
    """A parent that was written with its children told to be broken, all within one second as far as files say."""
    root = family.base("root.vhd", ident=9)
    if request.param == DIFFERENCING:
        base = family.child("base.vhd", root, 1)
    else:
        spec = ImageSpec(disk_type=request.param, size=64 * SECTOR, block_size=8 * SECTOR, unique_id=bytes([1]) * 16)
        base = family.folder / "base.vhd"
        base.write_bytes(build(spec))
    kid = family.child("kid.avhd", base, 2)
    grandkid = family.child("grandkid.avhd", kid, 3)
    # The children remember second 1 since 2000.
    os.utime(base, (946_684_801, 946_684_801))
    with vhdkit.open_chain(str(kid)) as chain:
        assert not [found for found in chain.findings if found.level is Level.WARNING]
    with writer(str(base), writable=True, break_children=True) as opened:
        told = [found for found in opened.findings if found.corruption == "siblings"]
        assert str(kid) in told[-1].message
        write(opened)
    os.utime(base, (946_684_801, 946_684_801))
    return Broken(base, kid, grandkid)


def test_children_that_are_broken_say_so(broken: Broken) -> None:
    for child in (broken.kid, broken.grandkid):
        with pytest.raises(vhdkit.ParentMismatchError, match="lost then, unless the parent is put back") as caught:
            vhdkit.open_chain(str(child))
        # Following it, `check` would find nothing wrong with data that have changed.
        assert "rebase" not in str(caught.value)
        report = vhdkit.check(str(child), chain=True)
        assert report.exit_code != 0
        assert "parent-id-differs" in {found.corruption for found in report.findings}
        for verb in (["chain"], ["check", "--chain"]):
            done = spawn(*verb, child.name, cwd=child.parent)
            assert done.code != 0
            assert "id" in done.out + done.err


def test_a_parent_whose_children_were_broken_is_whole(broken: Broken) -> None:
    assert parse(broken.base).unique_id not in {bytes([1]) * 16, bytes(16)}
    assert not [found for found in vhdkit.check(str(broken.base)).findings if found.level is Level.ERROR]
    assert validate(broken.base) == []
    assert [path.name for path in broken.base.parent.iterdir() if "vhdkit" in path.name] == []
    # Nothing reads through it any longer.
    vhdkit.open_image(str(broken.base), writable=True).close()


def test_broken_children_are_read_and_joined_again_by_who_says_so(broken: Broken) -> None:
    with vhdkit.open_chain(str(broken.grandkid), accept_id_mismatch=True) as chain:
        assert len(chain.layers) >= 3
        assert "parent-id-differs" in {found.corruption for found in chain.findings}
    vhdkit.rebase(str(broken.kid), str(broken.base), ignore_id_mismatch=True)
    vhdkit.open_chain(str(broken.grandkid)).close()


def test_children_that_are_read_are_not_broken_meanwhile(family: Family, writer: Callable[..., Any]) -> None:
    base = family.base()
    kid = family.child("kid.avhd", base, 2)
    before = base.read_bytes()
    with vhdkit.open_chain(str(kid)), pytest.raises(vhdkit.ImageInUseError):
        writer(str(base), writable=True, break_children=True)
    assert base.read_bytes() == before


def test_children_of_an_unfinished_merge_are_not_broken(family: Family, writer: Callable[..., Any]) -> None:
    c, _, base = chain_of_three(family)
    undo = str(family.folder / "u.vhd")
    vhdkit.merge(vhdkit.plan_merge(str(c), into=str(base), undo=undo))
    before = family.bytes()
    with pytest.raises(vhdkit.SiblingsError) as caught:
        writer(str(base), writable=True)
    assert undo in caught.value.siblings
    with pytest.raises(vhdkit.JournalError):
        writer(str(base), writable=True, break_children=True)
    assert family.bytes() == before


def test_children_of_a_machines_layer_are_not_broken(family: Family, writer: Callable[..., Any]) -> None:
    base = family.base()
    machine = vhdkit.Machine.adopt([str(base)])
    machine.take("s")
    active = machine.active[0]
    stray = family.folder / "stray.avhd"
    vhdkit.create_image(str(stray), parent=active)
    with pytest.raises(vhdkit.SiblingsError):
        writer(active, writable=True)
    before = family.bytes()
    with pytest.raises(vhdkit.ReadOnlyImageError, match="known by its id"):
        writer(active, writable=True, break_children=True)
    assert family.bytes() == before


@pytest.mark.parametrize("is_written", [False, True], ids=["empty", "with data"])
def test_a_layer_that_was_begun_over_the_active_one_counts_once_it_holds_something(
    family: Family, writer: Callable[..., Any], *, is_written: bool
) -> None:
    base = family.base()
    machine = vhdkit.Machine.adopt([str(base)])
    left = family.folder / "base_left.avhd"
    vhdkit.create_image(str(left), parent=str(base))
    begun = (Made(path=left.name, unique_id=parse(left).unique_id.hex()),)
    machine.file.write(msgspec.structs.replace(machine.manifest, begun=begun))
    if is_written:
        with vhdkit.open_chain(str(left), writable=True) as chain:
            write(chain)
        with pytest.raises(vhdkit.SiblingsError):
            writer(str(base), writable=True)
    else:
        with writer(str(base), writable=True) as opened:
            write(opened)


# Power cuts


BASE, KID = "/vms/base.vhd", "/vms/kid.avhd"


@pytest.mark.parametrize("disk_type", ["dynamic", "fixed"])
def test_a_cut_while_the_id_changes_leaves_one_id_or_the_other(disk_type: Any) -> None:
    folder = CrashFolder({})
    vhdkit.create_image(BASE, size=16384, disk_type=disk_type, unique_id=b"b" * 16, stamp=7, folder=folder)
    vhdkit.create_image(KID, parent=BASE, stamp=8, folder=folder)
    folder = Disk.of(folder).folder()
    vhdkit.open_image(BASE, writable=True, break_children=True, folder=folder).close()
    seen = set()
    for cut in cuts(folder):
        for survival in cut.survivals(seed=1):
            left = survival.folder()
            findings = vhdkit.check(BASE, folder=left).findings
            assert not [found for found in findings if found.level is Level.ERROR], survival.label
            with open_alone(BASE, folder=left) as image:
                seen.add(image.unique_id == b"b" * 16)
                is_old = image.unique_id == b"b" * 16
            try:
                vhdkit.open_chain(KID, folder=left).close()
            except vhdkit.ParentMismatchError:
                assert not is_old
            else:
                assert is_old
            with open_alone(BASE, writable=True, exclusive=True, folder=left) as image:
                assert (image.unique_id == b"b" * 16) is is_old
            assert {path for path in left.contents() if "vhdkit" in path} == set() or is_old
    assert seen == {True, False}
