"""Measuring whole processes, in turn, each from the same start.

On a virtual machine the first touch of a page that the host has taken back runs at a tenth of memory speed. So before
each run inputs are restored in place, synced and read once, and memory is touched; and the least of the times is shown
beside the median.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parents[1]
_SPAWN = [sys.executable, "-I", "-S", str(ROOT / "benchmarks" / "spawn.py")]
_SYNCS = ("fsync", "fdatasync", "sync", "syncfs", "msync", "sync_file_range")


class FailedError(RuntimeError):
    """A program that was to be measured failed, or took longer than it may."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a run, and the folder it is run in."""

    command: Sequence[str]
    folder: str
    limit: float = 1800.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one run took: seconds, bytes and calls. `peak` is the most resident memory of any of its processes."""

    seconds: float
    user: float
    system: float
    peak: int
    reads: int
    writes: int
    bytes_read: int
    bytes_written: int


@dataclass(frozen=True, slots=True)
class Figures(Run):
    """Several runs of one contender: medians, and the least time; `syncs` is -1 where it was not counted."""

    name: str
    least: float
    syncs: int
    runs: int
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return them as plain values."""
        return asdict(self)


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # The list of jobs that users have is not for these.
    state = os.path.join(tempfile.gettempdir(), "vhdkit-race-state")
    # Compiled once, as what pip installs is, also where the shell forbids keeping that.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": path, "VHDKIT_STATE": state}


def _spawned(step: Step, before: Sequence[str] = ()) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [*_SPAWN, *before, *step.command],
            cwd=step.folder,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=step.limit,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"failed: not done after {step.limit:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise FailedError(f"failed: {error.stderr.strip()[-200:]}") from error
    taken: dict[str, Any] = json.loads(done.stdout)
    if taken["status"]:
        said = re.search(r"^.*Error\b.*$", done.stderr, re.MULTILINE)
        last = said[0] if said else done.stderr.strip()[-200:]
        raise FailedError(f"failed with exit code {taken['status']}: {last.strip()}")
    return taken


def run(steps: Sequence[Step]) -> Run:
    """Run the steps one after the other and add up what they took.

    Raises:
        FailedError: a step failed.

    """
    taken = [_spawned(step) for step in steps]

    def total(key: str) -> Any:  # noqa: ANN401 - seconds or calls
        return sum(each[key] for each in taken)

    return Run(
        seconds=total("seconds"),
        user=total("user"),
        system=total("system"),
        peak=max(each["peak"] for each in taken),
        reads=total("reads"),
        writes=total("writes"),
        bytes_read=total("bytes-read"),
        bytes_written=total("bytes-written"),
    )


def count_syncs(steps: Sequence[Step]) -> int:
    """Run the steps once more under strace and count the calls that sync; -1 where strace is missing."""
    strace = shutil.which("strace")
    if strace is None:
        return -1
    count = 0
    with tempfile.NamedTemporaryFile("r", suffix=".strace") as log:
        for step in steps:
            _spawned(step, [strace, "-f", "--seccomp-bpf", "-qq", "-o", log.name, "-e", f"trace={','.join(_SYNCS)}"])
            count += len(re.findall(rf"^\d+ +(?:{'|'.join(_SYNCS)})\(", Path(log.name).read_text(), re.MULTILINE))
    return count


def touch_memory(length: int) -> None:
    """Touch so many bytes of free memory, but no more than nine tenths of what is free, and give them back."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not on Linux
        return
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemFree:"))
    length = min(length, free // 10 * 9) // mmap.PAGESIZE * mmap.PAGESIZE
    if not length:
        return
    with mmap.mmap(-1, length) as memory:
        piece = bytes(8 << 20)
        for at in range(0, length, len(piece)):
            memory[at : at + len(piece)] = piece[: length - at]


def figures(name: str, runs: Sequence[Run], *, syncs: int = -1, note: str = "") -> Figures:
    """Return the medians of runs."""

    def median(pick: Callable[[Run], float]) -> float:
        return statistics.median(map(pick, runs))

    return Figures(
        name=name,
        seconds=median(lambda each: each.seconds),
        least=min(each.seconds for each in runs),
        user=median(lambda each: each.user),
        system=median(lambda each: each.system),
        peak=max(each.peak for each in runs),
        reads=int(median(lambda each: each.reads)),
        writes=int(median(lambda each: each.writes)),
        bytes_read=int(median(lambda each: each.bytes_read)),
        bytes_written=int(median(lambda each: each.bytes_written)),
        syncs=syncs,
        runs=len(runs),
        note=note,
    )
