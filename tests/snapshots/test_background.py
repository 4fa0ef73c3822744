"""What deletions owe, merged in the background: listed, stopped for a machine that starts, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

import vhdkit
from tests.cli.running import environment
from tests.jobs.making import HANGS_SECONDS, until
from tests.snapshots.machines import MIB, Kept
from tests.tampering import write_behind
from tests.typed import as_typed
from vhdkit.errors import ImageInUseError, SnapshotError
from vhdkit.job.job import JobState
from vhdkit.snapshot import check, transitions
from vhdkit.snapshot.machine import Machine
from vhdkit.snapshot.remark import Remark, RemarkKind

if TYPE_CHECKING:
    from vhdkit.job.job import Job
    from vhdkit.journal.manifest import Manifest


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """A machine that owes a merge of 24 MiB."""
    monkeypatch.setenv("VHDKIT_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vms").mkdir()
    kept = Kept.made(tmp_path / "vms", ["xp.vhd"], size=64 * MIB)
    kept.take("RTM", "r")
    kept.write("a", length=24 * MIB)
    kept.machine.take("SP1")
    kept.write("b", at=MIB)
    kept.machine.delete("RTM")
    return kept


def the_job() -> Job:
    (job,) = vhdkit.jobs()
    return job


def begun(kept: Kept, rate: int = 4 * MIB) -> vhdkit.MergeJob:
    (job,) = kept.machine.start_settling(rate=rate)
    until(lambda: the_job().state is JobState.RUNNING and the_job().bytes_done)
    return job


def test_it_is_listed_by_machine_and_by_every_file_of_it(slow: Kept) -> None:
    job = begun(slow)
    assert the_job().machine == "xp"
    assert [each.id for each in vhdkit.jobs(machine="xp")] == [job.id]
    assert [each.id for each in vhdkit.jobs(disk=slow.base)] == [job.id]
    assert slow.machine.manifest.foldings
    ((_, into),) = slow.machine.owed().merges
    assert into == slow.base
    job.cancel()
    job.wait(HANGS_SECONDS)


def test_while_it_runs_snapshots_can_be_listed_and_it_is_begun_only_once(slow: Kept) -> None:
    job = begun(slow)
    assert [each.name for each in slow.machine.snapshots] == ["SP1"]
    (again,) = slow.machine.start_settling()
    assert again.id == job.id
    assert len(vhdkit.jobs()) == 1
    with pytest.raises(ImageInUseError):
        slow.machine.apply("SP1")
    with pytest.raises(ImageInUseError):
        slow.machine.take("no")
    job.cancel()
    job.wait(HANGS_SECONDS)
    assert slow.all_shown() == {"SP1": "a", "now": "a"}


def test_when_it_is_complete_the_next_operation_finds_the_tree_as_it_should_be(slow: Kept) -> None:
    begun(slow, 64 * MIB).wait(HANGS_SECONDS)
    assert the_job().state is JobState.COMPLETED
    assert slow.all_shown() == {"SP1": "a", "now": "a"}
    assert slow.machine.layers_of("SP1") == (slow.base,)
    assert slow.machine.check() == ()
    slow.machine.take("next")
    assert not slow.machine.manifest.foldings
    assert not Path(slow.base).stat().st_mode & 0o222, "it is frozen again"
    assert slow.machine.check() == ()
    assert len(slow.images) == 3


def test_when_it_is_complete_nobody_has_to_come_for_the_layers_to_be_watched_again(slow: Kept) -> None:
    begun(slow, 64 * MIB).wait(HANGS_SECONDS)
    assert not slow.machine.file.read().foldings
    assert not Path(slow.base).stat().st_mode & 0o222
    Path(slow.base).chmod(0o644)
    write_behind(slow.base, 0, b"X" * 512)
    assert {each.kind for each in slow.machine.check()} == {"changed", "unprotected"}


def test_a_layer_that_a_merge_has_left_unwatched_is_told_of(slow: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    # As where whoever was to settle afterwards was killed.
    monkeypatch.setattr("vhdkit.snapshot.run_pending_merges.Settler._follow", None)
    begun(slow, 64 * MIB).wait(HANGS_SECONDS)
    (remark,) = slow.machine.check()
    assert (remark.kind, remark.path) == ("unprotected", slow.base)
    slow.machine.settle()
    assert slow.machine.check() == ()


def test_who_waits_for_what_is_owed_waits_for_a_merge_that_runs(slow: Kept) -> None:
    job = begun(slow, 16 * MIB)
    done: list[int] = []
    owed = slow.machine.settle(progress=lambda state: done.append(state.bytes_done))
    assert owed.is_nothing
    assert the_job().id == job.id
    assert the_job().state is JobState.COMPLETED
    assert done == sorted(done)
    assert done[-1] > done[0]
    assert slow.all_shown() == {"SP1": "a", "now": "a"}


def test_who_stops_waiting_stops_no_merge(slow: Kept) -> None:
    job = begun(slow, 4 * MIB)
    enough = threading.Event()

    def stop(_state: vhdkit.Progress) -> None:
        enough.set()

    with pytest.raises(vhdkit.MergeCancelled) as stopped:
        slow.machine.settle(progress=stop, cancel=enough)
    assert job.id in str(stopped.value)
    assert the_job().state is JobState.RUNNING
    job.cancel()
    job.wait(HANGS_SECONDS)


def test_a_merge_that_is_paused_is_named_with_what_lets_it_go_on(slow: Kept) -> None:
    job = begun(slow, 4 * MIB)
    vhdkit.pause_job(job.id)
    with pytest.raises(ImageInUseError, match="paused") as refused:
        slow.machine.settle()
    assert f"vhdkit job resume {job.id}" in as_typed(refused.value)
    vhdkit.resume_job(job.id)
    job.cancel()
    job.wait(HANGS_SECONDS)


def test_a_merge_that_had_to_wait_for_another_follows_by_itself(slow: Kept) -> None:
    slow.take("SP2")
    first = begun(slow, 16 * MIB)
    slow.machine.delete("SP1")
    (same,) = slow.machine.start_settling()
    assert same.id == first.id
    until(lambda: [each.state for each in vhdkit.jobs()] == [JobState.COMPLETED] * 2)
    assert slow.machine.owed().is_nothing
    assert slow.images == ["xp.vhd", Path(slow.machine.active[0]).name]
    assert slow.shows("SP2") == "a"
    until(lambda: slow.machine.check() == ())


def test_a_machine_that_starts_is_refused_or_the_merge_gives_way_and_loses_nothing(slow: Kept) -> None:
    job = begun(slow, 8 * MIB)
    until(lambda: the_job().bytes_done >= 12 * MIB)
    with pytest.raises(ImageInUseError) as refused:
        slow.machine.make_way()
    assert job.id in str(refused.value)
    assert "with --yield it stops" in as_typed(refused.value)
    with pytest.raises(ImageInUseError), slow.machine.open_chain(writable=True):
        pass
    (stopped,) = slow.machine.make_way(yield_merges=True)
    assert stopped.state is JobState.TERMINATED
    assert stopped.bytes_done
    with slow.machine.open_chain(writable=True) as running:
        running.write(8 * MIB, b"written meanwhile", sync=True)
        with pytest.raises(ImageInUseError):
            slow.machine.settle()
    done: list[int] = []
    slow.machine.settle(progress=lambda state: done.append(state.bytes_done))
    # What was copied is not copied again, but for the part that it was at.
    assert done[0] >= max(8 * MIB, stopped.bytes_done - 8 * MIB)
    with slow.machine.open_chain() as chain:
        assert chain.read(8 * MIB, 7) == b"written"
    assert slow.all_shown() == {"SP1": "a", "now": "a"}
    assert slow.machine.owed().is_nothing


def test_a_process_that_was_killed_is_gone_on_with(slow: Kept) -> None:
    begun(slow, 4 * MIB)
    subprocess.run(["kill", "-9", str(the_job().pid)], check=True)
    until(lambda: the_job().state is JobState.KILLED)
    # The system closes its files a moment after it has ended.
    until(lambda: not slow.machine.is_running())
    assert slow.all_shown() == {"SP1": "a", "now": "a"}
    assert {each.kind for each in slow.machine.check()} == {"unfinished"}
    slow.machine.settle()
    assert the_job().state is JobState.COMPLETED
    assert slow.all_shown() == {"SP1": "a", "now": "a"}
    assert slow.machine.check() == ()


def ended(job: vhdkit.MergeJob) -> None:
    job.cancel()
    job.wait(HANGS_SECONDS)


def tampered(path: str) -> None:
    Path(path).chmod(0o644)
    write_behind(path, 5 * MIB, b"X" * 512)


@pytest.mark.parametrize("which", ["source", "relinked"])
def test_layers_of_a_merge_that_has_stopped_are_watched(slow: Kept, which: str) -> None:
    slow.take("SP2")
    ended(begun(slow))
    path = slow.machine.layers_of({"source": "SP1", "relinked": "SP2"}[which])[0]
    tampered(path)
    assert [each.path for each in slow.machine.check() if each.kind == "changed"] == [path]
    with pytest.raises(SnapshotError, match="changed since it was frozen"):
        slow.machine.settle()
    assert slow.machine.owed().merges


def test_a_source_that_is_lost_is_not_taken_for_merged(slow: Kept) -> None:
    ended(begun(slow))
    source = Path(slow.machine.layers_of("SP1")[0])
    raw = source.read_bytes()
    source.unlink()
    assert {(each.kind, each.path) for each in slow.machine.check()} >= {
        ("missing", str(source)),
        ("unfinished", slow.base),
    }
    assert slow.machine.layers_of("SP1") == (str(source),)
    with pytest.raises(SnapshotError, match="not there"):
        slow.machine.settle()
    source.write_bytes(raw)
    slow.machine.check(accept=True)
    slow.machine.settle()
    assert slow.all_shown() == {"SP1": "a", "now": "a"}


def test_a_source_that_is_lost_before_its_merge_began_is_not_taken_for_merged(slow: Kept) -> None:
    manifest = slow.machine.file.read()
    _, foldings = transitions.owed_by(manifest)
    with slow.machine.file.locked():
        slow.machine.file.write(replace(manifest, foldings=foldings))
    source = Path(slow.machine.layers_of("SP1")[0])
    source.rename("aside")
    assert "missing" in {each.kind for each in slow.machine.check()}
    assert slow.machine.layers_of("SP1") == (str(source),)
    Path("aside").rename(source)
    slow.machine.settle()
    assert slow.all_shown() == {"SP1": "a", "now": "a"}


def test_a_merge_that_is_refused_was_never_begun(slow: Kept, tmp_path: Path) -> None:
    os.link(slow.base, tmp_path / "backup.vhd")
    before = slow.machine.file.read()
    with pytest.raises(vhdkit.MergeError, match="link"):
        slow.machine.settle()
    assert slow.machine.file.read() == before
    assert not Path(slow.base).stat().st_mode & 0o222
    assert {each.kind for each in slow.machine.check()} == {"owed"}
    (tmp_path / "backup.vhd").unlink()
    slow.machine.settle()
    assert slow.machine.check() == ()


def test_a_merge_that_goes_on_keeps_the_rate_that_it_was_told(slow: Kept) -> None:
    ended(begun(slow, 4 * MIB))
    (job,) = slow.machine.start_settling()
    assert the_job().request.rate == 4 * MIB
    ended(job)


def test_what_follows_a_merge_is_no_faster_than_that_was_told(slow: Kept) -> None:
    slow.take("SP2")
    begun(slow, 16 * MIB)
    slow.machine.delete("SP1")
    until(lambda: [each.state for each in vhdkit.jobs()] == [JobState.COMPLETED] * 2)
    assert {each.request.rate for each in vhdkit.jobs()} == {16 * MIB}


def test_a_rate_is_kept_by_who_settles_here(slow: Kept) -> None:
    begun_at = time.monotonic()
    slow.machine.settle(rate=16 * MIB)
    # 24 MiB, of which the first quarter of a second goes unmeasured.
    assert time.monotonic() - begun_at > 1
    assert the_job().request.rate == 16 * MIB


def test_until_its_program_has_ended_a_machine_counts_as_running(slow: Kept, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    waits = (
        f"import os, time, sys\nopen({str(tmp_path / 'on')!r}, 'w')\n"
        f"while not os.path.exists({str(gate)!r}): time.sleep(.02)"
    )
    run = [sys.executable, "-m", "vhdkit", "snapshot", "run", slow.base, "--", sys.executable, "-c", waits]
    machine = subprocess.Popen(run, env=environment(), stderr=subprocess.PIPE, text=True)
    until((tmp_path / "on").exists)
    assert slow.machine.is_running()
    for operation in (
        lambda: slow.machine.take("x"),
        lambda: slow.machine.apply("SP1"),
        slow.machine.settle,
        slow.machine.start_settling,
    ):
        with pytest.raises(ImageInUseError, match="the machine runs") as refused:
            operation()
        assert "`vhdkit snapshot run` has begun it" in as_typed(refused.value)
    again = subprocess.run(run, env=environment(), stderr=subprocess.PIPE, text=True, check=False)
    assert again.returncode == 75
    # A terminal sends Ctrl-C to both; what the program makes of it is its own affair.
    machine.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert machine.poll() is None
    gate.touch()
    machine.communicate(timeout=20)
    assert machine.returncode == 0
    assert not slow.machine.is_running()


@pytest.mark.parametrize(("word", "code"), [("there-is-no-such-program", 127), ("/", 126)])
def test_merges_go_on_though_the_program_cannot_be_run(slow: Kept, word: str, code: int) -> None:
    job = begun(slow, 2 * MIB)
    run = [sys.executable, "-m", "vhdkit", "snapshot", "run", "--yield", slow.base, "--", word]
    done = subprocess.run(run, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == code
    assert word in done.stderr
    until(lambda: the_job().state is JobState.RUNNING)
    ended(job)


def test_the_command_that_runs_a_machine_makes_way_and_settles_afterwards(slow: Kept) -> None:
    # At this rate it takes half a minute: three programs are run meanwhile.
    job = begun(slow, MIB)
    program = "import sys, vhdkit; vhdkit.open_chain(sys.argv[1], writable=True).write(0, b'run', sync=True)"
    run = [sys.executable, "-m", "vhdkit", "snapshot", "run", slow.base, "--", sys.executable, "-c", program, "{}"]
    refused = subprocess.run(run, capture_output=True, text=True, env=environment(), check=False)
    assert refused.returncode == 75, refused.stderr
    assert job.id in refused.stderr
    assert "--yield" in refused.stderr
    run.insert(5, "--yield")
    done = subprocess.run(run, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert "has stopped" in done.stderr
    assert f"merge: {job.id}, in the background" in done.stderr
    with slow.machine.open_chain() as chain:
        assert chain.read(0, 3) == b"run"
    until(lambda: vhdkit.find_job(job.id).state is JobState.COMPLETED)
    with slow.machine.open_chain() as chain:
        assert chain.read(0, 3) == b"run"
    assert slow.shows("SP1") == "a"


def test_many_processes_take_at_once_and_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept.made(tmp_path, ["xp.vhd"])
    program = (
        "import sys, vhdkit\n"
        "for number in range(5):\n"
        "    try:\n"
        "        vhdkit.Machine(sys.argv[1]).take(f'{sys.argv[2]}-{number}')\n"
        "        print(f'{sys.argv[2]}-{number}')\n"
        "    except vhdkit.ImageInUseError:\n"
        "        pass\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, kept.base, str(at)], stdout=subprocess.PIPE, text=True, env=environment()
        )
        for at in range(6)
    ]
    taken = [line for process in running for line in process.communicate(timeout=60)[0].split()]
    assert [process.returncode for process in running] == [0] * 6
    assert sorted(each.name for each in kept.machine.snapshots) == sorted(taken)
    assert len(taken) >= 25, "they wait for each other"
    assert len(kept.images) == len(taken) + 1
    assert kept.machine.check() == ()
    monkeypatch.setattr("vhdkit.snapshot.manifest_file._PATIENCE_SECONDS", 0.5)
    begun_at = time.monotonic()
    with Machine(kept.base).file.locked(), pytest.raises(ImageInUseError, match="another process is changing"):
        kept.machine.take("too long")
    # It waits so long, and not for good.
    assert time.monotonic() - begun_at >= 0.5


# Looking while something goes on


def remark(kind: RemarkKind, message: str = "it is odd") -> Remark:
    return Remark(kind=kind, path="/vms/xp.vhd", message=message)


MISSING, OWED = remark(RemarkKind.MISSING), remark(RemarkKind.OWED)
Looks = list[tuple[Remark, ...] | OSError]


@pytest.fixture
def idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.setattr("vhdkit.snapshot.stable_read._BETWEEN_SECONDS", 0)
    return Kept.made(tmp_path, ["xp.vhd"], size=MIB)


@pytest.mark.parametrize(
    ("looks", "said", "count"),
    [
        ([(MISSING,), (), (MISSING,)], (), 2),
        ([(MISSING,), (OWED,)], (OWED,), 2),
        ([(MISSING,), (MISSING,), ()], (MISSING,), 2),
        ([(OWED,), (MISSING,)], (OWED,), 1),
        ([OSError("it is gone"), (), (MISSING,)], (), 2),
        ([OSError("it is gone"), (MISSING,), (MISSING,)], (MISSING,), 3),
    ],
)
def test_damage_is_told_when_it_was_seen_twice(
    looks: Looks, said: tuple[Remark, ...], count: int, idle: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(looks)
    seen = []

    def inspect(*_: object) -> tuple[Remark, ...]:
        seen.append(look := next(left))
        if isinstance(look, OSError):
            raise look
        return look

    monkeypatch.setattr(check, "inspect", inspect)
    assert idle.machine.check() == said
    assert len(seen) == count


def test_an_error_is_told_when_it_was_met_twice_and_what_never_rests_is_refused(
    idle: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> tuple[Remark, ...]:
        raise OSError("it is gone")

    numbers = iter(range(1000))
    monkeypatch.setattr(check, "inspect", fail)
    with pytest.raises(OSError, match="it is gone"):
        idle.machine.check()
    monkeypatch.setattr(check, "inspect", lambda *_: (remark(RemarkKind.MISSING, str(next(numbers))),))
    with pytest.raises(ImageInUseError, match="keep changing"):
        idle.machine.check()
    assert next(numbers) < 100


def test_what_is_asked_of_a_machine_is_asked_again_if_a_merge_took_a_layer_meanwhile(idle: Kept) -> None:
    idle.take("RTM", "r")
    asked = []

    def ask(manifest: Manifest) -> int:
        asked.append(len(manifest.snapshots))
        if len(asked) == 1:
            idle.take("SP1", "s")
        return len(manifest.snapshots)

    assert idle.machine.steadily(ask) == 2
    assert asked == [1, 2]


def test_a_snapshot_is_never_missing_while_what_is_below_it_is_merged(slow: Kept) -> None:
    for name in ("SP2", "SP3"):
        slow.machine.take(name)
    (job,) = slow.machine.start_settling(rate=200 * MIB)
    said = set()
    while not the_job().state.is_finished:
        said |= {each.kind for each in slow.machine.check()}
        shown = slow.machine.steadily(lambda manifest: slow_sizes(slow, manifest))
        assert all(shown), "a layer is not there"
    job.wait()
    assert the_job().state is JobState.COMPLETED
    assert said <= {RemarkKind.OWED, RemarkKind.UNFINISHED, RemarkKind.UNPROTECTED}
    slow.machine.settle()
    assert slow.machine.check() == ()


def slow_sizes(kept: Kept, manifest: Manifest) -> list[bool]:
    return [Path(kept.machine.file.absolute(path)).exists() for each in manifest.snapshots for path in each.layers]
