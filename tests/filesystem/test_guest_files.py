"""The files inside of a disk are those that were put there, whatever layers they lie in."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.filesystem.guests import (
    BIG,
    MIB,
    TEXT,
    debugfs,
    ext4,
    fat,
    in_layers,
    ntfs,
    spread_over_layers,
    tool,
    tree,
)
from tests.keeping import keep
from vhdkit.errors import GuestFileError, MissingExtraError, NotEnoughSpaceError
from vhdkit.filesystem import guest_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vhdkit.filesystem.guest_files import GuestFiles

    Maker = Callable[[Path, Path], Path]

ODD = "odd\udcff\n\x1b[31m"


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("pytsk3", reason="needs pytsk3")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def disk(source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return ext4(tmp_path_factory.mktemp("disk") / "disk.img", source).read_bytes()


def files_of(leaf: Path, partition: int | None = None) -> GuestFiles:
    return vhdkit.open_files(keep(vhdkit.open_chain(leaf)), partition)


@pytest.fixture
def files(disk: bytes, tmp_path: Path) -> GuestFiles:
    return files_of(spread_over_layers(tmp_path / "chain", disk, 3))


def changed(disk: bytes, folder: Path, *commands: str) -> bytes:
    """The disk after changes that debugfs makes."""
    image = folder / "changed.img"
    image.write_bytes(disk)
    debugfs(image, *commands)
    return image.read_bytes()


def paths_of(files: GuestFiles) -> set[str]:
    return {each.path for each in files.walk()}


# Reading


def test_every_file_has_its_bytes(files: GuestFiles) -> None:
    assert files.partition.file_system == "ext4"
    assert files.read("/a.txt") == TEXT
    assert files.read("dir//big") == BIG
    assert files.read("/dir/sub/deep") == b"deep\n"
    assert files.read("/empty") == b""
    assert files.read("/sparse") == bytes(2 * MIB) + b"end" + bytes(MIB - 3)
    assert files.read(f"/{ODD}") == b"odd"


def test_files_say_of_which_partition_they_are(files: GuestFiles) -> None:
    assert repr(files) == "<GuestFiles of partition 1: ext4>"


def test_a_walk_meets_everything_that_was_put_there(files: GuestFiles, source: Path) -> None:
    expected = {"/", "/lost+found"}
    for folder, folders, names in os.walk(source):
        below = folder.removeprefix(str(source))
        expected |= {f"{below}/{name}" for name in folders + names}
    assert paths_of(files) == expected


def test_a_file_is_described(files: GuestFiles, source: Path) -> None:
    found, status = files.stat("/dir/big"), (source / "dir" / "big").stat()
    assert (found.kind, found.size, found.name) == ("file", len(BIG), "big")
    assert found.mode == status.st_mode & 0o7777
    assert abs(found.modified - status.st_mtime) < 2
    assert files.stat("/link").target == "/etc/passwd"
    assert files.stat("/pipe").kind == "other"
    assert [each.name for each in files.list("/dir")] == ["big", "sub"]


@pytest.mark.parametrize("maker", [fat, ntfs])
def test_fat_and_ntfs_are_read_and_their_names_found_in_any_case(maker: Maker, source: Path, tmp_path: Path) -> None:
    content = maker(tmp_path / "disk.img", source).read_bytes()
    files = files_of(spread_over_layers(tmp_path / "chain", content, 2))
    assert files.partition.file_system is not None
    assert files.partition.file_system.startswith(maker.__name__)
    assert files.read("/A.TXT") == TEXT
    assert files.read("/big" if maker is ntfs else "/dir/big") == BIG
    own = {"/", "/a.txt", "/big"} if maker is ntfs else {"/", "/a.txt", "/dir", "/dir/big", "/dir/sub", "/empty"}
    assert own <= paths_of(files)
    assert not any("$" in path or "LABEL" in path for path in paths_of(files))


def test_partitions_are_told_and_chosen_by_number(disk: bytes, source: Path, tmp_path: Path) -> None:
    image = tmp_path / "parted.img"
    second = fat(tmp_path / "fat.img", source).read_bytes()
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    tool("sgdisk", "-n", "1:2048:+8M", "-n", "2:0:+4M", "-n", "3:0:+1M", "-c", "1:system", image)
    content = bytearray(image.read_bytes())
    content[MIB : MIB + len(disk)] = disk
    content[9 * MIB : 9 * MIB + len(second)] = second
    leaf = spread_over_layers(tmp_path / "chain", bytes(content), 2)
    with vhdkit.open_chain(leaf) as chain:
        parts = vhdkit.list_partitions(chain)
        assert [(part.number, part.start, part.size) for part in parts] == [
            (1, MIB, 8 * MIB),
            (2, 9 * MIB, 4 * MIB),
            (3, 13 * MIB, MIB),
        ]
        assert [part.file_system for part in parts] == ["ext4", "fat16", None] or parts[1].file_system == "fat12"
        assert vhdkit.open_files(chain, 1).read("/dir/big") == BIG
        assert vhdkit.open_files(chain, 2).read("/a.txt") == TEXT
        with pytest.raises(GuestFileError, match=r"1 \(ext4\), 2 \(fat.*partition= chooses one"):
            vhdkit.open_files(chain)
        with pytest.raises(GuestFileError, match="partition 3 holds no file system"):
            vhdkit.open_files(chain, 3)
        with pytest.raises(GuestFileError, match="no partition 4"):
            vhdkit.open_files(chain, 4)


def test_a_disk_without_files_says_so(tmp_path: Path) -> None:
    leaf = in_layers(tmp_path / "chain", bytes(MIB), b"x" * 4096 + bytes(MIB - 4096))
    with vhdkit.open_chain(leaf) as chain:
        assert vhdkit.list_partitions(chain) == ()
        with pytest.raises(GuestFileError, match="no file system"):
            vhdkit.open_files(chain)


@pytest.mark.parametrize("path", ["/nope", "/a.txt/x", "/dir/../a.txt", "/A.TXT"])
def test_a_path_that_is_not_there_is_told(files: GuestFiles, path: str) -> None:
    with pytest.raises(GuestFileError, match="there is no"):
        files.stat(path)


def test_what_is_no_file_has_no_content(files: GuestFiles) -> None:
    for path in ("/dir", "/link", "/pipe"):
        with pytest.raises(GuestFileError, match="is no file"):
            files.read(path)


def test_without_the_library_its_extra_is_named(disk: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytsk3", None)
    with vhdkit.open_chain(in_layers(tmp_path / "chain", disk)) as chain:
        with pytest.raises(MissingExtraError, match=r"pip install 'vhdkit\[files\]'") as caught:
            vhdkit.open_files(chain)
        assert caught.value.extra == "files"


def test_a_damaged_layer_is_told_as_what_it_is(disk: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = in_layers(tmp_path / "chain", disk)
    with vhdkit.open_chain(leaf) as chain:
        files = vhdkit.open_files(chain)

        def broken(*_arguments: object) -> bytes:
            raise OSError(errno.EIO, "medium error")

        monkeypatch.setattr(chain, "read", broken)
        with pytest.raises(OSError, match="medium error"):
            files.read("/sparse")


# What a hostile disk might hold


def test_a_directory_that_contains_itself_ends_a_walk(disk: bytes, tmp_path: Path) -> None:
    content = changed(disk, tmp_path, "link dir dir/sub/again")
    found = paths_of(files_of(in_layers(tmp_path / "chain", content)))
    assert "/dir/sub/again" in found
    assert len(found) < 30


def test_more_files_than_any_disk_has_are_refused(files: GuestFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_files, "MOST_ENTRIES", 5)
    with pytest.raises(GuestFileError, match="too many"):
        list(files.walk())


def test_deleted_files_are_left_out(disk: bytes, tmp_path: Path) -> None:
    assert "/a.txt" not in paths_of(files_of(in_layers(tmp_path / "chain", changed(disk, tmp_path, "rm a.txt"))))


# Extracting


def test_a_directory_is_extracted_with_all_that_is_below_it(files: GuestFiles, tmp_path: Path) -> None:
    done = vhdkit.extract_files(files, "/", str(tmp_path / "out"))
    out = tmp_path / "out"
    assert (out / "a.txt").read_bytes() == TEXT
    assert (out / "dir" / "big").read_bytes() == BIG
    assert (out / "dir" / "sub" / "deep").read_bytes() == b"deep\n"
    assert (out / ODD).read_bytes() == b"odd"
    assert {each.path for each in done.skipped} == {"/link", "/pipe"}
    assert not (out / "link").is_symlink()
    assert abs((out / "a.txt").stat().st_mtime - files.stat("/a.txt").modified) < 1
    assert done.files == 6
    assert done.bytes == sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def test_holes_stay_holes(files: GuestFiles, tmp_path: Path) -> None:
    vhdkit.extract_files(files, "/sparse", str(tmp_path / "out"))
    found = tmp_path / "out" / "sparse"
    assert found.read_bytes() == bytes(2 * MIB) + b"end" + bytes(MIB - 3)
    assert found.stat().st_blocks * 512 <= MIB


def test_a_file_alone_goes_into_the_folder_by_its_name(files: GuestFiles, tmp_path: Path) -> None:
    vhdkit.extract_files(files, "/dir/sub/deep", str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["deep"]
    vhdkit.extract_files(files, "/dir/sub", str(tmp_path / "two"))
    assert (tmp_path / "two" / "sub" / "deep").read_bytes() == b"deep\n"


def test_nothing_is_replaced(files: GuestFiles, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_bytes(b"mine")
    done = vhdkit.extract_files(files, "/a.txt", str(tmp_path / "out"))
    assert [each.path for each in done.skipped] == ["/a.txt"]
    assert (tmp_path / "out" / "a.txt").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["dir", "a.txt"])
def test_a_link_that_lies_in_the_folder_is_not_gone_through(files: GuestFiles, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(outside / "new" if name == "a.txt" else outside)
    done = vhdkit.extract_files(files, "/", str(tmp_path / "out"))
    assert list(outside.iterdir()) == []
    assert f"/{name}" in {each.path for each in done.skipped}


@pytest.mark.parametrize("name", [b"../../x", b"/tmp/xx", b"a/../xx", b"\0xxxxxx"])
def test_a_name_that_climbs_is_never_followed(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "climber").write_bytes(b"out of here")
    content = ext4(tmp_path / "disk.img", tmp_path / "in").read_bytes()
    assert content.count(b"climber") == 1
    files = files_of(in_layers(tmp_path / "chain", content.replace(b"climber", name)))
    vhdkit.extract_files(files, "/", str(tmp_path / "a" / "b" / "out"))
    made = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert all(path.parts[:2] == ("b", "out") for path in made)
    assert not (tmp_path / "x").exists()


def test_a_size_that_is_a_lie_is_refused_before_anything_is_written(disk: bytes, tmp_path: Path) -> None:
    content = changed(disk, tmp_path, f"set_inode_field a.txt size {1 << 46}")
    files = files_of(in_layers(tmp_path / "chain", content))
    with pytest.raises(NotEnoughSpaceError):
        vhdkit.extract_files(files, "/", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_no_half_file(
    files: GuestFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("vhdkit.progress.Reporter.add", full)
    with pytest.raises(OSError, match="no space left"):
        vhdkit.extract_files(files, "/dir/big", str(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []
