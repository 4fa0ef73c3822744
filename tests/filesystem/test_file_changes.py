"""What did this snapshot change? The files that were changed, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.filesystem.guests import BIG, TEXT, debugfs, ext4, in_layers, tree
from vhdkit.errors import ChainError, GuestFileError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("pytsk3", reason="needs pytsk3")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("disk")
    return ext4(folder / "disk.img", tree(folder / "source")).read_bytes()


def changed(disk: bytes, folder: Path, *commands: str) -> bytes:
    image = folder / "changed.img"
    image.write_bytes(disk)
    debugfs(image, *commands)
    return image.read_bytes()


def changes(leaf: Path, against: int = 1) -> dict[str, tuple[str, tuple[str, ...]]]:
    with vhdkit.open_chain(leaf) as chain:
        return {each.path: (each.kind, each.what) for each in vhdkit.changed_files(chain, against)}


def test_files_that_came_went_and_changed_are_named(disk: bytes, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_bytes(b"n" * 5000)
    after = changed(
        disk,
        tmp_path,
        f"write {new} dir/new",
        "rm dir/sub/deep",
        "rm a.txt",
        f"write {new} a.txt",
        "set_inode_field empty mode 0100600",
    )
    found = changes(in_layers(tmp_path / "chain", disk, after))
    assert found.pop("/dir/new") == ("added", ())
    assert found.pop("/dir/sub/deep") == ("deleted", ())
    assert found.pop("/empty") == ("modified", ("mode",))
    kind, what = found.pop("/a.txt")
    assert (kind, what[:2]) == ("modified", ("content", "size"))
    assert {path for path, (_, what) in found.items() if what != ("modified",)} == set()
    assert set(found) <= {"/dir", "/dir/sub"}


def test_bytes_that_changed_behind_the_back_of_the_file_system_are_found(disk: bytes, tmp_path: Path) -> None:
    assert disk.count(TEXT) == 1
    after = disk.replace(TEXT, TEXT.upper())
    assert changes(in_layers(tmp_path / "chain", disk, after)) == {"/a.txt": ("modified", ("content",))}


def test_sectors_that_were_written_with_what_they_held_are_no_change(disk: bytes, tmp_path: Path) -> None:
    leaf = in_layers(tmp_path / "chain", disk, disk)
    at = disk.index(BIG[:1024])
    with vhdkit.open_chain(leaf, writable=True) as chain:
        chain.write(at, disk[at : at + 8192])
    assert changes(leaf) == {}


def test_any_lower_layer_can_be_held_against_it(disk: bytes, tmp_path: Path) -> None:
    once = disk.replace(TEXT, TEXT.upper())
    twice = once.replace(b"deep\n", b"DEEP\n")
    leaf = in_layers(tmp_path / "chain", disk, once, twice)
    assert set(changes(leaf)) == {"/dir/sub/deep"}
    assert set(changes(leaf, 2)) == {"/dir/sub/deep", "/a.txt"}
    for depth in (0, 3):
        with pytest.raises(ChainError, match="3 layers"):
            changes(leaf, depth)


def test_what_is_unchanged_is_not_read(disk: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []

    def counted(files: vhdkit.GuestFiles, file: vhdkit.GuestFile) -> object:
        read.append(file.path)
        return plain(files, file)

    plain = vhdkit.GuestFiles.pieces
    monkeypatch.setattr(vhdkit.GuestFiles, "pieces", counted)
    changes(in_layers(tmp_path / "chain", disk, disk.replace(TEXT, TEXT.upper())))
    assert set(read) == {"/a.txt"}


def test_a_file_system_that_was_made_since_is_all_new(disk: bytes, tmp_path: Path) -> None:
    found = changes(in_layers(tmp_path / "chain", bytes(len(disk)), disk))
    assert {kind for kind, _ in found.values()} == {"added"}
    assert "/dir/big" in found


def test_disks_without_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(GuestFileError, match="no file system"):
        changes(in_layers(tmp_path / "chain", bytes(1 << 20), bytes(1 << 20)))
