"""Taking, applying and deleting on real files: names, marks, what is refused, and that a refusal changes nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.snapshots.machines import MIB, SIZE, Kept, advised, contents, letter_of
from tests.tampering import write_behind
from vhdkit.errors import ImageInUseError, SnapshotError
from vhdkit.snapshot.machine import Machine
from vhdkit.vhd.sparse_image import SparseImage

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME = re.compile(r"xp_[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}\.avhd")


def test_the_story_of_a_machine(kept: Kept) -> None:
    kept.take("RTM", "r")
    kept.take("SP1", "1")
    kept.take("SP2", "2")
    kept.write("3")
    kept.machine.apply("RTM")
    assert kept.shows() == "r"
    kept.take("branch", "b")
    kept.write("c")
    assert kept.all_shown() == {"RTM": "r", "SP1": "1", "SP2": "2", "branch": "b", "now": "c"}
    kept.machine.delete("SP1")
    before = kept.images
    kept.machine.settle()
    assert len(kept.images) == len(before) - 1
    assert kept.all_shown() == {"RTM": "r", "SP2": "2", "branch": "b", "now": "c"}
    kept.machine.delete("RTM", subtree=True)
    kept.machine.settle()
    assert kept.all_shown() == {"now": "c"}
    assert kept.images == ["xp.vhd"]
    assert kept.machine.check() == ()


def test_new_layers_are_named_as_hyper_v_names_them(kept: Kept) -> None:
    kept.take("a")
    kept.take("b")
    first, second = (name for name in kept.images if name != "xp.vhd")
    assert _NAME.fullmatch(first)
    assert _NAME.fullmatch(second)
    assert first != second


def test_frozen_layers_are_read_only_and_the_active_one_is_not(kept: Kept) -> None:
    kept.take("a")
    kept.take("b")
    for name in kept.images:
        path = kept.folder / name
        writable = bool(path.stat().st_mode & 0o222)
        assert writable == (str(path) in kept.machine.active)
    kept.machine.delete("b")
    kept.machine.delete("a")
    kept.machine.settle()
    assert kept.images == ["xp.vhd"]
    assert stat.S_IMODE(Path("xp.vhd").stat().st_mode) & 0o200


def test_the_machine_goes_on_where_it_was(kept: Kept) -> None:
    kept.take("a", "a")
    assert kept.shows() == "a"
    kept.write("b")
    assert kept.all_shown() == {"a": "a", "now": "b"}
    applied = kept.machine.revert()
    assert kept.shows() == "a"
    ((discarded, size),) = applied.discarded
    assert size >= MIB
    assert not Path(discarded).exists()


def test_several_disks_are_frozen_together(tmp_path: Path) -> None:
    kept = Kept.made(tmp_path, ["c.vhd", "d.vhd", "e.vhd"])
    for disk in range(3):
        kept.write("abc"[disk], disk=disk)
    kept.machine.take("first")
    for disk in range(3):
        kept.write("xyz"[disk], disk=disk)
    assert [kept.shows("first", disk) for disk in range(3)] == ["a", "b", "c"]
    kept.machine.apply("first")
    assert [kept.shows(disk=disk) for disk in range(3)] == ["a", "b", "c"]
    kept.machine.delete("first")
    kept.machine.settle()
    assert kept.images == ["c.vhd", "d.vhd", "e.vhd"]
    assert [kept.shows(disk=disk) for disk in range(3)] == ["a", "b", "c"]


def fail_on_the_second(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    real, calls = vhdkit.create_image, [0]

    def failing(*arguments: object, **options: object) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise error
        real(*arguments, **options)  # type: ignore[arg-type] # as it was called

    monkeypatch.setattr("vhdkit.snapshot.new_files.create_image", failing)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("what", ["take", "apply"])
def test_several_disks_are_changed_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, what: str
) -> None:
    kept = Kept.made(tmp_path, ["c.vhd", "d.vhd"])
    kept.machine.take("first")
    (tmp_path / "memory").write_bytes(b"state")
    before, names = kept.machine.manifest, kept.images
    with monkeypatch.context() as patched:
        fail_on_the_second(patched, error)
        acts: dict[str, Callable[[], object]] = {
            "take": lambda: kept.machine.take("second", state=[str(tmp_path / "memory")]),
            "apply": lambda: kept.machine.apply("first"),
        }
        with pytest.raises(type(error)):
            acts[what]()
    assert kept.machine.manifest == before
    assert kept.images == names
    assert {path.name for path in tmp_path.iterdir()} - {*names, "memory"} == {
        "c.vhdkit-snapshots.json",
        "c.vhdkit-snapshots.lock",
    }
    kept.machine.take("second")


def test_kept_files_are_copies_handed_back_by_applying_and_gone_with_the_snapshot(kept: Kept, tmp_path: Path) -> None:
    for name in ("memory.bin", "devices.vsv"):
        (tmp_path / name).write_bytes(name.encode())
    given = [str(tmp_path / "memory.bin"), str(tmp_path / "devices.vsv")]
    snapshot = kept.machine.take("a", state=given)
    (tmp_path / "memory.bin").write_bytes(b"another machine's")
    assert [file.name for file in snapshot.state] == ["memory.bin", "devices.vsv"]
    handed = kept.machine.apply("a").state
    assert [Path(path).read_bytes() for path in handed] == [b"memory.bin", b"devices.vsv"]
    assert all(not Path(path).stat().st_mode & 0o222 for path in handed)
    (tmp_path / "out").mkdir()
    copies = kept.machine.apply("a", state_to=str(tmp_path / "out")).state
    assert [Path(path).name for path in copies] == ["memory.bin", "devices.vsv"]
    assert Path(copies[0]).read_bytes() == b"memory.bin"
    kept.machine.delete("a")
    assert not any(Path(path).exists() for path in handed)
    assert Path(copies[0]).exists(), "what was handed back is not ours any more"


def test_kept_files_are_handed_back_all_or_none(kept: Kept, tmp_path: Path) -> None:
    for name in ("memory", "devices"):
        (tmp_path / name).write_bytes(name.encode())
    kept.machine.take("a", state=[str(tmp_path / "memory"), str(tmp_path / "devices")])
    kept.write("b")
    before = contents(kept.folder)
    there = tmp_path / "back"
    there.mkdir()
    (there / "devices").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        kept.machine.apply("a", state_to=str(there))
    assert contents(there) == {"devices": b"mine"}
    assert contents(kept.folder) == before
    new = tmp_path / "new"
    kept.machine.apply("a", state_to=str(new))
    assert contents(new) == {"memory": b"memory", "devices": b"devices"}


def test_kept_files_that_were_handed_back_go_again_if_nothing_was_applied(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory").write_bytes(b"memory")
    kept.machine.take("a", state=[str(tmp_path / "memory")])

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("vhdkit.snapshot.new_files.create_image", full)
        with pytest.raises(OSError, match="space"):
            kept.machine.apply("a", state_to=str(tmp_path / "back"))
    assert contents(tmp_path / "back") == {}
    kept.machine.apply("a", state_to=str(tmp_path / "back"))
    assert contents(tmp_path / "back") == {"memory": b"memory"}


def test_two_kept_files_of_one_name_are_refused(kept: Kept, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "memory").write_bytes(b"")
    before = contents(kept.folder)
    with pytest.raises(SnapshotError, match="two files called memory"):
        kept.machine.take("a", state=[str(tmp_path / "a" / "memory"), str(tmp_path / "b" / "memory")])
    assert contents(kept.folder) == before


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[31m"])
def test_what_cannot_be_a_name_is_refused(kept: Kept, name: str) -> None:
    with pytest.raises(SnapshotError, match="no name"):
        kept.machine.take(name)


@pytest.mark.parametrize("name", ["ä", "日本語", "a/b", "with spaces", "x" * 300, "'quoted'"])
def test_any_printable_name_will_do(kept: Kept, name: str) -> None:
    kept.machine.take(name)
    assert [each.name for each in kept.machine.snapshots] == [name]
    kept.machine.apply(name)


def test_names_are_used_once_and_ids_will_do_instead(kept: Kept) -> None:
    first = kept.machine.take("a")
    before = contents(kept.folder)
    with pytest.raises(SnapshotError, match="already"):
        kept.machine.take("a")
    with pytest.raises(SnapshotError, match="there is no snapshot 'b'"):
        kept.machine.apply("b")
    assert contents(kept.folder) == before
    kept.machine.rename(first.id[:8], "b", note="a word")
    assert [(each.name, each.note) for each in kept.machine.snapshots] == [("b", "a word")]
    assert kept.machine.rename("b", "b", note="another").note == "another"


def test_a_letter_that_an_id_begins_with_names_no_snapshot(kept: Kept) -> None:
    taken = kept.machine.take("a plan")
    before = contents(kept.folder)
    for short in (taken.id[:1].lower(), taken.id[:1], taken.id[:7]):
        with pytest.raises(SnapshotError, match="there is no snapshot"):
            kept.machine.delete(short)
    assert contents(kept.folder) == before
    assert kept.machine.manifest.find(taken.id[:8].lower()) == taken


OPERATIONS: dict[str, Callable[[Machine], object]] = {
    "take": lambda machine: machine.take("new"),
    "apply": lambda machine: machine.apply("a"),
    "revert": lambda machine: machine.revert(),
    "settle": lambda machine: machine.settle(),
    "start settling": lambda machine: machine.start_settling(),
    "make way": lambda machine: machine.make_way(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_machine_that_runs_is_left_alone(kept: Kept, operation: str) -> None:
    kept.take("a", "a")
    kept.take("b", "b")
    kept.machine.delete("b")
    with vhdkit.open_chain(kept.machine.active[0], writable=True) as running:
        before = contents(kept.folder)
        assert kept.machine.is_running()
        with pytest.raises(ImageInUseError):
            OPERATIONS[operation](kept.machine)
        assert contents(kept.folder) == before
        running.write(0, b"z", sync=True)
    assert not kept.machine.is_running()
    kept.machine.settle()
    assert kept.all_shown() == {"a": "a", "now": "z"}


def test_deleting_while_it_runs_only_owes(kept: Kept) -> None:
    kept.take("a", "a")
    kept.take("b", "b")
    with vhdkit.open_chain(kept.machine.active[0], writable=True):
        kept.machine.delete("a")
        ((sources, into),) = kept.machine.owed().merges
        assert into == str(kept.folder / "xp.vhd")
        assert len(sources) == 1
    assert kept.all_shown() == {"b": "b", "now": "b"}


CHANGES: dict[str, Callable[[Path], None]] = {
    "written to": lambda path: _write(path, 600, b"!"),
    "longer": lambda path: _write(path, path.stat().st_size, bytes(512)),
    "header": lambda path: _write(path, 512 + 36, b"\xff"),
    "gone": Path.unlink,
}


def _write(path: Path, offset: int, data: bytes) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _another(path: Path) -> None:
    path.unlink()
    vhdkit.create_image(str(path), size=SIZE)


CHANGES["another"] = _another


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_changed_behind_our_back_is_named_before_anything_is_built_on_it(kept: Kept, change: str) -> None:
    kept.take("a", "a")
    kept.take("b", "b")
    kept.machine.delete("b")
    layer = Path(kept.machine.layers_of("a")[0])
    CHANGES[change](layer)
    before = contents(kept.folder)
    (remark,) = [each for each in kept.machine.check() if each.kind in {"changed", "missing"}]
    assert remark.path == str(layer)
    with pytest.raises((vhdkit.VhdError, OSError), match="xp"):
        kept.machine.apply("a")
    with pytest.raises((vhdkit.VhdError, OSError), match="xp"):
        kept.machine.export("a", str(kept.folder / "out"))
    assert contents(kept.folder) == before


@pytest.mark.parametrize("what", ["footer", "header", "block allocation table"])
def test_each_structure_has_a_checksum_of_its_own(kept: Kept, what: str) -> None:
    kept.take("a", "a")
    kept.take("b", "b")
    layer = Path(kept.machine.layers_of("b")[0])
    with vhdkit.open_image(str(layer)) as image:
        assert isinstance(image, SparseImage)
        at = {
            "footer": layer.stat().st_size - 512 + 28,  # the creator's name
            "header": image.footer.data_offset + 576 + 16,  # a locator's reserved field
            "block allocation table": image.header.table_offset + image.header.max_table_entries * 4 - 4,
        }[what]
    status = layer.stat()
    layer.chmod(0o644)
    raw = bytearray(layer.read_bytes())
    raw[at] ^= 1
    layer.write_bytes(raw)
    os.utime(layer, ns=(status.st_atime_ns, status.st_mtime_ns))
    layer.chmod(0o444)
    (remark,) = [each for each in kept.machine.check() if each.path == str(layer)]
    assert remark.kind == "changed"
    assert what in remark.message or "cannot be read" in remark.message
    with pytest.raises((SnapshotError, vhdkit.CorruptImageError)):
        kept.machine.apply("b")


def test_a_kept_file_that_is_missing_is_told_of(kept: Kept, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"m")
    snapshot = kept.machine.take("a", state=[str(tmp_path / "memory")])
    path = kept.machine.file.absolute(snapshot.state[0].path)
    Path(path).unlink()
    (remark,) = kept.machine.check()
    assert (remark.kind, remark.path) == ("missing", path)
    with pytest.raises(SnapshotError, match="not there"):
        kept.machine.apply("a", state_to=str(tmp_path / "out"))


def test_an_active_layer_that_was_told_of_another_parent_is_told_of(kept: Kept) -> None:
    kept.take("a", "a")
    kept.take("b", "b")
    active = kept.machine.active[0]
    assert kept.machine.check() == ()
    manifest = Path(kept.machine.file.path)
    with pytest.raises(SnapshotError, match="which writes to it"):
        vhdkit.rebase(active, kept.base, ignore_id_mismatch=True)
    # Without the list it is nobody's layer.
    manifest.rename("aside")
    vhdkit.rebase(active, kept.base, ignore_id_mismatch=True)
    Path("aside").rename(manifest)
    (remark,) = kept.machine.check()
    assert (remark.kind, remark.path) == ("changed", active)
    assert "another parent" in remark.message


def test_a_merge_is_not_begun_with_a_layer_that_was_changed(kept: Kept) -> None:
    kept.take("a", "a")
    kept.take("b", "b")
    kept.write("c")
    kept.machine.delete("a")
    _write(kept.folder / "xp.vhd", 3 * MIB, b"!")
    with pytest.raises(SnapshotError, match="was changed since it was frozen"):
        kept.machine.settle()
    kept.machine.check(accept=True)
    kept.machine.settle()
    assert kept.all_shown() == {"b": "b", "now": "c"}


def test_an_image_in_a_layers_place_is_not_accepted_as_that_layer(kept: Kept) -> None:
    kept.take("a", "a")
    kept.take("b", "b")
    kept.machine.apply("a")
    layer = Path(kept.machine.layers_of("b")[0])
    before = Path(kept.machine.file.path).read_bytes()
    away = layer.rename(kept.folder.parent / layer.name)
    vhdkit.create_image(str(layer), parent="xp.vhd")
    (remark,) = kept.machine.check(accept=True)
    assert (remark.kind, remark.path, advised(remark)) == ("changed", str(layer), ())
    assert "another image has taken its place" in remark.message
    assert Path(kept.machine.file.path).read_bytes() == before
    away.replace(layer)
    assert kept.machine.check() == ()
    assert kept.shows("b") == "b"


def test_a_layer_that_may_be_written_is_told_of_and_protected_again(kept: Kept) -> None:
    kept.take("a")
    (kept.folder / "xp.vhd").chmod(0o644)
    (remark,) = kept.machine.check()
    assert remark.kind == "unprotected"
    kept.machine.settle()
    assert kept.machine.check() == ()


def test_a_clone_that_somebody_made_keeps_a_layer_from_being_removed(kept: Kept) -> None:
    kept.take("a", "a")
    kept.take("b", "b")
    layer = kept.machine.layers_of("b")[0]
    vhdkit.create_image("clone.avhd", parent=layer)
    kept.machine.apply("a")
    kept.machine.delete("b")
    assert Path(layer).exists()
    ((path, why),) = kept.machine.owed().removals
    assert path == layer
    assert "clone.avhd" in why
    kept.machine.settle()
    with vhdkit.open_chain("clone.avhd") as chain:
        assert chain.read(0, 1) == b"b"
    Path("clone.avhd").unlink()
    kept.machine.settle()
    assert not Path(layer).exists()


def test_a_clone_keeps_a_merge_from_harming_it(kept: Kept) -> None:
    kept.take("a", "a")
    kept.take("b", "b")
    vhdkit.create_image("clone.avhd", parent="xp.vhd")
    kept.machine.delete("a")
    with pytest.raises(vhdkit.SiblingsError, match="clone"):
        kept.machine.settle()
    with vhdkit.open_chain("clone.avhd") as chain:
        assert chain.read(0, 1) == b"a"
    assert kept.all_shown() == {"b": "b", "now": "b"}
    Path("clone.avhd").unlink()
    kept.machine.settle()
    assert kept.images[0] == "xp.vhd"
    assert kept.all_shown() == {"b": "b", "now": "b"}


def test_exported_flat_it_needs_nothing_and_as_a_chain_it_is_the_same_layers(kept: Kept, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"state")
    kept.write("a")
    kept.machine.take("a", state=[str(tmp_path / "memory")])
    kept.take("b", "b")
    kept.take("c", "c")
    kept.write("d")
    flat = kept.machine.export("b", str(tmp_path / "flat"))
    assert [Path(path).name for path in flat] == ["xp.vhd"]
    with vhdkit.open_chain(flat[0]) as chain:
        assert len(chain.layers) == 1
        assert chain.read(0, 1) == b"b"
    layers = kept.machine.export("b", str(tmp_path / "chain"), chain=True)
    with vhdkit.open_chain(layers[0]) as chain:
        assert [layer.path for layer in chain.layers] == list(layers)
        assert chain.read(0, 1) == b"b"
    with_state = kept.machine.export("a", str(tmp_path / "state"))
    assert [Path(path).name for path in with_state] == ["xp.vhd", "memory"]
    before = contents(tmp_path / "flat")
    with pytest.raises(FileExistsError):
        kept.machine.export("c", str(tmp_path / "flat"))
    assert contents(tmp_path / "flat") == before


@pytest.mark.parametrize("chain", [True, False])
def test_disks_that_are_called_alike_are_exported_each_to_a_folder(tmp_path: Path, chain: bool) -> None:
    for name in ("c", "d"):
        (tmp_path / name).mkdir()
        vhdkit.create_image(str(tmp_path / name / "disk.vhd"), size=SIZE)
        with vhdkit.open_chain(str(tmp_path / name / "disk.vhd"), writable=True) as opened:
            opened.write(0, name.encode() * 512)
    machine = Machine.adopt([str(tmp_path / name / "disk.vhd") for name in ("c", "d")])
    machine.take("a")
    machine.take("b")
    files = machine.export("b", str(tmp_path / "out"), chain=chain)
    leaves = [next(path for path in files if f"disk{at}" in path) for at in (0, 1)]
    assert [letter_of(path) for path in leaves] == ["c", "d"]
    assert len(files) == (4 if chain else 2)


@pytest.mark.parametrize("loss", ["changed", "missing"])
def test_nothing_is_taken_or_run_on_a_layer_that_is_not_what_it_was(kept: Kept, loss: str) -> None:
    kept.take("a", "a")
    kept.take("b", "b")
    before = kept.machine.manifest
    if loss == "missing":
        Path(kept.base).rename("aside")
    else:
        Path(kept.base).chmod(0o644)
        write_behind(kept.base, 0, b"X" * 512)
    machine = Machine(str(kept.folder / "xp.vhdkit-snapshots.json"))
    images = kept.images
    with pytest.raises(SnapshotError, match=r"changed since it was frozen|is not there"):
        machine.take("c")
    with pytest.raises(SnapshotError, match=r"changed since it was frozen|is not there"):
        machine.make_way()
    assert machine.manifest == before
    assert kept.images == images


def test_a_lost_leaf_is_told_of_with_the_deletion_that_goes_on_without_it(kept: Kept) -> None:
    kept.take("a", "a")
    kept.take("b", "b")
    kept.machine.apply("a")
    lost = kept.machine.layers_of("b")[0]
    Path(lost).unlink()
    (remark,) = kept.machine.check()
    assert (remark.kind, remark.path) == ("missing", lost)
    assert advised(remark) == (f"vhdkit snapshot delete b {kept.machine.active[0]}",)
    kept.machine.delete("b")
    assert kept.machine.check() == ()


def test_the_manifest_is_never_needed_to_read_or_merge(kept: Kept) -> None:
    kept.take("a", "a")
    kept.write("b")
    active = kept.machine.active[0]
    for path in kept.folder.glob("*.vhdkit-snapshots.*"):
        path.unlink()
    with vhdkit.open_chain(active) as chain:
        assert chain.read(0, 1) == b"b"
    (kept.folder / "xp.vhd").chmod(0o644)
    vhdkit.merge(vhdkit.plan_merge(active))
    with vhdkit.open_chain("xp.vhd") as chain:
        assert chain.read(0, 1) == b"b"


def test_the_folder_can_be_moved(kept: Kept, tmp_path: Path) -> None:
    kept.take("a", "a")
    kept.write("b")
    kept.folder.rename(tmp_path / "elsewhere")
    there = Kept(tmp_path / "elsewhere", str(tmp_path / "elsewhere" / "xp.vhd"))
    assert there.all_shown() == {"a": "a", "now": "b"}
    assert there.machine.check() == ()
    there.machine.delete("a")
    there.machine.settle()
    assert there.images == ["xp.vhd"]


def test_the_manifest_is_json_with_a_version(kept: Kept) -> None:
    kept.take("a")
    record = json.loads((kept.folder / "xp.vhdkit-snapshots.json").read_text())
    assert (record["kind"], record["version"]) == ("vhdkit snapshots", 1)


def test_one_layer_may_lie_elsewhere(kept: Kept, tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    kept.write("a")
    kept.machine.take("a", directory=str(tmp_path / "fast"))
    assert Path(kept.machine.active[0]).parent == tmp_path / "fast"
    with kept.machine.open_chain(writable=True) as chain:
        chain.write(0, b"b", sync=True)
    kept.machine.take("b")
    assert Path(kept.machine.active[0]).parent == kept.folder
    kept.machine.revert(directory=str(tmp_path / "fast"))
    assert Path(kept.machine.active[0]).parent == tmp_path / "fast"
    kept.machine.apply("a", directory=str(tmp_path / "fast"))
    for name, letter in (("a", b"a"), ("b", b"b"), (None, b"a")):
        with kept.machine.open_chain(name) as chain:
            assert chain.read(0, 1) == letter
    kept.machine.delete("b")
    kept.machine.delete("a")
    kept.machine.settle()
    assert list((tmp_path / "fast").iterdir()) == []
    assert kept.all_shown() == {"now": "a"}
