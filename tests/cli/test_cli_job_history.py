"""How long merges took, and how long one will take by that."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING

import pytest

from tests.jobs.making import make_chain
from tests.unit.test_registry import numbered
from vhdkit.job.job import JobState
from vhdkit.job.registry import Registry
from vhdkit.options import MergeRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]

MIB = 1 << 20


@pytest.fixture
def vms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "vms").mkdir()
    monkeypatch.chdir(tmp_path / "vms")
    return tmp_path / "vms"


def done(
    number: int,
    vms: Path,
    mebibytes: int,
    seconds: float,
    *,
    rate: int | None = None,
    machine: str = "a",
    state: JobState = JobState.COMPLETED,
    rolled_back: bool = False,
) -> None:
    """Put a merge into the list that took so long."""
    disk = vms / f"{machine}.vhd"
    disk.touch()
    Registry().put(
        numbered(
            number,
            state=state,
            rolled_back=rolled_back,
            machine=machine,
            request=MergeRequest(child=str(vms / "x.avhd"), rate=rate),
            destination=str(disk),
            files=(str(disk),),
            started=1e9 + number,
            ended=1e9 + number + seconds,
            changed=4e9,
            elapsed=seconds,
            bytes_done=mebibytes * MIB,
            bytes_total=mebibytes * MIB,
        )
    )


def test_the_history_has_durations_bytes_and_rates(vms: Path, cli: Cli) -> None:
    assert cli("job", "history").err == "no merge has ended yet\n"
    done(1, vms, 100, 10.0)
    done(2, vms, 300, 10.0, machine="web\n01")
    first, second = cli("job", "history", "--json").json
    assert (first["seconds"], first["bytes"], first["rate"]) == (10.0, 100 * MIB, 10 * MIB)
    assert (second["machine"], second["rate"], second["state"]) == ("web\n01", 30 * MIB, "completed")
    table = cli("job", "history").out.splitlines()
    assert table[0].split() == ["ID", "STATE", "MACHINE", "STARTED", "TOOK", "COPIED", "RATE"]
    assert table[1].endswith("10.0 s  100.0 MiB  10.0 MiB/s")
    assert table[-1] == "2 merges: 400.0 MiB in 20.0 s, 20.0 MiB/s"
    assert all(len(line) <= 80 for line in table)
    rows = list(csv.DictReader(io.StringIO(cli("job", "history", "--format", "csv").out)))
    assert [(row["bytes"], row["seconds"]) for row in rows] == [(str(100 * MIB), "10.0"), (str(300 * MIB), "10.0")]
    assert rows[1]["machine"] == r"web\n01"
    assert set(rows[0]) == set(first)
    assert len(cli("job", "history", "--machine", "a", "--json").json) == 1
    assert len(cli("job", "history", "--disk", "a.vhd", "--json").json) == 1
    assert cli("job", "history", "--json", "--format", "csv").code == 64


def test_a_dry_run_says_how_long_it_will_take_by_merges_on_that_file_system(vms: Path, cli: Cli) -> None:
    leaf = make_chain(vms, "c", 8)
    unknown = cli("merge", leaf, "--dry-run", "--json").json
    assert (unknown["seconds-expected"], unknown["jobs-seen"]) == (None, 0)
    said = cli("merge", leaf, "--dry-run").out
    assert re.search("^time +not known: no merge was timed on this file system yet$", said, re.MULTILINE)
    done(1, vms, 100, 10.0)
    # A job that kept to a rate, a small one and one on a disk that is gone say nothing.
    done(2, vms, 100, 1000.0, rate=MIB)
    done(3, vms, 0, 1000.0)
    done(4, vms, 100, 1000.0, machine="gone")
    (vms / "gone.vhd").unlink()
    planned = cli("merge", leaf, "--dry-run", "--json").json
    assert (planned["rate-expected"], planned["jobs-seen"]) == (10 * MIB, 1)
    assert planned["seconds-expected"] == round(planned["bytes-to-copy"] / (10 * MIB), 1)
    assert "about 1 seconds at 10.0 MiB/s, by 1 merge on this file system" in cli("merge", leaf, "--dry-run").out
    slow = cli("merge", leaf, "--dry-run", "--rate", "1M", "--json").json
    assert slow["rate-expected"] == MIB


def test_a_job_that_is_taken_off_the_list_stays_in_the_history_and_in_estimates(vms: Path, cli: Cli) -> None:
    leaf = make_chain(vms, "c", 8)
    done(1, vms, 100, 10.0)
    before = cli("job", "history", "--json").json
    planned = cli("merge", leaf, "--dry-run", "--json").json
    assert cli("job", "rm", "--finished").code == 0
    assert cli("job", "list").err == "no jobs\n"
    assert cli("job", "show", numbered(1).id).code == 1
    assert cli("job", "rm", numbered(1).id).code == 1
    assert cli("job", "history", "--json").json == before
    later = cli("merge", leaf, "--dry-run", "--json").json
    assert (later["seconds-expected"], later["jobs-seen"]) == (planned["seconds-expected"], 1)
    for option in (("--machine", "a"), ("--disk", "a.vhd")):
        assert len(cli("job", "history", *option, "--json").json) == 1
    # One that was never begun has no history.
    Registry().put(numbered(2, state=JobState.EXCEPTION, changed=4e9))
    assert cli("job", "rm", numbered(2).id).code == 0
    assert len(Registry().jobs(with_removed=True)) == 1
    # A job that is begun again is listed again.
    Registry().put(numbered(1, state=JobState.COMPLETED, changed=4e9))
    assert len(Registry().jobs()) == 1


def test_jobs_that_were_rolled_back_are_not_in_the_sum(vms: Path, cli: Cli) -> None:
    done(1, vms, 100, 10.0)
    done(2, vms, 0, 1000.0, state=JobState.TERMINATED, rolled_back=True)
    assert cli("job", "history").out.splitlines()[-1] == "1 merge: 100.0 MiB in 10.0 s, 10.0 MiB/s; 1 rolled back"
