"""The machine's memory comes back with its disks, and never that of another snapshot."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

import vhdkit
from tests.snapshots.machines import Kept, contents
from vhdkit.cli.main import run
from vhdkit.errors import SnapshotError
from vhdkit.journal.manifest import Manifest
from vhdkit.snapshot.state_files import keep_state_at
from vhdkit.storage.local_folder import LocalFolder


@pytest.fixture
def memory(kept: Kept, tmp_path: Path) -> Path:
    """Where the machine keeps its memory while it is off, beside its disks; the manifest says so."""
    folder = tmp_path / "saved"
    folder.mkdir()
    keep_state_at(kept.machine.file, str(folder))
    return folder / "xp.vsv"


def take(kept: Kept, memory: Path, name: str) -> None:
    memory.write_bytes(name.encode())
    kept.machine.take(name, state=[str(memory)])


def test_applying_puts_the_saved_state_where_the_manifest_says(kept: Kept, memory: Path) -> None:
    take(kept, memory, "one")
    take(kept, memory, "two")
    applied = kept.machine.apply("one")
    assert (memory.read_bytes(), applied.state, applied.is_state_in_place) == (b"one", (str(memory),), True)
    # What lay there was of the state that is discarded; it is kept under another name.
    assert [Path(path).read_bytes() for path in applied.set_aside] == [b"two"]
    assert kept.machine.revert().set_aside != applied.set_aside
    assert memory.read_bytes() == b"one"
    kept.machine.apply("two")
    assert memory.read_bytes() == b"two"
    # It is the machine's own now, and may be written and removed.
    memory.write_bytes(b"running")


def test_a_snapshot_of_a_machine_that_was_off_leaves_no_memory_of_another(kept: Kept, memory: Path) -> None:
    kept.machine.take("off")
    take(kept, memory, "saved")
    applied = kept.machine.apply("off")
    assert not memory.exists()
    assert [Path(path).read_bytes() for path in applied.set_aside] == [b"saved"]


def test_no_layer_makes_room_for_a_file_that_was_kept(kept: Kept, tmp_path: Path) -> None:
    """The base was renamed before anything was noticed: a cut left a chain without it."""
    base = Path(kept.base)
    state = tmp_path / "elsewhere" / base.name
    state.parent.mkdir()
    state.write_bytes(b"memory")
    keep_state_at(kept.machine.file, str(base.parent))
    kept.machine.take("one", state=[str(state)])
    before = contents(base.parent)
    with pytest.raises(SnapshotError, match="would have to take its place"):
        kept.machine.apply("one")
    assert contents(base.parent) == before
    applied = kept.machine.apply("one", state_to=str(tmp_path / "memory"))
    assert [Path(path).read_bytes() for path in applied.state] == [b"memory"]


def test_what_fails_leaves_the_memory_that_was_there(kept: Kept, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take(kept, memory, "one")
    memory.write_bytes(b"later")
    before = contents(memory.parent)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("vhdkit.snapshot.new_files.create_image", full)
        with pytest.raises(OSError, match="space"):
            kept.machine.apply("one")
    assert contents(memory.parent) == before


def test_the_folder_is_known_when_the_machine_is_begun_again(kept: Kept, memory: Path) -> None:
    vhdkit.Machine.adopt([kept.base])
    take(kept, memory, "one")
    memory.unlink()
    kept.machine.apply("one")
    assert memory.read_bytes() == b"one"


def test_a_manifest_that_names_a_folder_from_which_nothing_leads_back_moves_nothing(
    kept: Kept, memory: Path, tmp_path: Path
) -> None:
    take(kept, memory, "one")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "xp.vsv").write_bytes(b"precious")
    file = Path(kept.machine.file.path)
    record = json.loads(file.read_bytes())
    file.write_text(json.dumps(record | {"state_to": "../etc"}))
    before = contents(kept.folder)
    with pytest.raises(SnapshotError, match="no signpost leads back"):
        kept.machine.apply("one")
    assert contents(tmp_path / "etc") == {"xp.vsv": b"precious"}
    assert contents(kept.folder) == before


@pytest.mark.parametrize("folder", ["/etc", "a" * 9000, 5])
def test_a_folder_that_is_no_relative_path_is_no_manifest(folder: object, kept: Kept) -> None:
    record = json.loads(kept.machine.manifest.to_json()) | {"state_to": folder}
    with pytest.raises(SnapshotError):
        Manifest.from_json(json.dumps(record).encode())


def test_a_manifest_without_it_is_what_it_was(kept: Kept) -> None:
    assert "state_to" not in json.loads(kept.machine.manifest.to_json())


def test_the_command_line_says_what_to_do_where_nobody_said_where_it_belongs(
    kept: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "xp.vsv").write_bytes(b"memory")
    kept.machine.take("one", state=[str(tmp_path / "xp.vsv")])
    assert run(["snapshot", "apply", "one", kept.base]) == 0
    reported = capsys.readouterr()
    assert "kept file" in reported.out
    assert "start nothing before it is in its place" in reported.err
    assert "--state-to DIR" in reported.err
    assert run(["snapshot", "init", kept.base, "--state-to", str(tmp_path)]) == 0
    capsys.readouterr()
    assert run(["snapshot", "apply", "one", kept.base]) == 0
    reported = capsys.readouterr()
    assert "saved state" in reported.out
    assert "set aside" in reported.out
    assert reported.err == ""
    assert run(["snapshot", "apply", "one", kept.base, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["state-in-place"], record["state"]) == (True, [str(tmp_path / "xp.vsv")])


def test_a_failure_behind_the_manifest_leaves_no_memory_of_another_snapshot(
    kept: Kept, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.write("o")
    take(kept, memory, "one")
    kept.write("t")
    take(kept, memory, "two")
    seen = [0]
    replace, sync = LocalFolder.replace, LocalFolder.sync

    def counting(self: LocalFolder, temporary: str, path: str) -> None:
        replace(self, temporary, path)
        seen[0] += path.endswith("snapshots.json")

    def failing(self: LocalFolder, directory: str) -> None:
        # The first replace says what is begun, the second has the new active layers.
        if seen[0] == 2:
            seen[0] = 3
            raise OSError(errno.EIO, os.strerror(errno.EIO), directory)
        sync(self, directory)

    monkeypatch.setattr(LocalFolder, "replace", counting)
    monkeypatch.setattr(LocalFolder, "sync", failing)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        kept.machine.apply("one")
    monkeypatch.undo()
    assert seen[0] == 3
    assert kept.shows() == "o"
    assert not memory.exists()
    assert b"two" in [path.read_bytes() for path in memory.parent.iterdir()]
