from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import environment
from tests.unit.test_job import a_job
from vhdkit.job.job import JobState
from vhdkit.job.registry import HISTORY_SECONDS, Registry, RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vhdkit.job.job import Job


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "state"))


def numbered(number: int, state: JobState = JobState.COMPLETED, **fields: object) -> Job:
    return replace(a_job(), id=f"{number:08x}-0000-4000-8000-000000000000", state=state, **fields)  # type: ignore[arg-type]


def test_what_was_put_is_found_whole(registry: Registry) -> None:
    job = a_job(state=JobState.EXCEPTION, error="no space", percent=40)
    registry.put(job)
    assert registry.find(job.id[:4]) == registry.find(job.id.upper()) == registry.jobs() == (job,)
    assert registry.find("ffff") == ()
    later = replace(job, percent=50)
    registry.put(later)
    assert registry.jobs() == (later,)


def test_jobs_come_oldest_first_and_of_those_that_ended_the_newest(registry: Registry) -> None:
    for number in range(10):
        registry.put(numbered(number, JobState.COMPLETED if number % 2 else JobState.RUNNING))
    ids = [job.id[:8] for job in registry.jobs(limit=2)]
    assert ids == [f"{number:08x}" for number in (0, 2, 4, 6, 7, 8, 9)]
    assert [job.id[7] for job in registry.jobs(states=(JobState.COMPLETED,))] == list("13579")
    assert registry.counts() == {JobState.COMPLETED: 5, JobState.RUNNING: 5}


def test_a_job_is_found_by_any_of_its_files(registry: Registry) -> None:
    registry.put(numbered(1))
    registry.put(numbered(2, files=("/other/b.vhd",)))
    assert [job.id[7] for job in registry.jobs(files=["/vms/base.vhd"])] == ["1"]
    registry.put(numbered(1, files=("/vms/new.vhd",)))
    assert registry.jobs(files=["/vms/base.vhd"]) == ()
    assert [job.id[7] for job in registry.jobs(files=["/vms/new.vhd"])] == ["1"]


def test_a_name_that_is_no_text_is_listed_and_found(registry: Registry) -> None:
    job = numbered(1, files=("/vms/\udcff.vhd",), machine="\udcfe", error="\udcff")
    registry.put(job)
    assert registry.jobs(files=["/vms/\udcff.vhd"]) == (job,)


def test_a_request_stays_until_it_is_fulfilled_and_a_newer_one_is_not_lost(registry: Registry) -> None:
    job = a_job(state=JobState.RUNNING)
    registry.put(job)
    assert registry.request(job.id) == ""
    registry.ask(job.id, "pause")
    registry.put(replace(job, percent=3))
    assert registry.request(job.id) == "pause"
    registry.ask(job.id, "cancel")
    registry.fulfilled(job.id, "pause")
    assert registry.request(job.id) == "cancel"
    registry.fulfilled(job.id, "cancel")
    assert registry.request(job.id) == ""
    registry.ask(job.id, "cancel")
    registry.put(replace(job, state=JobState.COMPLETED))
    assert registry.request(job.id) == ""


def test_a_job_is_replaced_only_while_it_is_what_was_seen(registry: Registry) -> None:
    job = a_job(state=JobState.RUNNING)
    registry.put(job)
    registry.put(replace(job, percent=7))
    assert not registry.replace(job, replace(job, state=JobState.KILLED))
    assert registry.jobs()[0].percent == 7
    assert registry.replace(registry.jobs()[0], replace(job, state=JobState.KILLED))
    assert registry.jobs()[0].state is JobState.KILLED


def test_a_job_that_is_replaced_is_found_by_its_files_of_now(registry: Registry) -> None:
    before = numbered(1, JobState.KILLED, files=("/a/base.vhd",))
    registry.put(before)
    assert registry.replace(before, replace(before, files=("/b/base.vhd",)))
    assert registry.jobs(files=["/a/base.vhd"]) == ()
    assert len(registry.jobs(files=["/b/base.vhd"])) == 1


def test_what_is_to_be_cancelled_stays_so_whatever_else_is_asked(registry: Registry) -> None:
    job = numbered(1, JobState.RUNNING)
    registry.put(job)
    registry.ask(job.id, "pause")
    registry.ask(job.id, "cancel")
    for request in ("resume", "pause"):
        registry.ask(job.id, request)
    assert registry.request(job.id) == "cancel"
    registry.fulfilled(job.id, "cancel")
    registry.ask(job.id, "resume")
    assert registry.request(job.id) == "resume"


def test_what_begins_again_waits_behind_those_that_wait(registry: Registry) -> None:
    for number in range(3):
        registry.put(numbered(number, JobState.NEW))
    registry.to_the_end(numbered(0).id)
    ahead = registry.waits_for(numbered(0).id, (JobState.NEW,))
    assert [job.id[7] for job in ahead] == ["1", "2"]


def test_what_ended_long_ago_is_forgotten_and_what_goes_on_is_not(registry: Registry) -> None:
    old = time.time() - HISTORY_SECONDS - 10
    registry.put(numbered(1, changed=old))
    registry.put(numbered(2, JobState.RUNNING, changed=old))
    registry.put(numbered(3, changed=time.time()))
    assert [job.id[7] for job in registry.jobs()] == ["2", "3"]
    assert [job.id[7] for job in registry.jobs(files=["/vms/base.vhd"])] == ["2", "3"]


def test_a_row_that_cannot_be_read_hides_no_other(registry: Registry) -> None:
    registry.put(numbered(1))
    registry.put(numbered(2))
    with closing(sqlite3.connect(registry.path)) as database:
        database.execute("UPDATE jobs SET record = '{\"id\":7}' WHERE number = 1")
        database.commit()
    assert [job.id[7] for job in registry.jobs()] == ["2"]


@pytest.mark.parametrize("record", ["'[]'", "'{'", "x'7b22ff227d'", "'7'", f"'{'[' * 5000}'"])
def test_a_row_that_is_no_job_hides_no_other_and_is_written_anew(record: str, registry: Registry) -> None:
    registry.put(numbered(1, JobState.RUNNING))
    registry.put(numbered(2))
    with closing(sqlite3.connect(registry.path)) as database:
        database.execute(f"UPDATE jobs SET record = CAST({record} AS TEXT) WHERE number = 1")  # noqa: S608 - ours
        database.commit()
    assert [job.id[7] for job in registry.jobs()] == ["2"]
    assert registry.find(numbered(1).id) == ()
    assert not registry.replace(numbered(1), numbered(1, percent=3))
    registry.put(numbered(1, JobState.RUNNING, percent=7))
    assert [job.percent for job in registry.find(numbered(1).id)] == [7]
    assert len(registry.jobs(files=["/vms/base.vhd"])) == 2


def test_a_row_with_an_unknown_field_is_refused_and_written_anew_by_its_worker(registry: Registry) -> None:
    registry.put(numbered(1, JobState.RUNNING))
    with closing(sqlite3.connect(registry.path)) as database:
        database.execute('UPDATE jobs SET record = replace(record, \'{"id"\', \'{"colour": 7, "id"\')')
        database.commit()
    assert registry.jobs() == ()
    registry.put(numbered(1, JobState.RUNNING, percent=3))
    assert [job.percent for job in registry.jobs()] == [3]


def test_a_list_of_a_later_version_is_left_alone(registry: Registry) -> None:
    registry.put(numbered(1))
    with closing(sqlite3.connect(registry.path)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(RegistryError, match="later version"):
        registry.jobs()
    with pytest.raises(RegistryError, match="later version"):
        registry.put(numbered(2))


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage " * 1000)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def header_only(path: Path) -> None:
    os.truncate(path, 100)


def scribbled(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


def other_schema(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE jobs (colour TEXT)")
        database.execute("PRAGMA user_version = 1")


def one_column_more(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "CREATE TABLE jobs (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, state INTEGER NOT "
            "NULL, changed REAL NOT NULL, colour TEXT NOT NULL, request TEXT NOT NULL DEFAULT '', record TEXT NOT NULL)"
        )
        database.execute("CREATE TABLE files (path TEXT NOT NULL, id TEXT NOT NULL)")
        database.execute("PRAGMA user_version = 1")


@pytest.mark.parametrize("damage", [garbage, half, header_only, scribbled, other_schema, one_column_more])
def test_a_damaged_list_is_set_aside_and_a_new_one_begun(
    damage: Callable[[Path], None], registry: Registry, tmp_path: Path
) -> None:
    for number in range(50):
        registry.put(numbered(number))
    path = tmp_path / "state" / "jobs.db"
    damage(path)
    damaged = path.read_bytes()
    registry.put(numbered(77))
    assert [job.id for job in registry.jobs()] == [numbered(77).id]
    aside = list(path.parent.glob("jobs.db.damaged-*"))
    assert [each.read_bytes() for each in aside if not each.name.endswith(("-wal", "-shm"))] == [damaged]


@pytest.mark.parametrize("damage", [os.unlink, lambda path: os.truncate(path, 0)])
def test_a_list_that_is_gone_is_begun_anew(damage: Callable[[Path], None], registry: Registry, tmp_path: Path) -> None:
    registry.put(numbered(1))
    damage(tmp_path / "state" / "jobs.db")
    assert registry.jobs() == ()
    registry.put(numbered(2))
    assert len(registry.jobs()) == 1


def test_a_list_that_cannot_be_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "state" / "jobs.db").mkdir(parents=True)
    for directory in ("file", "file/below", "state"):
        with pytest.raises(RegistryError, match="list of jobs cannot be used"):
            Registry(str(tmp_path / directory)).put(numbered(1))


def test_a_list_in_a_folder_that_cannot_be_written_is_read_all_the_same(registry: Registry, tmp_path: Path) -> None:
    registry.put(numbered(1))
    (tmp_path / "state").chmod(0o500)
    try:
        assert len(registry.jobs()) == 1
    finally:
        (tmp_path / "state").chmod(0o700)


def test_many_threads_write_and_none_loses_a_word(registry: Registry) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for percent in range(10):
                registry.put(numbered(number, JobState.RUNNING, percent=percent))
                registry.ask(numbered(number).id, "pause")
            registry.put(numbered(number, percent=100))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test fails by it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [(job.state, job.percent) for job in registry.jobs()] == [(JobState.COMPLETED, 100)] * 16


_PUTS = """
import sys
from dataclasses import replace
from tests.unit.test_registry import numbered
from vhdkit.job.registry import Registry
registry = Registry(sys.argv[1])
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 10):
    registry.put(numbered(number))
"""


@pytest.mark.parametrize("is_damaged", [False, True])
def test_many_processes_begin_one_list_at_once(is_damaged: bool, registry: Registry, tmp_path: Path) -> None:
    if is_damaged:
        (tmp_path / "state").mkdir()
        garbage(tmp_path / "state" / "jobs.db")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PUTS, registry.directory, str(number * 10)],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    for process in processes:
        _, told = process.communicate(timeout=60)
        assert process.returncode == 0, told
    assert len(registry.jobs()) == 60
    assert len(list((tmp_path / "state").glob("*damaged*"))) == is_damaged
