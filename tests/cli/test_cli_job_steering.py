"""Steering many jobs at once, how many run at once, how fast, and what each has said."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.jobs.making import HANGS_SECONDS, make_chain, until
from tests.unit.test_registry import numbered
from vhdkit.job.job import JobState
from vhdkit.job.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome
    from vhdkit import MergeJob

    Cli = Callable[..., Outcome]

MIB = 1 << 20


@pytest.fixture
def vms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "vms").mkdir()
    monkeypatch.chdir(tmp_path / "vms")
    return tmp_path / "vms"


def begun(vms: Path, name: str) -> MergeJob:
    """Begin a slow merge in a process of its own, and return once it copies."""
    job = vhdkit.start_merge(make_chain(vms, name, 8), rate=MIB, detached=True)
    until(lambda: job.job.bytes_done)
    return job


def killed(vms: Path, name: str) -> MergeJob:
    job = begun(vms, name)
    os.kill(job.job.pid, signal.SIGKILL)
    until(lambda: job.job.state is JobState.KILLED)
    return job


def test_after_a_reboot_all_interrupted_jobs_are_resumed_at_once(vms: Path, cli: Cli) -> None:
    jobs = [killed(vms, name) for name in "ab"]
    cancelled = begun(vms, "c")
    vhdkit.cancel_job(cancelled.id)
    assert cli("job", "rate", jobs[0].id, "none").code == 0
    resumed = cli("job", "resume", "--interrupted", "--json")
    assert {each["id"] for each in resumed.json} == {job.id for job in jobs}
    assert jobs[0].wait(HANGS_SECONDS).state is JobState.COMPLETED
    assert cli("job", "cancel", "--all").code == 0
    assert jobs[1].wait(HANGS_SECONDS).state is JobState.TERMINATED
    assert {each["id"] for each in cli("job", "resume", "--all", "--json").json} == {jobs[1].id, cancelled.id}
    assert cli("job", "cancel", "--machine", "b").out.startswith(jobs[1].id)
    assert cli("job", "cancel", "--disk", "c.vhd").out.startswith(cancelled.id)
    assert cli("job", "list", "--running").err.startswith("no merge runs")


def test_jobs_that_are_over_leave_the_list_and_those_that_are_not_stay(cli: Cli) -> None:
    for number, each in enumerate([JobState.COMPLETED, JobState.TERMINATED, JobState.KILLED, JobState.EXCEPTION]):
        Registry().put(numbered(number, state=each, changed=4e9))
    Registry().put(numbered(4, state=JobState.TERMINATED, rolled_back=True, changed=4e9))
    assert cli("job", "rm", "--finished").out.count("removed") == 2
    assert {job.state for job in vhdkit.jobs()} == {JobState.TERMINATED, JobState.KILLED, JobState.EXCEPTION}
    assert [each["state"] for each in cli("job", "list", "--state", "failed", "--json").json] == ["failed"]
    assert [each["state"] for each in cli("job", "list", "--state", "9", "--json").json] == ["interrupted"]
    assert cli("job", "list", "--state", "broken").code == 64


@pytest.mark.parametrize(
    "verb", [("resume",), ("cancel",), ("rm",), ("rm", "x", "--finished"), ("cancel", "x", "--all")]
)
def test_jobs_are_named_or_chosen_and_never_both(verb: tuple[str, ...], cli: Cli) -> None:
    assert cli("job", *verb).code == 64


def test_a_third_merge_on_a_file_system_waits_until_one_of_two_ends(vms: Path, cli: Cli, state: Path) -> None:
    first, second = begun(vms, "a"), begun(vms, "b")
    leaf = make_chain(vms, "c", 1)
    done = cli("merge", leaf, "--background")
    third = done.out.strip()
    until(lambda: vhdkit.find_job(third).pid != 0)
    (waiting,) = cli("job", "list", "--pending", "--json").json
    assert (waiting["id"], waiting["job-state"], waiting["waits"]["reason"]) == (third, 2, "limit")
    assert waiting["waits"]["for"] == [f"job {first.id}", f"job {second.id}"]
    assert "--parallel N" in waiting["waits"]["message"]
    # Without the list the locks alone decide.
    (state / "jobs.db").unlink()
    assert os.path.exists(leaf)
    fourth = make_chain(vms, "d", 1)
    assert cli("merge", fourth, "--parallel", "3", "--progress", "none").code == 0
    assert not os.path.exists(fourth)
    assert os.path.exists(leaf)
    os.kill(first.job.pid, signal.SIGKILL)
    until(lambda: not os.path.exists(leaf))
    os.kill(second.job.pid, signal.SIGKILL)


def test_a_merge_in_the_foreground_waits_too_and_can_be_cancelled(vms: Path, cli: Cli) -> None:
    jobs = [begun(vms, name) for name in "ab"]
    third = vhdkit.start_merge(leaf := make_chain(vms, "c", 1))
    assert third.job.state is JobState.NEW
    third.cancel()
    assert third.wait(HANGS_SECONDS).state is JobState.TERMINATED
    for job in jobs:
        job.cancel()
        job.wait(HANGS_SECONDS)
    assert cli("merge", leaf, "--parallel", "1", "--progress", "none").code == 0
    assert cli("merge", leaf, "--parallel", "0").code == 64


def test_a_paused_merge_leaves_its_place_to_another(vms: Path, cli: Cli) -> None:
    jobs = [begun(vms, name) for name in "ab"]
    assert cli("job", "pause", jobs[0].id).code == 0
    assert cli("merge", make_chain(vms, "c", 1), "--progress", "none").code == 0
    assert cli("job", "resume", jobs[0].id).code == 0
    until(lambda: jobs[0].job.state is JobState.RUNNING)
    for job in jobs:
        job.cancel()
        assert job.wait(HANGS_SECONDS).state is JobState.TERMINATED


def test_a_second_merge_of_a_busy_chain_is_refused_unless_it_may_wait(vms: Path, cli: Cli) -> None:
    first = begun(vms, "a")
    shutil.copy(vms / "a_0.avhd", vms / "kept")
    refused = cli("merge", "a_0.avhd", "--background").refused(75)
    assert "--wait waits in line for it" in refused
    assert f"The merge job {first.id} is at it" in refused
    waits = cli("merge", "a_0.avhd", "--background", "--wait")
    assert waits.code == 0
    assert f"it waits: another merge needs the same files (job {first.id})" in waits.err
    assert cli("merge", "a_0.avhd", "--wait").code == 64
    for job_id in (waits.out.strip(), first.id):
        vhdkit.cancel_job(job_id)


def test_the_rate_of_a_running_job_is_changed(vms: Path, cli: Cli) -> None:
    job = vhdkit.start_merge(make_chain(vms, "a", 64), rate=MIB // 4, detached=True)
    until(lambda: job.job.bytes_done)
    assert cli("job", "rate", job.id, "512K").code == 0
    assert job.job.request.rate == MIB // 2
    assert job.job.state is JobState.RUNNING
    assert cli("job", "rate", job.id, "none").code == 0
    # At the first rate it would take four minutes.
    assert job.wait(60).state is JobState.COMPLETED
    assert "is completed" in cli("job", "rate", job.id, "1M").refused()
    assert cli("job", "rate", job.id, "0").code == 64


def test_what_a_job_has_said_in_all_its_runs_is_kept_with_it(vms: Path, cli: Cli, state: Path) -> None:
    job = killed(vms, "a")
    vhdkit.jobs()
    assert cli("job", "rate", job.id, "none").code == 0
    assert cli("job", "resume", job.id).code == 0
    job.wait(HANGS_SECONDS)
    said = cli("job", "log", job.id, "--json").json
    events = [each["event-id"] for each in said if each["event-id"]]
    assert events == [19070, 19090, 19070, 19080]
    assert {each["id"] for each in said} == {job.id}
    assert "finished successfully" in cli("job", "log", job.id[:8]).out.splitlines()[-1]
    kept = state / "logs" / f"{job.id}.jsonl"
    kept.write_bytes(b"\xff no json\n[]\n" + kept.read_bytes())
    assert len(cli("job", "log", job.id, "--json").json) == len(said)
    assert cli("job", "rm", job.id).code == 0
    assert not kept.exists()


def test_the_help_answers_each_question_with_a_command_that_there_is(cli: Cli) -> None:
    reported = cli("job", "--help").out
    questions = [line.strip() for line in reported.splitlines() if "  vhdkit " in line]
    assert len(questions) == 10
    assert all(len(line) <= 80 for line in questions)
    for line in questions:
        known = ""
        for answer in line.split("  vhdkit ")[1].split(", "):
            words = answer.split()
            if words[0] in {"job", "snapshot", "merge"}:
                verb = words[: 1 if words[0] == "merge" else 2]
                known = cli(*verb, "--help").out
            assert known
            assert all(word in known for word in words if word.startswith("--")), answer


def test_a_command_about_no_job_says_so(cli: Cli) -> None:
    cli("job", "list")
    for option, name in (("--machine", "nosuch"), ("--disk", "nosuch.vhd")):
        assert f"no job runs for the {option[2:]} {name!r}" in cli("job", "cancel", option, name).refused()
    assert (cli("job", "cancel", "--all").code, cli("job", "cancel", "--all").err) == (0, "no job runs\n")
    assert (cli("job", "resume", "--all").code, cli("job", "resume", "--all").err) == (0, "no job can be resumed\n")
    assert cli("job", "resume", "--interrupted").err == "no job was interrupted\n"
    assert cli("job", "resume", "--all", "--json").json == []


def test_every_word_that_the_list_has_for_a_state_chooses_by_it(cli: Cli) -> None:
    words = [(state, "", False) for state in JobState] + [(JobState.TERMINATED, "", True)]
    words += [(JobState.RUNNING, phase, False) for phase in ("reserving", "verifying", "finishing", "rolling back")]
    for number, (state, phase, rolled_back) in enumerate(words):
        mine = {"pid": os.getpid(), "host": "elsewhere"} if not state.is_finished else {}
        Registry().put(numbered(number, state=state, phase=phase, rolled_back=rolled_back, changed=4e9, **mine))
    lines = cli("job", "list").out.splitlines()[1:]
    shown = {line.split("  ")[1] for line in lines if " waits: " not in line}
    assert {"rolled back", "rolling back", "reserving", "waiting"} <= shown
    for word in shown:
        rows = [line for line in cli("job", "list", "--state", word).out.splitlines()[1:] if " waits: " not in line]
        assert any(line.split("  ")[1] == word for line in rows), word
    assert len(cli("job", "list", "--state", "rolled back", "--json").json) == 1


def test_a_merge_that_was_cancelled_or_failed_says_so_and_not_that_it_was_cut_off(vms: Path, cli: Cli) -> None:
    job = begun(vms, "a")
    vhdkit.cancel_job(job.id)
    assert f"{job.id[:8]} waits: it was cancelled; `vhdkit job resume {job.id}`" in cli("job", "list").out
    assert "it was cancelled" in cli("job", "list", "--format", "cim").out
    assert cli("job", "list", "--json").json[0]["waits"]["reason"] == "cancelled"
