"""What asking about jobs costs: `job list` as a whole process over ten thousand jobs that have ended."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
import uuid
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import environment
from tests.unit.test_job import a_job
from vhdkit.job.job import JobState
from vhdkit.job.registry import Registry
from vhdkit.job.registry_row import encode_job

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

_JOBS = 10_000
_SECONDS = 0.1


@pytest.fixture
def ten_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHDKIT_STATE", str(tmp_path))
    registry = Registry()
    now = time.time()
    registry.put(a_job(state=JobState.COMPLETED, changed=now))
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as database:
        database.execute("BEGIN")
        for number in range(_JOBS - 1):
            files = (f"/vms/{number}.avhd", f"/vms/{number}.vhd")
            job = replace(a_job(), id=str(uuid.uuid4()), state=JobState.COMPLETED, changed=now, files=files)
            values = (job.id, job.state, job.changed, encode_job(job))
            database.execute("INSERT INTO jobs (id, state, changed, record) VALUES (?, ?, ?, ?)", values)
            database.executemany("INSERT INTO files VALUES (?, ?)", [(file.encode(), job.id) for file in files])
        database.execute("COMMIT")


@pytest.mark.usefixtures("ten_thousand")
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--running"],
        ["--json"],
        ["--disk", "/vms/77.vhd"],
        ["--machine", "web"],
        ["--where", "ElementName = 'Merge in Progress' and PercentComplete < 50"],
    ],
)
def test_job_list_of_ten_thousand(options: list[str], benchmark: BenchmarkFixture) -> None:
    command = [sys.executable, "-m", "vhdkit", "job", "list", *options]

    def ask() -> None:
        subprocess.run(command, check=True, capture_output=True, env=environment())

    ask()
    benchmark(ask)
    if benchmark.stats is not None:
        assert benchmark.stats["median"] < _SECONDS
