"""Running many chains: each ends by itself, whatever becomes of the others, of the workers, and of the caller."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vhdkit
from tests.crash.real import plain_digest
from tests.fleet.machines_on_disk import (
    assert_merged,
    copying_process,
    make_machines,
    names_below,
    outcomes,
    plan_of,
    run_here,
)
from vhdkit import fleet
from vhdkit.fleet.dispatch import MOST_ATTEMPTS
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.new_file import new_file

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
# The first mark of a merge comes after 4 MiB.
MERGED_MIB = 8


class DyingExecutor(Executor):
    """Threads; `dies` says of which task the worker dies before it has done anything, or after it has done all."""

    def __init__(self, dies: Callable[[fleet.FleetTask], str]) -> None:
        self._dies = dies
        self._threads = ThreadPoolExecutor(2)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        (task,) = args
        assert isinstance(task, fleet.FleetTask)
        return self._threads.submit(self._run, fn, task, **kwargs)

    def _run(self, fn: Callable[[fleet.FleetTask], object], task: fleet.FleetTask) -> object:
        when = self._dies(task)
        result = None if when == "before" else fn(task)
        if when:
            raise BrokenProcessPool("it was killed")
        return result

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)


@pytest.mark.parametrize(("when", "outcome"), [("before", "done"), ("after", "was-done")])
def test_the_task_of_a_worker_that_dies_is_done_by_another(vms: Path, when: str, outcome: str) -> None:
    views = make_machines(vms, 3)
    lost: list[str] = []

    def note(event: fleet.FleetEvent) -> None:
        if isinstance(event, fleet.WorkerLost):
            lost.append(event.task.path)

    with DyingExecutor(lambda task: when if task.number == 1 and not task.attempt else "") as executor:
        report = fleet.run_plan(plan_of(vms, "merge"), executor, progress=note)
    assert [chain.attempts for chain in report.chains] == [1, 2, 1]
    assert report.chains[1].outcome == outcome
    assert lost == [report.chains[1].path]
    assert_merged(vms, views)


def test_a_chain_that_workers_die_of_fails_by_itself(vms: Path) -> None:
    views = make_machines(vms, 3)
    with DyingExecutor(lambda task: "before" if task.number == 1 else "") as executor:
        report = fleet.run_plan(plan_of(vms, "merge"), executor)
    failed = report.chains[1]
    assert (failed.outcome, failed.attempts) == (fleet.ChainOutcome.FAILED, MOST_ATTEMPTS)
    assert "3 workers died of it" in failed.error_text
    assert str(failed.hint).startswith("ensure_merged('")
    assert outcomes(report) == {"done": 2, "failed": 1}
    report = run_here(plan_of(vms, "merge"))
    assert outcomes(report) == {"done": 1}
    assert_merged(vms, views)


def test_an_executor_that_takes_nothing_fails_every_chain_and_changes_none(vms: Path) -> None:
    make_machines(vms, 2)
    before = names_below(vms)
    threads = ThreadPoolExecutor(1)
    threads.shutdown()
    report = fleet.run_plan(plan_of(vms, "merge"), threads)
    assert outcomes(report) == {"failed": 2}
    assert names_below(vms) == before


def test_a_chain_in_use_is_told_apart(vms: Path) -> None:
    make_machines(vms, 2, levels=1)
    with vhdkit.open_chain(str(vms / "vm01" / "vm01_0.avhd"), writable=True):
        report = run_here(plan_of(vms, "merge"))
    assert [chain.outcome for chain in report.chains] == ["done", "in-use"]
    assert isinstance(report.chains[1].error, vhdkit.ImageInUseError)


def test_once_it_is_cancelled_nothing_more_begins(vms: Path) -> None:
    views = make_machines(vms, 4, levels=1)
    cancel = threading.Event()

    def stop(event: fleet.FleetEvent) -> None:
        if isinstance(event, fleet.Begun):
            cancel.set()

    with ThreadPoolExecutor(1) as threads:
        report = fleet.run_plan(plan_of(vms, "merge", per_target=1), threads, progress=stop, cancel=cancel)
    assert report.is_cancelled
    # The one that had begun may have ended before it could be called off.
    assert outcomes(report)["not-begun"] >= 3
    run_here(plan_of(vms, "merge"))
    assert_merged(vms, views)


@pytest.mark.parametrize("verb", ["check", "hash"])
def test_reading_changes_nothing_and_is_right(vms: Path, verb: str) -> None:
    make_machines(vms, 2)
    with (vms / "vm01" / "vm01_2.avhd").open("r+b") as file:
        file.seek(512 + 36)  # the checksum of the dynamic header
        file.write(b"\0\0\0\0")
    before = names_below(vms)
    report = run_here(plan_of(vms, verb, "**/*_2.avhd"))
    good, bad = report.chains
    assert bad.error_text or bad.detail
    if verb == "hash":
        (expected,) = vhdkit.hash_image(good.path)
        assert (good.detail, bad.outcome) == (expected.digest, "failed")
    else:
        assert (good.outcome, bad.outcome) == ("clean", "corrupt")
    assert names_below(vms) == before


@pytest.mark.parametrize("output_format", ["raw", "fixed", "dynamic"])
def test_what_was_converted_already_is_known_and_nothing_else_is_replaced(
    vms: Path, tmp_path: Path, output_format: str
) -> None:
    make_machines(vms, 2, levels=2)
    out = tmp_path / "out"
    out.mkdir()
    plan = plan_of(vms, "convert", destination=str(out), output_format=output_format)
    assert outcomes(run_here(plan)) == {"done": 2}
    assert outcomes(run_here(plan)) == {"was-done": 2}
    first, second = sorted(out.iterdir())
    with first.open("r+b") as file:
        file.seek(MIB // 2)
        file.write(b"other")
    if output_format == "dynamic":
        first.write_bytes(second.read_bytes())
    before = first.read_bytes()
    report = run_here(plan)
    assert outcomes(report) == {"failed": 1, "was-done": 1}
    assert isinstance(report.failures[0].error, FileExistsError)
    assert first.read_bytes() == before


def test_a_new_file_that_a_dead_worker_left_half_made_is_removed(vms: Path, tmp_path: Path) -> None:
    make_machines(vms, 1, levels=1)
    out = tmp_path / "out"
    out.mkdir()

    def leave(task: fleet.FleetTask) -> str:
        if task.attempt:
            return ""
        (out / "vm00_0.vhd.0123abcd.partial").write_bytes(b"half")
        (out / "vm00_0.vhd.other.partial").touch()
        return "before"

    with DyingExecutor(leave) as executor:
        assert outcomes(fleet.run_plan(plan_of(vms, "convert", destination=str(out)), executor)) == {"done": 1}
    assert names_below(out) == {"vm00_0.vhd", "vm00_0.vhd.other.partial"}


@pytest.mark.parametrize("output_format", ["raw", "fixed", "dynamic"])
def test_a_half_made_file_is_locked_while_it_is_written(vms: Path, tmp_path: Path, output_format: str) -> None:
    make_machines(vms, 1, levels=1)
    new = tmp_path / "new.vhd" if output_format != "raw" else tmp_path / "new.img"
    asked: list[str] = []

    def ask(_state: vhdkit.Progress) -> None:
        for path in tmp_path.glob("new.*.partial"):
            asked.append(path.name)
            with LocalFolder().open(str(path)) as storage, pytest.raises(vhdkit.ImageInUseError):
                storage.lock(exclusive=False)

    leaf = str(vms / "vm00" / "vm00_0.avhd")
    vhdkit.convert(leaf, str(new), output_format=output_format, progress=ask)  # type: ignore[arg-type] # one of these
    assert asked


def test_only_half_made_files_that_nobody_writes_are_removed(vms: Path, tmp_path: Path) -> None:
    """A cluster begins the task of a dead worker again as if for the first time."""
    make_machines(vms, 1, levels=1)
    out = tmp_path / "out"
    out.mkdir()
    (out / "vm00_0.vhd.0123abcd.partial").write_bytes(b"left by a killed run")
    (out / "vm00_0.vhd.4567cdef.partial").touch()
    plan = plan_of(vms, "convert", destination=str(out))
    with ExitStack() as other:
        written = other.enter_context(new_file(LocalFolder(), str(out / "vm00_0.vhd")))
        written.lock(exclusive=True)
        written.write_at(0, b"half of it")
        assert outcomes(run_here(plan)) == {"done": 1}
        kept = {"vm00_0.vhd", "vm00_0.vhd.4567cdef.partial"}
        assert names_below(out) == {*kept, Path(written.path).name}
        with pytest.raises(FileExistsError):
            other.close()
    assert names_below(out) == kept


def test_a_worker_process_that_is_killed_in_mid_merge_costs_that_chain_a_little_time(vms: Path) -> None:
    """The real thing: two processes, kill -9 of the one whose job is known, and what every chain then reads."""
    views = make_machines(vms, 2, mebibytes=MERGED_MIB, levels=2)
    killed: list[str] = []
    lost: list[str] = []

    def kill(event: fleet.FleetEvent) -> None:
        match event:
            case fleet.WorkerLost(task=task):
                lost.append(task.path)
            case fleet.Moved(task=task) if not killed:
                if process := copying_process(Path(task.path)):
                    os.kill(process, signal.SIGKILL)
                    killed.append(task.path)

    report = fleet.run_plan(plan_of(vms, "merge", rate=2 * MIB), parallel=2, progress=kill)
    assert lost == killed
    assert len(killed) == 1
    attempts = {chain.path: (chain.attempts, chain.outcome.value) for chain in report.chains}
    assert attempts.pop(killed[0]) == (2, "resumed")
    assert set(attempts.values()) == {(1, "done")}
    assert_merged(vms, views)
    assert outcomes(run_here(plan_of(vms, "merge"))) == {}


def test_a_cancelled_run_stops_its_processes_and_goes_on_when_asked_again(vms: Path) -> None:
    views = make_machines(vms, 2, mebibytes=MERGED_MIB, levels=1)
    cancel = threading.Event()

    def stop(event: fleet.FleetEvent) -> None:
        if isinstance(event, fleet.Moved) and event.state.phase is vhdkit.Phase.COPYING and event.state.bytes_done:
            cancel.set()

    report = fleet.run_plan(plan_of(vms, "merge", rate=2 * MIB), parallel=1, progress=stop, cancel=cancel)
    assert outcomes(report) == {"cancelled": 1, "not-begun": 1}
    assert isinstance(report.chains[0].error, vhdkit.MergeCancelled)
    for name, view in views.items():
        assert plain_digest(vms / name, f"{name}_0.avhd") == view
    assert outcomes(run_here(plan_of(vms, "merge"))) == {"resumed": 1, "done": 1}
    assert_merged(vms, views)
