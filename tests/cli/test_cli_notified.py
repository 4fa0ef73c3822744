"""Notices of a job's end: a command of the user's, and the logs of the system."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.jobs.making import HANGS_SECONDS, make_chain, until
from tests.unit.test_job import a_job
from vhdkit.job import events
from vhdkit.job.event_logs import default_event_log, handler_of, journal_datagram
from vhdkit.job.job import JobState
from vhdkit.options import EventTarget

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]

MIB = 1 << 20
# A program that keeps what it is given, whole or not at all.
KEEPS = "import os,sys; p=sys.argv[1]; open(p+'.new','wb').write(sys.stdin.buffer.read()); os.replace(p+'.new',p)"


@pytest.fixture(autouse=True)
def vms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VHDKIT_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("VHDKIT_EVENTS", raising=False)
    (tmp_path / "vms").mkdir()
    monkeypatch.chdir(tmp_path / "vms")
    return tmp_path / "vms"


def keep(cli: Cli, name: str, file: Path) -> None:
    """Keep a command that writes what it is given to a file."""
    assert cli("job", "on-end", name, sys.executable, "-c", KEEPS, str(file)).code == 0


def test_a_command_gets_the_job_when_it_has_ended(vms: Path, cli: Cli, tmp_path: Path) -> None:
    keep(cli, "notice", reported := tmp_path / "reported.json")
    assert cli("merge", make_chain(vms, "a", 1), "--on-end", "notice", "--progress", "none").code == 0
    until(reported.exists)
    given = json.loads(reported.read_bytes())
    (listed,) = cli("job", "list", "--json").json
    assert (given["id"], given["state"]) == (listed["id"], "completed")
    assert set(given) == set(listed)
    # In the background too, and when it is cancelled.
    reported.unlink()
    job = vhdkit.start_merge(make_chain(vms, "b", 8), rate=MIB, detached=True, on_end="notice")
    until(lambda: job.job.bytes_done)
    job.cancel()
    until(reported.exists)
    assert json.loads(reported.read_bytes())["state"] == "cancelled"


def test_a_job_whose_process_died_is_told_of_by_whoever_finds_that(vms: Path, cli: Cli, tmp_path: Path) -> None:
    keep(cli, "every", reported := tmp_path / "reported.json")
    job = vhdkit.start_merge(make_chain(vms, "a", 8), rate=MIB, detached=True)
    until(lambda: job.job.bytes_done)
    os.kill(job.job.pid, signal.SIGKILL)
    until(lambda: vhdkit.find_job(job.id).state is JobState.KILLED)
    until(reported.exists)
    assert json.loads(reported.read_bytes())["state"] == "interrupted"
    job.wait(HANGS_SECONDS)


def test_no_record_names_a_program(vms: Path, cli: Cli, tmp_path: Path) -> None:
    keep(cli, "notice", tmp_path / "reported.json")
    job = vhdkit.start_merge(make_chain(vms, "a", 8), rate=MIB, detached=True, on_end="notice")
    until(lambda: job.job.bytes_done)
    job.cancel()
    job.wait(HANGS_SECONDS)
    kept = [*(tmp_path / "state").rglob("*"), *vms.rglob("*")]
    assert not [path for path in kept if path.is_file() and KEEPS.encode() in path.read_bytes()]


def test_commands_are_kept_listed_and_forgotten(cli: Cli, tmp_path: Path) -> None:
    assert cli("job", "on-end").err == "no command is kept\n"
    keep(cli, "notice", tmp_path / "x")
    assert cli("job", "on-end", "mail", "mail", "-s", "it is done", "ops").code == 0
    assert cli("job", "on-end", "--json").json["mail"] == ["mail", "-s", "it is done", "ops"]
    assert "mail -s 'it is done' ops" in cli("job", "on-end").out
    assert cli("job", "on-end", "mail", "--remove").code == 0
    assert list(vhdkit.end_commands()) == ["notice"]
    assert "`vhdkit job on-end mail COMMAND...` keeps one" in cli("job", "on-end", "mail", "--remove").refused()
    assert "is no name" in cli("job", "on-end", "a b", "true").refused()
    assert cli("job", "on-end", "notice").code == 64


def test_a_command_that_cannot_be_kept_leaves_no_file(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: object, temporary: str, _path: str) -> None:
        raise OSError(errno.ENOSPC, "no space left", temporary)

    monkeypatch.setattr("vhdkit.storage.local_folder.LocalFolder.replace", full)
    assert cli("job", "on-end", "notice", "true").code == 1
    assert not [path for path in (tmp_path / "config").rglob("*") if path.is_file()]


def test_a_command_that_is_not_there_is_refused_before_anything_is_merged(vms: Path, cli: Cli) -> None:
    leaf = make_chain(vms, "a", 1)
    assert "no command is kept under the name 'notice'" in cli("merge", leaf, "--on-end", "notice").refused()
    with pytest.raises(vhdkit.JobError, match="no command is kept"):
        vhdkit.start_merge(leaf, on_end="notice")
    assert os.path.exists(leaf)


def test_one_that_cannot_be_started_fails_no_merge(vms: Path, cli: Cli, caplog: pytest.LogCaptureFixture) -> None:
    assert cli("job", "on-end", "gone", "/nosuch/program").code == 0
    assert cli("merge", make_chain(vms, "a", 1), "--on-end", "gone", "--progress", "none").code == 0
    assert "was not started" in caplog.text


@pytest.mark.parametrize("word", ["a\0b", "\ud800"], ids=["NUL", "half a pair"])
def test_words_that_no_program_can_be_given_fail_no_merge(word: str, vms: Path, cli: Cli, tmp_path: Path) -> None:
    """The merge was done, and its command said that it had failed."""
    file = tmp_path / "config" / "on-end.json"
    file.parent.mkdir(mode=0o700)
    file.write_text(json.dumps({"every": [sys.executable, word]}))
    assert cli("merge", make_chain(vms, "a", 1), "--progress", "none").code == 0
    file.unlink()
    with pytest.raises(vhdkit.JobError, match="words"):
        vhdkit.set_end_command("every", [sys.executable, word])


@pytest.mark.parametrize("spoil", ["writable", "link", "words", "no json"])
def test_settings_that_another_user_could_have_written_start_nothing(spoil: str, cli: Cli, tmp_path: Path) -> None:
    keep(cli, "every", reported := tmp_path / "reported.json")
    file = tmp_path / "config" / "on-end.json"
    match spoil:
        case "writable":
            file.chmod(0o666)
        case "link":
            file.rename(tmp_path / "elsewhere.json")
            file.symlink_to(tmp_path / "elsewhere.json")
        case "words":
            file.write_text('{"every": "rm -rf /"}')
        case "no json":
            file.write_text("[")
    assert cli("job", "on-end").refused()
    leaf = make_chain(tmp_path, "a", 1)
    assert cli("merge", leaf, "--progress", "none").code == 0
    assert not reported.exists()


def received(target: EventTarget, tmp_path: Path, state: JobState) -> bytes:
    """Return what a log of the system's gets of a job in a state."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        address = str(tmp_path / "socket")
        server.bind(address)
        handler = handler_of(target, address)
        events.logger.addHandler(handler)
        before = events.logger.level
        events.logger.setLevel(logging.INFO)
        try:
            events.tell(a_job(state=state, machine="web01"))
        finally:
            events.logger.setLevel(before)
            events.stop_logging(handler)
        server.settimeout(HANGS_SECONDS)
        return server.recv(1 << 16)


@pytest.mark.parametrize(
    ("state", "event_id", "priority"),
    [(JobState.RUNNING, 19070, 6), (JobState.COMPLETED, 19080, 6), (JobState.KILLED, 19090, 4)],
)
def test_the_journal_gets_an_event_with_hyper_vs_id(
    state: JobState, event_id: int, priority: int, tmp_path: Path
) -> None:
    fields = dict(line.split("=", 1) for line in received(EventTarget.JOURNALD, tmp_path, state).decode().splitlines())
    assert fields["VHDKIT_EVENT_ID"] == str(event_id)
    assert (fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"], fields["VHDKIT_MACHINE"]) == (
        str(priority),
        "vhdkit",
        "web01",
    )
    assert fields["MESSAGE"].startswith("'web01' background disk merge ")


def test_syslog_gets_the_id_before_the_text(tmp_path: Path) -> None:
    assert b"vhdkit: [19100] 'web01' background disk merge failed" in received(
        EventTarget.SYSLOG, tmp_path, JobState.EXCEPTION
    )


def test_a_field_of_several_lines_has_its_length() -> None:
    job = a_job(machine="a\nPRIORITY=0")
    record = logging.LogRecord("x", logging.INFO, "", 0, "said", (), None)
    record.job = job
    assert b"VHDKIT_MACHINE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n" in journal_datagram(record)


def test_a_log_that_the_system_lacks_is_refused_before_anything_is_merged(vms: Path, cli: Cli) -> None:
    leaf = make_chain(vms, "a", 1)
    assert "the Application log: only Windows has it" in cli("merge", leaf, "--events", "eventlog").refused()
    assert os.path.exists(leaf)


def test_the_environment_names_a_log_for_every_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_event_log() is None
    monkeypatch.setenv("VHDKIT_EVENTS", "Journald")
    assert default_event_log() is EventTarget.JOURNALD
    monkeypatch.setenv("VHDKIT_EVENTS", "smoke signals")
    assert default_event_log() is None


def test_one_that_the_environment_names_and_the_system_lacks_keeps_no_merge_from_being_done(
    vms: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VHDKIT_EVENTS", "eventlog")
    done = cli("merge", make_chain(vms, "a", 1), "--progress", "none")
    assert (done.code, "eventlog cannot be written to" in done.err) == (0, True)
    job = vhdkit.start_merge(make_chain(vms, "b", 1), detached=True)
    assert job.wait(HANGS_SECONDS).state is JobState.COMPLETED
