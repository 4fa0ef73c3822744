"""Machines that others start: merges begin while they are off, and make way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import ROOT, environment
from tests.jobs.making import HANGS_SECONDS, until, view
from tests.snapshots.machines import MIB, Kept
from vhdkit.cli.main import run
from vhdkit.snapshot.watch_machines import MachineWatch, Watched, WatchEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

HOOKS = ROOT / "docs" / "hooks"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHDKIT_STATE", str(tmp_path / "state"))


@pytest.fixture
def xp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """A machine with a merge of 8 MiB pending."""
    (tmp_path / "vms").mkdir()
    monkeypatch.chdir(tmp_path / "vms")
    kept = Kept.made(tmp_path / "vms", ["xp.vhd"], size=32 * MIB)
    kept.take("one", "1")
    kept.write("2", length=8 * MIB)
    kept.machine.delete("one")
    return kept


class Watching:
    """A watch in a thread, and what it has said."""

    def __init__(self, *disks: str, rate: int | None = None, quiet: float = 0.0) -> None:
        self.said: list[Watched] = []
        self._stop = threading.Event()
        watch = MachineWatch(disks, quiet=quiet, rate=rate, tell=self.said.append)
        self._thread = threading.Thread(target=watch.run, args=(self._stop,))
        self._thread.start()

    def has_said(self, *events: WatchEvent) -> bool:
        return set(events) <= {each.event for each in self.said}

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def slowly(xp: Kept) -> Iterator[Watching]:
    """A watch of the machine whose merge takes long, once it copies."""
    watching = Watching(xp.base, rate=MIB // 8)
    until(lambda: any(job.bytes_done for job in vhdkit.jobs(running=True)))
    yield watching
    watching.stop()


def test_what_is_pending_is_merged_while_the_machine_is_off_and_then_the_watch_ends(xp: Kept) -> None:
    before = view(xp.machine.active[0])
    assert run(["snapshot", "watch", "--once", "--after", "0"]) == 0
    assert xp.machine.active == (xp.base,)
    assert view(xp.base) == before
    assert vhdkit.pending_jobs() == ()
    assert run(["snapshot", "watch", "--once", "xp.vhd"]) == 0


def test_what_opens_the_disk_without_a_lock_stops_the_merge(xp: Kept, slowly: Watching) -> None:
    with opened_elsewhere(xp.machine.active[0], "r+b"):
        until(lambda: slowly.has_said(WatchEvent.STOPPED))
    (stopped,) = [each for each in slowly.said if each.event is WatchEvent.STOPPED][:1]
    assert stopped.reason == "another process has opened its disk"
    assert stopped.job is not None
    assert stopped.job.state.plain == "cancelled"


def opened_elsewhere(path: str, mode: str) -> subprocess.Popen[bytes]:
    """Let another process have a file open, which ends when the block does."""
    program = "import sys; file = open(sys.argv[1], sys.argv[2]); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, path, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_who_only_looks_at_the_disk_stops_nothing(xp: Kept, slowly: Watching) -> None:
    command = [sys.executable, "-m", "vhdkit", "info", xp.machine.active[0]]
    subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
    assert [each.event for each in slowly.said] == [WatchEvent.BEGUN]


def test_a_watch_that_ends_stops_what_it_began(xp: Kept, slowly: Watching) -> None:
    slowly.stop()
    (job,) = vhdkit.jobs()
    assert job.state.plain == "cancelled"
    assert job.bytes_done < 8 * MIB
    assert slowly.said[-1].reason == "the watch ends"
    xp.machine.settle()


def test_a_machine_that_runs_is_waited_for(xp: Kept) -> None:
    with vhdkit.open_chain(xp.machine.active[0], writable=True):
        watching = Watching()
        until(lambda: watching.has_said(WatchEvent.POSTPONED))
        assert vhdkit.jobs() == ()
    until(lambda: watching.has_said(WatchEvent.BEGUN, WatchEvent.ENDED))
    watching.stop()
    assert xp.machine.active == (xp.base,)


def test_making_way_stops_a_merge_and_nothing_else(
    xp: Kept, slowly: Watching, capsys: pytest.CaptureFixture[str]
) -> None:
    slowly.stop()
    (job,) = xp.machine.start_settling(rate=MIB)
    until(lambda: job.job.bytes_done)
    assert run(["snapshot", "make-way", xp.base]) == 75
    assert "--yield" in capsys.readouterr().err
    assert run(["snapshot", "make-way", xp.base, "--yield"]) == 0
    assert job.wait(HANGS_SECONDS).state.plain == "cancelled"
    assert capsys.readouterr().out == f"active: {Path(xp.machine.active[0]).name}\n"
    assert run(["snapshot", "make-way", xp.base, "--json"]) == 0
    with vhdkit.open_chain(xp.machine.active[0], writable=True):
        assert run(["snapshot", "make-way", xp.base, "--yield"]) == 75


GUEST = """<domain type='kvm'><name>xp</name><devices>
  <disk type='file' device='disk'><source file='{disk}'/><target dev='vda'/></disk>
  <disk type='file' device='cdrom'><source file='/nosuch/cd.iso'/><target dev='hda'/></disk>
</devices></domain>
"""


@pytest.fixture
def path_with_vhdkit(tmp_path: Path) -> str:
    """A PATH with `vhdkit`, the program that is tested, and VBoxHeadless, a stand-in that prints its arguments."""
    (tmp_path / "bin").mkdir()
    for name, words in {"vhdkit": f'{sys.executable} -m vhdkit "$@"', "VBoxHeadless": 'echo "$@"'}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{words}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"


def hook(name: str, *words: str, path: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HOOKS / name, *words], env=environment(PATH=path), input=given, capture_output=True, text=True, check=False
    )


def test_libvirts_hook_makes_way_before_a_guest_and_merges_after_it(xp: Kept, path_with_vhdkit: str) -> None:
    guest = GUEST.format(disk=xp.machine.active[0])
    (job,) = xp.machine.start_settling(rate=MIB // 8)
    until(lambda: job.job.bytes_done)
    assert hook("libvirt-qemu", "xp", "started", "begin", "-", path=path_with_vhdkit, given=guest).returncode == 0
    assert not job.job.state.is_finished
    assert hook("libvirt-qemu", "xp", "prepare", "begin", "-", path=path_with_vhdkit, given=guest).returncode == 0
    assert job.wait(HANGS_SECONDS).state.plain == "cancelled"
    with vhdkit.open_chain(xp.machine.active[0], writable=True):
        # It runs already: libvirt is refused a second start.
        assert hook("libvirt-qemu", "xp", "prepare", "begin", "-", path=path_with_vhdkit, given=guest).returncode == 1
        assert hook("libvirt-qemu", "xp", "release", "end", "-", path=path_with_vhdkit, given=guest).returncode == 0
    vhdkit.change_rate(job.id, None)
    assert hook("libvirt-qemu", "xp", "release", "end", "-", path=path_with_vhdkit, given=guest).returncode == 0
    until(lambda: xp.machine.active == (xp.base,))


def test_libvirts_hook_says_that_vhdkit_is_missing_and_finds_it_by_a_variable(
    xp: Kept, path_with_vhdkit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = GUEST.format(disk=xp.machine.active[0])
    missing = hook("libvirt-qemu", "xp", "release", "end", "-", path="/usr/bin:/bin", given=guest)
    assert missing.returncode == 0
    assert "there is no vhdkit in /usr/bin:/bin" in missing.stderr
    # A guest without such a disk has nothing to do with it.
    assert hook("libvirt-qemu", "xp", "release", "end", "-", path="/usr/bin:/bin", given="<domain/>").stderr == ""
    monkeypatch.setenv("VHDKIT", f"{path_with_vhdkit.partition(':')[0]}/vhdkit")
    found = hook("libvirt-qemu", "xp", "release", "end", "-", path="/usr/bin:/bin", given=guest)
    assert (found.returncode, found.stderr) == (0, "")
    until(lambda: xp.machine.active == (xp.base,))


def test_virtualboxs_script_runs_the_machine_and_merges_after_it(xp: Kept, path_with_vhdkit: str) -> None:
    done = hook("virtualbox-run", xp.base, "Windows XP", path=path_with_vhdkit)
    assert (done.returncode, done.stdout) == (0, "--startvm Windows XP\n")
    until(lambda: xp.machine.active == (xp.base,))


def test_a_disk_of_no_machine_is_refused(tmp_path: Path) -> None:
    vhdkit.create_image(str(tmp_path / "a.vhd"), size=MIB)
    with pytest.raises(vhdkit.SnapshotError, match="no machine keeps snapshots"):
        MachineWatch([str(tmp_path / "a.vhd")])
