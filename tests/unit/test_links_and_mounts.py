"""Siblings and children are found where they are: behind symbolic links, and on file systems mounted below."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.unit.test_siblings import Family, assert_refused_for, chain_of_three, merged, view
from vhdkit.chain.catalog import read_catalog
from vhdkit.chain.siblings import Relatives
from vhdkit.storage import directory_walk, mounts
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.memory import MemoryFolder
from vhdkit.storage.protocols import Reach

if TYPE_CHECKING:
    from collections.abc import Iterator

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def family(tmp_path: Path) -> Family:
    (tmp_path / "vms").mkdir()
    (tmp_path / "big").mkdir()
    return Family(tmp_path / "vms")


@pytest.fixture
def mounted(family: Family) -> Iterator[Path]:
    """A file system of its own, mounted in the folder of the chain."""
    place = family.folder / "ssd"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or not IS_ROOT:
        pytest.skip("only root mounts")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=8m", "none", place], check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.decode()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def moved(path: Path, to: Path) -> Path:
    """Move an image elsewhere and leave a link behind, as people do when a disk gets full; return where it is."""
    shutil.move(path, to)
    path.symlink_to(os.path.relpath(to / path.name, path.parent))
    return to / path.name


def plan(family: Family, source: str = "c.avhd") -> vhdkit.MergePlan:
    return vhdkit.plan_merge(str(family.folder / source), into=str(family.folder / "base.vhd"))


def warnings(found: vhdkit.MergePlan) -> dict[str, str]:
    return {finding.path: finding.message for finding in found.findings if finding.corruption == "siblings"}


# Links


@pytest.mark.parametrize("of", ["base", "b"])
def test_a_sibling_behind_a_link_to_a_file_stops_the_merge(family: Family, of: str) -> None:
    _, b, base = chain_of_three(family)
    sibling = family.child("sib.avhd", {"base": base, "b": b}[of], 4)
    assert_refused_for(family, {moved(sibling, family.folder.parent / "big")})


def test_a_sibling_behind_a_link_to_a_folder_stops_the_merge(family: Family) -> None:
    _, _, base = chain_of_three(family)
    sibling = family.child("sub/below/sib.avhd", base, 4)
    assert moved(family.folder / "sub", family.folder.parent / "big").is_dir()
    assert_refused_for(family, {family.folder.parent / "big" / "sub" / "below" / sibling.name})


def test_a_sibling_behind_links_to_links_stops_the_merge(family: Family) -> None:
    _, _, base = chain_of_three(family)
    big, other = family.folder.parent / "big", family.folder.parent / "other"
    other.mkdir()
    sibling = moved(family.child("sib.avhd", base, 4), other)
    (big / "more").symlink_to(other)
    (family.folder / "sib.avhd").unlink()
    (family.folder / "far").symlink_to(big)
    assert_refused_for(family, {sibling})


def test_a_link_in_a_search_folder_is_looked_through(family: Family, tmp_path: Path) -> None:
    _, _, base = chain_of_three(family)
    elsewhere = tmp_path / "deep" / "elsewhere"
    elsewhere.mkdir(parents=True)
    sibling = moved(family.child("sib.avhd", base, 4), tmp_path / "big")
    (family.folder / "sib.avhd").rename(elsewhere / "sib.avhd")
    (elsewhere / "sib.avhd").unlink()
    (elsewhere / "sib.avhd").symlink_to(sibling)
    assert_refused_for(family, {sibling}, search=[elsewhere])


def test_a_child_behind_a_link_is_relinked_where_it_is(family: Family) -> None:
    c, b, base = chain_of_three(family)
    kid = moved(family.child("kid.avhd", b, 5), family.folder.parent / "big")
    expected = {path: family.view(path, b, base) for path in (c, kid)}
    assert set(merged(b, base).relinked) == {str(c), str(kid)}
    assert {path: family.view(path, base) for path in (c, kid)} == expected
    assert (family.folder / "kid.avhd").is_symlink()
    with vhdkit.open_chain(str(kid), search=[str(family.folder)]) as chain:
        assert chain.read(0, chain.size) == expected[kid]


def test_a_link_to_a_source_itself_is_no_sibling(family: Family) -> None:
    c, b, base = chain_of_three(family)
    expected = view(c)
    (family.folder / "latest.avhd").symlink_to(c.name)
    (family.folder / "b-again.avhd").symlink_to(b)
    merged(c, base)
    assert view(base) == expected


def test_links_that_go_round_end(family: Family) -> None:
    c, _, base = chain_of_three(family)
    expected = view(c)
    (family.folder / "round").symlink_to(family.folder)
    (family.folder.parent / "big" / "back").symlink_to(family.folder.parent)
    (family.folder / "big").symlink_to(family.folder.parent / "big")
    assert plan(family).obstacles == ()
    assert set(warnings(plan(family))) == set()
    merged(c, base)
    assert view(base) == expected


def test_each_directory_is_listed_once_whatever_leads_to_it(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / "big" / f"d{number}").mkdir(parents=True)
        (tmp_path / "big" / f"d{number}" / "file").write_bytes(b"x" * 600)
        (tmp_path / "vms").mkdir(exist_ok=True)
        (tmp_path / "vms" / f"to{number}").symlink_to(tmp_path / "big")
        (tmp_path / "big" / f"d{number}" / "up").symlink_to(tmp_path)
    reach = Reach()
    found = [entry.path for entry in LocalFolder().walk(str(tmp_path / "vms"), reach=reach)]
    assert sorted(found) == sorted(str(tmp_path / "big" / f"d{number}" / "file") for number in range(20))


# What cannot be looked into


@pytest.mark.parametrize("target", ["nowhere/gone.avhd", "dangling.avhd"], ids=["gone", "itself"])
def test_a_link_that_leads_nowhere_is_warned_of(family: Family, target: str) -> None:
    c, _, base = chain_of_three(family)
    expected = view(c)
    link = family.folder / "dangling.avhd"
    link.symlink_to(target)
    found = plan(family)
    assert found.obstacles == ()
    assert set(warnings(found)) == {str(link)}
    vhdkit.merge(found)
    assert view(base) == expected


def test_of_dangling_links_just_above_those_count_that_are_called_as_images(family: Family, tmp_path: Path) -> None:
    chain_of_three(family)
    (tmp_path / "current").symlink_to("gone")
    (tmp_path / "moved.avhd").symlink_to("gone")
    assert set(warnings(plan(family))) == {str(tmp_path / "moved.avhd")}


def test_beyond_the_bound_of_entries_a_warning_names_the_folder(family: Family, monkeypatch: Any) -> None:
    chain_of_three(family)
    big = family.folder.parent / "big"
    for number in range(30):
        (big / f"{number}.txt").write_bytes(b"")
    (family.folder / "far").symlink_to(big)
    monkeypatch.setattr("vhdkit.chain.siblings.Reach", lambda: Reach(entries=10))
    assert set(warnings(plan(family))) == {str(big)}


def test_the_bound_of_entries_holds_for_links_to_files(family: Family, monkeypatch: Any) -> None:
    chain_of_three(family)
    big = family.folder.parent / "big"
    for number in range(30):
        (big / f"{number}.txt").write_bytes(b"")
        (family.folder / f"{number:02}.txt").symlink_to(big / f"{number}.txt")
    monkeypatch.setattr("vhdkit.chain.siblings.Reach", lambda: Reach(entries=28))
    assert set(warnings(plan(family))) == {str(family.folder / "28.txt"), str(family.folder / "29.txt")}


def test_beyond_the_bound_of_seconds_a_warning_names_the_folder(family: Family, monkeypatch: Any) -> None:
    chain_of_three(family)
    link = family.folder / "far"
    link.symlink_to(family.folder.parent / "big")
    monkeypatch.setattr("vhdkit.chain.siblings.Reach", lambda: Reach(seconds=0.0))
    assert set(warnings(plan(family))) == {str(link)}


def test_what_lies_in_the_folders_themselves_is_found_whatever_the_bound(family: Family, monkeypatch: Any) -> None:
    _, _, base = chain_of_three(family)
    (family.folder / "0").symlink_to(family.folder.parent / "big")
    sibling = family.child("z/y/sib.avhd", base, 4)
    monkeypatch.setattr("vhdkit.chain.siblings.Reach", lambda: Reach(entries=0, seconds=0.0))
    assert_refused_for(family, {sibling})


def test_a_folder_of_a_hundred_thousand_names_behind_a_link_is_not_kept_whole(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "vms").mkdir()
    (tmp_path / "big").mkdir()
    for number in range(200):
        (tmp_path / "big" / f"{number:03}").write_bytes(b"")
    (tmp_path / "vms" / "far").symlink_to(tmp_path / "big")
    kept: list[int] = []

    def noted(listing: Any, most: int | None) -> Any:
        kept.extend([] if most is None else [most])
        return islice(listing, most)

    monkeypatch.setattr(directory_walk, "islice", noted)
    reach = Reach(entries=50)
    assert len(list(LocalFolder().walk(str(tmp_path / "vms"), reach=reach))) == 50
    assert kept == [51]
    assert set(reach.unseen) == {str(tmp_path / "big")}


@pytest.mark.parametrize("later", [0, 200])
def test_a_later_search_that_is_cut_at_another_place_is_no_reason_to_refuse(
    family: Family, monkeypatch: Any, later: int
) -> None:
    c, _, base = chain_of_three(family)
    child = moved(family.child("x.avhd", c, 4), family.folder.parent / "big")
    expected = view(c)
    entries = iter([100, *[later] * 10])
    monkeypatch.setattr("vhdkit.chain.siblings.Reach", lambda: Reach(entries=next(entries)))
    found = plan(family)
    assert [relink.child for relink in found.relinks] == [str(child)]
    vhdkit.merge(found)
    assert view(base) == expected


def test_a_child_that_a_later_search_finds_is_a_reason_to_refuse(family: Family, monkeypatch: Any) -> None:
    _, _, base = chain_of_three(family)
    sibling = moved(family.child("x.avhd", base, 4), family.folder.parent / "big")
    entries = iter([0, 100, 100])
    monkeypatch.setattr("vhdkit.chain.siblings.Reach", lambda: Reach(entries=next(entries)))
    found = plan(family)
    assert (found.obstacles, sibling.exists()) == ((), True)
    with pytest.raises(vhdkit.MergeError, match="came or went"):
        vhdkit.merge(found)


def test_a_relative_that_has_gone_is_told_from_one_that_was_not_reached() -> None:
    folder = MemoryFolder({"/vms/a.avhd": b""})
    finding = vhdkit.Finding(corruption=vhdkit.Corruption.SIBLINGS, path="/far", message="not looked at")
    then = Relatives(of_sources=("/vms/a.avhd",))
    assert then.differ(Relatives(), folder)
    assert not then.differ(Relatives(findings=(finding,)), folder)
    assert then.differ(Relatives(of_destination=("/vms/a.avhd",), findings=(finding,)), folder)
    assert not then.differ(then, folder)
    folder.remove("/vms/a.avhd")
    assert then.differ(Relatives(findings=(finding,)), folder)


@pytest.mark.skipif(IS_ROOT and shutil.which("setpriv") is None, reason="root reads every folder")
@pytest.mark.parametrize("mode", [0o000, 0o444], ids=["closed", "not to be entered"])
def test_a_folder_that_may_not_be_read_is_named(family: Family, mode: int) -> None:
    chain_of_three(family)
    closed = family.folder / "closed"
    closed.mkdir()
    (closed / "sib.avhd").write_bytes(b"x" * 512)
    closed.chmod(mode)
    command = ["vhdkit", "merge", str(family.folder / "c.avhd"), "--into", str(family.folder / "base.vhd"), "--dry-run"]
    done = as_owner_only(command)
    assert str(closed) in done.stdout + done.stderr
    assert done.returncode == 1


def as_owner_only(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the command line without root's right to pass by the modes of files."""
    import sys  # noqa: PLC0415 - the interpreter that runs the tests

    run = [sys.executable, "-m", *command]
    if IS_ROOT:
        # Another user may not be able to enter the checkout; the owner without capabilities is.
        run = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *run]
    root = Path(vhdkit.__file__).parents[1]
    return subprocess.run(run, check=False, capture_output=True, text=True, cwd=root, timeout=120)


# Mounts


def test_a_sibling_on_a_file_system_mounted_below_stops_the_merge(family: Family, mounted: Path) -> None:
    _, _, base = chain_of_three(family)
    assert_refused_for(family, {family.child(f"{mounted.name}/sib.avhd", base, 4)})


def test_a_child_on_a_file_system_mounted_below_is_relinked(family: Family, mounted: Path) -> None:
    c, b, base = chain_of_three(family)
    kid = family.child(f"{mounted.name}/deep/kid.avhd", b, 5)
    expected = {path: family.view(path, b, base) for path in (c, kid)}
    assert set(merged(b, base).relinked) == {str(c), str(kid)}
    assert {path: family.view(path, base) for path in (c, kid)} == expected


def test_what_the_kernel_makes_up_is_not_read(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "kcore").write_bytes(b"x" * 600)
    monkeypatch.setattr(mounts, "mount_types", lambda: {str(tmp_path / "proc"): "proc"})
    reach = Reach()
    assert list(LocalFolder().walk(str(tmp_path), reach=reach)) == []
    assert reach.unseen == {}


def test_a_mount_that_does_not_answer_is_left_and_named(family: Family, monkeypatch: Any) -> None:
    chain_of_three(family)
    dead, never = family.folder / "nfs", threading.Event()
    dead.mkdir()
    real = os.stat

    def hanging(path: Any, **options: Any) -> os.stat_result:
        if str(path) == str(dead):
            never.wait()
        return real(path, **options)

    monkeypatch.setattr(mounts, "mount_types", lambda: {str(dead): "nfs4"})
    monkeypatch.setattr(directory_walk, "_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(os, "stat", hanging)
    begun = time.monotonic()
    try:
        found = warnings(plan(family))
    finally:
        never.set()
    assert set(found) == {str(dead)}
    assert "no answer" in found[str(dead)]
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(107, "Transport endpoint not connected")])
def test_a_mount_that_has_died_is_named(family: Family, monkeypatch: Any, error: OSError) -> None:
    chain_of_three(family)
    dead = family.folder / "gone"
    dead.mkdir()
    real = os.stat

    def dying(path: Any, **options: Any) -> os.stat_result:
        if str(path) == str(dead):
            raise error
        return real(path, **options)

    monkeypatch.setattr(os, "stat", dying)
    assert set(warnings(plan(family))) == {str(dead)}


def test_mount_points_are_read_with_their_odd_names() -> None:
    assert mounts.mount_types().get("/proc", "proc") == "proc"
    kinds = {"nfs": True, "nfs4": True, "fuse.sshfs": True, "cifs": True, "ext4": False, "fuseblk": False, "xfs": False}
    assert {kind: mounts.may_hang(kind) for kind in kinds} == kinds


# Depth


@pytest.fixture
def deep(family: Family) -> Iterator[Path]:
    """A folder below the chain's as deep as a path can name."""
    path = str(family.folder)
    while len(path) < 3900:
        path += "/d"
        os.mkdir(path)
    yield Path(path)
    # Python's own way of removing a tree calls itself for each level, and pytest's is Python's.
    subprocess.run(["rm", "-rf", family.folder / "d"], check=True)


def test_folders_as_deep_as_paths_can_be_are_searched(family: Family, deep: Path) -> None:
    _, _, base = chain_of_three(family)
    sibling = deep / "s.avhd"
    sibling.write_bytes(family.child("s.avhd", base, 4).read_bytes())
    (family.folder / "s.avhd").unlink()
    assert str(sibling) in read_catalog(LocalFolder(), [str(family.folder)]).images
    assert str(sibling) in {child.path for child in vhdkit.scan(str(family.folder)).bases[0].children}
    with pytest.raises(vhdkit.SiblingsError) as caught:
        merged(family.folder / "c.avhd", base)
    assert caught.value.siblings == (str(sibling),)
