"""How a merge ends is what happened: hang-ups, kills, refusals, and how far each says that it was."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import environment, program
from tests.jobs.making import HANGS_SECONDS, MIB, make_chain, the_job, until, view
from vhdkit.job.job import JobState
from vhdkit.journal.merge_journal import read_journal
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from pathlib import Path

# Starts a program with SIGHUP ignored, as nohup does.
_NOHUP = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"


def under_way(leaf: str, *before: str, rate: str = "2M") -> subprocess.Popen[bytes]:
    """Start a merge in the foreground, and return when its journal has a mark."""
    words = [*before, *program("merge", leaf, "--rate", rate, "--progress", "none")]
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(lambda: marked(leaf) or process.poll() is not None)
    assert process.poll() is None
    return process


def marked(leaf: str) -> int:
    """Return the bytes that the journal of the only merge of a chain has marked."""
    base = re.sub(r"_0\.avhd$", ".vhd", leaf)
    journal = read_journal(LocalFolder(), base) if os.path.exists(base) else None
    return journal.bytes_done if journal is not None else 0


def percent_of_check(vms: Path) -> int:
    done = subprocess.run(program("check", str(vms / "a.vhd")), env=environment(), capture_output=True, check=False)
    (percent,) = re.findall(rb"is not finished: (\d+) %", done.stdout + done.stderr)
    return int(percent)


@pytest.mark.parametrize("times", [1, 3])
def test_a_hang_up_stops_a_merge_as_sigterm_does_and_keeps_what_was_done(times: int, vms: Path) -> None:
    leaf = make_chain(vms, "a", 64)
    before = view(leaf)
    process = under_way(leaf, rate="16M")
    for _ in range(times):
        process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=HANGS_SECONDS)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    assert b"vhdkit merge" in err
    assert marked(leaf) > 0
    journal = read_journal(LocalFolder(), str(vms / "a.vhd"))
    assert journal is not None
    assert journal.stopped == "cancelled"
    assert the_job().state is JobState.TERMINATED
    assert the_job().percent == percent_of_check(vms) > 0
    assert view(leaf) == before
    assert vhdkit.plan_merge(leaf).resume is vhdkit.Resume.CONTINUES


def test_a_merge_that_was_begun_with_nohup_goes_on(vms: Path) -> None:
    leaf = make_chain(vms, "a", 4)
    words = [sys.executable, "-c", _NOHUP, *program("merge", leaf, "--rate", "2M", "--progress", "none")]
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(lambda: os.path.exists(vms / "a.vhd.vhdkit-journal") or process.poll() is not None)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=HANGS_SECONDS)
    assert process.returncode == 0, err
    assert not os.path.exists(leaf)


@pytest.mark.parametrize("style", ["bar", "plain", "json"])
def test_a_terminal_that_is_closed_ends_a_merge_as_cancelled(style: str, vms: Path) -> None:
    leaf = make_chain(vms, "a", 8)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        program("merge", leaf, "--rate", "1M", "--progress", style),
        env=environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    until(lambda: [job for job in vhdkit.jobs() if job.bytes_done])
    # No process reads any longer, and the program is told so as when a connection is lost.
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(HANGS_SECONDS) == 130
    assert the_job().state is JobState.TERMINATED
    assert vhdkit.plan_merge(leaf).resume is vhdkit.Resume.CONTINUES


@pytest.mark.parametrize("detached", [False, True])
def test_a_job_that_was_killed_has_the_figure_of_its_journal_and_goes_on_from_there(detached: bool, vms: Path) -> None:
    leaf = make_chain(vms, "a", 64)
    before = view(leaf)
    if detached:
        vhdkit.start_merge(leaf, rate=16 * MIB, detached=True)
    else:
        process = under_way(leaf, rate="16M")
    until(lambda: marked(leaf) and the_job().bytes_done > marked(leaf))
    os.kill(the_job().pid, signal.SIGKILL)
    until(lambda: the_job().state is JobState.KILLED)
    job = the_job()
    assert job.bytes_done == marked(leaf) > 0
    assert job.percent == percent_of_check(vms)
    listed = subprocess.run(program("job", "list", "--json"), env=environment(), capture_output=True, check=True)
    assert [each["percent-complete"] for each in json.loads(listed.stdout)] == [job.percent]
    if not detached:
        process.communicate()
    resumed = vhdkit.resume_job(job.id)
    assert resumed.percent == job.percent
    done = vhdkit.wait_for_job(job.id, HANGS_SECONDS)
    assert (done.state, done.percent) == (JobState.COMPLETED, 100)
    assert view(str(vms / "a.vhd")) == before


def test_a_job_that_was_killed_before_its_first_mark_has_done_nothing(vms: Path) -> None:
    leaf = make_chain(vms, "a", 4)
    job = vhdkit.start_merge(leaf, rate=MIB, detached=True)
    until(lambda: job.job.bytes_done)
    os.kill(job.job.pid, signal.SIGKILL)
    until(lambda: the_job().state is JobState.KILLED)
    assert (the_job().bytes_done, the_job().percent) == (0, 0) == (marked(leaf), percent_of_check(vms))


def test_a_second_merge_in_the_background_on_a_busy_chain_is_refused_at_once_and_names_the_first(vms: Path) -> None:
    leaf = make_chain(vms, "a", 16)
    first = vhdkit.start_merge(leaf, rate=MIB // 8, detached=True)
    until(lambda: first.job.state is JobState.RUNNING)
    for words in (["merge", leaf, "--background"], ["merge", leaf], ["convert", leaf, str(vms / "new.vhd")]):
        done = subprocess.run(program(*words), env=environment(), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (75, "")
        assert f"merge job {first.id} is at it" in done.stderr
    assert [job.id for job in vhdkit.jobs()] == [first.id]
    first.cancel()
    first.wait(HANGS_SECONDS)
    again = subprocess.run(
        program("merge", leaf, "--background"), env=environment(), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0
    vhdkit.cancel_job(again.stdout.strip())


def test_a_merge_that_waits_in_line_keeps_one_that_does_not_wait_from_beginning(vms: Path) -> None:
    leaf = make_chain(vms, "a", 16)
    first = vhdkit.start_merge(leaf, rate=MIB, detached=True)
    until(lambda: first.job.state is JobState.RUNNING)
    with pytest.raises(vhdkit.ImageInUseError):
        vhdkit.start_merge(leaf, wait_in_line=False)
    waiting = vhdkit.start_merge(leaf, detached=True)
    assert waiting.job.state is JobState.NEW
    waiting.cancel()
    first.cancel()
    waiting.wait(HANGS_SECONDS)
    first.wait(HANGS_SECONDS)
