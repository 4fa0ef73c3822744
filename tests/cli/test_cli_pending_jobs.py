"""The merges that are left to do, in `job list`: what they wait for, for whom, and what lets them go on."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.jobs.making import HANGS_SECONDS, make_chain, until
from tests.unit.test_registry import numbered
from vhdkit.job.job import JobState
from vhdkit.job.registry import Registry
from vhdkit.snapshot.pending_jobs import wait_for_any_job

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.running import Outcome
    from vhdkit.job.job import Job

    Cli = Callable[..., Outcome]

MIB = 1 << 20


@pytest.fixture
def xp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> str:
    """The disk of a machine with a snapshot, in the current folder."""
    (tmp_path / "Virtual Hard Disks").mkdir()
    monkeypatch.chdir(tmp_path / "Virtual Hard Disks")
    vhdkit.create_image("xp.vhd", size=64 * MIB)
    assert cli("snapshot", "init", "xp.vhd").code == 0
    assert cli("snapshot", "take", "RTM", "xp.vhd").code == 0
    return "xp.vhd"


def active(disk: str) -> str:
    return vhdkit.Machine(disk).active[0]


def pending(cli: Cli, *options: str) -> list[Any]:
    found = cli("job", "list", "--pending", "--json", *options)
    assert found.code == 0, found.err
    return list(found.json)


def test_a_deleted_snapshot_of_a_running_machine_is_a_job_that_waits_for_it(xp: str, cli: Cli) -> None:
    assert cli("job", "list").err == "no jobs\n"
    running = active(xp)
    with vhdkit.open_chain(running, writable=True):
        postponed = cli("snapshot", "delete", "RTM", xp).err
        assert "postponed" in postponed
        # One instruction, which names the disk.
        assert postponed.count("snapshot settle") == 1
        assert f"when it is off, `vhdkit snapshot settle '{Path(xp).resolve()}'`" in postponed
        (job,) = pending(cli)
        assert (job["state"], job["job-state"], job["machine"]) == ("waiting", 2, "xp")
        assert (job["sources"], job["destination"]) == ([running], str(Path(xp).resolve()))
        assert job["waits"]["reason"] == "machine-runs"
        assert job["waits"]["for"][0].startswith("this process itself")
        base = str(Path(xp).resolve())
        assert job["waits"]["commands"] == [f"vhdkit snapshot settle '{base}'"]
        assert not job["cancellable"]
        listed = cli("job", "list").out
        assert f"{job['id'][:8]} waits: the machine runs" in listed
        assert f"when it is off, `vhdkit snapshot settle '{base}'` merges it" in listed
        assert (
            "no merge runs; 1 merge is left to do: `vhdkit job list --pending`" in cli("job", "list", "--running").err
        )
        shown = cli("job", "show", job["id"][:8]).out
        assert re.search(r"^phase +not begun$", shown, re.MULTILINE)
        assert "the machine runs" in shown
        assert f"has not begun; when it is off, `vhdkit snapshot settle '{base}'`" in cli("job", "rm", job["id"]).err
        assert re.search(rf"^next +`vhdkit job wait {job['id'][:8]}`$", shown, re.MULTILINE)
        assert pending(cli, "--machine", "xp") == pending(cli, "--disk", xp) == [job]
        assert pending(cli, "--machine", "other") == pending(cli, "--where", "JobState = 4") == []
        for nothing in (("--machine", "other"), ("--disk", "typo.vhd"), ("--where", "JobState = 4")):
            assert cli("job", "list", *nothing).err == "no job matches; there is 1 in all\n"
        assert pending(cli, "--where", "JobState = 2 and ElementName = 'Merge Pending' and Machine = 'XP'") == [job]
        assert "the machine runs" in cli("job", "list", "--format", "cim").out
    assert (pending(cli)[0]["id"], pending(cli)[0]["job-state"]) == (job["id"], 11)
    assert cli("job", "list", "--state", "pending").out.count("it has not begun") == 1
    for verb in ("cancel", "pause", "rm", "log", "rollback", "watch", "rate"):
        more = ("8M",) if verb == "rate" else ()
        refusal = cli("job", verb, job["id"], *more).refused()
        assert f"has not begun; `vhdkit job resume {job['id']}` begins it" in refusal, verb
    assert cli("job", "resume", job["id"][:8]).code == 0
    (begun,) = vhdkit.jobs()
    assert vhdkit.wait_for_job(begun.id, HANGS_SECONDS).state is JobState.COMPLETED
    # The id that it had while it was pending leads to the job that it has become.
    assert cli("job", "show", job["id"][:8], "--json").json["id"] == begun.id
    assert cli("job", "wait", job["id"]).out.startswith(begun.id)
    assert cli("job", "log", job["id"]).out == cli("job", "log", begun.id).out != ""
    assert pending(cli) == []
    assert cli("job", "list", "--running").err == "no jobs\n"


def test_a_pending_merge_is_found_by_every_layer_that_it_reads_through(xp: str, cli: Cli) -> None:
    for name in ("SP1", "SP2"):
        assert cli("snapshot", "take", name, xp).code == 0
    assert cli("snapshot", "delete", "SP2", xp, "--no-settle").code == 0
    (job,) = pending(cli)
    assert str(Path(xp).resolve()) not in {*job["sources"], job["destination"]}
    assert pending(cli, "--disk", xp) == [job]
    assert pending(cli, "--disk", job["sources"][0]) == [job]
    vhdkit.create_image("other.vhd", size=MIB)
    assert pending(cli, "--disk", "other.vhd") == []


def test_who_waits_for_a_pending_merge_waits_until_it_is_done(xp: str, cli: Cli) -> None:
    running = active(xp)
    with vhdkit.open_chain(running, writable=True):
        assert cli("snapshot", "delete", "RTM", xp).code == 0
        (job,) = pending(cli)
        assert "has not begun: the machine runs" in cli("job", "wait", job["id"], "--timeout", "0.1").refused(75)
    machine = vhdkit.Machine(xp)

    class Settles:
        """A clock that lets the merge be done while somebody waits."""

        monotonic = staticmethod(time.monotonic)

        def sleep(self, _seconds: float) -> None:
            machine.settle()

    done = wait_for_any_job(job["id"][:12], clock=Settles())
    assert (done.state, done.destination, done.pid) == (JobState.COMPLETED, job["destination"], os.getpid())


@pytest.mark.parametrize("keeps_out", ["not mounted", "damaged list"])
def test_a_machine_that_cannot_be_looked_at_has_not_merged_anything(
    keeps_out: str, xp: str, cli: Cli, tmp_path: Path
) -> None:
    """A waiting process was answered that the merge is complete."""
    folder, away = Path(xp).resolve().parent, tmp_path / "away"
    (manifest,) = folder.glob("*.json")
    with vhdkit.open_chain(active(xp), writable=True):
        assert cli("snapshot", "delete", "RTM", xp).code == 0
        (job,) = pending(cli)
    machine = vhdkit.Machine(xp)

    class Comes:
        """A clock by which the machine is away, then back, and then merged."""

        monotonic = staticmethod(time.monotonic)
        turn = 0

        def sleep(self, _seconds: float) -> None:
            self.turn += 1
            match self.turn, keeps_out:
                case 1, "not mounted":
                    folder.rename(away)
                case 1, _:
                    manifest.rename(away)
                    manifest.write_text("{")
                case 2, "not mounted":
                    away.rename(folder)
                case 2, _:
                    away.replace(manifest)
                case _:
                    machine.settle()

    clock = Comes()
    done = wait_for_any_job(job["id"], clock=clock)
    assert clock.turn == 3
    assert (done.state, done.pid) == (JobState.COMPLETED, os.getpid())


def test_a_chain_in_line_waits_for_the_job_before_it(tmp_path: Path, cli: Cli) -> None:
    leaf = make_chain(tmp_path, "a", 16, levels=2)
    first = vhdkit.start_merge(leaf, rate=MIB, detached=True)
    until(lambda: first.job.bytes_done)
    second = vhdkit.start_merge(str(tmp_path / "a_0.avhd"), detached=True)
    (job,) = pending(cli)
    assert (job["id"], job["job-state"], job["waits"]["for"]) == (second.id, 2, [f"job {first.id}"])
    assert [each["id"] for each in cli("job", "list", "--running", "--json").json] == [first.id]
    second.cancel()
    first.cancel()
    second.wait(HANGS_SECONDS)
    first.wait(HANGS_SECONDS)


def test_an_interrupted_merge_waits_for_somebody_until_it_is_done(tmp_path: Path, cli: Cli) -> None:
    leaf = make_chain(tmp_path, "a", 16)
    begun = vhdkit.start_merge(leaf, rate=MIB, detached=True)
    until(lambda: begun.job.bytes_done)
    os.kill(begun.job.pid, signal.SIGKILL)
    until(lambda: begun.job.state is JobState.KILLED)
    (job,) = pending(cli)
    assert (job["id"], job["state"], job["waits"]["reason"]) == (begun.id, "interrupted", "cut-off")
    assert job["waits"]["commands"] == [f"vhdkit job resume {begun.id}"]
    assert [each["waits"] for each in cli("job", "list", "--json").json] == [job["waits"]]
    # Another way to the same end: then nothing is left.
    assert cli("merge", leaf, "--progress", "none").code == 0
    assert pending(cli) == []


def test_a_machines_merge_that_was_cut_off_is_listed_though_the_list_was_lost(xp: str, cli: Cli, state: Path) -> None:
    with vhdkit.open_chain(active(xp), writable=True) as chain:
        chain.write(0, b"x" * 8 * MIB)
    assert cli("snapshot", "delete", "RTM", xp, "--no-settle").code == 0
    (begun,) = vhdkit.Machine(xp).start_settling(rate=MIB)
    until(lambda: begun.job.bytes_done)
    begun.cancel()
    begun.wait(HANGS_SECONDS)
    (before,) = pending(cli)
    for file in state.glob("jobs.db*"):
        file.unlink()
    (job,) = pending(cli)
    assert (job["id"], job["state"], job["waits"]) == (begun.id, "cancelled", before["waits"])
    assert cli("job", "rate", begun.id, "none").code == 0
    assert cli("job", "resume", begun.id).code == 0
    assert vhdkit.wait_for_job(begun.id, HANGS_SECONDS).state is JobState.COMPLETED
    assert pending(cli) == []


@pytest.mark.parametrize("state", [JobState.TERMINATED, JobState.EXCEPTION, JobState.KILLED])
def test_a_job_whose_files_are_gone_is_not_left_to_do(state: JobState, cli: Cli) -> None:
    ended: Job = numbered(1, state=state)
    Registry().put(ended)
    assert pending(cli) == []


def test_a_machine_whose_disk_is_not_mounted_is_passed_over_until_it_is(xp: str, cli: Cli, state: Path) -> None:
    assert cli("snapshot", "delete", "RTM", xp, "--no-settle").code == 0
    folder = Path(xp).resolve().parent
    os.chdir(state)
    folder.rename(folder.with_name("elsewhere"))
    assert pending(cli) == []
    folder.with_name("elsewhere").rename(folder)
    assert len(pending(cli)) == 1


def test_a_note_of_a_machine_that_another_program_wrote_counts_for_nothing(xp: str, cli: Cli, state: Path) -> None:
    assert cli("snapshot", "delete", "RTM", xp, "--no-settle").code == 0
    (note,) = (state / "machines").iterdir()
    content = note.read_bytes()
    (state / "machines" / "forged").write_bytes(content)
    (state / "machines" / "link").symlink_to(note)
    assert len(pending(cli)) == 1
    note.write_bytes(b"/etc/passwd")
    assert pending(cli) == []


def test_a_machine_that_cannot_be_looked_at_is_spoken_of(xp: str, cli: Cli) -> None:
    assert cli("snapshot", "delete", "RTM", xp, "--no-settle").code == 0
    Path("xp.vhdkit-snapshots.json").write_text("{")
    reported = cli("job", "list")
    assert reported.code == 0
    assert "what is left to merge on this machine is unknown" in reported.err
    assert "xp.vhdkit-snapshots.json" in reported.err


def test_a_line_of_the_list_is_no_wider_than_a_terminal(cli: Cli) -> None:
    guid = "3A7F2C10-5D0E-4B7B-9C55-0D1E6A3B9F42"
    for number, state in enumerate(JobState):
        Registry().put(
            numbered(
                number,
                state=state,
                machine="a machine of a very long name",
                phase="rolling back",
                sources=(f"/vms/a machine of a very long name_{guid}.avhd", "/vms/x"),
                destination=f"/vms/another machine_{guid}.avhd",
                rate=123456789.0,
                bytes_total=1 << 50,
            )
        )
    lines = cli("job", "list").out.splitlines()
    assert all(len(line) <= 80 for line in lines if " waits: " not in line)
    assert all("…" in line for line in lines[1:] if " waits: " not in line)
