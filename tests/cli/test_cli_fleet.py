"""`vhdkit fleet` as a user types it: plans, runs, reports, exit codes, and what a kill of the program leaves."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import TextColumn

import vhdkit
from tests.cli.running import FIXTURES, LEAF
from tests.crash.real import Running, names_in, plain_digest
from tests.fleet.machines_on_disk import (
    assert_merged,
    copying_process,
    make_machines,
    names_below,
    outcomes,
    plan_of,
    run_here,
)
from tests.jobs.making import until
from vhdkit import fleet
from vhdkit.cli.fleet_view import Screen
from vhdkit.storage.process import birth_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.running import Outcome

MIB = 1 << 20


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for machines, which is also the current one."""
    folder = tmp_path / "vms"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_scan_lists_each_chain_once(cli: Callable[..., Outcome], machines: Path) -> None:
    shutil.copytree(FIXTURES, machines / "demo")
    done = cli("fleet", "scan", "demo/**/*.avhd")
    assert done.code == 0
    assert done.out.startswith(f"demo/{LEAF}: 3 layers (2 meant) down to demo/web01.vhd, ")
    everything = cli("fleet", "scan", "demo", "--json")
    assert everything.code == 1
    (here,) = everything.json
    assert {Path(chain["filename"]).name for chain in here["chains"] if chain["error"]} == {
        "orphan.vhd",
        "raw-child.vhd",
    }


def test_a_dry_run_says_what_would_be_done_to_the_byte_and_does_nothing(
    cli: Callable[..., Outcome], machines: Path
) -> None:
    make_machines(machines, 2)
    (machines / "vm01" / "vm01_0.avhd").chmod(0o444)
    vhdkit.create_image(str(machines / "vm01" / "sibling.avhd"), parent=str(machines / "vm01" / "vm01_1.avhd"))
    before = names_below(machines)
    done = cli("fleet", "merge", "**/vm*.avhd", "--dry-run", "--json")
    assert done.code == 1
    first, second = done.json["chains"]
    plan = vhdkit.plan_merge(first["filename"], into=first["destination"])
    assert (first["bytes-to-copy"], first["space-needed"]) == (plan.payload_bytes, plan.space_needed)
    assert first["obstacles"] == []
    assert "sibling.avhd" in second["obstacles"][0]
    (system,) = done.json["file-systems"]
    assert system["bytes"] == first["bytes-to-copy"] + second["bytes-to-copy"]
    text = cli("fleet", "merge", "**/vm*.avhd", "--dry-run")
    assert text.code == 1
    assert "  in the way: " in text.out
    assert "file system" in text.out
    assert names_below(machines) == before


def test_a_run_merges_what_it_can_and_reports_the_rest(cli: Callable[..., Outcome], machines: Path) -> None:
    views = make_machines(machines, 2)
    (machines / "orphan").mkdir()
    shutil.copy(FIXTURES / LEAF, machines / "orphan")
    refused = cli("fleet", "merge", "**/*.avhd", "--report", "night.json")
    assert (refused.code, names_in(machines / "vm00")) == (1, {"vm00.vhd", "vm00_0.avhd", "vm00_1.avhd", "vm00_2.avhd"})
    assert "--keep-going" in refused.err
    assert json.loads(Path("night.json").read_text())["outcomes"] == {"failed": 1, "not-begun": 2}
    done = cli("fleet", "merge", "**/*.avhd", "--keep-going", "--report", "night.json", "--report", "night.html")
    assert done.code == 1
    assert done.out.startswith("3 chains: 2 done, 1 failed, ")
    assert "its parent" in done.err
    report = json.loads(Path("night.json").read_text())
    assert [chain["outcome"] for chain in report["chains"]] == ["done", "done", "failed"]
    assert "<table>" in Path("night.html").read_text()
    assert_merged(machines, views, [f"orphan/{LEAF}", "night.json", "night.html"])
    # Each was a job.
    assert {job.state.plain for job in vhdkit.jobs()} == {"completed"}


def test_check_hash_and_convert_do_so_for_every_leaf(cli: Callable[..., Outcome], machines: Path) -> None:
    shutil.copytree(FIXTURES, machines / "demo")
    (machines / "out").mkdir()
    checked = cli("fleet", "check", "demo/web*", "demo/no-trailing*", "--json")
    assert checked.code == 2
    assert checked.json["outcomes"] == {"clean": 1, "corrupt": 1}
    hashed = cli("fleet", "hash", "demo/web*")
    assert hashed.out == cli("hash", f"demo/{LEAF}").out
    converted = cli("fleet", "convert", "demo/web*", "--to", "out", "-O", "raw", "--json")
    assert converted.json["outcomes"] == {"done": 1}
    raw = Path("out", f"{Path(LEAF).stem}.img")
    assert cli("hash", "-f", "raw", raw).out.split()[0] == hashed.out.split()[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "*.vhd", "--report", "night.txt"], ".prom"),
        (["scan", "hv07:/vms/*.vhd"], "needs workers"),
        (["scan", "https://server/*.vhd"], "cannot be listed"),
        (["merge", "*.avhd", "--rate", "0"], "never be done"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_done(
    cli: Callable[..., Outcome], machines: Path, words: list[str], message: str
) -> None:
    make_machines(machines, 1)
    refused = cli("fleet", *words)
    assert (refused.code, refused.out) == (64, "")
    assert message in refused.err


def test_nothing_to_merge_is_no_failure(cli: Callable[..., Outcome], machines: Path) -> None:
    vhdkit.create_image(str(machines / "base.vhd"), size=MIB)
    done = cli("fleet", "merge", "*")
    assert (done.code, done.out) == (0, "")
    assert "nothing to be done" in done.err


def test_an_interrupt_of_the_terminal_is_no_traceback(machines: Path) -> None:
    """It reaches the processes of the pool as well, also those that are still loading."""
    make_machines(machines, 2)
    command = ["fleet", "merge", "**/*.avhd", "--rate", "64K", "--progress", "json"]
    running = Running(machines, command, start_new_session=True)
    assert running.wait_until(lambda: b'"begun"' in running.told)
    os.killpg(running.process.pid, signal.SIGINT)
    done = running.ended()
    assert done.code == 130
    assert "Traceback" not in done.err
    assert "interrupted; the same command goes on" in done.err


def test_a_screen_has_a_row_for_each_chain_that_runs_and_one_for_all() -> None:
    requests = [fleet.CheckRequest(path=f"/{name}.vhd") for name in "ab"]
    tasks = [
        fleet.FleetTask(number=at, request=request, targets=(), group=at, cost=1) for at, request in enumerate(requests)
    ]
    plan = fleet.FleetPlan(verb=fleet.FleetVerb.CHECK, tasks=tuple(tasks))
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=120, color_system=None)
    with RichProgress(TextColumn("{task.description} {task.completed}/{task.total}"), console=console) as bars:
        screen = Screen(bars, plan)
        screen.show(fleet.Begun(task=tasks[0]))
        screen.show(fleet.Begun(task=tasks[1]))
        state = vhdkit.Progress(phase=vhdkit.Phase.COPYING, bytes_done=3, bytes_total=8)
        screen.show(fleet.Moved(task=tasks[1], state=state))
        bars.refresh()
        assert "check 0/2" in drawn.getvalue()
        assert "/b.vhd: copying 3/8" in drawn.getvalue()
        before = len(drawn.getvalue())
        for task, outcome in zip(tasks, ("clean", "corrupt"), strict=True):
            report = fleet.ChainReport(path=task.path, outcome=fleet.ChainOutcome(outcome))
            screen.show(fleet.Ended(task=task, report=report, left=0))
        bars.refresh()
    assert "check, 1 not well 2/2" in drawn.getvalue()[before:]
    assert len(bars.tasks) == 1


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_program_that_is_killed_leaves_merges_that_the_same_command_finishes(
    machines: Path, end: signal.Signals
) -> None:
    views = make_machines(machines, 2, mebibytes=10, levels=2)
    command = [
        "fleet",
        "merge",
        "**/*.avhd",
        "--parallel",
        "1",
        "--rate",
        "2M",
        "--progress",
        "json",
        "--report",
        "a.csv",
    ]
    running = Running(machines, command)
    leaf = machines / "vm00" / "vm00_1.avhd"
    assert running.wait_until(lambda: copying_process(leaf) != 0)
    workers = {job.pid for job in vhdkit.jobs(running=True)} - {os.getpid()}
    running.send(end)
    done = running.ended()
    # The processes of a client that was killed end by themselves, soon.
    until(lambda: not any(map(birth_of, workers)))
    assert done.code == (130 if end is signal.SIGINT else -end)
    assert (machines / "a.csv").exists() == (end is signal.SIGINT)
    for name, view in views.items():
        if (machines / name / f"{name}_1.avhd").exists():
            assert plain_digest(machines / name, f"{name}_1.avhd") == view
    assert outcomes(run_here(plan_of(machines, "merge"))) == {"resumed": 1, "done": 1}
    (machines / "a.csv").unlink(missing_ok=True)
    assert_merged(machines, views)
