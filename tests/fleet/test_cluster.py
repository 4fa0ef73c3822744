"""A cluster with TLS: chains are found and merged where they are, and only there, whichever process dies."""

from __future__ import annotations

import pickle
import signal
import threading
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

import vhdkit
from tests.cli.running import spawn
from tests.crash.real import Running, plain_digest
from tests.fleet.cluster_processes import ClusterProcesses, free_port, make_certificate
from tests.fleet.machines_on_disk import (
    assert_merged,
    copying_process,
    make_machines,
    names_below,
    outcomes,
    plan_of,
    remove_machines,
    run_here,
)
from tests.jobs.making import until
from vhdkit import fleet
from vhdkit.errors import FleetError
from vhdkit.fleet import cluster_worker
from vhdkit.fleet.cluster import Cluster
from vhdkit.fleet.cluster_security import TlsFiles, check_scheduler_address
from vhdkit.fleet.cluster_service import ClusterWorker, serve_cluster
from vhdkit.fleet.cluster_worker import answer, version
from vhdkit.fleet.find import FoundChains
from vhdkit.fleet.perform import perform
from vhdkit.fleet.places import place_for, places_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHECK = fleet.FleetTask(number=0, request=fleet.CheckRequest(path="/vms/a.vhd"), targets=(), group=0, cost=1)
MERGES = ("--progress", "none", "--json")


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disks of two hosts, each in a folder of its own."""
    place = tmp_path_factory.mktemp("disks")
    for host in ("hv01", "hv02"):
        (place / host).mkdir()
    return place


@pytest.fixture(scope="module")
def cluster(disks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    folder = tmp_path_factory.mktemp("cluster")
    made = ClusterProcesses(folder=folder, tls=make_certificate(folder), state=folder / "state")
    try:
        made.start_scheduler()
        for host in ("hv01", "hv02"):
            made.start_worker(host, disks / host)
        yield made
    finally:
        made.close()


@pytest.fixture
def seen(cluster: ClusterProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test see the jobs of the workers."""
    monkeypatch.setenv("VHDKIT_STATE", str(cluster.state))


def test_chains_of_two_hosts_are_merged_by_their_own_workers(
    cluster: ClusterProcesses, disks: Path, tmp_path: Path
) -> None:
    views = {host: make_machines(disks / host, 2) for host in ("hv01", "hv02")}
    patterns = [f"hv01:{disks}/hv01/**/*.avhd", f"{disks}/hv02/**/*.avhd"]
    plan = spawn("fleet", "merge", *patterns, *cluster.options, "--dry-run", "--json", cwd=tmp_path)
    assert plan.code == 0, plan.err
    assert all(chain["bytes-to-copy"] > 0 for chain in plan.json["chains"])
    done = spawn("fleet", "merge", *patterns, *cluster.options, *MERGES, cwd=tmp_path)
    assert done.code == 0, done.err
    by_worker = {
        (chain["filename"].split("/")[-3], int(chain["worker"].split(":")[-1])) for chain in done.json["chains"]
    }
    assert by_worker == {(host, process.pid) for host, process in cluster.workers.items()}
    for host, of in views.items():
        assert_merged(disks / host, of)
        remove_machines(disks / host)


def test_what_a_worker_is_not_allowed_is_refused_there(cluster: ClusterProcesses, disks: Path, tmp_path: Path) -> None:
    make_machines(disks / "hv01", 1, levels=1)
    command = ["fleet", "convert", f"hv01:{disks}/hv01", "--to", str(tmp_path), *cluster.options, *MERGES]
    outside = spawn(*command, cwd=tmp_path)
    assert outside.code == 1
    assert "is not allowed there" in outside.json["chains"][0]["error"]
    assert names_below(tmp_path) == set()
    remove_machines(disks / "hv01")


def begun(cluster: ClusterProcesses, host: Path, folder: Path) -> tuple[Running, Path]:
    """Merge slowly what a host has; return the program once a leaf is copied, and that leaf."""
    command = ["fleet", "merge", f"{host.name}:{host}/**/*.avhd", *cluster.options, *MERGES, "--rate", "2M"]
    running, leaf = Running(folder, command), host / "vm00" / "vm00_1.avhd"
    assert running.wait_until(lambda: copying_process(leaf) != 0), running.ended().err
    return running, leaf


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize("lost", ["worker", "scheduler"])
def test_a_merge_whose_worker_or_scheduler_is_killed_is_finished(
    cluster: ClusterProcesses, disks: Path, tmp_path: Path, lost: str
) -> None:
    host = disks / "hv01"
    views = make_machines(host, 2, mebibytes=10, levels=2)
    running, leaf = begun(cluster, host, tmp_path)
    if lost == "worker":
        process = cluster.workers["hv01"]
        assert copying_process(leaf) in {0, process.pid}
        process.send_signal(signal.SIGKILL)
        process.wait()
        cluster.start_worker("hv01", host)
    else:
        assert cluster.scheduler is not None
        cluster.scheduler.send_signal(signal.SIGKILL)
        cluster.scheduler.wait()
        cluster.start_scheduler()
    done = running.ended()
    assert done.code == 0, done.err
    ended = done.json["outcomes"]
    assert sum(ended.values()) == 2
    # A worker that has lost its scheduler may have ended its merge before it noticed.
    assert lost == "scheduler" or ended["resumed"] >= 1
    assert not set(ended) - {"done", "resumed", "was-done"}
    assert_merged(host, views)
    remove_machines(host)


@pytest.mark.usefixtures("seen")
def test_a_client_that_is_interrupted_stops_the_workers_merges(
    cluster: ClusterProcesses, disks: Path, tmp_path: Path
) -> None:
    host = disks / "hv02"
    views = make_machines(host, 1, mebibytes=10, levels=2)
    running, leaf = begun(cluster, host, tmp_path)
    running.send(signal.SIGINT)
    done = running.ended()
    assert done.code == 130
    assert done.json["outcomes"] == {"cancelled": 1}
    assert plain_digest(leaf.parent, leaf.name) == views["vm00"]
    assert outcomes(run_here(plan_of(host, "merge"))) == {"resumed": 1}
    assert_merged(host, views)
    remove_machines(host)


@pytest.mark.usefixtures("seen")
def test_an_interrupted_client_does_not_wait_for_a_worker_that_is_gone(
    cluster: ClusterProcesses, disks: Path, tmp_path: Path
) -> None:
    host = disks / "hv02"
    views = make_machines(host, 1, mebibytes=10, levels=2)
    running, leaf = begun(cluster, host, tmp_path)
    cluster.workers["hv02"].kill()
    cluster.workers["hv02"].wait()
    running.send(signal.SIGINT)
    done = running.ended()
    assert (done.code, done.json["outcomes"]) == (130, {"cancelled": 1})
    assert plain_digest(leaf.parent, leaf.name) == views["vm00"]
    assert outcomes(run_here(plan_of(host, "merge"))) == {"resumed": 1}
    assert_merged(host, views)
    remove_machines(host)
    cluster.start_worker("hv02", host)


class LostCluster(Cluster):
    """A cluster whose scheduler is lost, and does not come back; `asked` counts how often it was waited for."""

    asked = 0

    def _new_client(self, seconds: float) -> Any:
        del seconds
        self.asked += 1
        if self.asked > 1:
            raise FleetError("the scheduler does not answer")
        return Mock(status="closed")


def test_a_scheduler_that_stays_away_is_waited_for_once() -> None:
    with LostCluster("127.0.0.1:1") as lost:
        futures = [lost.submit(perform, CHECK) for _ in range(5)]
        assert [str(future.exception(60)) for future in futures] == ["the scheduler does not answer"] * 5
        assert lost.asked == 2


def test_a_client_of_another_version_is_told_before_anything_is_unpickled() -> None:
    with pytest.raises(FleetError, match=rf"has vhdkit {version()}, and the client 0\.0\.9"):
        answer("a run", "0.0.9", "perform", b"no pickle")


def test_a_worker_that_was_allowed_nothing_does_nothing(tmp_path: Path) -> None:
    request = fleet.CheckRequest(path=str(tmp_path / "a.vhd"))
    task = fleet.FleetTask(number=0, request=request, targets=(), group=0, cost=1)
    with pytest.raises(FleetError, match="not allowed there"):
        answer("a run", version(), "perform", pickle.dumps((task,)))


@pytest.mark.parametrize("way", ["path", "link", "search", "parent", "parent_map"])
def test_nothing_that_leads_out_of_the_allowed_folders_is_opened(
    vms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    make_machines(vms, 1, levels=1)
    outside = str(vms / "vm00" / "vm00.vhd")
    inside = tmp_path / "allowed"
    inside.mkdir()
    (inside / "link.avhd").symlink_to(vms / "vm00" / "vm00_0.avhd")
    vhdkit.create_image(str(inside / "a.vhd"), size=1 << 20)
    allowed = cluster_worker.AllowedFolders()
    allowed.allow([str(inside)])
    monkeypatch.setattr(cluster_worker, "ALLOWED", allowed)
    path = {"path": outside, "link": str(inside / "link.avhd")}.get(way, str(inside / "a.vhd"))
    parents = {
        "search": fleet.ParentPolicy(search=(str(vms),)),
        "parent": fleet.ParentPolicy(parent=outside),
        "parent_map": fleet.ParentPolicy(parent_map={"C:\\vms": str(vms)}),
    }
    request = fleet.CheckRequest(path=path, parents=parents.get(way, fleet.ParentPolicy()))
    task = fleet.FleetTask(number=0, request=request, targets=(), group=0, cost=1)
    with pytest.raises(FleetError, match="not allowed there"):
        answer("a run", version(), "perform", pickle.dumps((task,)))
    allowed.allow([str(inside), str(vms)])
    answer("a run", version(), "perform", pickle.dumps((task,)))


@pytest.mark.parametrize("name", ["[x]/../../secret", "link[x]"])
def test_a_folder_that_is_named_like_a_pattern_leads_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    inside, secret = tmp_path / "vms", tmp_path / "secret"
    (inside / "[x]").mkdir(parents=True)
    secret.mkdir()
    (inside / "link[x]").symlink_to(secret)
    vhdkit.create_image(str(secret / "a.vhd"), size=1 << 20)
    allowed = cluster_worker.AllowedFolders()
    allowed.allow([str(inside)])
    monkeypatch.setattr(cluster_worker, "ALLOWED", allowed)
    pattern = fleet.Pattern.of(f"hv07:{inside}/{name}")
    asked = pickle.dumps((pattern, fleet.ParentPolicy()))
    with pytest.raises(FleetError, match="not allowed there"):
        answer("a run", version(), "find_chains", asked)
    # The link may be put there after the first look at the path.
    with pytest.raises(FleetError, match="not allowed there"):
        fleet.find_chains(pattern, fleet.ParentPolicy(), check_root=allowed.check)
    allowed.allow([str(tmp_path)])
    found = answer("a run", version(), "find_chains", asked)
    assert isinstance(found, FoundChains)
    assert [chain.leaf.path for chain in found.chains] == [str(secret / "a.vhd")]


def test_a_worker_whose_scheduler_is_away_stops_when_asked(tmp_path: Path) -> None:
    stop = threading.Event()
    started = ClusterWorker(scheduler=f"127.0.0.1:{free_port()}", folders=(str(tmp_path),))
    working = threading.Thread(target=serve_cluster, args=(started, stop, str), daemon=True)
    working.start()
    working.join(1)
    assert working.is_alive()
    stop.set()
    until(lambda: not working.is_alive())


TLS = TlsFiles(ca="ca.pem", cert="cert.pem", key="key.pem")


@pytest.mark.parametrize("address", ["tcp://10.0.0.5:8786", "hv07:8786", "tls://hv07:8786", "localhost.example.org:1"])
def test_away_from_the_loopback_only_tls_is_accepted(address: str) -> None:
    with pytest.raises(FleetError, match="by TLS only"):
        check_scheduler_address(address, None)


@pytest.mark.parametrize("address", ["", "hv07", "ftp://hv07:1", "tcp://hv07:8786", "tls://hv07", "tls://hv07:none"])
def test_what_is_no_address_for_tls_is_refused(address: str) -> None:
    with pytest.raises(FleetError):
        check_scheduler_address(address, TLS)


def test_addresses_that_are_accepted() -> None:
    assert check_scheduler_address("hv07:8786", TLS) == "tls://hv07:8786"
    assert check_scheduler_address("tcp://[::1]:8786", None) == "tcp://[::1]:8786"


def test_a_task_goes_to_the_narrowest_folder_that_holds_it() -> None:
    offered = {*places_of("hv01", ["/vms", "/vms/fast"]), *places_of("hv02", ["/other"])}
    found = {text: place_for(fleet.Pattern.of(text), offered) for text in ("hv01:/vms/fast/*.vhd", "/other/a/*.vhd")}
    assert list(found.values()) == ["disk:hv01:/vms/fast", "disk::/other"]
    for text in ("hv01:/vmsx/*.vhd", "hv02:/vms/*.vhd", "hv01:/vms/../etc/*.vhd", "/nowhere/*.vhd", "/vms/[x]/../../a"):
        with pytest.raises(FleetError, match="no worker"):
            place_for(fleet.Pattern.of(text), offered)
