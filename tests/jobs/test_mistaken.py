"""Jobs that could be mistaken for others: what has another's name, its undo image, its id, or its log."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.jobs.making import HANGS_SECONDS, MIB, make_chain, the_job, until, view
from tests.unit.test_job import a_job
from vhdkit.cli.main import run
from vhdkit.errors import JobError
from vhdkit.job import events, worker
from vhdkit.job.job import Job, JobState
from vhdkit.job.registry import Registry
from vhdkit.job.start import run_merge
from vhdkit.job.worker import Worker
from vhdkit.merging.plan.planner import plan_request
from vhdkit.options import MergeRequest
from vhdkit.progress import Phase
from vhdkit.storage.process import is_alive

if TYPE_CHECKING:
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.storage.protocols import Folder


def new_child(leaf: str, parent: str, letter: bytes) -> None:
    vhdkit.create_image(leaf, parent=parent)
    with vhdkit.open_chain(leaf, writable=True) as chain:
        chain.write(0, letter * MIB, sync=True)


def test_a_job_takes_back_its_own_merge_and_no_later_one(vms: Path) -> None:
    leaf = make_chain(vms, "a", 2)
    base, undo = str(vms / "a.vhd"), str(vms / "undo.vhd")
    first = vhdkit.start_merge(leaf, undo=undo)
    first.result(HANGS_SECONDS)
    vhdkit.drop_undo(undo)
    new_child(leaf, base, b"n")
    second = vhdkit.start_merge(leaf, undo=undo)
    second.result(HANGS_SECONDS)
    before = view(base)
    with pytest.raises(JobError, match=second.id):
        vhdkit.rollback_job(first.id)
    assert view(base) == before
    assert vhdkit.find_job(second.id).state is JobState.COMPLETED
    vhdkit.rollback_job(second.id)
    assert view(base) != before


def test_a_job_goes_on_with_the_images_that_it_was_begun_with_and_no_others(vms: Path) -> None:
    leaf = make_chain(vms, "a", 24)
    job = vhdkit.start_merge(leaf, rate=8 * MIB)
    until(lambda: job.job.bytes_done)
    job.cancel()
    job.wait(HANGS_SECONDS)
    vhdkit.merge(vhdkit.plan_merge(leaf))
    new_child(leaf, str(vms / "a.vhd"), b"n")
    before = view(leaf)
    with pytest.raises(JobError, match="another image has its name"):
        vhdkit.resume_job(job.id)
    assert Path(leaf).exists()
    assert view(leaf) == before


def test_what_waited_for_another_merge_says_so_when_that_has_removed_its_disk(vms: Path) -> None:
    leaf = make_chain(vms, "a", 24)
    first = vhdkit.start_merge(leaf, rate=16 * MIB)
    until(lambda: first.job.bytes_done)
    second = vhdkit.start_merge(leaf)
    assert second.id != first.id
    first.result(HANGS_SECONDS)
    assert second.wait(HANGS_SECONDS).state is JobState.EXCEPTION
    assert "another merge has removed it" in second.job.error


def test_what_another_process_is_about_to_go_on_with_is_not_begun_again_under_its_id(vms: Path) -> None:
    leaf = make_chain(vms, "a", 24)
    job = vhdkit.start_merge(leaf, rate=8 * MIB)
    until(lambda: job.job.bytes_done)
    job.cancel()
    job.wait(HANGS_SECONDS)
    again = vhdkit.resume_job(job.id)
    assert again.id == job.id
    other = vhdkit.start_merge(leaf)
    assert other.id != job.id
    assert vhdkit.wait_for_job(job.id, HANGS_SECONDS).state is JobState.COMPLETED
    other.wait(HANGS_SECONDS)


def test_a_list_that_is_lost_lets_no_job_that_waits_fail(vms: Path, state: Path) -> None:
    leaf = make_chain(vms, "a", 24, levels=2)
    first = vhdkit.start_merge(leaf, rate=4 * MIB)
    until(lambda: first.job.bytes_done)
    second = vhdkit.start_merge(str(vms / "a_0.avhd"))
    for path in state.glob("jobs.db*"):
        path.unlink()
    time.sleep(4)
    assert not second.job.state.is_finished, second.job.error
    first.result(HANGS_SECONDS)
    assert second.wait(HANGS_SECONDS).state in {JobState.COMPLETED, JobState.EXCEPTION}
    assert "in use" not in second.job.error


def test_what_waited_long_for_another_job_does_not_fail_in_the_moment_in_which_that_ends(
    vms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = vhdkit.start_merge(make_chain(vms, "a", 24, levels=2), rate=16 * MIB)
    until(lambda: first.job.bytes_done)
    plans, looks = plan_request, iter([True, True, True])

    def planned(request: MergeRequest, folder: Folder) -> MergePlan:
        try:
            return plans(request, folder)
        finally:
            # It ends after the files were found to be in use, and before the list is looked at.
            if next(looks, None) is None:
                first.wait(HANGS_SECONDS)

    monkeypatch.setattr(worker, "_IN_USE_SECONDS", 0.3)
    monkeypatch.setattr(Worker, "_wait_in_line", lambda _: True)
    monkeypatch.setattr(worker, "plan_request", planned)
    job = a_job(
        runs=0, request=MergeRequest.of(str(vms / "a_0.avhd")), files=first.job.files, written=first.job.written
    )
    with Worker(job, Registry()) as at:
        at.run()
    assert at.job.state is JobState.COMPLETED


@pytest.mark.parametrize("verify", [False, True])
def test_while_names_change_it_is_finishing_and_cannot_be_cancelled(vms: Path, verify: bool) -> None:
    phases: list[Phase] = []
    leaf = make_chain(vms, "a", 1)
    vhdkit.merge(vhdkit.plan_merge(leaf, verify=verify), progress=lambda state: phases.append(state.phase))
    assert phases[-1] is Phase.FINISHING
    assert (Phase.VERIFYING in phases) == verify


@pytest.mark.parametrize("verb", ["rollback", "undo drop"])
def test_undoing_by_the_image_is_noted_with_the_job(vms: Path, verb: str) -> None:
    leaf, undo = make_chain(vms, "a", 1), str(vms / "undo.vhd")
    vhdkit.start_merge(leaf, undo=undo).result(HANGS_SECONDS)
    assert run([*verb.split(), undo]) == 0
    job = the_job()
    assert (job.rolled_back, bool(job.undo)) == (verb == "rollback", verb == "rollback")
    with pytest.raises(JobError):
        vhdkit.rollback_job(job.id)


def test_a_roll_back_that_was_cut_off_is_found_as_such(vms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf, undo = make_chain(vms, "a", 4), str(vms / "undo.vhd")
    vhdkit.start_merge(leaf, undo=undo).result(HANGS_SECONDS)
    stop = threading.Event()
    with pytest.raises(vhdkit.MergeCancelled):
        vhdkit.rollback(undo, progress=lambda _: stop.set(), cancel=stop)
    monkeypatch.setenv("VHDKIT_STATE", str(vms / "another list"))
    (found,) = vhdkit.jobs(search=[str(vms)])
    assert found.state is JobState.KILLED
    assert "rolling back" in found.error


def test_a_folder_that_was_moved_is_found_where_it_is(vms: Path, tmp_path: Path) -> None:
    leaf = make_chain(vms, "a", 24)
    job = vhdkit.start_merge(leaf, rate=8 * MIB)
    until(lambda: job.job.bytes_done)
    job.cancel()
    job.wait(HANGS_SECONDS)
    vms.rename(tmp_path / "moved")
    (found,) = vhdkit.jobs(search=[str(tmp_path / "moved")])
    assert (found.id, found.destination) == (job.id, str(tmp_path / "moved" / "a.vhd"))
    vhdkit.resume_job(job.id)
    assert vhdkit.wait_for_job(job.id, HANGS_SECONDS).state is JobState.COMPLETED


def test_a_merge_of_any_name_is_one_job_however_often_it_is_looked_for(vms: Path) -> None:
    leaf = make_chain(vms, "a", 1)
    vhdkit.merge(vhdkit.plan_merge(leaf, undo=str(vms / "undo.vhd")), job="nightly")
    for _ in range(3):
        assert len(vhdkit.jobs(search=[str(vms)])) == 1


def test_a_filter_looks_at_all_that_ended(vms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry, now = Registry(), time.time()
    registry.put(a_job(id="f" * 8, state=JobState.EXCEPTION, changed=now))
    for number in range(205):
        registry.put(a_job(id=f"{number:08}", state=JobState.COMPLETED, changed=now))
    assert vms.is_dir()
    assert run(["job", "list", "--where", "JobState = 10", "--json"]) == 0
    assert [each["id"] for each in json.loads(capsys.readouterr().out)] == ["f" * 8]


def test_each_job_writes_to_its_own_log_also_when_it_goes_on(vms: Path, tmp_path: Path) -> None:
    leaves = [make_chain(vms, name, 24) for name in "ab"]
    logs = [tmp_path / f"{name}.log" for name in "ab"]
    jobs = [vhdkit.start_merge(leaf, rate=12 * MIB, log_file=str(log)) for leaf, log in zip(leaves, logs, strict=True)]
    until(lambda: all(job.job.bytes_done for job in jobs))
    jobs[0].cancel()
    for job in jobs:
        job.wait(HANGS_SECONDS)
    vhdkit.resume_job(jobs[0].id)
    vhdkit.wait_for_job(jobs[0].id, HANGS_SECONDS)
    for job, log, expected in zip(jobs, logs, ([19070, 19090, 19070, 19080], [19070, 19080]), strict=True):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert {line["id"] for line in lines} == {job.id}
        assert [line["event-id"] for line in lines if line["event-id"]] == expected


def test_who_sees_that_a_job_has_ended_finds_that_in_its_log(
    vms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf, log = make_chain(vms, "a", 1), tmp_path / "log"
    put, seen = Registry.put, []

    def spied(registry: Registry, job: Job, *, clear_request: bool = False) -> None:
        if job.state is JobState.COMPLETED:
            seen.append(log.read_text())
        put(registry, job, clear_request=clear_request)

    monkeypatch.setattr(Registry, "put", spied)
    # The listener has all the time to be first.
    tell = events.tell

    def slowly(job: Job) -> None:
        time.sleep(0.3 if job.state is JobState.COMPLETED else 0)
        tell(job)

    monkeypatch.setattr(events, "tell", slowly)
    vhdkit.start_merge(leaf, log_file=str(log)).result(HANGS_SECONDS)
    assert seen
    assert all(json.loads(text.splitlines()[-1])["event-id"] == 19080 for text in seen)


def test_an_interruption_is_logged_though_nobody_has_asked_before_it_goes_on(vms: Path, tmp_path: Path) -> None:
    leaf, log = make_chain(vms, "a", 24), tmp_path / "log"
    first = vhdkit.start_merge(leaf, rate=8 * MIB, detached=True, log_file=str(log))
    until(lambda: first.job.bytes_done)
    os.kill(first.job.pid, signal.SIGKILL)
    until(lambda: is_alive(first.job.pid, first.job.born, first.job.host) is False)
    again = vhdkit.start_merge(leaf, log_file=str(log))
    assert again.id == first.id
    again.result(HANGS_SECONDS)
    events = [json.loads(line)["event-id"] for line in log.read_text().splitlines()]
    assert [event for event in events if event] == [19070, 19090, 19070, 19080]


def test_a_job_is_found_by_a_disk_that_reads_through_it_and_by_a_link_to_its_folder(vms: Path, tmp_path: Path) -> None:
    leaf = make_chain(vms, "a", 24)
    vhdkit.create_image(str(vms / "above.avhd"), parent=leaf)
    vhdkit.create_image(str(vms / "top.avhd"), parent=str(vms / "above.avhd"))
    job = vhdkit.start_merge(leaf, rate=8 * MIB)
    until(lambda: job.job.bytes_done)
    assert [each.id for each in vhdkit.jobs(disk=str(vms / "top.avhd"))] == [job.id]
    (tmp_path / "link").symlink_to(vms)
    assert [each.id for each in vhdkit.jobs(machine=str(tmp_path / "link"))] == [job.id]
    job.cancel()
    job.wait(HANGS_SECONDS)


@pytest.mark.parametrize("name", ["web", 'a "name" \\ of 20 %', "Käse", "\udcff", "/"])
def test_a_machine_of_any_name_is_found_by_it_and_no_other(name: str, tmp_path: Path) -> None:
    folder = tmp_path / 'Käse\'s "folder"'
    fields = {"state": JobState.COMPLETED, "changed": time.time(), "files": ()}
    Registry().put(a_job(id="1" * 8, machine=name, destination="/elsewhere/a.vhd", **fields))
    Registry().put(a_job(id="2" * 8, machine=f"{name}2", error=name, destination=str(folder / "a.vhd"), **fields))
    assert [job.id for job in vhdkit.jobs(machine=name)] == ["1" * 8]
    assert [job.id for job in vhdkit.jobs(machine=str(folder))] == ["2" * 8]
    assert vhdkit.jobs(machine=str(folder)[:-1]) == ()


def test_waiting_outlasts_a_list_that_is_lost(vms: Path, state: Path) -> None:
    job = vhdkit.start_merge(make_chain(vms, "a", 24), rate=8 * MIB)
    until(lambda: job.job.bytes_done)
    timer = threading.Timer(0.5, lambda: shutil.rmtree(state, ignore_errors=True))
    timer.start()
    assert vhdkit.wait_for_job(job.id, HANGS_SECONDS).state is JobState.COMPLETED
    timer.join()


def test_files_that_are_read_for_a_moment_make_no_run_of_their_own(vms: Path) -> None:
    leaf = make_chain(vms, "a", 1)
    plan = vhdkit.plan_merge(leaf)
    with Worker(a_job(runs=0, request=MergeRequest.of(leaf)), Registry()) as at:
        with vhdkit.open_chain(leaf):
            for _ in range(3):
                with pytest.raises(vhdkit.ImageInUseError):
                    at.merge(plan)
        at.merge(plan)
    assert the_job().runs == 1


def test_what_is_logged_of_a_name_that_is_no_text_is_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "vhdkit.job")
    events.tell(a_job(state=JobState.RUNNING, machine="\udcff", sources=("/vms/\udcfe.avhd",)))
    events.tell_refused("/vms/\udcfe.avhd", "\udcff", OSError("\udcfd"))
    assert len(caplog.messages) == 2
    assert all(message.encode() for message in caplog.messages)


def test_a_merge_of_an_instant_does_not_write_to_the_list_again_and_again(
    vms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, told = Registry.put, []

    def spied(registry: Registry, job: Job, *, clear_request: bool = False) -> None:
        told.append(job)
        put(registry, job, clear_request=clear_request)

    monkeypatch.setattr(Registry, "put", spied)
    leaf = make_chain(vms, "a", 48)
    begun = time.monotonic()
    run_merge(vhdkit.plan_merge(leaf), MergeRequest.of(leaf), progress=lambda _: time.sleep(0.02))
    # The first word and the last, and one in a tenth of a second between them.
    assert len(told) <= 3 + (time.monotonic() - begun) / 0.1
    assert [each.percent for each in told] == sorted(each.percent for each in told)
    assert told[-1].state is JobState.COMPLETED


def test_a_merge_that_was_found_complete_is_known_by_its_undo_image_still(vms: Path) -> None:
    leaf, undo = make_chain(vms, "a", 2), str(vms / "undo.vhd")
    job = vhdkit.start_merge(leaf, undo=undo)
    job.result(HANGS_SECONDS)
    assert run(["merge", "--progress", "none", leaf, "--undo", undo]) == 0
    assert run(["rollback", "--progress", "none", undo]) == 0
    assert vhdkit.find_job(job.id).rolled_back
    with pytest.raises(JobError, match="rolled back already"):
        vhdkit.rollback_job(job.id)


def test_that_a_merge_has_begun_is_in_the_list_before_it_has_got_far(vms: Path) -> None:
    leaf, seen = make_chain(vms, "a", 24), list[Job]()

    def look(_state: object) -> None:
        if not seen:
            time.sleep(0.08)
            seen.append(the_job())

    run_merge(vhdkit.plan_merge(leaf), MergeRequest.of(leaf), progress=look)
    (found,) = seen
    assert (found.state, found.runs, bool(found.started)) == (JobState.RUNNING, 1, True)
    assert found.request.into == str(vms / "a.vhd")


def test_that_a_roll_back_has_begun_is_in_the_list_before_it_has_got_far(vms: Path) -> None:
    leaf, undo, seen = make_chain(vms, "a", 24), str(vms / "undo.vhd"), list[JobState]()
    job = vhdkit.start_merge(leaf, undo=undo)
    job.result(HANGS_SECONDS)

    def look(_state: object) -> None:
        if not seen:
            time.sleep(0.08)
            seen.append(the_job().state)

    vhdkit.rollback_job(job.id, progress=look)
    assert seen == [JobState.RUNNING]


def test_a_merge_that_goes_on_in_the_foreground_is_the_job_that_it_was(vms: Path) -> None:
    leaf, seen = make_chain(vms, "a", 24), list[Job]()
    job = vhdkit.start_merge(leaf, rate=8 * MIB, machine="mine")
    until(lambda: job.job.bytes_done)
    job.cancel()
    job.wait(HANGS_SECONDS)
    before = the_job()
    run_merge(vhdkit.plan_merge(leaf), MergeRequest.of(leaf), progress=lambda _: seen.append(the_job()))
    after = the_job()
    assert (after.id, after.machine, after.submitted, after.started) == (
        *(before.id, before.machine, before.submitted, before.started),
    )
    assert (before.runs, after.runs, after.state) == (1, 2, JobState.COMPLETED)
