"""A process that runs command lines of vhdkit when told to, to the moment: its imports are done before the race.

It reads a JSON object a line: `folder`, `at` (on the machine's monotonic clock), `arguments` of the program, or `write`
(a file, an offset, and bytes as hexadecimal text). It answers with the exit code and what was said.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import vhdkit
import vhdkit.merging.plan.checks
import vhdkit.merging.rollback
from tests.cli.running import ROOT, environment
from vhdkit.cli.exit_codes import ExitCode
from vhdkit.cli.main import run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Racer:
    """Such a process, seen from the test."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.racer"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, folder: Path, at: float, **task: Any) -> None:
        """Let it do something at a time."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"folder": str(folder), "at": at, **task}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> tuple[int, str]:
        """Wait until it is done; return the exit code, and what it said."""
        assert self._process.stdout is not None
        code, text = json.loads(self._process.stdout.readline())
        return code, text

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=30)


def race(racers: Sequence[Racer], folder: Path, tasks: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """Let each do its task at once; a task's `late` says by how many seconds it begins later than the others."""
    at = time.monotonic() + 0.01
    for racer, task in zip(racers, tasks, strict=True):
        late = float(task.get("late", 0))
        racer.start(folder, at + late, **{key: value for key, value in task.items() if key != "late"})
    return [racer.answer() for racer in racers]


def _write(path: str, offset: int, data: str) -> int:
    try:
        with vhdkit.open_chain(path, writable=True) as chain:
            chain.write(offset, bytes.fromhex(data))
    except vhdkit.ImageInUseError as error:
        sys.stderr.write(str(error))
        return ExitCode.IN_USE
    except (vhdkit.VhdError, OSError) as error:
        sys.stderr.write(str(error))
        return 1
    return 0


def _serve() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        os.chdir(task["folder"])
        said = io.StringIO()
        while time.monotonic() < task["at"]:
            pass
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = _write(*task["write"]) if "write" in task else run(task["arguments"])
        sys.stdout.write(json.dumps([code, said.getvalue()]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
