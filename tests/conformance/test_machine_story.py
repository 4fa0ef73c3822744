"""The page this project began with, with a real machine: it runs, a snapshot is deleted, and the merge waits for it.

Everything is asked from the command line, and qemu is the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.cli.running import Outcome, environment, program, spawn
from tests.conformance.machines_qemu import PROGRAM, is_up, running_qemu, start_qemu, stop_qemu
from tests.conformance.tools import requires
from tests.jobs.making import HANGS_SECONDS, until, view
from tests.unit.test_pasted_query import THE_FILTER, THE_QUERY, THE_SLIP

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="qemu's locks are seen in /proc")

MIB = 1 << 20


@pytest.fixture
def vms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    requires(PROGRAM)
    monkeypatch.setenv("VHDKIT_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("VHDKIT_CONFIG", str(tmp_path / "config"))
    folder = tmp_path / "Virtual Hard Disks"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def web01(vms: Path) -> str:
    """The disk of a machine with a snapshot; what it has written since, 24 MiB, is to be merged when that goes."""
    assert vhd("create", "web01.vhd", "--size", "64M").code == 0
    assert vhd("snapshot", "init", "web01.vhd").code == 0
    assert vhd("snapshot", "take", "before the update", "web01.vhd").code == 0
    with vhdkit.open_chain(active(), writable=True) as chain:
        for at in range(24):
            chain.write(at * 2 * MIB, bytes([at + 1]) * MIB)
    return str(vms / "web01.vhd")


def vhd(*words: str) -> Outcome:
    return spawn(*words, cwd=Path.cwd())


def active() -> str:
    (disk,) = vhd("snapshot", "list", "web01.vhd", "--json").json["disks"]
    return str(disk["active"])


def listed(*words: str) -> list[Any]:
    found = vhd("job", "list", "--json", *words)
    assert found.code == 0, found.err
    return list(found.json)


class Service:
    """`vhdkit snapshot watch`, and what it says."""

    def __init__(self, *options: str) -> None:
        self._process = subprocess.Popen(
            program("snapshot", "watch", "--json", *options), env=environment(), stdout=subprocess.PIPE, text=True
        )

    def says(self, event: str) -> dict[str, Any]:
        """Return the next thing that it says of a kind; on a busy host it may begin and stop once more before."""
        assert self._process.stdout is not None
        while True:
            line = self._process.stdout.readline()
            assert line, self._process.poll()
            said: dict[str, Any] = json.loads(line)
            if said["event"] == event:
                return said

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(HANGS_SECONDS)
        if self._process.stdout is not None:
            self._process.stdout.close()


@pytest.fixture
def service(web01: str) -> Iterator[Service]:
    """The service for all machines, which merges slowly, a second after one was shut down."""
    service = Service("--after", "2", "--rate", "512K", web01)
    yield service
    service.stop()


def test_a_machine_runs_its_snapshot_goes_it_is_shut_down_merged_and_started_in_the_midst_of_it(
    web01: str, service: Service, tmp_path: Path
) -> None:
    disk, monitor = active(), tmp_path / "monitor"
    before = view(disk)
    # It runs, and a snapshot is deleted: nothing can be merged yet, and the list says why.
    with running_qemu(disk, monitor):
        assert "postponed" in vhd("snapshot", "delete", "before the update", "web01.vhd").err
        (waiting,) = listed()
        assert (waiting["job-state"], waiting["machine"], waiting["waits"]["reason"]) == (2, "web01", "machine-runs")
        assert waiting["waits"]["for"][0].startswith("qemu-system")
        assert listed("--running") == listed("--where", THE_QUERY) == []
        service.says("postponed")
    # It is off: the merge begins by itself, and is a merge in progress.
    service.says("begun")
    until(lambda: any(each["bytes-done"] for each in listed("--running")))
    for query in (THE_QUERY, THE_FILTER, THE_SLIP):
        assert [each["machine"] for each in listed("--where", query.replace("50", "100"))] == ["web01"]
    # It is started in the midst of that: refused once, and a moment later it has its disk.
    refused = start_qemu(disk, monitor)
    assert not is_up(refused, monitor)
    stop_qemu(refused)
    said = service.says("stopped")
    assert (said["reason"], said["job"]["state"]) == ("another process has opened its disk for writing", "cancelled")
    assert said["job"]["percent-complete"] < 100
    with running_qemu(active(), monitor):
        assert view(active()) == before
        (waiting,) = listed("--pending")
        assert (waiting["id"], waiting["waits"]["reason"]) == (said["job"]["id"], "machine-runs")
        service.says("postponed")
    # It is off again: the merge goes on where it was, and then nothing is left.
    assert service.says("begun")["job"]["id"] == said["job"]["id"]
    assert vhd("job", "rate", said["job"]["id"], "none").code == 0
    assert service.says("ended")["job"]["state"] == "completed"
    assert active() == web01
    assert view(web01) == before
    assert vhd("job", "list", "--pending").err == "no jobs\n"
    assert vhd("job", "wait", said["job"]["id"]).code == 0
    (took,) = vhd("job", "history", "--machine", "web01", "--json").json
    assert took["bytes"] == 24 * MIB
    with running_qemu(web01, monitor):
        pass
