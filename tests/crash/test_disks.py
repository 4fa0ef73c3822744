"""What people do to files between two runs moves numbers and times as a real file system does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.crash.disks import Disk
from tests.crashfs import CrashFolder
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

A, B = "/vms/a.vhd", "/vms/b.vhd"


def disk() -> Disk:
    return Disk.of(CrashFolder({A: b"new", B: b"b"}, times={1: 5.0, 2: 6.0}, clock=True))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("mtime", [2.0, None])
def test_what_is_put_back_has_a_change_time_of_the_present(mtime: float | None, in_place: bool) -> None:
    file = disk().put_back(A, b"old", mtime=mtime, in_place=in_place).folder()[A]
    assert (bytes(file.content), file.mtime, file.ctime) == (b"old", 7.0 if mtime is None else mtime, 7.0)
    assert file.number == (1 if in_place else 3)


def test_a_renamed_file_keeps_its_number_and_its_modification_time() -> None:
    file = disk().renamed(A, B).folder()[B]
    assert (file.number, file.mtime, file.ctime) == (1, 5.0, 7.0)


def test_a_copy_of_the_whole_has_other_numbers_and_its_times_or_not() -> None:
    kept, new = (disk().copied(with_times=with_times).folder() for with_times in (True, False))
    assert [(kept[path].number, kept[path].mtime, kept[path].ctime) for path in (A, B)] == [
        (3, 5.0, 7.0),
        (4, 6.0, 8.0),
    ]
    assert [(new[path].number, new[path].mtime) for path in (A, B)] == [(3, 7.0), (4, 8.0)]


def test_a_number_that_was_given_is_never_given_again() -> None:
    after = disk().put_back(A, b"x", in_place=False).removed(A)
    assert after.put_back(A, b"y").files[A].number == 4
    assert Disk.of(after.folder()).next_number == 4


def put_over(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def rename_over(path: Path, other: Path) -> None:
    other.replace(path)


@pytest.mark.parametrize(("act", "is_same_file"), [(put_over, True), (rename_over, False)])
def test_the_model_identifies_files_as_this_machine_does(
    act: Callable[[Path, Path], None], is_same_file: bool, tmp_path: Path
) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"new")
    other.write_bytes(b"old")
    before, was_other = (LocalFolder().open(str(each)) for each in (path, other))
    times = (before.ctime, was_other.ctime)
    act(path, other)
    after = LocalFolder().open(str(path))
    assert (after.identity == before.identity) == is_same_file
    assert (after.identity == was_other.identity) != is_same_file
    assert after.ctime >= max(times)
    for storage in (before, was_other, after):
        storage.close()
