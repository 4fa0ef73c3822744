"""What a job's process and journal say counts, not the list."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest

import vhdkit
from tests.cli.running import environment
from tests.jobs.making import HANGS_SECONDS, lose, make_chain, python, until, view
from tests.unit.test_job import a_job
from vhdkit.job.job import Job, JobState
from vhdkit.job.reconcile import settled
from vhdkit.job.registry import Registry
from vhdkit.storage.process import birth_of, is_alive, this_process
from vhdkit.vhd.open_image import open_image

if TYPE_CHECKING:
    from pathlib import Path


def running(**fields: object) -> Job:
    pid, host = this_process()
    here = a_job(state=JobState.RUNNING, phase="copying", pid=pid, host=host, born=birth_of(pid), changed=time.time())
    return replace(here, **fields)  # type: ignore[arg-type]


def test_a_process_is_itself_and_no_other() -> None:
    pid, host = this_process()
    born = birth_of(pid)
    assert born
    assert is_alive(pid, born, host) is True
    assert is_alive(pid, born[:-1] + "x", host) is False
    assert is_alive(pid, "", host) is False
    assert is_alive(pid, born, "another machine") is None
    with subprocess.Popen(["sleep", "60"]) as other:
        before = birth_of(other.pid)
        assert is_alive(other.pid, before, host) is True
        assert is_alive(other.pid, born, host) is False
        other.kill()
        until(lambda: is_alive(other.pid, before, host) is False)
    assert birth_of(other.pid) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="boots and namespaces are Linux's")
def test_another_boot_is_dead_and_another_container_cannot_be_told() -> None:
    pid, host = this_process()
    boot, space, ticks = birth_of(pid).split("/")
    assert is_alive(pid, f"{boot}/pid:[1]/{ticks}", host) is None
    assert is_alive(pid, f"0000/{space}/{ticks}", host) is False


def test_who_lives_is_believed_and_who_does_not_was_interrupted() -> None:
    job = running()
    assert settled(job) is job
    dead = replace(job, pid=99999999)
    assert settled(dead).state is JobState.KILLED
    assert settled(dead).elapsed == dead.elapsed
    over = replace(job, state=JobState.TERMINATED, pid=99999999)
    assert settled(over) is over


def test_a_number_that_another_process_has_now_is_not_taken_for_the_job() -> None:
    with subprocess.Popen(["sleep", "60"]) as later:
        # A parent may have begun in the same tick as its child; what this test begins has not.
        assert settled(running(born=birth_of(later.pid))).state is JobState.KILLED
        later.kill()


def test_a_job_of_another_machine_lives_while_it_writes() -> None:
    assert settled(running(host="elsewhere")).state is JobState.RUNNING
    assert settled(running(host="elsewhere", changed=time.time() - 61)).state is JobState.KILLED


def test_after_a_long_silence_of_a_living_process_the_files_are_asked(vms: Path) -> None:
    leaf = make_chain(vms, "a", 1)
    silent = running(sources=(leaf,), destination=str(vms / "a.vhd"), changed=time.time() - 61)
    assert settled(silent).state is JobState.KILLED
    with open_image(str(vms / "a.vhd"), writable=True, exclusive=True):
        assert settled(silent) is silent


def test_a_silent_job_that_makes_a_new_file_is_asked_after_by_what_it_reads(vms: Path) -> None:
    leaf = make_chain(vms, "a", 1)
    job = a_job()
    silent = running(
        request=msgspec.structs.replace(job.request, child=leaf, to=str(vms / "new.vhd")),
        sources=(leaf, str(vms / "a.vhd")),
        destination=str(vms / "new.vhd"),
        changed=time.time() - 61,
    )
    assert settled(silent).state is JobState.KILLED
    with vhdkit.open_chain(leaf):
        assert settled(silent) is silent


def cut_at(vms: Path, phase: str, undo: str = "", *, name: str = "a_0.avhd", removed: str = "") -> str:
    """Kill a merge as soon as it is in a phase, or in that has removed a file, and return its id."""
    program = """
import os, signal, sys, vhdkit
from vhdkit.job.start import run_merge
from vhdkit.options import MergeRequest
from vhdkit.storage.local_folder import LocalFolder
leaf, phase, undo, removed = sys.argv[1:]
wishes = MergeRequest.of(leaf, undo=undo or None)
plan = vhdkit.plan_merge(leaf, undo=undo or None)
def die(state):
    if state.phase.value == phase and (phase != "copying" or state.bytes_done):
        if removed:
            LocalFolder.remove = remove_and_die
        else:
            end()
def end():
    import time
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
remove = LocalFolder.remove
def remove_and_die(folder, path):
    remove(folder, path)
    if os.path.basename(path) == removed:
        end()
run_merge(plan, wishes, progress=die)
"""
    with python(program, str(vms / name), phase, undo, removed) as merging:
        _, told = merging.communicate(timeout=HANGS_SECONDS)
        assert merging.returncode == -signal.SIGKILL, told
    (row,) = Registry().jobs()
    assert row.state is JobState.RUNNING
    return row.id


@pytest.mark.parametrize("phase", ["reserving", "copying", "finishing"])
def test_a_job_that_is_killed_in_any_phase_is_interrupted_and_goes_on(phase: str, vms: Path) -> None:
    leaf = make_chain(vms, "a", 4)
    before = view(leaf)
    job_id = cut_at(vms, phase)
    found = vhdkit.find_job(job_id)
    assert found.state is JobState.KILLED
    assert found.ended is not None
    assert view(leaf) == before
    vhdkit.resume_job(job_id)
    assert vhdkit.wait_for_job(job_id, HANGS_SECONDS).state is JobState.COMPLETED
    assert view(str(vms / "a.vhd")) == before


def test_a_job_that_is_killed_once_its_source_is_removed_is_interrupted_and_goes_on(vms: Path) -> None:
    leaf = make_chain(vms, "a", 4)
    before = view(leaf)
    program = """
import os, signal, sys, vhdkit
from vhdkit.job.start import run_merge
from vhdkit.options import MergeRequest
from vhdkit.storage.local_folder import LocalFolder
def die(self, path):
    os.unlink(path)
    os.kill(os.getpid(), signal.SIGKILL)
LocalFolder.remove = die
run_merge(vhdkit.plan_merge(sys.argv[1]), MergeRequest.of(sys.argv[1]))
"""
    with python(program, leaf) as merging:
        assert merging.wait(60) == -signal.SIGKILL
    assert [path.name for path in vms.glob("*.*vhd")] == ["a.vhd"]
    (found,) = vhdkit.jobs()
    assert found.state is JobState.KILLED
    assert view(str(vms / "a.vhd")) == before
    vhdkit.resume_job(found.id)
    done = vhdkit.wait_for_job(found.id, HANGS_SECONDS)
    assert (done.state, done.percent) == (JobState.COMPLETED, 100)
    assert view(str(vms / "a.vhd")) == before
    assert [path.name for path in vms.iterdir()] == ["a.vhd"]


def test_a_job_whose_journal_is_gone_with_its_sources_is_complete(vms: Path) -> None:
    leaf = make_chain(vms, "a", 4)
    before = view(leaf)
    job_id = cut_at(vms, "copying")
    vhdkit.merge(vhdkit.plan_merge(leaf))
    assert vhdkit.find_job(job_id).state is JobState.COMPLETED
    assert view(str(vms / "a.vhd")) == before


def test_a_merge_that_was_complete_before_the_list_heard_a_second_word_is_complete(vms: Path) -> None:
    leaf = make_chain(vms, "a", 1)
    before = view(leaf)
    program = """
import os, signal, sys, vhdkit
from vhdkit.job.registry import Registry, RegistryError
from vhdkit.job.start import run_merge
from vhdkit.options import MergeRequest
from vhdkit.storage.local_folder import LocalFolder
put, remove = Registry.put, LocalFolder.remove
def first(self, job, **how):
    Registry.put = full
    put(self, job, **how)
def full(self, job, **how):
    raise RegistryError("the disk is full")
def die(self, path):
    remove(self, path)
    if path.endswith("-journal"):
        os.kill(os.getpid(), signal.SIGKILL)
Registry.put, LocalFolder.remove = first, die
run_merge(vhdkit.plan_merge(sys.argv[1]), MergeRequest.of(sys.argv[1]))
"""
    with python(program, leaf) as merging:
        _, told = merging.communicate(timeout=HANGS_SECONDS)
        assert merging.returncode == -signal.SIGKILL, told
    (row,) = Registry().jobs()
    assert row.phase == ""
    assert vhdkit.find_job(row.id).state is JobState.COMPLETED
    assert view(str(vms / "a.vhd")) == before


def test_what_never_began_and_has_lost_its_disk_to_another_merge_says_so(vms: Path) -> None:
    leaf = make_chain(vms, "a", 1)
    with vhdkit.open_chain(leaf, writable=True):
        job = vhdkit.start_merge(leaf, detached=True)
        os.kill(job.job.pid, signal.SIGKILL)
        until(lambda: vhdkit.find_job(job.id).state is JobState.KILLED)
    vhdkit.merge(vhdkit.plan_merge(leaf))
    with pytest.raises(vhdkit.errors.JobError, match="another merge has removed it"):
        vhdkit.resume_job(job.id)
    with pytest.raises(vhdkit.errors.JobError, match="keeps nothing") as refused:
        vhdkit.rollback_job(job.id)
    assert "reads as before" not in str(refused.value)


def test_who_would_take_back_a_merge_whose_sources_are_going_is_not_told_that_nothing_happened(vms: Path) -> None:
    leaf = make_chain(vms, "a", 1, levels=2)
    before = view(leaf)
    job_id = cut_at(vms, "finishing", name="a_1.avhd", removed="a_1.avhd")
    assert not (vms / "a_1.avhd").exists()
    with pytest.raises(vhdkit.errors.JobError, match="its sources are being removed") as refused:
        vhdkit.rollback_job(job_id)
    assert "reads as before" not in str(refused.value)
    vhdkit.resume_job(job_id)
    assert vhdkit.wait_for_job(job_id, HANGS_SECONDS).state is JobState.COMPLETED
    assert view(str(vms / "a_0.avhd")) == before


def test_what_was_cut_off_before_anything_was_kept_has_nothing_to_take_back(vms: Path) -> None:
    leaf = make_chain(vms, "a", 1)
    before = view(leaf)
    undo = str(vms / "undo.vhd")
    job_id = cut_at(vms, "reserving", undo)
    assert not (vms / "undo.vhd").exists()
    with pytest.raises(vhdkit.errors.JobError, match="nothing was changed yet"):
        vhdkit.rollback_job(job_id)
    assert view(leaf) == before
    vhdkit.resume_job(job_id)
    assert vhdkit.wait_for_job(job_id, HANGS_SECONDS).state is JobState.COMPLETED
    vhdkit.drop_undo(undo)
    with pytest.raises(vhdkit.errors.JobError, match="made final"):
        vhdkit.rollback_job(job_id)
    assert view(str(vms / "a.vhd")) == before


def test_merges_are_found_again_by_their_journals(vms: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = make_chain(vms, "b", 16)
    job = vhdkit.start_merge(cancelled, rate=4 << 20)
    until(lambda: job.job.bytes_done > 0)
    job.cancel()
    job.wait(HANGS_SECONDS)
    kept = make_chain(vms, "c", 1)
    complete = vhdkit.start_merge(kept, undo=str(vms / "c_undo.vhd"))
    complete.wait(HANGS_SECONDS)
    leaf = make_chain(vms, "a", 4)
    before = view(leaf)
    (vms / "below").mkdir()
    lose(state)
    killed = cut_at(vms, "copying")
    going = make_chain(vms / "below", "d", 16)
    with python("import sys, vhdkit; vhdkit.start_merge(sys.argv[1], rate=2 << 20).wait()", going) as merging:
        until(lambda: [each for each in vhdkit.jobs() if each.bytes_done and each.sources == (going,)])
        fourth = vhdkit.jobs(disk=going)[0].id
        lose(state)
        monkeypatch.setenv("VHDKIT_STATE", f"{state}2")
        assert vhdkit.jobs() == ()
        found = {each.id: each for each in vhdkit.jobs(search=[str(vms)])}
        assert {each.id: each.state for each in vhdkit.jobs()} == {
            job.id: JobState.TERMINATED,
            complete.id: JobState.COMPLETED,
            killed: JobState.KILLED,
            fourth: JobState.RUNNING,
        }
        assert set(found) == {each.id for each in vhdkit.jobs(search=[str(vms)])}
        merging.kill()
    assert found[complete.id].undo == str(vms / "c_undo.vhd")
    assert found[job.id].bytes_total == 16 * (1 << 20) + 512
    vhdkit.resume_job(killed)
    assert vhdkit.wait_for_job(killed, HANGS_SECONDS).state is JobState.COMPLETED
    assert view(str(vms / "a.vhd")) == before
    assert vhdkit.rollback_job(complete.id).rolled_back


def test_a_merge_that_is_found_again_goes_on_though_its_parent_lies_elsewhere(vms: Path, state: Path) -> None:
    for name in ("c", "p"):
        (vms / name).mkdir()
    vhdkit.create_image(str(vms / "p" / "a.vhd"), size=64 << 20)
    leaf = str(vms / "c" / "a.avhd")
    vhdkit.create_image(leaf, parent=str(vms / "p" / "a.vhd"))
    with vhdkit.open_chain(leaf, search=[str(vms / "p")], writable=True) as chain:
        chain.write(0, random.Random(5).randbytes(16 << 20))
    job = vhdkit.start_merge(leaf, search=[str(vms / "p")], rate=4 << 20, detached=True)
    until(lambda: job.job.bytes_done)
    os.kill(job.job.pid, signal.SIGKILL)
    until(lambda: job.job.state is JobState.KILLED)
    lose(state)
    # Its journal is untrusted, and names a file of another folder: that is to be named too.
    assert vhdkit.jobs(search=[str(vms / "p")]) == ()
    (found,) = vhdkit.jobs(search=[str(vms / "p"), str(vms / "c")])
    assert found.id == job.id
    vhdkit.resume_job(job.id)
    assert vhdkit.wait_for_job(job.id, HANGS_SECONDS).state is JobState.COMPLETED
    assert not os.path.exists(leaf)


def test_a_folder_that_cannot_be_searched_is_an_error(vms: Path) -> None:
    with pytest.raises(FileNotFoundError):
        vhdkit.jobs(search=[str(vms / "none")])


def test_a_journal_that_cannot_be_read_hides_no_other(vms: Path, state: Path) -> None:
    make_chain(vms, "a", 4)
    job_id = cut_at(vms, "copying")
    lose(state)
    make_chain(vms, "b", 1)
    (vms / "b.vhd.vhdkit-journal").write_bytes(b"nonsense")
    (vms / "c.vhd.vhdkit-journal").write_bytes(b"")
    assert [each.id for each in vhdkit.jobs(search=[str(vms)])] == [job_id]


def test_asking_writes_nothing_beside_the_images(vms: Path) -> None:
    make_chain(vms, "a", 1)
    before = {path.name: path.stat().st_mtime_ns for path in vms.iterdir()}
    subprocess.run([sys.executable, "-m", "vhdkit", "job", "list", "--search", str(vms)], check=True, env=environment())
    assert {path.name: path.stat().st_mtime_ns for path in vms.iterdir()} == before
