"""Beginning with what is there: disks, chains and trees, and manifests that were lost, stale or damaged."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.cli.running import environment
from tests.snapshots.machines import SIZE, Kept, advised, contents, letter_of
from tests.typed import as_typed
from vhdkit.errors import ImageInUseError, SnapshotError
from vhdkit.journal.claims import claims_on
from vhdkit.snapshot.machine import Machine
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.search_scope import SearchScope

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.storage.protocols import Storage

MANIFEST = "xp.vhdkit-snapshots.json"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(*links: tuple[str, str]) -> None:
    """Make a base if there is none, and children: (child, parent); each shows the first letter of its own name."""
    for child, parent in links:
        if not Path(parent).exists():
            image(parent)
        image(child, parent)


def image(path: str, parent: str | None = None) -> None:
    stamp = 1000 + len(list(Path.cwd().iterdir()))
    vhdkit.create_image(path, size=None if parent else SIZE, parent=parent, stamp=stamp)
    with vhdkit.open_chain(path, writable=True) as chain:
        chain.write(0, Path(path).stem[-1].encode() * 4096, sync=True)


def shown(machine: Machine) -> dict[str, str]:
    return {each.name: letter_of(machine.layers_of(each.name)[0]) for each in machine.snapshots}


def test_a_chain_becomes_snapshots_named_for_their_files(folder: Path) -> None:
    tree(("xp_a.avhd", "xp.vhd"), ("xp_b.avhd", "xp_a.avhd"))
    machine = Machine.adopt(["xp.vhd"], machine="old xp")
    assert machine.name == "old xp"
    assert [each.name for each in machine.snapshots] == ["xp", "xp_a"]
    assert machine.active == (str(folder / "xp_b.avhd"),)
    first, second = machine.snapshots
    assert (first.parent, second.parent, machine.manifest.now) == (None, first.id, second.id)
    assert machine.check() == ()
    machine.delete("xp")
    machine.delete("xp_a")
    machine.settle()
    assert sorted(path.name for path in folder.glob("*vhd")) == ["xp.vhd"]
    assert letter_of("xp.vhd") == "b"


def test_in_a_tree_the_active_leaf_has_to_be_named(folder: Path) -> None:
    tree(("xp_a.avhd", "xp.vhd"), ("xp_b.avhd", "xp.vhd"), ("xp_c.avhd", "xp_a.avhd"))
    before = contents(folder)
    with pytest.raises(SnapshotError, match=r"2 images read through it.*xp_b\.avhd.*xp_c\.avhd|xp_c.*xp_b"):
        Machine.adopt(["xp.vhd"])
    assert contents(folder) == before
    machine = Machine.adopt(["xp_b.avhd"])
    assert machine.active == (str(folder / "xp_b.avhd"),)
    assert shown(machine) == {"xp": "p", "xp_a": "a", "xp_c": "c"}
    machine.apply("xp_c")
    assert letter_of(machine.active[0]) == "c"


def test_a_leaf_names_its_machine_wherever_new_layers_are_made(folder: Path) -> None:
    (folder / "snapshots").mkdir()
    image("xp.vhd")
    machine = Machine.adopt(["xp.vhd"], directory="snapshots")
    machine.take("a")
    with machine.open_chain("a") as chain:
        assert chain.read(0, 1) == b"p"
    with machine.open_chain(writable=True) as chain:
        chain.write(0, b"q", sync=True)
    (made,) = (folder / "snapshots").glob("*.avhd")
    assert machine.active == (str(made),)
    assert Machine(str(made)).file.path == str(folder / MANIFEST)
    assert Machine("xp.vhd").file.path == str(folder / MANIFEST)
    assert Machine(MANIFEST).active == (str(made),)
    assert machine.check() == ()
    machine.take("b")
    machine.apply("a")
    machine.apply("b")
    assert machine.make_way() == ()
    machine.delete("a")
    machine.delete("b")
    machine.settle()
    # New layers are made there: the signpost stays.
    assert [path.suffix for path in (folder / "snapshots").iterdir()] == [".at"]
    assert letter_of("xp.vhd") == "q"


@pytest.fixture
def apart(folder: Path) -> Machine:
    """A machine whose two disks and new layers lie in three folders, with a snapshot A."""
    for name in ("c", "d", "fast"):
        (folder / name).mkdir()
    for name in ("c/c.vhd", "d/d.vhd"):
        image(name)
    machine = Machine.adopt(["c/c.vhd", "d/d.vhd"], directory="fast")
    machine.take("A", note="the first")
    return machine


def files_of(machine: Machine) -> list[str]:
    manifest = machine.manifest
    return [machine.file.absolute(layer.path) for disk in manifest.disks for layer in disk.layers]


def test_any_file_names_a_machine_that_lies_in_several_folders(apart: Machine, folder: Path) -> None:
    assert {str(Path(path).parent) for path in files_of(apart)} == {str(folder / name) for name in ("c", "d", "fast")}
    for path in files_of(apart):
        assert Machine(path).file.path == apart.file.path
    # Not even a chain that cannot be opened hides it.
    (folder / "d" / "d.vhd").rename(folder / "d" / "moved.vhd")
    assert Machine(apart.active[1]).file.path == apart.file.path


def test_signposts_lead_to_the_machine_that_was_copied_with_them(apart: Machine, folder: Path) -> None:
    copy = folder / "copy"
    copy.mkdir()
    for name in ("c", "d", "fast"):
        shutil.copytree(folder / name, copy / name)
    for path in files_of(apart):
        theirs = str(copy / Path(path).relative_to(folder))
        assert Machine(theirs).file.path == str(copy / "c" / "c.vhdkit-snapshots.json")
    # Alone, a disk is of no machine: the one that it was copied from does not tell of it.
    shutil.copytree(folder / "d", folder / "alone" / "d")
    with pytest.raises(SnapshotError, match=r"Machine\.adopt"):
        Machine(str(folder / "alone" / "d" / "d.vhd"))


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"x" * (1 << 20), b'{"kind": "vhdkit snapshots elsewhere"}'])
def test_a_signpost_that_was_damaged_is_put_up_again(apart: Machine, folder: Path, raw: bytes) -> None:
    (signpost,) = (folder / "d").glob("*.at")
    before = signpost.read_bytes()
    signpost.write_bytes(raw)
    with pytest.raises(SnapshotError, match=r"Machine\.adopt"):
        Machine("d/d.vhd")
    with pytest.raises(SnapshotError, match="no signpost there leads back") as refused:
        Machine("c/c.vhd").rename("A", "B")
    (command,) = re.findall("`vhdkit snapshot init (.*?)`", as_typed(refused.value))
    disk, option, where = shlex.split(command)
    assert (option, where) == ("--search", str(folder / "d"))
    Machine.adopt([disk], search=[where])
    assert signpost.read_bytes() == before
    Machine("c/c.vhd").rename("A", "B")
    assert Machine("d/d.vhd").file.path == apart.file.path


def test_a_machine_claims_its_layers_wherever_they_are_and_what_is_asked_with_a_search(
    apart: Machine, folder: Path
) -> None:
    for path in files_of(apart):
        (claim,) = claims_on(SearchScope(LocalFolder()), [path])
        assert (claim.path, claim.manifest_path, claim.manifest.machine) == (path, apart.file.path, "c")
    (folder / "far").mkdir()
    stray = str(folder / "far" / "stray.vhd")
    assert claims_on(SearchScope(LocalFolder(), (str(folder),)), [stray, files_of(apart)[0]])
    assert claims_on(SearchScope(LocalFolder(), (str(folder / "c"),)), [stray]) == ()


def test_a_signpost_that_leads_nowhere_is_told_of(apart: Machine, folder: Path) -> None:
    assert apart.check() == ()
    for path in (folder / "c").glob("*.json"):
        path.unlink()
    machine = Machine.adopt(["c/c.vhd", "d/d.vhd"], search=["fast"])
    assert machine.check() == ()
    assert len([*folder.rglob("*.at")]) == 2
    old = folder / "d" / "gone.vhdkit-snapshots.at"
    old.write_bytes(next((folder / "d").glob("*.at")).read_bytes().replace(b"c.vhdkit", b"gone.vhdkit"))
    (remark,) = machine.check()
    assert (remark.kind, remark.path) == ("left over", str(old))


def test_a_signpost_goes_when_nothing_of_the_machine_is_left_in_its_folder(apart: Machine, folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    apart.take("B", directory=str(folder / "elsewhere"))
    assert list((folder / "elsewhere").glob("*.at"))
    apart.apply("A")
    apart.delete("B")
    assert list((folder / "elsewhere").iterdir()) == []
    apart.delete("A")
    apart.settle()
    # New layers are made there: its signpost stays.
    assert [path.suffix for path in (folder / "fast").iterdir()] == [".at"]
    assert Machine("d/d.vhd").file.path == apart.file.path


def test_a_machine_with_a_disk_in_a_folder_that_takes_no_signpost_is_not_begun(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers in other folders count only where a signpost leads back."""
    for name in ("c", "d"):
        (folder / name).mkdir()
        image(f"{name}/{name}.vhd")

    def full(directory: LocalFolder, path: str, *, private: bool = False) -> Storage:
        if ".at." in path:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return create(directory, path, private=private)

    create = LocalFolder.create
    monkeypatch.setattr(LocalFolder, "create", full)
    with pytest.raises(OSError, match="No space left") as refused:
        Machine.adopt(["c/c.vhd", "d/d.vhd"])
    assert str(folder / "d") in str(refused.value.filename)
    assert [path.name for path in folder.rglob("*.json")] == []
    assert [path.name for path in (folder / "d").iterdir()] == ["d.vhd"]


@pytest.mark.parametrize("named", [["d/d.vhd"], ["d/d.vhd", "c/c.vhd"], ["c/c.vhd"], ["fast/c"], ["fast/d", "fast/c"]])
def test_init_with_any_disks_of_a_known_machine_is_about_that_machine(
    apart: Machine, folder: Path, named: list[str]
) -> None:
    apart.take("B")
    before = apart.manifest
    active = {path.rpartition("/")[2][0]: path for path in apart.active}
    machine = Machine.adopt([active[name[5]] if name.startswith("fast/") else name for name in named])
    assert machine.file.path == apart.file.path
    assert machine.manifest == before
    assert [path.name for path in folder.rglob("*.json")] == ["c.vhdkit-snapshots.json"]
    assert machine.check() == ()


def test_init_after_a_disk_was_lost_goes_on_with_the_others_and_keeps_the_names(apart: Machine, folder: Path) -> None:
    for path in files_of(apart)[2:]:
        Path(path).unlink()
    machine = Machine.adopt(["c/c.vhd"])
    (kept,) = machine.snapshots
    assert (kept.name, kept.note, len(kept.layers)) == ("A", "the first", 1)
    assert machine.check() == ()
    assert folder.is_dir()


def test_a_disk_can_be_added_to_a_machine_whose_trees_it_fits(apart: Machine, folder: Path) -> None:
    image("e.vhd")
    before = contents(folder / "c")
    with pytest.raises(SnapshotError, match="trees of the disks differ"):
        Machine.adopt(["c/c.vhd", "e.vhd"])
    assert contents(folder / "c") == before
    vhdkit.create_image("e_1.avhd", parent="e.vhd")
    machine = Machine.adopt(["c/c.vhd", "e.vhd"])
    assert machine.file.path == apart.file.path
    (kept,) = machine.snapshots
    assert (kept.name, len(kept.layers)) == ("A", 3)
    assert machine.check() == ()


def branched(folder: Path, *bases: str) -> Machine:
    """A machine with three branches above its first snapshot, all made at once: each shows its own letter."""
    for base in bases:
        image(base)
    machine = Machine.adopt(list(bases))
    machine.take("0")
    for letter in "abc":
        for path in machine.active:
            with vhdkit.open_chain(path, writable=True) as chain:
                chain.write(0, letter.encode() * 512, sync=True)
        machine.take(letter)
        machine.apply("0")
    assert folder.is_dir()
    return machine


def test_branches_of_one_second_are_paired_as_they_were_taken(folder: Path) -> None:
    machine = branched(folder, "c.vhd", "d.vhd")
    actives = machine.active
    Path(machine.file.path).unlink()
    machine = Machine.adopt(actives)
    for each in machine.snapshots:
        assert len({letter_of(path) for path in machine.layers_of(each.name)}) == 1 or each.parent is None
    assert len(machine.snapshots) == 4
    assert machine.active == actives


def test_branches_of_one_second_that_cannot_be_paired_are_refused(folder: Path) -> None:
    for name in ("c", "d"):
        vhdkit.create_image(f"{name}.vhd", size=SIZE)
        for number in range(3):
            vhdkit.create_image(f"{name}_{number}.avhd", parent=f"{name}.vhd", stamp=1000 + number // 2)
    before = contents(folder)
    with pytest.raises(SnapshotError, match="in one second"):
        Machine.adopt(["c_2.avhd", "d_2.avhd"])
    assert contents(folder) == before
    # One disk alone needs no pairs.
    assert len(Machine.adopt(["c_2.avhd"]).snapshots) == 3


def test_leaves_that_were_not_made_together_are_no_machines_present(folder: Path) -> None:
    machine = branched(folder, "c.vhd", "d.vhd")
    actives = machine.active
    Path(machine.file.path).unlink()
    other = next(path for path in machine.file.folder.names(str(folder)) if path.startswith("d_"))
    assert other
    strays = [path for path in map(str, folder.glob("d_*.avhd")) if path != actives[1]]
    with pytest.raises(SnapshotError, match="not made together"):
        Machine.adopt([actives[0], strays[0]])


@pytest.mark.parametrize("which", ["base", "branch", "active"])
def test_init_of_a_known_machine_goes_on_with_what_it_writes_to(folder: Path, which: str) -> None:
    machine = branched(folder, "c.vhd", "d.vhd")
    before = machine.manifest
    named = {"base": ["c.vhd", "d.vhd"], "branch": list(machine.layers_of("b")), "active": list(machine.active)}
    assert Machine.adopt(named[which]).manifest == before
    assert machine.check() == ()


def test_init_lets_what_was_deleted_rest(kept: Kept) -> None:
    filled(kept)
    kept.machine.delete("SP1")
    owed = kept.machine.owed()
    assert owed.merges
    machine = Machine.adopt([kept.base])
    assert [each.name for each in machine.snapshots] == ["RTM"]
    assert machine.owed() == owed
    machine.settle()
    assert kept.all_shown() == {"RTM": "r", "now": "2"}


def test_a_copy_without_its_layers_changes_nothing_of_the_machine_that_was_copied(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "layers").mkdir()
    image("a/xp.vhd")
    machine = Machine.adopt(["a/xp.vhd"], directory="layers")
    machine.take("RTM")
    machine.take("SP1")
    shutil.copytree(folder / "a", folder / "b")
    before = contents(folder / "layers")
    copy = Machine("b/xp.vhdkit-snapshots.json")
    for operation in (
        lambda: copy.apply("RTM"),
        lambda: copy.delete("RTM"),
        lambda: copy.take("x"),
        copy.settle,
        copy.check,
        lambda: copy.export("RTM", "out"),
    ):
        with pytest.raises(SnapshotError, match=r"those of .*a.xp\.vhdkit-snapshots\.json"):
            operation()
    assert contents(folder / "layers") == before
    assert machine.check() == ()
    # Where the machine was moved, not copied, the signposts follow when the user names their folder.
    shutil.rmtree(folder / "b")
    (folder / "a").rename(folder / "b")
    with pytest.raises(SnapshotError, match="no signpost there leads back") as refused:
        Machine("b/xp.vhd").apply("RTM")
    assert re.search(r"snapshot init .*b/xp\.vhd --search .*layers`", as_typed(refused.value))
    moved = Machine.adopt(["b/xp.vhd"], search=["layers"])
    assert moved.apply("RTM").snapshot.name == "RTM"
    assert Machine(moved.active[0]).file.path == str(folder / "b" / MANIFEST)


def test_a_machine_whose_disk_is_called_alike_is_another_machine(kept: Kept) -> None:
    filled(kept)
    before = contents(kept.folder)
    image("xp.old")
    other = Machine.adopt(["xp.old"], machine="second")
    assert other.file.path != kept.machine.file.path
    assert {name: raw for name, raw in contents(kept.folder).items() if name in before} == before
    assert Machine("xp.old").name == "second"
    assert kept.machine.name == "xp"
    third = Path("other") / "xp.old.vhdkit-snapshots.json"
    third.parent.mkdir()
    image("xp.older")
    Path("xp.older").rename("xp.avhd")
    assert Machine.adopt(["xp.avhd"]).file.path.endswith("/xp.avhd.vhdkit-snapshots.json")


def test_a_list_of_images_that_are_all_gone_stands_in_nobodys_way(kept: Kept) -> None:
    filled(kept)
    for name in kept.images:
        Path(name).unlink()
    image("xp.vhd")
    machine = Machine.adopt(["xp.vhd"])
    assert machine.file.path == str(kept.folder / MANIFEST)
    assert machine.snapshots == ()


def test_images_of_two_machines_are_not_made_one(kept: Kept) -> None:
    filled(kept)
    other = Kept.made(kept.folder, ["yy.vhd"])
    before = contents(kept.folder)
    with pytest.raises(SnapshotError, match="of 2 machines"):
        Machine.adopt([kept.base, other.base])
    assert contents(kept.folder) == before


def test_a_leaf_that_somebody_writes_to_is_not_frozen_as_a_snapshot(folder: Path) -> None:
    tree(("vm1.avhd", "base.vhd"), ("vm2.avhd", "base.vhd"))
    before = contents(folder)
    with (
        vhdkit.open_chain("vm2.avhd", writable=True),
        pytest.raises(ImageInUseError, match=r"vm2\.avhd") as caught,
    ):
        Machine.adopt(["vm1.avhd"])
    assert "another machine" in caught.value.__notes__[0]
    assert contents(folder) == before
    assert (folder / "vm2.avhd").stat().st_mode & 0o200


def test_what_no_manifest_tells_of_is_said_to_need_init(folder: Path) -> None:
    image("xp.vhd")
    with pytest.raises(SnapshotError, match=r"Machine\.adopt") as refused:
        Machine("xp.vhd")
    assert "`vhdkit snapshot init DISK...`" in as_typed(refused.value)
    with pytest.raises(FileNotFoundError):
        Machine("nowhere.vhd")
    assert folder.is_dir()


def test_several_disks_are_taken_together_as_they_were_made(folder: Path) -> None:
    tree(("c_a.avhd", "c.vhd"), ("d_a.avhd", "d.vhd"), ("c_b.avhd", "c_a.avhd"), ("d_b.avhd", "d_a.avhd"))
    tree(("c_x.avhd", "c.vhd"), ("d_x.avhd", "d.vhd"))
    machine = Machine.adopt(["c_b.avhd", "d_b.avhd"])
    rows = {each.name: [Path(path).name for path in machine.layers_of(each.name)] for each in machine.snapshots}
    assert rows == {"c": ["c.vhd", "d.vhd"], "c_a": ["c_a.avhd", "d_a.avhd"], "c_x": ["c_x.avhd", "d_x.avhd"]}
    assert folder.is_dir()


def test_disks_whose_trees_differ_are_refused(folder: Path) -> None:
    tree(("c_a.avhd", "c.vhd"))
    image("d.vhd")
    before = contents(folder)
    with pytest.raises(SnapshotError, match="trees of the disks differ"):
        Machine.adopt(["c.vhd", "d.vhd"])
    with pytest.raises(SnapshotError, match="of one disk"):
        Machine.adopt(["c.vhd", "c_a.avhd"])
    with pytest.raises(SnapshotError, match="at least one disk"):
        Machine.adopt([])
    assert contents(folder) == before


def test_a_machine_that_runs_is_not_adopted(folder: Path) -> None:
    image("xp.vhd")
    with vhdkit.open_chain("xp.vhd", writable=True), pytest.raises(ImageInUseError):
        Machine.adopt(["xp.vhd"])
    assert not (folder / MANIFEST).exists()


def test_a_merge_that_is_not_finished_is_finished_first(folder: Path) -> None:
    tree(("xp_a.avhd", "xp.vhd"))

    def stop(state: vhdkit.Progress) -> None:
        if state.bytes_done:
            raise vhdkit.MergeCancelled("enough")

    with pytest.raises(vhdkit.MergeCancelled):
        vhdkit.merge(vhdkit.plan_merge("xp_a.avhd"), progress=stop)
    with pytest.raises(SnapshotError, match="not finished"):
        Machine.adopt(["xp.vhd"])
    assert not (folder / MANIFEST).exists()


def filled(kept: Kept) -> dict[str, str]:
    kept.take("RTM", "r")
    kept.take("SP1", "1")
    kept.write("2")
    return kept.all_shown()


def test_a_manifest_that_is_lost_is_made_anew_names_aside(kept: Kept) -> None:
    before = filled(kept)
    active = kept.machine.active
    (kept.folder / MANIFEST).unlink()
    machine = Machine.adopt([kept.base])
    assert machine.active == active
    assert sorted(shown(machine).values()) == sorted(before[name] for name in ("RTM", "SP1"))
    assert machine.check() == ()


def test_what_was_kept_with_a_snapshot_outlasts_the_manifest_and_is_told_of(kept: Kept, tmp_path: Path) -> None:
    memory = tmp_path / "memory.bin"
    memory.write_bytes(b"memory")
    state = kept.machine.take("RTM", state=[str(memory)]).state[0]
    path = kept.machine.file.absolute(state.path)
    assert kept.machine.check() == ()
    (kept.folder / MANIFEST).unlink()
    machine = Machine.adopt([kept.base])
    (remark,) = machine.check()
    assert (remark.kind, remark.path) == ("orphan", path)
    machine.settle()
    assert Path(path).read_bytes() == b"memory"


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda raw: raw[: len(raw) // 2],
    "garbage": lambda raw: os.urandom(len(raw)),
    "another kind": lambda _: b'{"kind": "something else"}',
    "a later version": lambda raw: raw.replace(b'"version": 1', b'"version": 2'),
    "a list": lambda _: b"[1, 2]",
    "deep": lambda _: b"[" * 100_000,
}


def changed(raw: bytes, **changes: Any) -> bytes:
    return json.dumps(json.loads(raw) | changes).encode()


DAMAGES |= {
    "no disks": lambda raw: changed(raw, disks=[]),
    "an unknown now": lambda raw: changed(raw, now="nothing"),
    "numbers for names": lambda raw: changed(raw, machine=7),
    "a merge of nothing": lambda raw: changed(
        raw, foldings=[{"disk": 0, "fold": {"sources": [], "destination": "xp.vhd"}}]
    ),
    "a merge of strangers": lambda raw: changed(
        raw, foldings=[{"disk": 0, "fold": {"sources": ["a"], "destination": "b"}}]
    ),
    "a merge of no disk": lambda raw: changed(
        raw, foldings=[{"disk": 5, "fold": {"sources": ["a"], "destination": "b"}}]
    ),
}


def with_layers(change: Callable[[list[dict[str, Any]]], None]) -> Callable[[bytes], bytes]:
    def damage(raw: bytes) -> bytes:
        record = json.loads(raw)
        change(record["disks"][0]["layers"])
        return json.dumps(record).encode()

    return damage


def with_snapshots(change: Callable[[list[dict[str, Any]]], None]) -> Callable[[bytes], bytes]:
    def damage(raw: bytes) -> bytes:
        record = json.loads(raw)
        change(record["snapshots"])
        return json.dumps(record).encode()

    return damage


DAMAGES |= {
    "snapshots in a loop": with_snapshots(lambda found: found[0].update(parent=found[1]["id"])),
    "a snapshot after itself": with_snapshots(lambda found: found[0].update(parent=found[0]["id"])),
    "two of one name": with_snapshots(lambda found: found[0].update(name=found[1]["name"])),
    "one twice": with_snapshots(lambda found: found.append(found[0])),
    "a time that never comes": with_snapshots(lambda found: found[0].update(taken=1e300)),
    "a time that is endless": with_snapshots(lambda found: found[0].update(taken=float("inf"))),
    "a time that is none": with_snapshots(lambda found: found[0].update(taken=float("nan"))),
    "a time without end": with_snapshots(lambda found: found[0].update(taken=10**400)),
    "a path that is none": with_snapshots(lambda found: found[0].update(layers=["xp\0.vhd"])),
    "two bases": with_layers(lambda layers: layers[1].update(parent=None)),
    "a merge into itself": lambda raw: changed(
        raw, foldings=[{"disk": 0, "fold": {"sources": ["xp.vhd"], "destination": "xp.vhd"}}]
    ),
    "a loop": with_layers(lambda layers: layers[0].update(parent=layers[-1]["path"])),
    "a stranger for a parent": with_layers(lambda layers: layers[1].update(parent="nobody")),
    "a layer twice": with_layers(lambda layers: layers.append(layers[0])),
    "no active layer": with_layers(lambda layers: layers.clear()),
}


def with_state(**fields: str) -> Callable[[bytes], bytes]:
    def damage(raw: bytes) -> bytes:
        record = json.loads(raw)
        snapshot = record["snapshots"][0]
        whole = {"name": "memory", "path": f"xp_{snapshot['id']}_memory"}
        snapshot["state"] = [whole | {key: value.format(id=snapshot["id"]) for key, value in fields.items()}]
        return json.dumps(record).encode()

    return damage


# Files of an archive that somebody else has made: nothing outside may be written, or handed out.
DAMAGES |= {
    "a kept file that leads out": with_state(name="../pwned", path="xp_{id}_../pwned"),
    "a kept file without a name": with_state(name="", path="xp_{id}_"),
    "a kept file that is the folder above": with_state(name="..", path="xp_{id}_.."),
    "a kept file that was never kept": with_state(path="../secret"),
    "a kept file of another snapshot": with_state(path="xp_memory"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_manifest_that_is_damaged_is_one_clear_error_and_init_does_not_write_over_it(kept: Kept, damage: str) -> None:
    filled(kept)
    active = kept.machine.active[0]
    path = kept.folder / MANIFEST
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    before = contents(kept.folder)
    with pytest.raises(SnapshotError, match=r"Machine\.adopt") as refused:
        kept.machine.snapshots  # noqa: B018 - asking is what fails
    assert "`mv " in as_typed(refused.value)
    assert "vhdkit snapshot init" in as_typed(refused.value)
    with pytest.raises(SnapshotError, match=r"Machine\.adopt"):
        kept.machine.take("x")
    with pytest.raises(SnapshotError, match=r"Machine\.adopt"):
        kept.machine.settle()
    assert contents(kept.folder) == before
    if before[MANIFEST]:
        (path.parent / f"{MANIFEST}.unreadable").write_bytes(b"kept from the last time")
        with pytest.raises(SnapshotError, match="without names and notes") as refused:
            Machine.adopt([active])
        assert path.read_bytes() == before[MANIFEST]
        advised = re.search(r"\(`(mv [^`]*)`\)", as_typed(refused.value))
        assert advised is not None
        subprocess.run(shlex.split(advised[1]), check=True)
        assert (path.parent / f"{MANIFEST}.unreadable-2").read_bytes() == before[MANIFEST]
    machine = Machine.adopt([active])
    assert machine.active == (active,)
    assert sorted(shown(machine).values()) == ["1", "r"]


@pytest.mark.parametrize("is_image", [True, False])
def test_a_file_that_a_manifest_merely_names_is_not_marked_read_only(
    kept: Kept, tmp_path_factory: pytest.TempPathFactory, is_image: bool
) -> None:
    filled(kept)
    outside = tmp_path_factory.mktemp("outside") / "victim.vhd"
    outside.write_bytes(b"not an image" * 100)
    if is_image:
        outside.unlink()
        vhdkit.create_image(str(outside), size=1 << 20)
    machine = Machine(kept.machine.active[0])
    manifest = kept.folder / MANIFEST
    named = json.dumps(os.path.relpath(outside, kept.folder)).encode()
    manifest.write_bytes(manifest.read_bytes().replace(b'"xp.vhd"', named))
    with pytest.raises(SnapshotError, match="no signpost there leads back"):
        machine.rename("RTM", "other")
    assert outside.stat().st_mode & 0o200


def test_a_manifest_that_is_stale_keeps_the_names_of_what_is_there(kept: Kept) -> None:
    filled(kept)
    vhdkit.create_image("xp_stray.avhd", parent="xp.vhd")
    (remark,) = kept.machine.check()
    assert remark.kind == "orphan"
    machine = Machine.adopt([kept.machine.active[0]])
    assert sorted(each.name for each in machine.snapshots) == ["RTM", "SP1", "xp_stray"]
    assert machine.check() == ()
    stray = machine.layers_of("xp_stray")[0]
    Path(stray).unlink()
    assert [each.kind for each in kept.machine.check()] == ["missing"]
    again = Machine.adopt([kept.machine.active[0]])
    assert [each.name for each in again.snapshots] == ["RTM", "SP1"]
    assert again.check() == ()


def test_init_over_what_is_current_changes_nothing(kept: Kept) -> None:
    filled(kept)
    before = contents(kept.folder)
    Machine.adopt([kept.machine.active[0]])
    assert contents(kept.folder) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_a_manifest_of_another_user_is_not_believed(kept: Kept) -> None:
    filled(kept)
    os.chown(kept.folder / MANIFEST, 12345, 12345)
    with pytest.raises(SnapshotError, match="another user"):
        kept.machine.settle()


def test_a_manifest_can_have_no_other_files_removed(kept: Kept, tmp_path: Path) -> None:
    filled(kept)
    (tmp_path / "precious").write_bytes(b"mine")
    vhdkit.create_image(str(tmp_path / "precious.vhd"), size=SIZE)
    path = kept.folder / MANIFEST
    record = json.loads(path.read_bytes())
    record["doomed"] = [
        {"path": "../precious", "unique_id": ""},
        {"path": "../precious.vhd", "unique_id": ""},
        {"path": "../precious.vhd", "unique_id": "00" * 16},
        {"path": MANIFEST, "unique_id": ""},
        {"path": f"../xp_{'0' * 36}_x", "unique_id": ""},
    ]
    path.write_text(json.dumps(record))
    kept.machine.settle()
    assert (tmp_path / "precious").exists()
    assert (tmp_path / "precious.vhd").exists()
    assert path.exists()


# Orphans


def test_an_orphan_is_told_of_with_where_it_fits_and_its_commands_work(kept: Kept) -> None:
    filled(kept)
    layer = kept.machine.layers_of("SP1")[0]
    vhdkit.create_image("stray.avhd", parent=layer)
    with vhdkit.open_chain("stray.avhd", writable=True) as chain:
        chain.write(0, b"s" * 512, sync=True)
    (remark,) = kept.machine.check()
    assert remark.kind == "orphan"
    assert Path(layer).name in remark.message
    attach, export = advised(remark)
    run(export)
    assert letter_of("stray-export.vhd") == "s"
    run(attach)
    assert shown(kept.machine)["stray"] == "s"
    assert kept.machine.check() == ()


@pytest.mark.parametrize("which", [0, 1])
def test_an_orphan_above_the_active_layer_is_merged_or_gone_on_in(kept: Kept, which: int) -> None:
    kept.write("a")
    active = kept.machine.active
    vhdkit.create_image("stray.avhd", parent="xp.vhd")
    with vhdkit.open_chain("stray.avhd", writable=True) as chain:
        chain.write(0, b"s" * 512, sync=True)
    (remark,) = kept.machine.check()
    merge, init, export = advised(remark)
    assert [merge.split()[1], init.split()[1:3], export.split()[1]] == ["merge", ["snapshot", "init"], "convert"]
    # Nothing but that very command makes it what the machine writes to.
    with pytest.raises(SnapshotError, match="which the machine writes to"):
        Machine.adopt(["xp.vhd"])
    assert kept.machine.active == active
    run([merge, init][which])
    assert letter_of(kept.machine.active[0]) == "s"
    assert kept.machine.check() == ()


def test_no_merge_is_offered_that_would_ruin_a_snapshot(kept: Kept) -> None:
    filled(kept)
    for name in ("RTM", "SP1"):
        vhdkit.create_image(f"{name}.avhd", parent=kept.machine.layers_of(name)[0])
    vhdkit.create_image("now.avhd", parent=kept.machine.active[0])
    offered = {Path(each.path).name: advised(each) for each in kept.machine.check()}
    assert [
        name for name, commands in offered.items() if any(each.startswith("vhdkit merge") for each in commands)
    ] == ["now.avhd"]


def lose_parent(of: str, *, called: str = "lost.vhd", size: int = SIZE) -> None:
    vhdkit.create_image(called, size=size)
    vhdkit.create_image(of, parent=called)
    Path(called).unlink()


def test_an_orphan_without_its_parent_is_told_of_with_a_rebase_that_only_compares(kept: Kept) -> None:
    kept.write("a")
    lose_parent("xp_stray.avhd")
    (remark,) = kept.machine.check()
    assert "by its name it belongs to this machine" in remark.message
    (rebase,) = advised(remark)
    before = Path("xp_stray.avhd").read_bytes()
    run(rebase)
    assert Path("xp_stray.avhd").read_bytes() == before
    run(rebase.removesuffix(" --dry-run"))
    assert letter_of("xp_stray.avhd") == "a"
    (remark,) = kept.machine.check()
    assert "fits above xp.vhd" in remark.message


def test_what_an_orphan_cannot_have_been_made_on_is_not_offered(kept: Kept) -> None:
    lose_parent("xp_other.avhd", size=2 * SIZE)
    (remark,) = kept.machine.check()
    assert advised(remark) == ()


def test_an_orphan_of_another_name_fits_a_layer_that_is_called_as_its_parent_was(kept: Kept) -> None:
    filled(kept)
    layer = Path(kept.machine.layers_of("SP1")[0]).name
    (kept.folder / "away").mkdir()
    vhdkit.create_image(f"away/{layer}", size=SIZE)
    vhdkit.create_image("away/found.avhd", parent=f"away/{layer}")
    Path(f"away/{layer}").unlink()
    (remark,) = kept.machine.check()
    (rebase,) = advised(remark)
    assert layer in rebase


def test_the_layers_of_another_machine_in_the_folder_are_no_orphans(kept: Kept) -> None:
    filled(kept)
    other = Kept.made(kept.folder, ["xp_2.vhd"])
    other.take("a", "o")
    other.take("b", "p")
    assert kept.machine.check() == ()
    assert other.machine.check() == ()
    assert other.machine.file.path != kept.machine.file.path


def run(command: str) -> None:
    words = re.sub(r"^vhdkit ", f"{sys.executable} -m vhdkit ", command).split()
    subprocess.run(words, check=True, capture_output=True, env=environment())
