"""A user's own mypy --strict: paths may be of any kind, and what comes back has types."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vhdkit

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import os
from collections.abc import Iterator
from pathlib import Path

import vhdkit

HERE = Path()
FOLDERS = [HERE]
MAPPED = {"C:\\\\vms": HERE}


def paths() -> Iterator[os.DirEntry[str]]:
    with os.scandir(HERE) as entries:
        yield from entries


def read(path: Path) -> bytes:
    with vhdkit.open_chain(path, search=FOLDERS, parent_map=MAPPED, parent=HERE / "base.vhd", lock=False) as chain:
        depth: int = max(extent.depth for extents in chain.extents() for extent in extents)
        with chain.open_stream() as stream:
            stream.seek(512)
            return chain.read(0, 512) + stream.read(depth)


def write(path: Path) -> None:
    with vhdkit.open_chain(path, writable=True) as chain:
        chain.write(0, b"data", sync=True)
        chain.sync()
    with vhdkit.open_image(path) as image:
        print(image.size, image.unique_id.hex(), image.findings)


def look(path: Path, entry: os.DirEntry[str]) -> bool:
    report = vhdkit.check(path, chain=True, deep=True, search=FOLDERS, parent_map=MAPPED, parent=path)
    for finding in report.findings:
        print(finding.path, finding.level is vhdkit.Level.ERROR, finding.message)
    found: vhdkit.Scan = vhdkit.scan(HERE, search=FOLDERS)
    bases: list[str] = [image.path for image in found.bases]
    compared = vhdkit.compare(path, entry, search=FOLDERS, parent_map=MAPPED, parent=path)
    return compared.equal and compared.same_size and report.exit_code == len(bases)


def make(path: Path) -> int:
    vhdkit.create_image(path, size=1 << 20, disk_type="fixed", block_size=1 << 16)
    vhdkit.create_image(path, parent=path, parent_map=MAPPED)
    hashed: tuple[vhdkit.ViewHash, ...] = vhdkit.hash_image(path, search=FOLDERS, parent_map=MAPPED, parent=path)
    print(hashed[0].digest)
    return vhdkit.convert(
        path, HERE / "new.raw", output_format="raw", search=FOLDERS, parent_map=MAPPED, parent=path, progress=print
    )


def serve(path: Path) -> int:
    with vhdkit.open_chain(path) as chain, vhdkit.serve_nbd(chain) as server:
        print(server.uri)
        vhdkit.mount_chain(chain, path, mounted=lambda: None)
    return vhdkit.export_disk(
        path, HERE / "new", output_format="vdi", search=FOLDERS, parent_map=MAPPED, parent=path, progress=print
    )


def inside(path: Path) -> list[str]:
    with vhdkit.open_chain(path) as chain:
        for part in vhdkit.list_partitions(chain):
            print(part.number, part.file_system)
        files: vhdkit.GuestFiles = vhdkit.open_files(chain, partition=1)
        extraction: vhdkit.Extraction = vhdkit.extract_files(files, "/etc", HERE, progress=print)
        print(extraction.bytes, [each.size for each in files.walk("/")])
        return [change.path for change in vhdkit.changed_files(chain, against=1)]


def merge(path: Path, progress: list[float]) -> vhdkit.MergeResult:
    def report(state: vhdkit.Progress) -> None:
        progress.append(state.bytes_done / state.bytes_total)

    plan: vhdkit.MergePlan = vhdkit.plan_merge(
        path, into=path, undo=HERE / "undo.vhd", search=FOLDERS, parent_map=MAPPED, parent=path
    )
    vhdkit.plan_merge(path, to=HERE / "new.vhd")
    print(vhdkit.repair_footers(path))
    if plan.obstacles:
        raise plan.obstacles[0]
    result = vhdkit.merge(plan, progress=report, rate=1 << 20)
    ensured = vhdkit.ensure_merged(path, into=path, leaf_id="", search=FOLDERS, parent_map=MAPPED)
    print(ensured.outcome, ensured.destination)
    return result


def undo(path: Path) -> tuple[str, ...]:
    vhdkit.drop_undo(path, search=FOLDERS, parent_map=MAPPED)
    fits: str = vhdkit.plan_rebase(path, path, search=FOLDERS, parent_map=MAPPED).fits
    print(fits, vhdkit.rebase(path, path, search=FOLDERS, parent_map=MAPPED).changes_nothing)
    return vhdkit.rollback(path, search=FOLDERS, parent_map=MAPPED)


def job(path: Path) -> vhdkit.Job:
    started = vhdkit.start_merge(
        path, into=path, undo=path, search=FOLDERS, parent_map=MAPPED, parent=path, log_file=HERE / "log"
    )
    vhdkit.start_merge(path, to=path)
    for each in vhdkit.jobs(disk=path, search=FOLDERS):
        for act in (vhdkit.find_job, vhdkit.cancel_job, vhdkit.pause_job, vhdkit.resume_job, vhdkit.remove_job):
            act(each.id)
        vhdkit.rollback_job(each.id)
        vhdkit.wait_for_job(each.id, 1.0)
        vhdkit.change_rate(each.id, None)
    for each in (*vhdkit.pending_jobs(disk=path), *vhdkit.job_history(disk=path, machine="web01")):
        print(each.wait, each.elapsed)
    vhdkit.set_end_command("mail", ["mail", *vhdkit.end_commands()["every"]])
    return started.result(timeout=1.0)


def machine(path: Path) -> tuple[str, ...]:
    adopted = vhdkit.Machine.adopt([path, "other.vhd"], directory=HERE, search=FOLDERS)
    snapshot: vhdkit.Snapshot = adopted.take("SP1", state=[path], directory=HERE)
    applied: vhdkit.Applied = adopted.apply(snapshot.name, state_to=HERE, directory=HERE)
    print(adopted.revert(state_to=HERE, directory=HERE), adopted.check(search=FOLDERS), applied.active)
    return vhdkit.Machine(path).export("SP1", HERE)
"""
WRONG = """
import vhdkit

vhdkit.open_chain(b"a.vhd")
vhdkit.create_image("a.vhd", size="40M")
vhdkit.merge("a.vhd")
number: int = vhdkit.open_chain("a.vhd").read(0, 1)
"""


def mypy(tmp_path: Path, program: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(program)
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", "program.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_program_that_passes_every_kind_of_path_everywhere_is_right(tmp_path: Path) -> None:
    done = mypy(tmp_path, PROGRAM)
    assert (done.returncode, done.stdout) == (0, "Success: no issues found in 1 source file\n"), done.stdout


def test_a_program_that_passes_something_else_is_wrong(tmp_path: Path) -> None:
    done = mypy(tmp_path, WRONG)
    wrong = [int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line]
    assert wrong == [4, 5, 6, 7]


def test_the_program_uses_every_public_function() -> None:
    functions = [name for name in vhdkit.__all__ if inspect.isfunction(getattr(vhdkit, name))]
    assert [name for name in functions if f"vhdkit.{name}" not in PROGRAM] == []
