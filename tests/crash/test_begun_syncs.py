"""The harness's syncs that are begun: what they make durable, what they leave pending, and what a lost one dooms."""

from __future__ import annotations

import errno

import pytest

from tests.crash.failing import FailingFolder, Fault
from tests.crash.test_crashfs import A, disks, last_cut, of, opened
from tests.crashfs import SECTOR, CrashFolder, CrashSyncing


def test_a_sync_that_was_begun_makes_nothing_durable_before_it_is_waited_for() -> None:
    folder, storage = opened({A: of("ab")})
    storage.write_at(0, of("x"))
    syncing = storage.begin_sync()
    assert disks(folder, A) == {("ab",), ("xb",)}
    assert syncing.wait() == 0
    assert disks(folder, A) == {("xb",)}


def test_what_is_written_after_it_began_stays_pending() -> None:
    folder, storage = opened({A: of("ab")})
    storage.write_at(0, of("x"))
    syncing = storage.begin_sync()
    storage.write_at(SECTOR, of("y"))
    assert disks(folder, A) == {("ab",), ("xb",), ("ay",), ("xy",)}
    syncing.wait()
    assert disks(folder, A) == {("xb",), ("xy",)}
    storage.sync()
    assert disks(folder, A) == {("xy",)}


def test_of_one_sector_the_versions_before_are_durable_and_the_later_ones_pending() -> None:
    folder, storage = opened({A: of("a")})
    storage.write_at(0, of("w"))
    storage.write_at(0, of("x"))
    syncing = storage.begin_sync()
    storage.write_at(0, of("y"))
    storage.write_at(0, of("z"))
    assert disks(folder, A) == {("a",), ("w",), ("x",), ("y",), ("z",)}
    syncing.wait()
    assert disks(folder, A) == {("x",), ("y",), ("z",)}


def test_lengths_before_are_durable_and_later_ones_pending() -> None:
    folder, storage = opened({A: of("a")})
    storage.write_at(SECTOR, of("x"))
    syncing = storage.begin_sync()
    storage.write_at(2 * SECTOR, of("y"))
    syncing.wait()
    assert disks(folder, A) == {("ax",), ("ax0",), ("axy",)}
    assert {atom.kind: atom.versions for atom in last_cut(folder).atoms} == {"sector": 2, "size": 2}


def test_a_truncation_after_it_began_is_pending() -> None:
    folder, storage = opened({A: of("abc")})
    storage.write_at(2 * SECTOR, of("x"))
    syncing = storage.begin_sync()
    storage.truncate(SECTOR)
    syncing.wait()
    assert disks(folder, A) == {("abx",), ("a",)}


def test_data_written_before_a_truncation_that_was_pending_do_not_come_back() -> None:
    folder, storage = opened({A: of("abc")})
    syncing = storage.begin_sync()
    storage.write_at(2 * SECTOR, of("x"))
    storage.truncate(2 * SECTOR)
    storage.truncate(3 * SECTOR)
    syncing.wait()
    assert disks(folder, A) == {("abc",), ("abx",), ("ab",), ("ab0",)}


def test_a_sync_at_once_makes_all_durable_and_leaves_one_under_way_nothing() -> None:
    folder, storage = opened({A: of("abc")})
    storage.write_at(0, of("x"))
    syncing = storage.begin_sync()
    storage.write_at(SECTOR, of("y"))
    storage.sync()
    assert disks(folder, A) == {("xyc",)}
    storage.write_at(2 * SECTOR, of("z"))
    syncing.wait()
    assert disks(folder, A) == {("xyc",), ("xyz",)}


def test_a_sync_under_way_that_is_lost_dooms_what_it_was_for_and_nothing_else() -> None:
    folder, storage = opened({A: of("abc")})
    storage.write_at(0, of("xy"))
    syncing = storage.begin_sync()
    assert isinstance(syncing, CrashSyncing)
    storage.write_at(SECTOR, of("w"))
    storage.write_at(2 * SECTOR, of("z"))
    syncing.lose()
    storage.sync()
    # The first is never written; the second was written again since, and the third was not what it was for.
    assert disks(folder, A) == {("awz",), ("xwz",)}
    storage.write_at(0, of("x"))
    storage.sync()
    assert disks(folder, A) == {("xwz",)}


@pytest.mark.parametrize("number", [0, 1])
def test_the_chosen_sync_fails_when_it_is_waited_for(number: int) -> None:
    fault = Fault(at=number, error=errno.EIO, kinds=frozenset({"sync"}))
    inner = CrashFolder({A: of("ab")})
    folder = FailingFolder(inner, fault)
    storage = folder.open(A, writable=True)
    for turn, letter in enumerate("xy"):
        storage.write_at(turn * SECTOR, of(letter))
        syncing = storage.begin_sync()
        if turn == number:
            with pytest.raises(OSError, match="error"):
                syncing.wait()
        else:
            syncing.wait()
    storage.sync()
    assert disks(inner, A) == ({("ay",), ("xy",)} if number == 0 else {("xb",), ("xy",)})
