"""Two hosts, a file server, TLS between them, and everything that can die or be cut off: run by hand, as root."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.fleet.machines_on_disk import assert_merged, make_machines, names_below
from tests.fleet.network_hosts import HOSTS, NetworkHosts
from tests.jobs.making import until
from vhdkit.job.job import JobState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CUT_SECONDS = 60
MERGE_RATE = "2M"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[NetworkHosts]:
    made = NetworkHosts(tmp_path)
    try:
        made.build()
        for host in HOSTS:
            made.start_worker(host)
        yield made
    finally:
        made.close()


def jobs_of(network: NetworkHosts, host: str, monkeypatch: pytest.MonkeyPatch) -> list[vhdkit.Job]:
    monkeypatch.setenv("VHDKIT_STATE", network.state(host))
    return list(vhdkit.jobs())


@pytest.mark.slow
def test_forty_chains_end_right_whatever_dies_or_is_cut_off(
    network: NetworkHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = {host: make_machines(network.disk(host), 12, mebibytes=8, levels=2) for host in HOSTS}
    views["nas"] = make_machines(network.exported, 16, mebibytes=4, levels=2)

    def is_half_way(host: str) -> bool:
        running = [job for job in jobs_of(network, host, monkeypatch) if job.state is JobState.RUNNING]
        return any(0.3 < job.bytes_done / max(1, job.bytes_total) < 0.7 for job in running)

    def kill(name: str) -> None:
        network.processes[name].send_signal(signal.SIGKILL)
        network.processes[name].wait()

    begun = time.monotonic()
    network.merge("--rate", MERGE_RATE)
    until(lambda: is_half_way("hv01"))
    kill("hv01")
    network.start_worker("hv01")
    until(lambda: is_half_way("hv02"))
    network.pull_cable("hv02")
    time.sleep(CUT_SECONDS)
    network.plug_in("hv02")
    until(lambda: is_half_way("hv01") or network.processes["client"].poll() is not None)
    kill("scheduler")
    network.start_scheduler()
    until(lambda: is_half_way("hv01") or network.processes["client"].poll() is not None)
    kill("client")
    runs = 1
    while (code := network.merge("--rate", MERGE_RATE).wait()) != 0:
        runs += 1
        # What the killed client has left running is in use until it ends.
        assert code in {1, 75}, (network.folder / "client.log").read_text()
        assert runs < 20, (network.folder / "client.log").read_text()
        time.sleep(3)
    report = json.loads((network.folder / "report.json").read_text())
    for host in HOSTS:
        assert_merged(network.disk(host), views[host])
    assert_merged(network.exported, views["nas"])
    assert not [name for name in names_below(network.exported) if name.endswith(("-journal", ".partial"))]
    completed = [
        job for host in HOSTS for job in jobs_of(network, host, monkeypatch) if job.state is JobState.COMPLETED
    ]
    # Nothing was merged twice.
    assert len({(job.destination, tuple(job.identities.values())) for job in completed}) == len(completed) == 40
    print(f"40 chains, {runs} runs after the client's death, {time.monotonic() - begun:.0f} s: {report['outcomes']}")  # noqa: T201 - the figures are what the run is for
