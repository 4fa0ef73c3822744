"""One process merges, another asks and steers."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.jobs.making import HANGS_SECONDS, make_chain, python, the_job, until, view
from vhdkit.errors import JobError, MergeCancelled
from vhdkit.job import control
from vhdkit.job.job import JobState
from vhdkit.job.registry import Registry
from vhdkit.job.spawn import task_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vhdkit.job.job import Job

_MERGES = """
import sys, vhdkit
job = vhdkit.start_merge(sys.argv[1], rate=int(sys.argv[2]) << 20, machine="web", detached=sys.argv[3] == "detached")
print(job.id, flush=True)
if sys.argv[3] == "thread":
    job.wait()
"""


@pytest.mark.parametrize("kind", ["thread", "detached"])
@pytest.mark.parametrize(
    ("mebibytes", "rate"), [(64, 4), pytest.param(1024, 100, marks=pytest.mark.slow)], ids=["64 MiB", "1 GiB"]
)
def test_another_process_sees_pauses_resumes_and_cancels_a_merge(
    kind: str, mebibytes: int, rate: int, vms: Path
) -> None:
    leaf = make_chain(vms, "a", mebibytes)
    before = view(leaf)
    with python(_MERGES, leaf, str(rate), kind) as merging:
        assert merging.stdout is not None
        job_id = merging.stdout.readline().strip()
        until(lambda: the_job().state is JobState.RUNNING and the_job().bytes_done)
        job = the_job()
        assert job.id == job_id
        assert (job.machine, job.destination, job.sources) == ("web", str(vms / "a.vhd"), (leaf,))
        assert job.bytes_total >= mebibytes << 20
        assert kind == "detached" or job.pid == merging.pid
        assert job.is_cancellable

        # Each of these returns when it is so; the merge itself has seconds to go then, at its rate.
        paused = vhdkit.pause_job(job_id)
        assert paused.state is JobState.SUSPENDED
        time.sleep(0.7)
        still = the_job()
        assert (still.state, still.bytes_done) == (JobState.SUSPENDED, paused.bytes_done)
        assert still.elapsed_at(time.time()) == paused.elapsed_at(time.time())
        with pytest.raises(vhdkit.ImageInUseError), vhdkit.open_chain(leaf, writable=True):
            pass

        assert vhdkit.resume_job(job_id).state is JobState.RUNNING
        until(lambda: the_job().bytes_done > paused.bytes_done)
        assert the_job().percent >= paused.percent

        cancelled = vhdkit.cancel_job(job_id[:8])
        assert cancelled.state is JobState.TERMINATED
        merging.communicate(timeout=HANGS_SECONDS)
    assert cancelled.percent < 100
    assert view(leaf) == before
    with pytest.raises(JobError, match="cancelled already"):
        vhdkit.cancel_job(job_id)

    resumed = vhdkit.resume_job(job_id)
    assert resumed.percent >= cancelled.percent
    percents = [resumed.percent]

    def has_ended() -> bool:
        job = the_job()
        percents.append(job.percent)
        return job.state.is_finished

    until(has_ended)
    assert percents == sorted(percents)
    done = vhdkit.wait_for_job(job_id)
    assert (done.state, done.percent, done.runs) == (JobState.COMPLETED, 100, 2)
    assert not os.path.exists(leaf)
    assert view(str(vms / "a.vhd")) == before


def test_the_rate_is_no_burst_and_none_while_it_stands_still(vms: Path) -> None:
    rate = 4 << 20
    job = vhdkit.start_merge(make_chain(vms, "a", 128), rate=rate)
    seen: list[float] = []

    def has_gone_on() -> bool:
        seen.append(job.job.rate)
        return len([each for each in seen if each]) > 20

    until(has_gone_on)
    assert max(seen) < 2 * rate
    job.pause()
    until(lambda: job.job.state is JobState.SUSPENDED)
    assert (job.job.rate, job.job.seconds_left) == (0.0, None)
    job.resume()
    seen.clear()
    until(has_gone_on)
    assert max(seen) < 2 * rate
    job.cancel()
    job.wait(HANGS_SECONDS)


def test_a_detached_merge_outlives_who_started_it(vms: Path) -> None:
    leaf = make_chain(vms, "a", 16)
    before = view(leaf)
    starter = python(_MERGES, leaf, "1", "detached")
    job_id = starter.communicate(timeout=HANGS_SECONDS)[0].strip()
    assert starter.returncode == 0
    assert not the_job().state.is_finished
    assert vhdkit.wait_for_job(job_id, HANGS_SECONDS).state is JobState.COMPLETED
    assert view(str(vms / "a.vhd")) == before


def test_what_was_started_is_waited_for_and_raises_what_went_wrong(vms: Path) -> None:
    job = vhdkit.start_merge(make_chain(vms, "a", 8), rate=4 << 20)
    with pytest.raises(TimeoutError):
        job.wait(0.1)
    job.pause()
    until(lambda: job.job.state is JobState.SUSPENDED)
    job.resume()
    job.cancel()
    with pytest.raises(MergeCancelled):
        job.result(HANGS_SECONDS)
    assert job.job.state is JobState.TERMINATED
    assert "cancelled" in repr(job)
    again = vhdkit.start_merge(str(vms / "a_0.avhd"), detached=True)
    assert again.id == job.id
    assert again.result(HANGS_SECONDS).state is JobState.COMPLETED


def test_what_cannot_be_done_is_refused_before_anything_is_begun(vms: Path) -> None:
    leaf = make_chain(vms, "a", 1)
    vhdkit.create_image(str(vms / "sibling.avhd"), parent=str(vms / "a.vhd"))
    for detached in (False, True):
        with pytest.raises(vhdkit.SiblingsError):
            vhdkit.start_merge(leaf, detached=detached)
        with pytest.raises(FileNotFoundError):
            vhdkit.start_merge(str(vms / "none.avhd"), detached=detached)
        with pytest.raises(ValueError, match="rate"):
            vhdkit.start_merge(leaf, rate=0, detached=detached)
    assert vhdkit.jobs() == ()


def test_merges_that_share_a_file_wait_in_line_and_others_run_beside_them(vms: Path) -> None:
    upper = make_chain(vms, "a", 16, levels=2)
    lower = str(vms / "a_0.avhd")
    before = view(upper)
    other = make_chain(vms, "b", 8)
    first = vhdkit.start_merge(lower, rate=1 << 20, detached=True)
    until(lambda: first.job.state is not JobState.NEW)
    second = vhdkit.start_merge(upper, rate=16 << 20)
    third = vhdkit.start_merge(other)
    assert third.wait(HANGS_SECONDS).state is JobState.COMPLETED
    assert [first.wait(HANGS_SECONDS).state, second.wait(HANGS_SECONDS).state] == [JobState.COMPLETED] * 2
    assert first.job.ended is not None
    assert second.job.started is not None
    assert first.job.ended <= second.job.started + 0.05
    assert view(str(vms / "a.vhd")) == before


@pytest.mark.parametrize("detached", [False, True])
def test_a_job_is_cancelled_as_soon_as_it_is_listed(detached: bool, vms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = make_chain(vms, "a", 16)
    listed = Registry.to_the_end

    def to_the_end(registry: Registry, job_id: str) -> None:
        listed(registry, job_id)
        registry.ask(job_id, "cancel")

    monkeypatch.setattr(Registry, "to_the_end", to_the_end)
    assert vhdkit.start_merge(leaf, rate=1 << 20, detached=detached).wait(HANGS_SECONDS).state is JobState.TERMINATED


def test_what_waits_in_line_can_be_cancelled(vms: Path) -> None:
    leaf = make_chain(vms, "a", 16)
    first = vhdkit.start_merge(leaf, rate=1 << 20, detached=True)
    until(lambda: first.job.state is JobState.RUNNING)
    second = vhdkit.start_merge(leaf, detached=True)
    time.sleep(0.3)
    assert second.job.state is JobState.NEW
    assert vhdkit.cancel_job(second.id).state is JobState.TERMINATED
    assert first.job.state is JobState.RUNNING
    vhdkit.cancel_job(first.id)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_merge_that_is_ended_from_outside_shows_so_and_goes_on(number: int, vms: Path) -> None:
    leaf = make_chain(vms, "a", 32)
    before = view(leaf)
    job = vhdkit.start_merge(leaf, rate=2 << 20, detached=True)
    until(lambda: job.job.bytes_done > 0)
    os.kill(job.job.pid, number)
    expected = JobState.TERMINATED if number == signal.SIGTERM else JobState.KILLED
    until(lambda: the_job().state is expected)
    assert view(leaf) == before
    assert the_job().error == ("" if number == signal.SIGTERM else "the process that was at it has ended")
    vhdkit.resume_job(job.id)
    assert vhdkit.wait_for_job(job.id, HANGS_SECONDS).state is JobState.COMPLETED
    assert view(str(vms / "a.vhd")) == before


# SIGTERM comes while the thread that merges is setting an event, and holds its lock.
_IS_HIT = """
import os, signal, sys, threading, types
from vhdkit.job import spawn, worker
class Event(threading.Event):
    def set(self):
        with self._cond:
            is_ready = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL and os.path.exists(sys.argv[1])
            if is_ready and threading.get_ident() == threading.main_thread().ident:
                os.unlink(sys.argv[1])
                os.kill(os.getpid(), signal.SIGTERM)
            self._flag = True
            self._cond.notify_all()
worker.threading = types.SimpleNamespace(**{**vars(threading), "Event": Event})
sys.exit(130 if spawn.work_at(sys.stdin.buffer.read()).state == 8 else 1)
"""


def test_a_process_that_is_ended_while_it_sets_an_event_does_not_hang(vms: Path, state: Path) -> None:
    leaf = make_chain(vms, "a", 16)
    first = vhdkit.start_merge(leaf, rate=4 << 20)
    until(lambda: first.job.bytes_done > 0)
    first.cancel()
    cancelled = first.wait(HANGS_SECONDS)
    mark = vms / "mark"
    mark.touch()
    merging = python(_IS_HIT, str(mark))
    try:
        told = task_of(cancelled, str(state)).decode()
        assert merging.communicate(told, timeout=HANGS_SECONDS) == ("", "")
    finally:
        merging.kill()
    assert merging.returncode == 130
    assert not mark.exists()
    assert the_job().state is JobState.TERMINATED


def test_a_job_is_begun_again_by_one_process_only(vms: Path) -> None:
    leaf = make_chain(vms, "a", 16)
    before = view(leaf)
    job = vhdkit.start_merge(leaf, rate=8 << 20, detached=True)
    until(lambda: job.job.bytes_done > 0)
    vhdkit.cancel_job(job.id)
    program = "import sys, vhdkit; sys.stdin.readline(); print(vhdkit.resume_job(sys.argv[1]).state.plain)"
    racers = [python(program, job.id) for _ in range(4)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    told = [racer.communicate(timeout=HANGS_SECONDS) for racer in racers]
    done = vhdkit.wait_for_job(job.id, HANGS_SECONDS)
    assert (done.state, done.runs) == (JobState.COMPLETED, 2)
    assert sum(not racer.returncode for racer in racers) >= 1
    assert all("Error" in err for (_, err), racer in zip(told, racers, strict=True) if racer.returncode)
    assert view(str(vms / "a.vhd")) == before


def test_a_process_that_is_stopped_is_not_taken_for_dead(vms: Path) -> None:
    job = vhdkit.start_merge(make_chain(vms, "a", 16), rate=8 << 20, detached=True)
    until(lambda: job.job.bytes_done > 0)
    os.kill(job.job.pid, signal.SIGSTOP)
    time.sleep(1.5)
    assert the_job().state is JobState.RUNNING
    os.kill(job.job.pid, signal.SIGCONT)
    assert job.wait(HANGS_SECONDS).state is JobState.COMPLETED


def test_who_does_not_answer_has_done_nothing_and_does_it_later(vms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = vhdkit.start_merge(make_chain(vms, "a", 32), rate=8 << 20, detached=True)
    until(lambda: job.job.bytes_done > 0)
    monkeypatch.setattr(control, "_STOP_SECONDS", 1.0)
    os.kill(job.job.pid, signal.SIGSTOP)
    try:
        with pytest.raises(JobError, match=f"has not paused in 1 s, and is running: its process {job.job.pid} on "):
            vhdkit.pause_job(job.id)
        with pytest.raises(JobError, match="has not stopped in 1 s"):
            vhdkit.cancel_job(job.id)
        with pytest.raises(TimeoutError):
            vhdkit.wait_for_job(job.id, 0.1)
    finally:
        os.kill(job.job.pid, signal.SIGCONT)
    assert job.wait(HANGS_SECONDS).state is JobState.TERMINATED


@pytest.mark.parametrize("act", [vhdkit.cancel_job, vhdkit.pause_job])
def test_what_was_complete_before_it_was_told_was_neither_cancelled_nor_paused(
    act: Callable[[str], Job], vms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = vhdkit.start_merge(make_chain(vms, "a", 4), rate=8 << 20)
    monkeypatch.setattr(Registry, "ask", lambda *_: job.result(HANGS_SECONDS))
    with pytest.raises(JobError, match="completed"):
        act(job.id)
    assert the_job().state is JobState.COMPLETED


def test_a_merge_with_an_undo_image_is_rolled_back_by_its_job(vms: Path) -> None:
    leaf = make_chain(vms, "a", 8)
    before, base = view(leaf), view(str(vms / "a.vhd"))
    running = vhdkit.start_merge(leaf, undo=str(vms / "undo.vhd"), rate=4 << 20, detached=True)
    until(lambda: running.job.bytes_done > 0)
    back = vhdkit.rollback_job(running.id)
    assert (back.state, back.rolled_back) == (JobState.TERMINATED, True)
    assert (view(leaf), view(str(vms / "a.vhd"))) == (before, base)
    with pytest.raises(JobError, match="rolled back"):
        vhdkit.rollback_job(running.id)
    with pytest.raises(JobError, match="rolled back"):
        vhdkit.resume_job(running.id)

    complete = vhdkit.start_merge(leaf, undo=str(vms / "undo.vhd"))
    assert complete.wait(HANGS_SECONDS).state is JobState.COMPLETED
    assert view(str(vms / "a.vhd")) == before
    assert vhdkit.rollback_job(complete.id).rolled_back
    assert (view(leaf), view(str(vms / "a.vhd"))) == (before, base)


def test_a_rollback_that_is_refused_leaves_the_job_what_it_was(vms: Path) -> None:
    leaf = make_chain(vms, "a", 1)
    job = vhdkit.start_merge(leaf, undo=str(vms / "undo.vhd"))
    job.wait(HANGS_SECONDS)
    done = the_job()
    with vhdkit.open_chain(str(vms / "undo.vhd"), lock=True), pytest.raises(vhdkit.ImageInUseError):
        vhdkit.rollback_job(job.id)
    assert the_job() == done
    vhdkit.drop_undo(str(vms / "undo.vhd"))
    with pytest.raises((JobError, vhdkit.JournalError, OSError)):
        vhdkit.rollback_job(job.id)
    assert the_job() == done


def test_without_an_undo_image_nothing_is_rolled_back(vms: Path) -> None:
    job = vhdkit.start_merge(make_chain(vms, "a", 1))
    job.wait(HANGS_SECONDS)
    with pytest.raises(JobError, match="undo= is for that"):
        vhdkit.rollback_job(job.id)
    with pytest.raises(JobError, match="completed"):
        vhdkit.resume_job(job.id)
    with pytest.raises(JobError, match="cannot be paused"):
        vhdkit.pause_job(job.id)


def test_jobs_are_found_by_disk_machine_and_state_and_forgotten_when_told(vms: Path) -> None:
    one = vhdkit.start_merge(make_chain(vms, "a", 1), machine="web")
    one.wait(HANGS_SECONDS)
    two = vhdkit.start_merge(make_chain(vms, "b", 16), rate=1 << 20, detached=True)
    until(lambda: two.job.state is JobState.RUNNING)
    for file in ("a.vhd", "a_0.avhd"):
        assert [job.id for job in vhdkit.jobs(disk=str(vms / file))] == [one.id]
    assert [job.id for job in vhdkit.jobs(machine="web")] == [one.id]
    assert [job.id for job in vhdkit.jobs(machine="b")] == [two.id]
    assert [job.id for job in vhdkit.jobs(machine=str(vms))] == [one.id, two.id]
    assert [job.id for job in vhdkit.jobs(running=True)] == [two.id]
    assert [job.id for job in vhdkit.jobs(finished=True)] == [one.id]
    assert [job.id for job in vhdkit.jobs(running=True, finished=True)] == [one.id, two.id]
    with pytest.raises(JobError, match="cancel it first"):
        vhdkit.remove_job(two.id)
    vhdkit.cancel_job(two.id)
    vhdkit.remove_job(two.id)
    assert [job.id for job in vhdkit.jobs()] == [one.id]
    with pytest.raises(JobError, match="there is no job"):
        vhdkit.find_job(two.id)
    with pytest.raises(JobError, match="there is no job"):
        vhdkit.find_job("")
