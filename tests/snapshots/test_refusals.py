"""What is refused is refused before anything is done, and everything has a way out that works."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

import vhdkit
from tests.snapshots.machines import SIZE, Kept, advised, contents
from tests.typed import as_typed
from vhdkit.errors import ImageInUseError, ReadOnlyImageError, SnapshotError, VhdError
from vhdkit.merging.drop_undo import drop_undo
from vhdkit.merging.rollback import rollback
from vhdkit.snapshot import new_files, transitions
from vhdkit.snapshot.machine import Machine
from vhdkit.snapshot.manifest_file import ManifestFile
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhdkit.storage.protocols import Storage

RUNNING = "xp.vhdkit-snapshots.running"
LOCK = "xp.vhdkit-snapshots.lock"


def stray(kept: Kept, letter: str) -> None:
    """Make a child of what the machine writes to, with a letter in it."""
    vhdkit.create_image("stray.avhd", parent=kept.machine.active[0])
    with vhdkit.open_chain("stray.avhd", writable=True) as chain:
        chain.write(0, letter.encode() * 4096, sync=True)


# The running mark


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ELOOP, errno.EINVAL])
def test_a_running_mark_that_cannot_be_read_means_that_the_machine_may_run(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    kept.take("A", "a")
    kept.write("b")

    def refusing(folder: LocalFolder, path: str, *, writable: bool = False) -> Storage:
        if path.endswith(RUNNING):
            raise OSError(error, os.strerror(error), path)
        return opened(folder, path, writable=writable)

    opened = LocalFolder.open
    Path(RUNNING).write_bytes(b"")
    before = contents(kept.folder)
    with monkeypatch.context() as patched:
        patched.setattr(LocalFolder, "open", refusing)
        machine = kept.machine
        assert machine.is_running()
        for verb in (lambda: machine.take("B"), lambda: machine.apply("A"), machine.revert):
            with pytest.raises(ImageInUseError, match=f"{RUNNING}, or remove it when the machine is off"):
                verb()
        assert contents(kept.folder) == before
    Path(RUNNING).unlink()
    kept.machine.take("B")


# The mode, once the lock is held


def test_a_layer_that_was_frozen_while_its_lock_was_waited_for_is_not_written(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kept.machine.active[0]

    def frozen_meanwhile(folder: LocalFolder, asked: str) -> bool:
        answer = may_write(folder, asked)
        if asked == path and answer:
            monkeypatch.setattr(LocalFolder, "may_write", may_write)
            kept.machine.take("A")
        return answer

    may_write = LocalFolder.may_write
    openings = (
        lambda: vhdkit.open_image(path, writable=True, exclusive=True),
        lambda: vhdkit.open_chain(path, writable=True),
    )
    for opening in openings:
        monkeypatch.setattr(LocalFolder, "may_write", frozen_meanwhile)
        with pytest.raises(ReadOnlyImageError, match="frozen as snapshot 'A'"):
            opening()
        assert kept.machine.check() == ()
        kept.machine.delete("A")
        kept.machine.settle()


# Begun layers


def test_a_begun_layer_that_was_written_to_is_kept_and_told_of(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.take("A", "a")

    def killed(*_: object, **__: object) -> None:
        made(*_, **__)  # type: ignore[arg-type]
        raise SystemExit

    made = new_files.make_layers
    with monkeypatch.context() as patched:
        # As if the process ended here: nothing is swept.
        patched.setattr("vhdkit.snapshot.new_files.make_layers", killed)
        patched.setattr("vhdkit.snapshot.cleanup.Cleanup.sweep", lambda cleanup: cleanup.manifest)
        write = ManifestFile.write
        patched.setattr(ManifestFile, "write", lambda file, manifest: write(file, manifest) if manifest.begun else None)
        with pytest.raises(SystemExit):
            kept.machine.take("B")
    (begun,) = kept.machine.file.read().begun
    path = kept.machine.file.absolute(begun.path)
    assert [remark.kind for remark in kept.machine.check()] == ["left over"]
    with vhdkit.open_chain(path, writable=True) as chain:
        chain.write(0, b"z" * 4096, sync=True)
    (remark,) = kept.machine.check()
    assert "data was written to it" in remark.message
    for verb in (kept.machine.settle, lambda: kept.machine.take("C"), lambda: kept.machine.rename("C", "D")):
        verb()
        assert Path(path).exists()
    assert [(each.kind, each.path) for each in kept.machine.check()] == [("orphan", path)]
    Machine.adopt([kept.machine.active[0]])
    assert "z" in kept.all_shown().values()
    assert kept.machine.check() == ()


def test_a_begun_layer_that_was_not_written_to_goes(kept: Kept) -> None:
    kept.take("A", "a")
    file = kept.machine.file
    manifest = file.read()
    fresh = new_files.named_layers(file, manifest, [manifest.disks[0].active], uuid.uuid4)
    with file.locked():
        file.read()
        file.write(replace(manifest, begun=new_files.begun_of(fresh)))
        new_files.make_layers(file, fresh, None)
    assert [remark.kind for remark in kept.machine.check()] == ["left over"]
    kept.machine.settle()
    assert kept.machine.check() == ()


# Kept files


@pytest.mark.parametrize("how", ["longer", "other bytes", "other bytes, old times"])
def test_a_kept_file_that_was_changed_is_noticed(kept: Kept, tmp_path: Path, how: str) -> None:
    (tmp_path / "memory").write_bytes(b"memory")
    kept.write("a")
    kept.machine.take("A", state=[str(tmp_path / "memory")])
    (path,) = kept.folder.glob("*_memory")
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"memory and more" if how == "longer" else b"MEMORY")
    if how.endswith("old times"):
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (remark,) = kept.machine.check()
    assert (remark.kind, remark.path) == ("changed", str(path))
    for verb in (
        lambda: kept.machine.apply("A"),
        lambda: kept.machine.apply("A", state_to="out"),
        lambda: kept.machine.export("A", "out"),
    ):
        with pytest.raises(SnapshotError, match="changed since it was kept"):
            verb()
    assert not Path("out").exists()
    kept.machine.check(accept=True)
    assert kept.machine.check() == ()
    assert kept.machine.apply("A").state == (str(path),)


def test_a_kept_file_that_was_copied_with_other_times_is_the_same(kept: Kept, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"memory")
    kept.machine.take("A", state=[str(tmp_path / "memory")])
    (path,) = kept.folder.glob("*_memory")
    os.utime(path, (7, 7))
    assert kept.machine.check() == ()
    assert kept.machine.apply("A").state == (str(path),)


# A merge that can be undone


@pytest.mark.parametrize("end", [rollback, drop_undo])
def test_nothing_is_taken_or_applied_while_a_merge_into_the_present_can_be_undone(
    kept: Kept, end: Callable[[str], object]
) -> None:
    kept.take("A", "a")
    kept.write("b")
    stray(kept, "s")
    vhdkit.merge(vhdkit.plan_merge("stray.avhd", undo="undo.vhd"))
    before = contents(kept.folder)
    for verb in (lambda: kept.machine.take("B"), lambda: kept.machine.apply("A"), kept.machine.revert):
        with pytest.raises(SnapshotError, match="drop_undo") as refused:
            verb()
        assert "vhdkit undo drop" in as_typed(refused.value)
        assert "vhdkit rollback" in as_typed(refused.value)
    assert contents(kept.folder) == before
    (remark,) = (each for each in kept.machine.check() if each.kind == "unfinished")
    assert [command.split()[1] for command in advised(remark)] == ["undo", "rollback"]
    assert not any("settle" in command for command in advised(remark))
    end("undo.vhd")
    kept.machine.take("B")
    assert {remark.kind for remark in kept.machine.check()} <= {"orphan"}
    assert kept.shows("B") == ("b" if end is rollback else "s")


def test_nothing_is_taken_while_the_present_is_an_undo_image(kept: Kept) -> None:
    """Somebody has let the machine go on in what shows the disk before a merge."""
    stray(kept, "s")
    vhdkit.merge(vhdkit.plan_merge("stray.avhd", undo="undo.vhd"))
    file = kept.machine.file
    record = Path(file.path).read_text()
    with vhdkit.open_image("undo.vhd") as undo:
        unique_id = undo.unique_id.hex()
    layer = f'{{"path": "undo.vhd", "parent": "xp.vhd", "unique_id": "{unique_id}", "mark": null}}'
    record = re.sub(r'"active": "xp.vhd"', '"active": "undo.vhd"', record)
    Path(file.path).write_text(re.sub(r'"mark": null\s*\}', f'"mark": null}}, {layer}', record))
    assert kept.machine.active == (str(kept.folder / "undo.vhd"),)
    before = contents(kept.folder)
    with pytest.raises(SnapshotError, match="rollback") as refused:
        kept.machine.take("B")
    assert "vhdkit rollback" in as_typed(refused.value)
    assert contents(kept.folder) == before


# Locks


def test_a_lock_that_was_removed_lets_no_two_change_the_snapshots(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.take("A", "a")

    def beside(*given: object, **named: object) -> None:
        monkeypatch.setattr("vhdkit.snapshot.new_files.make_layers", made)
        Path(LOCK).unlink()
        kept.machine.take("theirs")
        made(*given, **named)  # type: ignore[arg-type]

    made = new_files.make_layers
    monkeypatch.setattr("vhdkit.snapshot.new_files.make_layers", beside)
    with pytest.raises(SnapshotError, match="run the same command again"):
        kept.machine.take("mine")
    assert [each.name for each in kept.machine.snapshots] == ["A", "theirs"]
    assert kept.machine.check() == ()
    kept.machine.take("mine")
    assert [each.name for each in kept.machine.snapshots] == ["A", "theirs", "mine"]
    assert kept.machine.check() == ()


def test_a_lock_whose_name_leads_elsewhere_when_it_is_had_is_not_it(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    def replaced(folder: LocalFolder, path: str, *, writable: bool = False) -> Storage:
        storage = opened(folder, path, writable=writable)
        if path.endswith(LOCK) and writable and len(taken) < 3:
            taken.append(path)
            Path(path).unlink()
            if len(taken) % 2:
                Path(path).write_bytes(b"")
        return storage

    opened = LocalFolder.open
    monkeypatch.setattr(LocalFolder, "open", replaced)
    with kept.machine.file.locked():
        assert len(taken) == 3
        other = opened(LocalFolder(), str(kept.folder / LOCK))
        with pytest.raises(ImageInUseError):
            other.lock(exclusive=True)
        other.close()


# Names and folders


@pytest.mark.parametrize("length", [190, 215, 230])
def test_a_disk_whose_name_is_too_long_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.chdir(tmp_path)
    base = f"{'x' * (length - 4)}.vhd"
    vhdkit.create_image(base, size=SIZE)
    before = contents(tmp_path)
    if length == 190:
        machine = Machine.adopt([base])
        machine.take("A")
        (tmp_path / "fast").mkdir()
        names = {path.name for path in tmp_path.rglob("*")}
        with pytest.raises(SnapshotError, match="more than 255"):
            machine.take("B", directory="fast")
        assert {path.name for path in tmp_path.rglob("*")} == names
        assert machine.check() == ()
        return
    with pytest.raises(SnapshotError, match="more than 255"):
        Machine.adopt([base])
    assert {path.name for path in tmp_path.iterdir()} == {base}
    assert contents(tmp_path) == before


def test_a_kept_file_whose_name_is_too_long_is_refused_before_anything_is_made(kept: Kept, tmp_path: Path) -> None:
    (tmp_path / ("m" * 230)).write_bytes(b"memory")
    before = contents(kept.folder)
    with pytest.raises(SnapshotError, match="more than 255"):
        kept.machine.take("A", state=[str(tmp_path / ("m" * 230))])
    assert contents(kept.folder) == before


@pytest.fixture
def immutable(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """Mark files as chattr does; skipped where the system or the file system has no such marks."""
    marked: list[tuple[Path, str]] = []

    def mark(path: Path, letter: str = "i") -> None:
        marked.append((path, letter))
        if subprocess.run(["chattr", f"+{letter}", str(path)], check=False, capture_output=True).returncode:
            pytest.skip("files cannot be marked immutable here")

    probe = tmp_path / "probe"
    probe.write_bytes(b"")
    try:
        mark(probe)
        yield mark
    except FileNotFoundError:
        pytest.skip("there is no chattr here")
    finally:
        for path, letter in marked:
            subprocess.run(["chattr", f"-{letter}", str(path)], check=False, capture_output=True)


@pytest.mark.parametrize("letter", ["i", "a"])
@pytest.mark.parametrize("what", ["folder", "active layer", "manifest", "new folder"])
def test_what_is_immutable_is_seen_before_anything_is_done(
    kept: Kept, immutable: Callable[[Path, str], None], what: str, letter: str
) -> None:
    kept.take("A", "a")
    kept.write("b")
    (kept.folder / "fast").mkdir()
    found = {
        "folder": kept.folder,
        "active layer": Path(kept.machine.active[0]),
        "manifest": Path(kept.machine.file.path),
        "new folder": kept.folder / "fast",
    }
    directory = "fast" if what == "new folder" else None
    before = contents(kept.folder)
    immutable(found[what], letter)
    for verb in (
        lambda: kept.machine.take("B", directory=directory),
        lambda: kept.machine.apply("A", directory=directory),
    ):
        if (what, letter) == ("new folder", "a"):
            continue  # new files can be made there, and no more is needed
        with pytest.raises(ReadOnlyImageError):
            verb()
        assert contents(kept.folder) == before
        assert list((kept.folder / "fast").iterdir()) == []


def test_what_is_anothers_in_a_sticky_folder_may_not_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    tmp_path.chmod(0o1777)
    folder = LocalFolder()
    assert folder.may_remove(str(tmp_path / "file"))
    monkeypatch.setattr("vhdkit.storage.local_folder.this_user", lambda: 54321)
    assert not folder.may_remove(str(tmp_path / "file"))
    assert not folder.may_protect(str(tmp_path / "file"))
    tmp_path.chmod(0o777)
    assert folder.may_remove(str(tmp_path / "file"))


@pytest.mark.parametrize("lacking", ["may_remove", "may_protect"])
def test_what_may_not_be_removed_or_frozen_is_not_left_behind(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    kept.take("A", "a")
    active = kept.machine.active[0]
    before = contents(kept.folder)
    asked = getattr(LocalFolder, lacking)
    monkeypatch.setattr(LocalFolder, lacking, lambda folder, path: path != active and asked(folder, path))
    verb = (lambda: kept.machine.apply("A")) if lacking == "may_remove" else (lambda: kept.machine.take("B"))
    with pytest.raises(ReadOnlyImageError):
        verb()
    assert contents(kept.folder) == before


def test_a_state_file_that_is_not_there_is_refused_before_anything_is_made(kept: Kept) -> None:
    before = contents(kept.folder)
    with pytest.raises(FileNotFoundError):
        kept.machine.take("A", state=["nothing"])
    with pytest.raises((VhdError, OSError)):
        kept.machine.take("A", directory="nowhere")
    assert contents(kept.folder) == before


def test_every_command_in_a_refusal_is_quoted_for_the_shell(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    (folder / "l'x").mkdir(parents=True)
    vhdkit.create_image(str(folder / "xp.vhd"), size=SIZE)
    machine = Machine.adopt([str(folder / "xp.vhd")])
    machine.take("A", directory=str(folder / "l'x"))
    for post in (folder / "l'x").glob("*.at"):
        post.unlink()
    with pytest.raises(SnapshotError) as refused:
        Machine(str(folder / "xp.vhd")).take("B")
    (command,) = re.findall("`(vhdkit .*?)`", as_typed(refused.value))
    words = shlex.split(command)
    assert words[-3:] == [str(folder / "xp.vhd"), "--search", str(folder / "l'x")]
    Machine.adopt([words[3]], search=[words[5]])
    Machine(str(folder / "xp.vhd")).take("B")


def test_a_merge_whose_topmost_layer_is_lost_is_refused_and_not_tried_for_ever(kept: Kept) -> None:
    kept.take("A", "a")
    kept.write("b")
    machine = kept.machine
    active = machine.active[0]
    machine.delete("A")
    manifest = machine.file.read()
    _, foldings = transitions.owed_by(manifest)
    with machine.file.locked():
        machine.file.write(replace(machine.file.read(), foldings=foldings))
    Path(active).unlink()
    before = Path(machine.file.path).read_bytes()
    with pytest.raises(SnapshotError, match="put it back"):
        kept.machine.settle()
    assert Path(machine.file.path).read_bytes() == before
