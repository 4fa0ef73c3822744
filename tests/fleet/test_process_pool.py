from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import environment
from tests.fleet.pool_tasks import HALF, die, fail, hang, hint_text, process_id, report_and_wait, unpicklable
from tests.jobs.making import until
from vhdkit.command_hints import command_words
from vhdkit.findings import hints_as
from vhdkit.fleet.process_pool import ProcessPool
from vhdkit.storage.process import birth_of

if TYPE_CHECKING:
    from vhdkit.progress import Progress


def test_a_process_that_dies_takes_its_own_task_alone_and_is_replaced(tmp_path: Path) -> None:
    waiting = str(tmp_path / "waiting")
    with ProcessPool(2) as pool:
        other = pool.submit(report_and_wait, 0, waiting)
        until(Path(waiting).exists)
        with pytest.raises(BrokenProcessPool, match="exit code -9"):
            pool.submit(die).result()
        assert pool.submit(process_id).result() not in {os.getpid(), int(Path(waiting).read_text())}
        assert not other.done()
        pool.cancel_running()
        assert other.result() == "stopped"


def test_errors_come_back_as_they_are_and_end_no_process() -> None:
    with ProcessPool(1) as pool:
        first = pool.submit(process_id).result()
        with pytest.raises(LookupError, match="what it was"):
            pool.submit(fail, "what it was").result()
        with pytest.raises(RuntimeError, match="cannot be sent"):
            pool.submit(unpicklable).result()
        assert pool.submit(process_id).result() == first


def test_hints_read_there_as_here() -> None:
    with hints_as(command_words(["fleet", "check"])), ProcessPool(1) as pool:
        assert pool.submit(hint_text).result() == "`vhdkit check 'a b.vhd'`"


def test_tasks_report_and_are_stopped_also_those_that_begin_later(tmp_path: Path) -> None:
    reports: SimpleQueue[tuple[int, Progress]] = SimpleQueue()
    with ProcessPool(1, progress=lambda number, state: reports.put((number, state))) as pool:
        running = pool.submit(report_and_wait, 7, str(tmp_path / "running"))
        assert reports.get(timeout=60) == (7, HALF)
        waiting = pool.submit(report_and_wait, 8, str(tmp_path / "waiting"))
        pool.cancel_running()
        assert (running.result(), waiting.result()) == ("stopped", "stopped")


def interrupt_once(path: Path) -> None:
    with suppress(KeyboardInterrupt), ProcessPool(1) as pool:
        pool.submit(hang, str(path))
        until(path.exists)
        raise KeyboardInterrupt


def test_an_interrupt_ends_also_a_process_that_hangs(tmp_path: Path) -> None:
    ending = threading.Thread(target=interrupt_once, args=(tmp_path / "hangs",), daemon=True)
    ending.start()
    until(lambda: not ending.is_alive())


def test_a_process_whose_client_was_killed_stops_its_task_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "task"
    command = [sys.executable, "-m", "tests.fleet.pool_tasks", str(path)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL) as client:
        until(lambda: path.exists() and path.read_text())
        worker = int(path.read_text())
        assert birth_of(worker)
        client.send_signal(signal.SIGKILL)
    until(Path(f"{path}.stopped").exists)
    until(lambda: not birth_of(worker))
