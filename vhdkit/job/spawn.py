"""A job in a process of its own: starting it, and working at what it was given.

The process runs the module `PROGRAM`, the root of background work, which knows what follows a job; nothing here
imports it. Its task arrives as JSON on stdin and is decoded strictly, as a row of the registry is.
"""

from __future__ import annotations

import base64
import json
import pickle
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from vhdkit.errors import JobError
from vhdkit.job import events
from vhdkit.job.registry import Registry, RegistryError
from vhdkit.job.registry_row import decode_job, encode_job, parse_once
from vhdkit.job.worker import Worker
from vhdkit.storage.process import birth_of, environment_with_modules

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from types import FrameType

    from vhdkit.job.job import Job
    from vhdkit.merging.plan.plan import MergePlan

PROGRAM = "vhdkit.background"
# What asks a job's process to end; Windows has no SIGHUP.
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class _Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a process is started for: a row of the registry, the directory where that lies, and a pickled plan."""

    row: str
    state: str
    plan: bytes | None = None


def spawn(job: Job, registry: Registry, plan: MergePlan | None = None) -> subprocess.Popen[bytes]:
    """Start a process that works at a job and outlives this one."""
    import subprocess  # noqa: PLC0415 - a merge in the foreground has no use for it

    with _signals_held():
        process = subprocess.Popen(  # noqa: S603 - this Python, and a module of our own
            # Its modules are found where this process finds them, and never in the folder that it happens to stand in.
            [sys.executable, "-P", "-m", PROGRAM],
            env=environment_with_modules(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # Windows has no sessions: there it is detached from the console instead.
            creationflags=getattr(subprocess, "DETACHED_PROCESS", 0)
            | getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    # From now on it is that process which must live, even if it has not said a word yet.
    with suppress(RegistryError):
        # Another process may have asked something of it already.
        registry.replace(job, replace(job, pid=process.pid, born=birth_of(process.pid)), clear_request=False)
    if process.stdin is not None:
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(task_of(job, registry.directory, plan))
    # When it ends it must be waited for, or it stays in the system's list of processes, whether or not a caller does.
    threading.Thread(target=process.wait, name=f"vhdkit-job-{job.id[:8]}", daemon=True).start()
    return process


def task_of(job: Job, state: str, plan: MergePlan | None = None) -> bytes:
    """Return the task of a process that is to work at a job; `plan` is its plan, if there is one."""
    packed = None if plan is None else base64.b64encode(pickle.dumps(plan)).decode()
    return json.dumps({"row": encode_job(job), "state": state, "plan": packed}).encode()


def work_at(task: bytes) -> Job:
    """Work at a job in this process, which was made for it; return the job as it has ended.

    Raises:
        JobError: this is no task.

    """
    try:
        given = msgspec.convert(parse_once(task), _Task)
        job = decode_job(given.row)
    except ValueError as error:
        raise JobError(f"it is no task of a background job: {error}") from error
    ended = _Ended()
    # The parent process, which is this user's own, has packed it: no other process can write to its pipe.
    plan = None if given.plan is None else pickle.loads(given.plan)  # noqa: S301
    worker = Worker(job, Registry(given.state), cancel=ended, plan=plan)
    with ended.listening():
        work(worker)
    return worker.job


def work(worker: Worker) -> None:
    """Work at a job; what went wrong is kept with it."""
    with events.logged(worker.job), suppress(Exception), worker:
        worker.run()


class _Ended:
    """Whether this process was asked to end: a `Cancel` that takes no lock.

    A signal comes between any two steps of the thread that merges. If that is just setting an event, whose lock it
    holds, setting one again would wait for it for good.
    """

    def __init__(self) -> None:
        self._is_so = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self._is_so = True

    def is_set(self) -> bool:
        return self._is_so

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take note of the signals that ask this process to end, also of those that came before it could listen."""
        # Where `nohup` had them ignored they stay so.
        before = {number: signal.getsignal(number) for number in _ENDING}
        heard = [number for number in _ENDING if before[number] is not signal.SIG_IGN]
        for number in heard:
            signal.signal(number, self)
        _unblock()
        try:
            yield
        finally:
            for number in heard:
                signal.signal(number, before[number])


@contextmanager
def _signals_held() -> Iterator[None]:
    """Have a process that is started inside begin with the signals held that ask it to end.

    It takes a second on a busy machine to load its modules. A signal that comes before it listens would kill it, and
    it would end as failed though it was cancelled; held, it is delivered once `_Ended` listens.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unblock() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
