"""The harness itself: what survives a cut and what does not, and how calls fail."""

from __future__ import annotations

import errno
import itertools
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.crash.acts import uncut
from tests.crash.failing import FailingFolder, Fault
from tests.crash.programs import PROGRAMS
from tests.crash.survivals import cuts
from tests.crashfs import SECTOR, CrashFolder

if TYPE_CHECKING:
    from tests.crash.survivals import Cut
    from vhdkit.storage.protocols import Storage

A, B, NEW = "/d/a", "/d/b", "/d/new"
BY_NAME = {program.name: program for program in PROGRAMS}


def of(letters: str) -> bytes:
    return b"".join(letter.encode() * SECTOR for letter in letters)


def letters(raw: bytes | None) -> str:
    return "gone" if raw is None else "".join(chr(raw[at]) for at in range(0, len(raw), SECTOR)).replace("\0", "0")


def disks(folder: CrashFolder, *paths: str) -> set[tuple[str, ...]]:
    """Return what each combination of what is pending at the end leaves of some files, their sectors as letters."""
    for cut in cuts(folder):
        if cut.index == len(folder.log):
            choices = itertools.product(*(range(atom.versions) for atom in cut.atoms))
            left = [cut.survival(choice).files for choice in choices]
            return {tuple(letters(files.get(path)) for path in paths) for files in left}
    raise AssertionError("a log has an end")


def last_cut(folder: CrashFolder) -> Cut:
    *_, cut = cuts(folder)
    return cut


def opened(files: dict[str, bytes]) -> tuple[CrashFolder, Storage]:
    folder = CrashFolder(files)
    return folder, folder.open(A, writable=True)


# What survives


def test_each_sector_written_is_old_or_new_until_the_sync() -> None:
    folder, storage = opened({A: of("abc")})
    storage.write_at(0, of("xy"))
    assert disks(folder, A) == {("abc",), ("xbc",), ("ayc",), ("xyc",)}
    storage.sync()
    assert disks(folder, A) == {("xyc",)}


def test_of_several_versions_of_a_sector_any_one_survives() -> None:
    folder, storage = opened({A: of("a")})
    for letter in "xyz":
        storage.write_at(0, of(letter))
    assert disks(folder, A) == {("a",), ("x",), ("y",), ("z",)}


def test_a_write_inside_a_sector_takes_the_rest_of_it_along() -> None:
    folder, storage = opened({A: of("a")})
    storage.write_at(0, b"x" * 10)
    storage.write_at(500, b"y" * 12)
    assert last_cut(folder).survival([2]).files[A] == b"x" * 10 + b"a" * 490 + b"y" * 12


def test_length_and_data_of_growth_survive_alone() -> None:
    folder, storage = opened({A: of("a")})
    storage.write_at(2 * SECTOR, of("x"))
    assert disks(folder, A) == {("a",), ("a00",), ("a0x",)}
    cut = last_cut(folder)
    kinds = [atom.kind for atom in cut.atoms]
    rubbish = cut.survival([int(kind == "size") for kind in kinds], stale=True).files[A]
    assert letters(rubbish)[:2] == "a0"
    assert rubbish[2 * SECTOR :] not in {of("x"), bytes(SECTOR)}
    storage.sync()
    assert disks(folder, A) == {("a0x",)}


def test_reserved_length_is_pending_too() -> None:
    folder, storage = opened({A: of("a")})
    storage.reserve(0, 2 * SECTOR)
    assert disks(folder, A) == {("a",), ("a0",)}


def test_a_truncation_is_pending_and_takes_older_data_with_it() -> None:
    folder, storage = opened({A: of("abc")})
    storage.write_at(SECTOR, of("x"))
    storage.truncate(SECTOR)
    assert disks(folder, A) == {("a",), ("abc",), ("axc",)}
    storage.truncate(3 * SECTOR)
    assert disks(folder, A) == {("a",), ("abc",), ("axc",), ("a00",)}
    storage.sync()
    assert disks(folder, A) == {("a00",)}


def test_a_file_made_may_be_absent_empty_or_there() -> None:
    folder = CrashFolder({A: of("a")})
    storage = folder.create(NEW)
    storage.write_at(0, of("x"))
    assert disks(folder, NEW) == {("gone",), ("",), ("0",), ("x",)}
    storage.sync()
    assert disks(folder, NEW) == {("gone",), ("x",)}
    folder.sync("/d")
    assert disks(folder, NEW) == {("x",)}


def test_a_name_may_be_durable_before_its_content() -> None:
    folder = CrashFolder({})
    storage = folder.create(NEW)
    folder.sync("/d")
    storage.write_at(0, of("x"))
    assert disks(folder, NEW) == {("",), ("0",), ("x",)}


def test_a_file_removed_may_be_back_with_its_content() -> None:
    folder = CrashFolder({A: of("a"), B: of("b")})
    folder.remove(A)
    folder.remove(B)
    assert disks(folder, A, B) == {("a", "b"), ("gone", "b"), ("a", "gone"), ("gone", "gone")}
    folder.sync("/elsewhere")
    assert len(disks(folder, A, B)) == 4
    folder.sync("/d")
    assert disks(folder, A, B) == {("gone", "gone")}


def test_a_published_file_has_its_old_name_both_or_the_new_one() -> None:
    folder, _ = opened({A: of("a")})
    folder.publish(A, NEW)
    assert disks(folder, A, NEW) == {("a", "gone"), ("a", "a"), ("gone", "a")}
    both = next(survival for survival in last_cut(folder).survivals() if len(survival.files) == 2)
    assert both.folder().open(A).link_count == 2
    folder.sync("/d")
    assert disks(folder, A, NEW) == {("gone", "a")}


def test_a_file_that_is_replaced_is_the_old_one_or_the_new_one_and_never_gone() -> None:
    folder, _ = opened({A: of("a"), B: of("b")})
    folder.replace(A, B)
    assert disks(folder, A, B) == {("a", "b"), ("a", "a"), ("gone", "a")}
    folder.sync("/d")
    assert disks(folder, A, B) == {("gone", "a")}


def test_a_sync_that_failed_makes_nothing_durable_later() -> None:
    folder = FailingFolder(CrashFolder({A: of("ab")}), Fault(at=0, error=errno.EIO, kinds=frozenset({"sync"})))
    assert isinstance(folder.inner, CrashFolder)
    storage = folder.open(A, writable=True)
    storage.write_at(0, of("xy"))
    with pytest.raises(OSError, match="a"):
        storage.sync()
    storage.write_at(0, of("z"))
    storage.sync()
    assert disks(folder.inner, A) == {("zb",), ("zy",)}


def test_nothing_and_everything_are_among_the_survivals_of_every_cut() -> None:
    for program in PROGRAMS[::6]:
        folder = uncut(program)
        for cut in cuts(folder):
            labels = [survival.label for survival in cut.survivals()]
            assert labels[0] == "none"
            assert not cut.atoms or labels[1] == "all"
        last = last_cut(folder)
        assert last.survival([atom.versions - 1 for atom in last.atoms]).files == folder.contents()


def test_a_cut_is_no_good_once_the_next_was_asked_for() -> None:
    first, *_ = cuts(uncut(PROGRAMS[5]))
    with pytest.raises(RuntimeError, match="the next cut was asked for"):
        next(first.survivals())


def test_survivals_are_the_same_for_the_same_seed() -> None:
    folder = uncut(PROGRAMS[5])
    once, again = ([[s.key for s in cut.survivals(7)] for cut in cuts(folder)] for _ in range(2))
    assert once == again


def test_two_runs_write_the_same_bytes_and_files_keep_their_numbers() -> None:
    program = BY_NAME["relinked dynamic from 1 to 3"]
    assert uncut(program).contents() == uncut(program).contents()
    folder = uncut(program)
    numbers = {path: folder[path].number for path in folder.contents()}
    cut = last_cut(folder)
    again = cut.survival([atom.versions - 1 for atom in cut.atoms]).folder()
    assert {path: again[path].number for path in again.contents()} == numbers


def test_with_a_clock_every_change_moves_the_time() -> None:
    folder = CrashFolder({A: of("a")}, clock=True)
    storage = folder.open(A, writable=True)
    before = storage.mtime
    storage.write_at(0, of("x"))
    assert storage.mtime == before + 1
    assert {survival.times[1] for cut in cuts(folder) for survival in cut.survivals()} == {before, before + 1}


def test_data_and_times_survive_alone() -> None:
    folder = CrashFolder({A: of("a")}, clock=True)
    folder.open(A, writable=True).write_at(0, of("x"))
    found = {
        (letters(last_cut(folder).survival(choice).files[A]), last_cut(folder).survival(choice).ctimes[1])
        for choice in itertools.product(range(2), repeat=2)
    }
    assert found == {("a", 0.0), ("a", 1.0), ("x", 0.0), ("x", 1.0)}


def test_a_new_name_moves_the_change_time_alone_and_survives_with_it() -> None:
    folder = CrashFolder({A: of("a")}, times={1: 5.0}, clock=True)
    folder.replace(A, NEW)
    assert (folder[NEW].mtime, folder[NEW].ctime) == (5.0, 6.0)
    found = [last_cut(folder).survival(choice) for choice in itertools.product(range(2), repeat=2)]
    assert {(NEW in survival.files, survival.ctimes[1]) for survival in found} == {(False, 5.0), (True, 6.0)}
    folder.sync("/d")
    assert last_cut(folder).survival([]).ctimes == {1: 6.0}


def test_times_go_on_from_when_the_power_went() -> None:
    folder = CrashFolder({A: of("a"), B: of("b")}, clock=True)
    for path in (A, B):
        storage = folder.open(path, writable=True)
        storage.write_at(0, of("x"))
    lost = last_cut(folder).survival([0] * len(last_cut(folder).atoms)).folder(clock=True)
    lost.open(A, writable=True).write_at(0, of("y"))
    assert lost[A].ctime == 3.0


def test_holes_are_told_until_they_are_filled() -> None:
    folder, storage = opened({A: of("a")})
    storage.truncate(4 * SECTOR)
    assert (storage.hole_bytes(0, 4 * SECTOR), storage.allocated_size) == (3 * SECTOR, SECTOR)
    storage.reserve(SECTOR, SECTOR)
    storage.write_at(2 * SECTOR, b"x")
    assert (storage.hole_bytes(0, 4 * SECTOR), storage.allocated_size) == (SECTOR, 3 * SECTOR)
    assert disks(folder, A) >= {("a",), ("a000",), ("a0x0",)}


def test_locks_bind_until_the_file_is_closed() -> None:
    folder, storage = opened({A: of("a")})
    storage.lock(exclusive=True)
    with pytest.raises(vhdkit.ImageInUseError):
        folder.open(A).lock(exclusive=False)
    storage.close()
    folder.open(A).lock(exclusive=False)


# Failing calls


def test_the_chosen_call_fails_once_and_what_follows_goes_on() -> None:
    inner = CrashFolder({A: of("a")})
    fault = Fault(at=1, error=errno.ENOSPC, kinds=frozenset({"write"}), partly=True)
    storage = FailingFolder(inner, fault).open(A, writable=True)
    storage.write_at(0, of("x"))
    with pytest.raises(OSError, match="space"):
        storage.write_at(0, of("yz"))
    assert letters(inner.contents()[A]) == "y"
    storage.write_at(SECTOR, of("w"))
    assert letters(inner.contents()[A]) == "yw"


def test_a_short_read_returns_less() -> None:
    folder = FailingFolder(CrashFolder({A: of("a")}), Fault(at=0, kinds=frozenset({"read"})))
    storage = folder.open(A)
    assert [storage.read_into(0, bytearray(SECTOR)) for _ in range(2)] == [SECTOR // 2, SECTOR]
    assert folder.struck == "read"
