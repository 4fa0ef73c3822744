"""The reports of `vhdkit fleet`: refused before anything begins, or written whatever becomes of the rest."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vhdkit
from tests.cli.running import environment, program, snapshot
from tests.fleet.machines_on_disk import make_machines
from vhdkit.fleet import report
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.running import Outcome

    Cli = Callable[..., Outcome]

MIB = 1 << 20


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one machine, which is also the current one."""
    folder = tmp_path / "vms"
    folder.mkdir()
    make_machines(folder, 1, levels=1)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/night.csv", "No such file or directory"),
        ("machine.json", "no report"),
        ("link.json", "a link"),
        ("pipe.csv", "not a regular file"),
    ],
)
def test_a_report_that_could_not_be_written_is_refused_before_anything_begins(
    cli: Cli, machines: Path, path: str, message: str
) -> None:
    (machines / "machine.json").write_text('{"version": 1}')
    (machines / "link.json").symlink_to("vm00/vm00.vhd")
    subprocess.run(["mkfifo", "pipe.csv"], cwd=machines, check=True)
    files = ["machine.json", "vm00/vm00.vhd", "vm00/vm00_0.avhd"]
    before = [(machines / name).read_bytes() for name in files]
    assert message in cli("fleet", "merge", "**/*.avhd", "--report", path, "--report", "fine.csv").refused()
    assert [(machines / name).read_bytes() for name in files] == before
    assert not (machines / "fine.csv").exists()


def test_a_full_disk_behind_stdout_loses_no_report(machines: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            program("fleet", "check", "**/*.avhd", "--report", "night.json"),
            cwd=machines,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert json.loads((machines / "night.json").read_text())["outcomes"] == {"clean": 1}


def test_a_report_that_cannot_be_written_in_the_end_keeps_back_no_other(
    cli: Cli, machines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machines / "gone").mkdir()
    convert = report.REPORT_FORMATS[".csv"]

    def removed_meanwhile(made: report.FleetReport) -> str:
        shutil.rmtree(machines / "gone")
        return convert(made)

    monkeypatch.setitem(report.REPORT_FORMATS, ".csv", removed_meanwhile)
    done = cli("fleet", "check", "**/*.avhd", "--report", "gone/night.csv", "--report", "night.json")
    assert (done.code, "gone" in done.err, done.out[:16]) == (1, True, "1 chain: 1 clean")
    assert json.loads((machines / "night.json").read_text())["outcomes"] == {"clean": 1}


def test_a_dry_run_writes_no_report_and_says_so(cli: Cli, machines: Path) -> None:
    before = snapshot(machines)
    refused = cli("fleet", "merge", "**/*.avhd", "--dry-run", "--report", "night.json")
    assert refused.code == 64
    assert "--report" in refused.err
    assert snapshot(machines) == before


def test_a_dry_run_fails_where_what_runs_at_once_has_too_little_room(
    cli: Cli, machines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each merge has room enough alone."""
    (machines / "more").mkdir()
    make_machines(machines / "more", 1, levels=1)
    (needed,) = {
        each["space-needed"] for each in cli("fleet", "merge", "**/*.avhd", "--dry-run", "--json").json["chains"]
    }
    monkeypatch.setattr(LocalFolder, "free_space", lambda _self, _directory: needed * 3 // 2)
    done = cli("fleet", "merge", "**/*.avhd", "--dry-run")
    assert (done.code, "in the way" in done.out, "not enough" in done.out) == (1, False, True)
    assert cli("fleet", "merge", "**/*.avhd", "--dry-run", "--per-target", "1").code == 0


def test_the_finding_of_a_check_is_printed_on_one_line(cli: Cli, machines: Path) -> None:
    path = machines / "a\nb.vhd"
    vhdkit.create_image(str(path), size=4 * MIB)
    raw = bytearray(path.read_bytes())
    raw[1536:1540] = b"\0\0\0\1"
    path.write_bytes(raw)
    done = cli("fleet", "check", "*.vhd")
    assert done.code == 2
    assert [line for line in done.err.splitlines() if "b.vhd" in line and "a\\nb.vhd" not in line] == []
    assert "vhdkit: " in done.err
