"""A manifest, a signpost or a running mark that somebody forged gains nothing outside the machine's folders."""

from __future__ import annotations

import json
import os
import stat
import tarfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.snapshots.machines import SIZE, Kept, advised, letter_of
from vhdkit.errors import SnapshotError, VhdError
from vhdkit.journal.manifest import MAX_BYTES, Manifest
from vhdkit.snapshot.machine import Machine
from vhdkit.storage import local_folder

if TYPE_CHECKING:
    from collections.abc import Callable

OLD = Path(__file__).parent / "dfd6f62"
MANIFEST = "xp.vhdkit-snapshots.json"
GUID = "0F0E0D0C-0B0A-4908-8706-050403020100"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder beside the machine's, with files that a manifest may name."""
    folder = tmp_path / "victim"
    folder.mkdir()
    vhdkit.create_image(str(folder / "precious.vhd"), size=SIZE)
    vhdkit.create_image(str(folder / "leaf.avhd"), parent=str(folder / "precious.vhd"))
    (folder / "precious.vhd.0123abcd.partial").write_bytes(b"somebody's convert")
    (folder / f"x_{GUID}_state.bin").write_bytes(b"kept by another machine")
    (folder / f"id_{GUID}_key.txt").write_bytes(b"secret")
    return folder


def looked_at(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return every file's mode and bytes."""
    return {path.name: (path.stat().st_mode, path.read_bytes()) for path in folder.iterdir()}


def forged(kept: Kept, change: Callable[[dict[str, Any]], None]) -> None:
    path = kept.folder / MANIFEST
    record = json.loads(path.read_bytes())
    change(record)
    path.write_text(json.dumps(record))


def id_of(path: Path) -> str:
    with vhdkit.open_image(str(path)) as image:
        return image.unique_id.hex()


def everything(kept: Kept) -> list[Callable[[], object]]:
    """Return every verb there is, each on the machine as it is named by its base."""
    out = str(kept.folder / "out")

    def named(verb: str, *given: object, **options: object) -> Callable[[], object]:
        return lambda: getattr(kept.machine, verb)(*given, **options)

    return [
        named("owed"),
        named("is_running"),
        named("check"),
        named("check", accept=True),
        named("take", "new"),
        named("rename", "A", "B"),
        named("rename", "B", "A"),
        named("apply", "A", state_to=out),
        named("export", "A", out),
        named("export", "A", out, chain=True),
        named("make_way"),
        named("revert"),
        named("delete", "A"),
        named("settle"),
        lambda: Machine.adopt([kept.base]),
    ]


def run(kept: Kept) -> None:
    """Do everything; it may be refused, and in no other way than with the errors that callers expect."""
    for verb in everything(kept):
        try:
            verb()
        except (VhdError, OSError):
            continue


LEAF = {"path": "../victim/leaf.avhd", "parent": "../victim/precious.vhd", "mark": None}
BASE = {"path": "../victim/precious.vhd", "parent": None, "mark": None}


def doomed(record: dict[str, Any], folder: Path) -> None:
    record["doomed"] = [{"path": "../victim/precious.vhd", "unique_id": id_of(folder / "precious.vhd")}]


def doomed_by_a_link(record: dict[str, Any], folder: Path) -> None:
    name = f"xp_{GUID}.avhd"
    Path(name).symlink_to(folder / "leaf.avhd")
    record["doomed"] = [{"path": name, "unique_id": id_of(folder / "leaf.avhd")}]


def doomed_partials(record: dict[str, Any], _: Path) -> None:
    record["doomed"] = [{"path": "../victim/precious.vhd", "unique_id": "00" * 16}]


def a_second_disk(record: dict[str, Any], folder: Path) -> None:
    ids = {"precious": id_of(folder / "precious.vhd"), "leaf": id_of(folder / "leaf.avhd")}
    layers = [BASE | {"unique_id": ids["precious"]}, LEAF | {"unique_id": ids["leaf"]}]
    record["disks"].append({"stem": "leaf", "active": BASE["path"], "directory": ".", "layers": layers})
    for snapshot in record["snapshots"]:
        snapshot["layers"].append(BASE["path"])


def a_kept_file_of_another(record: dict[str, Any], _: Path) -> None:
    record["disks"][0]["stem"] = "x"
    record["doomed"] = [{"path": f"../victim/x_{GUID}_state.bin", "unique_id": ""}]


def an_absolute_stem(record: dict[str, Any], folder: Path) -> None:
    record["disks"][0]["stem"] = str(folder / "evil")


def a_stem_that_leads_out(record: dict[str, Any], _: Path) -> None:
    record["disks"][0]["stem"] = "../victim/evil"


def new_layers_elsewhere(record: dict[str, Any], _: Path) -> None:
    record["disks"][0]["directory"] = "../victim"


def a_secret(record: dict[str, Any], _: Path) -> None:
    record["snapshots"][0]["id"] = GUID
    record["now"] = GUID
    record["snapshots"][0]["state"] = [{"name": "key.txt", "path": f"../victim/id_{GUID}_key.txt"}]


def a_frozen_layer_elsewhere(record: dict[str, Any], folder: Path) -> None:
    mark = record["disks"][0]["layers"][0]["mark"]
    record["disks"][0]["layers"].append(BASE | {"unique_id": id_of(folder / "precious.vhd"), "mark": mark})


def a_merge_elsewhere(record: dict[str, Any], folder: Path) -> None:
    a_second_disk(record, folder)
    record["disks"][1]["active"] = LEAF["path"]
    fold = {"sources": [LEAF["path"]], "destination": BASE["path"]}
    record["foldings"] = [{"disk": 1, "fold": fold, "is_empty": False}]


FORGERIES: list[Callable[[dict[str, Any], Path], None]] = [
    doomed,
    doomed_by_a_link,
    doomed_partials,
    a_second_disk,
    a_kept_file_of_another,
    an_absolute_stem,
    a_stem_that_leads_out,
    new_layers_elsewhere,
    a_secret,
    a_frozen_layer_elsewhere,
    a_merge_elsewhere,
]


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda each: each.__name__)
def test_a_forged_manifest_gains_nothing_outside_its_folder(
    kept: Kept, victim: Path, forgery: Callable[[dict[str, Any], Path], None]
) -> None:
    kept.take("A", "a")
    forged(kept, lambda record: forgery(record, victim))
    before = looked_at(victim)
    run(kept)
    assert looked_at(victim) == before
    out = kept.folder / "out"
    assert not any(path.read_bytes() == b"secret" for path in (out.iterdir() if out.exists() else ()))
    assert sorted(path.name for path in kept.folder.parent.iterdir() if path.is_dir()) == ["victim", "vms"]


@pytest.mark.parametrize("name", ["precious.vhd", "precious.avhd", f"other_{GUID}.avhd", f"xp_{GUID}.avhd"])
def test_in_its_own_folder_a_manifest_has_only_files_removed_that_are_its_machines(kept: Kept, name: str) -> None:
    """The last has the name and the id, and another image reads through it."""
    kept.take("A", "a")
    vhdkit.create_image(name, parent=None if name.endswith(".vhd") else "xp.vhd", size=SIZE)
    if name.startswith("xp_"):
        vhdkit.create_image("child.avhd", parent=name)
    forged(kept, lambda record: record.update(doomed=[{"path": name, "unique_id": id_of(Path(name))}]))
    kept.machine.settle()
    assert Path(name).exists()
    kinds = {remark.path: remark for remark in kept.machine.check()}
    remark = kinds.get(str(kept.folder / name))
    assert remark is None or not any("settle" in word for word in advised(remark))


def test_what_is_doomed_and_the_machines_goes(kept: Kept) -> None:
    kept.take("A", "a")
    name = f"xp_{GUID}.avhd"
    vhdkit.create_image(name, parent="xp.vhd")
    Path(f"{name}.0123abcd.partial").write_bytes(b"half")
    forged(kept, lambda record: record.update(doomed=[{"path": name, "unique_id": id_of(Path(name))}]))
    kept.machine.settle()
    assert not Path(name).exists()
    assert not Path(f"{name}.0123abcd.partial").exists()
    assert kept.machine.check() == ()


def test_an_unneeded_layer_of_a_strange_name_stays_and_moving_it_away_is_the_way_out(tmp_path: Path) -> None:
    for name, parent in (("xp.vhd", None), ("dead.avhd", "xp.vhd"), ("now.avhd", "xp.vhd")):
        vhdkit.create_image(str(tmp_path / name), parent=None if parent is None else str(tmp_path / parent), size=SIZE)
    machine = Machine.adopt([str(tmp_path / "now.avhd")])
    machine.delete("dead")
    machine.settle()
    assert (tmp_path / "dead.avhd").exists()
    (remark,) = (each for each in machine.check() if each.path.endswith("dead.avhd"))
    assert (remark.kind, advised(remark)) == ("owed", ())
    assert "forgotten once the file is moved" in remark.message
    (tmp_path / "dead.avhd").rename(tmp_path.parent / "dead.avhd")
    machine.settle()
    assert not any("dead" in each.path for each in machine.check())


NAMES = ["\ud800", "\udfff\ud800", "a\0b", "\x1b[2J", "../x", "/etc/passwd", "a//b", "./x.vhd", "", ".", "..", "a/"]


@pytest.mark.parametrize("name", NAMES)
def test_one_bad_manifest_is_one_error_that_names_it_and_hides_only_itself(kept: Kept, name: str) -> None:
    kept.take("A", "a")
    vhdkit.create_image("aa.vhd", size=SIZE)
    other = Machine.adopt(["aa.vhd"])
    other.take("B")
    path = kept.folder / "aa.vhdkit-snapshots.json"
    record = json.loads(path.read_bytes())
    if name != "\x1b[2J":
        record["disks"][0]["layers"][1]["path"] = record["disks"][0]["active"] = name
    else:
        record["now"] = name
    path.write_text(json.dumps(record))
    assert [each.name for each in kept.machine.snapshots] == ["A"]
    kept.take("C", "c")
    assert kept.machine.check() == ()
    with pytest.raises(SnapshotError, match=r"aa\.vhdkit-snapshots\.json: ") as refused:
        Machine("aa.vhd").check()
    assert "\x1b" not in str(refused.value)


def repeated(raw: bytes) -> bytes:
    return raw.replace(b'"machine": "xp"', b'"machine": "xp", "machine": "yy"')


def unknown(raw: bytes) -> bytes:
    return raw.replace(b'"machine": "xp"', b'"machine": "xp", "command": "rm"')


def repeated_below(raw: bytes) -> bytes:
    return raw.replace(b'"footer": ', b'"footer": 1, "footer": ', 1)


def of_400_digits(raw: bytes) -> bytes:
    return raw.replace(b'"size": ', b'"size": 1' + b"0" * 400, 1)


def not_utf_8(raw: bytes) -> bytes:
    return raw.replace(b'"machine": "xp"', b'"machine": "x\xff"')


def a_nul(raw: bytes) -> bytes:
    return raw.replace(b'"machine": "xp"', b'"machine": "x\\u0000ff"')


@pytest.mark.parametrize("damage", [repeated, unknown, repeated_below, of_400_digits, not_utf_8, a_nul])
def test_a_manifest_is_read_strictly(kept: Kept, damage: Callable[[bytes], bytes]) -> None:
    kept.take("A", "a")
    path = kept.folder / MANIFEST
    raw = path.read_bytes()
    path.write_bytes(damage(raw))
    assert path.read_bytes() != raw
    with pytest.raises(SnapshotError, match=r"xp\.vhdkit-snapshots\.json: it cannot be read as a manifest"):
        kept.machine.snapshots  # noqa: B018 - asking is what fails


def test_names_that_are_no_utf_8_are_written_and_read_the_same(tmp_path: Path) -> None:
    base = os.fsdecode(os.fsencode(tmp_path) + b"/x\xff\\udcffp.vhd")
    vhdkit.create_image(base, size=SIZE)
    machine = Machine.adopt([base], machine="\U0001f4be \udcfe")
    machine.take("A")
    again = Machine(base)
    assert again.name == "\U0001f4be \udcfe"
    assert again.layers_of("A") == (base,)
    raw = Path(machine.file.path).read_bytes()
    assert Manifest.from_json(raw).to_json() == raw
    assert again.check() == ()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_a_signpost_of_another_user_lets_no_manifest_speak_for_a_folder(kept: Kept, victim: Path) -> None:
    kept.take("A", "a")
    manifest = kept.machine.file.read()
    signpost = victim / f"xp_{manifest.id}.vhdkit-snapshots.at"
    shown = {"kind": "vhdkit snapshots elsewhere", "version": 1, "manifest": f"../vms/{MANIFEST}"}
    signpost.write_text(json.dumps(shown))
    forged(kept, lambda record: a_second_disk(record, victim))
    assert kept.machine.manifest
    os.chown(signpost, 12345, 12345)
    with pytest.raises(SnapshotError, match="no signpost there leads back"):
        kept.machine.manifest  # noqa: B018 - asking is what fails


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_a_user_speaks_for_layers_of_their_own_alone(kept: Kept) -> None:
    """In a folder that all may write to, another's manifest may name one's own images."""
    kept.take("A", "a")
    for path in kept.folder.iterdir():
        os.chown(path, 12345, 12345)
    assert [each.name for each in kept.machine.snapshots] == ["A"]
    os.chown(kept.machine.active[0], 0, 0)
    with pytest.raises(SnapshotError, match="another user"):
        kept.machine.snapshots  # noqa: B018 - asking is what fails
    # Nor while nothing is there that could say whose it is.
    os.unlink(kept.folder / "xp.vhd")
    for path in kept.folder.glob("*.avhd"):
        path.unlink()
    with pytest.raises(SnapshotError):
        Machine(str(kept.folder / MANIFEST)).snapshots  # noqa: B018 - asking is what fails


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "dangling"])
@pytest.mark.parametrize("suffix", [".json", ".at", ".running", ".lock"])
def test_what_has_a_side_files_name_and_is_none_is_refused_or_passed_over(
    kept: Kept, victim: Path, kind: str, suffix: str
) -> None:
    kept.take("A", "a")
    path = kept.folder / f"xp.vhdkit-snapshots{suffix}"
    path.unlink(missing_ok=True)
    match kind:
        case "link":
            path.symlink_to(victim / "precious.vhd")
        case "dangling":
            path.symlink_to(victim / "made.txt")
        case "fifo":
            os.mkfifo(path)
        case _:
            path.mkdir()
    before = looked_at(victim)
    run(kept)
    assert looked_at(victim) == before


def test_a_kept_link_is_neither_handed_out_nor_changed(kept: Kept, victim: Path, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"memory")
    kept.write("a")
    kept.machine.take("A", state=[str(tmp_path / "memory")])
    (state,) = kept.folder.glob("*_memory")
    state.unlink()
    state.symlink_to(victim / f"id_{GUID}_key.txt")
    before = looked_at(victim)
    for verb in (lambda: kept.machine.apply("A", state_to="out"), lambda: kept.machine.export("A", "out")):
        with pytest.raises((VhdError, OSError)):
            verb()
    kept.machine.delete("A")
    assert looked_at(victim) == before


def test_a_layer_whose_name_became_a_link_is_not_gone_through(kept: Kept, tmp_path: Path) -> None:
    kept.take("A", "a")
    (tmp_path / "big").mkdir()
    (kept.folder / "xp.vhd").rename(tmp_path / "big" / "xp.vhd")
    (kept.folder / "xp.vhd").symlink_to(tmp_path / "big" / "xp.vhd")
    mode = stat.S_IMODE((tmp_path / "big" / "xp.vhd").stat().st_mode)
    (tmp_path / "big" / "xp.vhd").chmod(0o644)
    machine = Machine(str(kept.folder / MANIFEST))
    kinds = {remark.kind for remark in machine.check()}
    assert "changed" in kinds
    machine.settle()
    with pytest.raises((VhdError, OSError)):
        machine.apply("A")
    assert mode == 0o444
    assert stat.S_IMODE((tmp_path / "big" / "xp.vhd").stat().st_mode) == 0o644


def test_protecting_a_link_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match="symbolic links"):
        local_folder.LocalFolder().protect(str(tmp_path / "link"), is_protected=True)
    assert (tmp_path / "file").stat().st_mode & 0o200


def test_a_long_manifest_is_not_read(kept: Kept) -> None:
    kept.take("A", "a")
    with (kept.folder / MANIFEST).open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(SnapshotError, match="too many for a manifest"):
        kept.machine.snapshots  # noqa: B018 - asking is what fails


# Manifests that commit dfd6f62 wrote, with their images


def unpacked(folder: Path, name: str) -> Path:
    with tarfile.open(OLD / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="tar")
    return folder / name


def test_an_earlier_manifest_of_a_tree_goes_on(tmp_path: Path) -> None:
    folder = unpacked(tmp_path, "tree")
    (base,) = (path for path in folder.iterdir() if path.suffix == ".vhd")
    machine = Machine(str(base))
    assert machine.name == "old ä\U0001f4be"
    assert {each.name: each.note for each in machine.snapshots} == {"A": 'the "first"\n', "B": "", "D": ""}
    assert machine.check() == ()
    shown = {each.name: letter_of(machine.layers_of(each.name)[0]) for each in machine.snapshots}
    assert shown == {"A": "a", "B": "b", "D": "d"}
    assert letter_of(machine.active[0]) == "e"
    applied = machine.apply("A")
    assert Path(applied.state[0]).read_bytes() == b"state" * 100
    machine.take("E", state=[applied.state[0]])
    machine.delete("A", subtree=True)
    machine.settle()
    assert machine.check() == ()
    assert letter_of(machine.active[0]) == "a"


def test_an_earlier_manifest_of_several_folders_goes_on(tmp_path: Path) -> None:
    folder = unpacked(tmp_path, "folders")
    machine = Machine(str(folder / "d" / "d.vhd"))
    assert machine.file.path == str(folder / "c" / "c.vhdkit-snapshots.json")
    assert machine.check() == ()
    machine.take("B")
    machine.apply("A")
    machine.delete("A")
    machine.delete("B")
    machine.settle()
    assert machine.check() == ()


def test_an_earlier_manifest_with_a_merge_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    folder = unpacked(tmp_path, "cut")
    machine = Machine(str(folder / "xp.vhd"))
    assert {remark.kind for remark in machine.check()} <= {"left over", "unfinished", "unprotected"}
    shown = {each.name: letter_of(machine.layers_of(each.name)[0]) for each in machine.snapshots}
    machine.settle()
    assert machine.check() == ()
    assert {each.name: letter_of(machine.layers_of(each.name)[0]) for each in machine.snapshots} == shown
    assert not list(folder.glob(f"*{uuid.UUID(int=10)}*"))
