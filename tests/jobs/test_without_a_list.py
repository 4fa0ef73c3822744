"""Merges whose list of jobs is gone, damaged, full or cannot be written: they run, and say so."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.jobs.making import HANGS_SECONDS, lose, make_chain, until, view
from vhdkit.cli.main import run
from vhdkit.job.job import JobState
from vhdkit.job.registry import RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def a_file_in_its_place(state: Path) -> None:
    state.write_bytes(b"")


def a_folder_as_the_list(state: Path) -> None:
    (state / "jobs.db").mkdir(parents=True)


def a_later_version(state: Path) -> None:
    state.mkdir()
    with closing(sqlite3.connect(state / "jobs.db")) as database:
        database.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize("trouble", [a_file_in_its_place, a_folder_as_the_list, a_later_version])
@pytest.mark.parametrize("detached", [False, True])
def test_a_merge_that_cannot_be_listed_runs_and_says_so(
    trouble: Callable[[Path], None], detached: bool, vms: Path, state: Path
) -> None:
    leaf = make_chain(vms, "a", 4)
    before = view(leaf)
    trouble(state)
    job = vhdkit.start_merge(leaf, detached=detached)
    assert "list of jobs" in job.unlisted
    assert job.result(HANGS_SECONDS).state is JobState.COMPLETED
    assert view(str(vms / "a.vhd")) == before
    with pytest.raises(RegistryError):
        vhdkit.jobs()


@pytest.mark.parametrize("left", [0, 1, 2, 4, 8])
def test_a_full_disk_loses_nothing_that_was_listed(tiny: Path, vms: Path, left: int) -> None:
    first = vhdkit.start_merge(make_chain(vms, "a", 1))
    first.result(HANGS_SECONDS)
    with suppress(OSError), (tiny / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    os.truncate(tiny / "filler", (tiny / "filler").stat().st_size - left * 4096)
    second = vhdkit.start_merge(make_chain(vms, "b", 1))
    assert second.result(HANGS_SECONDS).state is JobState.COMPLETED
    (tiny / "filler").unlink()
    assert first.id in [job.id for job in vhdkit.jobs()]
    assert not list(tiny.glob("state/*damaged*"))


def test_a_merge_that_cannot_be_listed_is_still_steered_by_who_started_it(vms: Path, state: Path) -> None:
    leaf = make_chain(vms, "a", 16)
    before = view(leaf)
    state.write_bytes(b"")
    for detached in (False, True):
        # At this rate it takes 16 s: it is cancelled before, while it is still loading its modules or when it copies.
        job = vhdkit.start_merge(leaf, rate=1 << 20, detached=detached)
        time.sleep(0.6)
        job.cancel()
        assert job.wait(HANGS_SECONDS).state is JobState.TERMINATED
        assert view(leaf) == before


def test_a_process_that_is_cancelled_before_it_has_begun_to_listen_ends_as_cancelled(vms: Path, state: Path) -> None:
    leaf = make_chain(vms, "a", 4)
    before = view(leaf)
    state.write_bytes(b"")
    job = vhdkit.start_merge(leaf, rate=1 << 20, detached=True)
    # Python has not even started there.
    job.cancel()
    assert job.wait(HANGS_SECONDS).state is JobState.TERMINATED
    with pytest.raises(vhdkit.MergeCancelled):
        job.result(HANGS_SECONDS)
    assert view(leaf) == before


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory on a disk of its own, a very small one."""
    place = tmp_path / "tiny"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    monkeypatch.setenv("VHDKIT_STATE", str(place / "state"))
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_under_the_list_stops_no_merge(tiny: Path, vms: Path) -> None:
    leaf = make_chain(vms, "a", 4)
    before = view(leaf)
    (tiny / "state").mkdir()
    with suppress(OSError), (tiny / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    job = vhdkit.start_merge(leaf, detached=True)
    assert "list of jobs" in job.unlisted
    assert job.result(HANGS_SECONDS).state is JobState.COMPLETED
    assert view(str(vms / "a.vhd")) == before


def test_a_list_that_fills_its_disk_while_the_merge_runs_stops_no_merge(tiny: Path, vms: Path) -> None:
    leaf = make_chain(vms, "a", 16)
    before = view(leaf)
    job = vhdkit.start_merge(leaf, rate=8 << 20)
    until(lambda: job.job.bytes_done > 0)
    (tiny / "filler").write_bytes(b"x" * (os.statvfs(tiny).f_bavail * 4096))
    assert job.result(HANGS_SECONDS).state is JobState.COMPLETED
    assert view(str(vms / "a.vhd")) == before


def test_a_read_only_disk_under_the_list_stops_no_merge(tiny: Path, vms: Path) -> None:
    leaf = make_chain(vms, "a", 4)
    first = vhdkit.start_merge(make_chain(vms, "b", 1))
    first.result(HANGS_SECONDS)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny)], check=True)
    job = vhdkit.start_merge(leaf)
    assert job.unlisted
    assert job.result(HANGS_SECONDS).state is JobState.COMPLETED


def no_job(state: Path) -> None:
    with closing(sqlite3.connect(state / "jobs.db")) as database:
        database.execute("UPDATE jobs SET record = '[]'")
        database.commit()


def no_text(state: Path) -> None:
    with closing(sqlite3.connect(state / "jobs.db")) as database:
        database.execute("UPDATE jobs SET record = CAST(x'7bff7d' AS TEXT)")
        database.commit()


def deleted(state: Path) -> None:
    lose(state)


def list_deleted(state: Path) -> None:
    (state / "jobs.db").unlink()


def truncated(state: Path) -> None:
    os.truncate(state / "jobs.db", 0)


def cut_in_half(state: Path) -> None:
    os.truncate(state / "jobs.db", 5000)


def garbage(state: Path) -> None:
    (state / "jobs.db").write_bytes(os.urandom(20000))


@pytest.mark.parametrize("damage", [deleted, list_deleted, truncated, cut_in_half, garbage, no_job, no_text])
@pytest.mark.parametrize("detached", [False, True])
def test_a_list_that_is_lost_while_a_merge_runs_has_it_again_or_the_merge_goes_on_without(
    damage: Callable[[Path], None], detached: bool, vms: Path, state: Path
) -> None:
    leaf = make_chain(vms, "a", 16)
    before = view(leaf)
    job = vhdkit.start_merge(leaf, rate=6 << 20, detached=detached)
    until(lambda: job.job.bytes_done > 0)
    damage(state)
    until(lambda: job.id in [each.id for each in vhdkit.jobs()])
    assert job.wait(HANGS_SECONDS).state is JobState.COMPLETED
    assert view(str(vms / "a.vhd")) == before
    assert vhdkit.find_job(job.id).state is JobState.COMPLETED


def test_a_job_for_which_no_thread_is_to_be_had_merges_all_the_same(
    vms: Path, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    leaf = make_chain(vms, "a", 4)
    before = view(leaf)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert run(["merge", "--progress", "none", leaf]) == 0
    assert view(str(vms / "a.vhd")) == before
    assert "Traceback" not in capsys.readouterr().err
    (job,) = vhdkit.jobs()
    assert job.state is JobState.COMPLETED
    assert state.exists()
