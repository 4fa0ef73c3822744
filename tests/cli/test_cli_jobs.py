"""The verbs about jobs, as users run them."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.cli.running import Outcome, environment, program, spawn
from tests.jobs.making import make_chain, until, view
from tests.unit.test_pasted_query import THE_FILTER, THE_QUERY, THE_SLIP
from tests.unit.test_registry import numbered
from vhdkit.job import cim
from vhdkit.job.job import JobState
from vhdkit.job.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.job.job import Job

    Cli = Callable[..., Outcome]

KEYS = {
    "id",
    "state",
    "job-state",
    "percent-complete",
    "phase",
    "bytes-done",
    "bytes-total",
    "rate",
    "seconds-left",
    "submitted",
    "started",
    "ended",
    "elapsed",
    "runs",
    "pid",
    "host",
    "user",
    "machine",
    "sources",
    "destination",
    "undo",
    "cancellable",
    "waits",
    "rolled-back",
    "error",
    "error-class",
    "error-code",
}


def run(*arguments: str) -> Outcome:
    """Run the program to its end as a process of its own."""
    return spawn(*arguments, cwd=Path.cwd())


def started(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Begin the program as a process of its own."""
    return subprocess.Popen(program(*arguments), env=environment(), **options)


@pytest.fixture
def leaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A leaf of 16 MiB over a base, in the current folder."""
    (tmp_path / "web").mkdir()
    monkeypatch.chdir(tmp_path / "web")
    return make_chain(tmp_path / "web", "a", 16)


def begun(leaf: str, *options: str, rate: str = "4M") -> str:
    """Begin a slow merge in the background, as a user does, and return its id once it copies."""
    done = run("merge", leaf, "--background", "--rate", rate, *options)
    assert done.code == 0, done.err
    assert re.fullmatch(r"[0-9a-f-]{36}\n", done.out)
    job_id = done.out.strip()
    assert f"`vhdkit job show {job_id[:8]}`" in done.err
    until(lambda: found(job_id).bytes_done > 0)
    return job_id


def found_job() -> Job:
    (job,) = vhdkit.jobs()
    return job


def found(job_id: str) -> Job:
    return vhdkit.find_job(job_id)


def test_a_merge_in_the_background_is_asked_about_and_steered(leaf: str, cli: Cli) -> None:
    before = view(leaf)
    job_id = begun(leaf, "--machine", "web01")
    (listed,) = cli("job", "list", "--json").json
    assert set(listed) == KEYS
    assert (listed["id"], listed["state"], listed["job-state"]) == (job_id, "running", 4)
    assert (listed["machine"], listed["sources"], listed["cancellable"]) == ("web01", [leaf], True)
    assert 0 < listed["bytes-done"] < listed["bytes-total"]
    assert 0 <= listed["percent-complete"] < 100

    table = cli("job", "list")
    headings = ["ID", "STATE", "DONE", "MACHINE", "RATE", "LEFT", "MERGE"]
    assert table.out.splitlines()[0].split() == headings
    assert re.match(rf"{job_id[:8]}  running  +\d+ %  +web01 .* +a_0.avhd -> a.vhd", table.out.splitlines()[1])

    assert cli("job", "pause", job_id[:6]).out == f"{job_id}  paused, {found(job_id).percent} %\n"
    shown = cli("job", "show", job_id).out
    assert f"`vhdkit job resume {job_id[:8]}`" in shown
    assert "may be cancelled  yes" in shown
    assert cli("job", "resume", job_id).out.startswith(f"{job_id}  running")
    assert "running still, at" in cli("job", "wait", job_id, "--timeout", "0.1").refused(75)

    (cancelled,) = cli("job", "cancel", job_id, "--json").json
    assert cancelled["state"] == "cancelled"
    assert cli("job", "wait", job_id).code == 130
    assert "cancelled already" in cli("job", "cancel", job_id).refused()
    assert view(leaf) == before

    assert cli("job", "resume", job_id).code == 0
    ended = cli("job", "wait", job_id)
    assert (ended.code, ended.out) == (0, f"{job_id}  completed, 100 %\n")
    assert view("a.vhd") == before
    assert cli("job", "list", "--running").err == "no jobs\n"
    assert cli("job", "list", "--finished", "--disk", "a.vhd").out.count(job_id[:8]) == 1
    assert cli("job", "list", "--machine", "web02").out == ""
    assert cli("job", "rm", job_id).code == 0
    assert "there is no job" in cli("job", "show", job_id).refused()


def test_a_merge_in_the_foreground_is_a_job_too(leaf: str, cli: Cli) -> None:
    assert cli("merge", leaf, "--progress", "none").code == 0
    (job,) = vhdkit.jobs()
    assert (job.state, job.machine, job.pid) == (JobState.COMPLETED, "a", os.getpid())


def test_a_merge_in_the_foreground_is_paused_and_cancelled_from_elsewhere(leaf: str) -> None:
    merging = started("merge", leaf, "--rate", "4M", stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until(lambda: [job for job in vhdkit.jobs() if job.bytes_done])
    (job,) = vhdkit.jobs()
    assert run("job", "pause", job.id).out.endswith(f"paused, {found(job.id).percent} %\n")
    assert run("job", "cancel", job.id).code == 0
    _, told = merging.communicate(timeout=20)
    assert merging.returncode == 130
    assert "goes on with it" in told


def test_hyper_vs_own_print_is_read_by_a_script_and_filtered(leaf: str, cli: Cli) -> None:
    job_id = begun(leaf, rate="512K")
    (read,) = cim.parse(cli("job", "list", "--format", "cim").out)
    assert (read["InstanceID"], read["ElementName"], read["JobState"]) == (job_id, "Merge in Progress", "4")
    wanted = "ElementName = 'Merge in Progress' and PercentComplete < 99"
    assert [each["id"] for each in cli("job", "list", "--where", wanted, "--json").json] == [job_id]
    assert [each["id"] for each in cli("job", "list", "--where", THE_QUERY, "--json").json] == [job_id]
    for pasted in (THE_FILTER, THE_SLIP):
        early = pasted.replace("50", "100")
        assert [each["id"] for each in cli("job", "list", "--where", early, "--json").json] == [job_id]
    assert cli("job", "list", "--where", "JobState = 7", "--json").json == []
    for wrong in ("PercentComplete <", "Colour = 1", "PercentComplete = 'x'"):
        assert cli("job", "list", "--where", wrong).code == 64
    assert cli("job", "list", "--json", "--format", "cim").code == 64
    assert cim.parse(cli("job", "show", job_id, "--format", "cim").out)[0]["InstanceID"] == job_id
    cli("job", "cancel", job_id)


def test_a_job_is_found_by_its_machine_and_its_disk(leaf: str, cli: Cli) -> None:
    assert cli("merge", leaf, "--progress", "none").code == 0
    disk = str(Path("a.vhd").resolve())
    for where, count in {"Machine = 'A'": 1, "$_.Disk -like '*a.vhd'": 1, "Machine = 'web' or Disk = 'b'": 0}.items():
        assert len(cli("job", "list", "--where", where, "--json").json) == count
    for verb in (("list",), ("show", found_job().id)):
        (read,) = cim.parse(cli("job", *verb, "--format", "cim").out)
        assert (list(read)[-2:], read["Machine"], read["Disk"]) == (["Machine", "Disk"], "a", disk)
        (read,) = cim.parse(cli("job", *verb, "--format", "cim", "--strict").out)
        assert (len(read), read["__PROPERTY_COUNT"]) == (46, "36")
    assert cli("job", "list", "--strict").code == 64


def test_a_machine_has_the_name_of_its_disk_and_not_of_hyper_vs_folder(cli: Cli, tmp_path: Path) -> None:
    (folder := tmp_path / "Virtual Hard Disks").mkdir()
    assert cli("merge", make_chain(folder, "xp", 1, levels=2), "--progress", "none").code == 0
    assert found_job().machine == "xp"


@pytest.mark.parametrize("wrong", ["Colour = 1", "JobState = 7 or Colour = 1", "JobState = 'x'", "JobState"])
def test_a_wrong_filter_is_wrong_usage_though_there_is_no_job(wrong: str, cli: Cli) -> None:
    assert cli("job", "list", "--where", wrong).code == 64


@pytest.mark.parametrize(
    ("where", "count"),
    [("JobState = 7", 3), ("Cancellable = false", 3), ("PercentComplete = 0", 3), ("JobState < 7", 0)],
)
def test_a_filter_sees_those_that_have_ended_unless_it_wants_none(where: str, count: int, cli: Cli) -> None:
    for number in range(3):
        Registry().put(numbered(number, changed=time.time()))
    assert len(cli("job", "list", "--where", where, "--json").json) == count
    assert cli("job", "list", "--where", where, "--running", "--json").json == []


def test_what_fails_in_the_background_says_why_and_exits_so(leaf: str, cli: Cli, tmp_path: Path) -> None:
    job_id = begun(leaf)
    os.kill(found(job_id).pid, signal.SIGKILL)
    until(lambda: found(job_id).state is JobState.KILLED)
    assert cli("job", "wait", job_id).code == 1
    assert "interrupted" in cli("job", "list").out
    assert "the process that was at it has ended" in cli("job", "show", job_id).out
    # Now it cannot go on: its source is not what it was.
    shutil.copy2(leaf, tmp_path / "kept")
    os.truncate(leaf, 100)
    assert "vhdkit: " in cli("job", "resume", job_id).refused()
    assert found(job_id).state is JobState.KILLED


def test_a_rollback_goes_by_the_job(leaf: str, cli: Cli) -> None:
    before = view(leaf)
    done = cli("merge", leaf, "--undo", "undo.vhd", "--progress", "none")
    assert done.code == 0
    (job,) = vhdkit.jobs()
    assert f"`vhdkit job rollback {job.id[:8]}`" in cli("job", "show", job.id).out
    assert cli("job", "rollback", job.id, "--progress", "none").out.startswith(job.id)
    assert view(leaf) == before
    listed = cli("job", "list").out
    assert "rolled back" in listed
    assert "%" not in listed
    (done_job,) = cli("job", "list", "--json").json
    assert (done_job["percent-complete"], done_job["bytes-done"]) == (0, 0)
    assert "rolled back" in cli("job", "rollback", job.id).refused()


def test_unknown_and_ambiguous_ids_are_refused_before_anything_is_done(leaf: str, cli: Cli) -> None:
    job_id = begun(leaf, rate="512K")
    assert "there is no job 'ffffffff-'" in cli("job", "cancel", job_id, "ffffffff-").refused()
    assert found(job_id).state is JobState.RUNNING
    cli("job", "cancel", job_id)
    for verb in ("show", "wait", "cancel", "pause", "resume", "rollback", "rm", "watch"):
        assert "there is no job" in cli("job", verb, "zzz").refused()
        assert verb == "watch" or cli("job", verb).code == 64


def test_what_one_job_refuses_keeps_no_verb_from_the_others(leaf: str, cli: Cli) -> None:
    job_id = begun(leaf, rate="512K")
    for number in range(2):
        Registry().put(numbered(number, changed=time.time()))
    done = cli("job", "cancel", numbered(0).id, job_id, numbered(1).id)
    assert done.code == 1
    assert done.out.startswith(f"{job_id}  cancelled")
    assert [line.split(" is ")[1] for line in done.err.splitlines()] == ["completed already"] * 2
    assert found(job_id).state is JobState.TERMINATED


def test_what_makes_no_sense_in_the_background_is_wrong_usage(leaf: str, cli: Cli) -> None:
    assert cli("merge", leaf, "--background", "--dry-run").code == 64
    assert vhdkit.jobs() == ()


def test_a_merge_that_cannot_be_listed_says_so_and_runs(leaf: str, cli: Cli, state: Path) -> None:
    state.write_bytes(b"")
    done = run("merge", leaf, "--background")
    assert done.code == 0
    assert "warning: the merge runs, but could not be listed" in done.err
    until(lambda: not os.path.exists(leaf))
    assert "list of jobs cannot be used" in cli("job", "list").refused()


def test_a_merge_that_cannot_be_listed_runs_in_the_foreground_too(leaf: str, state: Path) -> None:
    state.write_bytes(b"")
    done = run("merge", leaf, "--progress", "none")
    assert done.code == 0
    assert "is not listed" in done.err


EVENTS = KEYS | {"time", "level", "event-id", "message"}


def test_what_happens_is_logged_with_hyper_vs_event_ids(leaf: str, cli: Cli, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    done = run("merge", leaf, "--background", "--log-file", str(log))
    job_id = done.out.strip()
    assert cli("job", "wait", job_id).code == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(set(line) == EVENTS and line["id"] == job_id for line in lines)
    assert [line["event-id"] for line in lines] == [19070, *[0] * (len(lines) - 2), 19080]
    percents = [line["percent-complete"] for line in lines if not line["event-id"]]
    assert percents == sorted(percents)
    assert 3 <= len(percents) <= 11
    assert len({percent // 10 for percent in percents}) == len(percents)


def test_a_cancel_and_a_failure_are_logged_as_such(leaf: str, cli: Cli, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    job_id = begun(leaf, "--log-file", str(log))
    cli("job", "cancel", job_id)
    until(lambda: json.loads(log.read_text().splitlines()[-1])["event-id"] == 19090)
    assert json.loads(log.read_text().splitlines()[-1])["event-id"] == 19090
    lost = str(tmp_path / "no" / "log")
    for options in ([], ["--background"]):
        refused = cli("merge", leaf, "--log-file", lost, *options)
        assert refused.code == 1
        assert lost in refused.err
    assert found(job_id).state is JobState.TERMINATED


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
def test_a_log_on_a_full_disk_stops_no_merge_and_is_told_of_once(leaf: str, cli: Cli) -> None:
    done = run("merge", leaf, "--log-file", "/dev/full", "--progress", "none")
    assert done.code == 0, done.err
    assert done.err == "warning: /dev/full: what happens cannot be logged there: No space left on device\n"
    (job,) = vhdkit.jobs()
    assert job.state is JobState.COMPLETED
    background = run("merge", make_chain(Path.cwd(), "b", 1), "--log-file", "/dev/full", "--background")
    assert cli("job", "wait", background.out.strip()).code == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
@pytest.mark.parametrize("style", ["plain", "json"])
def test_progress_that_cannot_be_told_stops_no_merge(style: str, leaf: str) -> None:
    with Path("/dev/full").open("w") as full:
        assert started("merge", leaf, "--progress", style, stderr=full).wait(30) == 0
    assert not os.path.exists(leaf)


def test_progress_as_json_carries_what_the_log_does(leaf: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    done = run("merge", leaf, "--progress", "json", "--log-file", str(log))
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert [line for line in lines if "event-id" in line] == [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event-id"] for line in lines if line.get("event-id")] == [19070, 19080]
    assert len([line for line in lines if line.get("event-id") == 0]) >= 3
    assert all("percent-complete" in line and "bytes-done" in line for line in lines)
    phases = [line["phase"] for line in lines if "event-id" not in line]
    assert phases == ["reserving", "copying", "finishing"]


def test_what_is_amiss_is_an_object_too_where_progress_is_json(leaf: str, state: Path) -> None:
    state.write_bytes(b"")
    done = run("merge", leaf, "--progress", "json")
    assert done.code == 0
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert [line["level"] for line in lines if "is not listed" in line.get("message", "")] == ["warning"]


def test_a_thousand_jobs_are_not_all_shown_unless_asked_for(cli: Cli) -> None:
    registry = Registry()
    for number in range(203):
        registry.put(numbered(number, changed=time.time()))
    shown = cli("job", "list", "--json")
    assert len(shown.json) == 200
    assert shown.json[-1]["id"] == numbered(202).id
    assert "older jobs are not shown" in shown.err
    everything = cli("job", "list", "--json", "--all")
    assert (len(everything.json), everything.err) == (203, "")


def watched(job_id: str, *options: str) -> str:
    """Return what `job watch` shows on a terminal."""
    shower, terminal = pty.openpty()
    with started("job", "watch", job_id, *options, stdout=terminal, stderr=terminal) as watching:
        os.close(terminal)
        shown = b""
        while True:
            try:
                piece = os.read(shower, 4096)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        assert watching.wait(30) == 0
    os.close(shower)
    return shown.decode()


def test_watching_shows_a_bar_on_a_terminal_lines_in_a_pipe_and_nothing_if_told_so(leaf: str) -> None:
    job_id = begun(leaf)
    with started("job", "watch", stdout=subprocess.PIPE, text=True) as piped:
        on_terminal = watched(job_id)
        in_pipe = piped.communicate(timeout=30)[0]
    assert "\x1b[" in on_terminal
    assert "━" in on_terminal
    assert "completed" in on_terminal
    lines = in_pipe.splitlines()
    assert all(line.startswith(f"{job_id[:8]} a a.vhd: ") for line in lines)
    assert lines[-1] == f"{job_id[:8]} a a.vhd: completed, 100 %"
    assert 3 <= len(lines) <= 16
    assert "\x1b" not in in_pipe
    assert run("job", "watch", job_id, "--progress", "none").out == ""
    told = run("job", "watch", job_id, "--progress", "json").out
    assert json.loads(told)["state"] == "completed"
    assert run("job", "watch").err == "no jobs are running\n"


def lost(state: Path) -> None:
    for path in state.glob("jobs.db*"):
        path.unlink()


def unusable(state: Path) -> None:
    state.rename(f"{state}.gone")
    state.write_bytes(b"")


@pytest.mark.parametrize("trouble", [lost, unusable])
@pytest.mark.parametrize("is_named", [False, True])
def test_watching_outlasts_a_list_that_is_lost(
    trouble: Callable[[Path], None], is_named: bool, leaf: str, state: Path
) -> None:
    job_id = begun(leaf)
    os.kill(found(job_id).pid, signal.SIGSTOP)
    pid = found(job_id).pid
    words = [job_id] if is_named else []
    with started("job", "watch", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        trouble(state)
        time.sleep(1)
        if trouble is unusable:
            state.unlink()
        os.kill(pid, signal.SIGCONT)
        out, err = watching.communicate(timeout=30)
    assert (watching.returncode, err) == (0, "")
    assert out.splitlines()[-1].endswith("completed, 100 %")


def test_who_stops_watching_stops_nothing(leaf: str) -> None:
    job_id = begun(leaf, rate="512K")
    with started("job", "watch", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, told = watching.communicate(timeout=20)
        assert watching.returncode == 130
    assert "The jobs go on" in told
    assert found(job_id).state is JobState.RUNNING
    assert run("job", "cancel", job_id).code == 0


def tmux(*words: str, **options: Any) -> str:
    words = ("tmux", "-L", f"vhdkit-tests-{os.getpid()}", *words)
    said: str = subprocess.run(words, check=True, text=True, capture_output=True, **options).stdout
    return said


@pytest.mark.parametrize("how", [[], ["--background"], ["--progress", "json"]])
@pytest.mark.parametrize("obstacle", ["a sibling", "no parent"])
def test_a_merge_that_is_refused_is_logged(leaf: str, cli: Cli, tmp_path: Path, how: list[str], obstacle: str) -> None:
    base = str(Path(leaf).parent / "a.vhd")
    if obstacle == "a sibling":
        vhdkit.create_image(str(Path(leaf).parent / "sibling.avhd"), parent=base)
    else:
        Path(base).unlink()
    log = tmp_path / "log"
    refused = cli("merge", leaf, "--log-file", log, *how)
    assert refused.code == 1
    (event,) = map(json.loads, log.read_text().splitlines())
    assert (event["event-id"], event["level"]) == (19100, "error")
    assert ("sibling.avhd" if obstacle == "a sibling" else "its parent") in event["message"]
    if how[:1] == ["--progress"]:
        assert json.loads(refused.err.splitlines()[0])["event-id"] == 19100
    assert vhdkit.jobs() == ()


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_in_a_real_terminal_the_bar_stays_on_one_line(leaf: str, tmp_path: Path) -> None:
    job_id = begun(leaf, rate="512K")
    command = program("job", "watch", job_id)
    size = ("-x", "100", "-y", "20")
    tmux("new-session", "-d", "-s", tmp_path.name, *size, *command, env=environment())
    try:
        # The first of many drawings may be seen half drawn.
        bar = re.compile(rf"{job_id[:8]} a a.vhd ━.*\d+% running")
        until(lambda: bar.search(tmux("capture-pane", "-p", "-t", tmp_path.name)) is not None)
        shown = [line for line in tmux("capture-pane", "-p", "-t", tmp_path.name).splitlines() if line.strip()]
        assert len(shown) == 1
    finally:
        tmux("kill-server")
    assert found(job_id).state is JobState.RUNNING
    run("job", "cancel", job_id)
