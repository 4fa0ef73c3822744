"""Processes of this machine as an executor. Each is on its own: one that dies takes its one task with it.

The pool of `concurrent.futures` gives up all of its processes when one dies, and with them every merge that runs. Here
the dead process's task fails with `BrokenProcessPool`, another process takes its place, and the others go on. Nothing
is shared between processes, neither a queue nor a lock, so that none can die while it holds one: each has a pipe.

A process whose client is gone reads the end of its pipe: it stops its task where that is safe, and ends.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from vhdkit.findings import hints_as, words_of_hints
from vhdkit.fleet.channel import set_channel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from types import TracebackType

    from vhdkit.findings import Hint
    from vhdkit.progress import Progress

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
# Seconds that a process may take to end after it was asked to; it ends as soon as its task has.
_END_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Told:
    """How far a task is."""

    number: int
    state: Progress


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a call has returned or raised."""

    result: Any = None
    error: Exception | None = None


class ProcessPool(Executor):
    """An executor of `count` processes; `progress` gets what their tasks report, with the task's number.

    Leaving its `with` block waits for the tasks that were submitted. Like all processes that Python spawns, these load
    the program's main module: a script that uses the pool begins under `if __name__ == "__main__":`.
    """

    def __init__(self, count: int, *, progress: Callable[[int, Progress], None] | None = None) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="vhdkit-fleet")
        self._idle: SimpleQueue[_Process | None] = SimpleQueue()
        for _ in range(count):
            self._idle.put(None)
        self._alive: set[_Process] = set()
        self._guard = threading.Lock()
        self.progress = progress
        self._is_cancelled = False

    def submit(
        self, fn: Callable[_Parameters, _Result], /, *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> Future[_Result]:
        """Have a call made in one of the processes."""
        return self._threads.submit(self._run, partial(fn, *args, **kwargs))

    def cancel_running(self) -> None:
        """Ask the tasks that run to stop where that is safe; those that were not begun are stopped as they begin."""
        with self._guard:
            self._is_cancelled = True
            for process in self._alive:
                process.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end the processes when those that were submitted are done."""
        self._threads.shutdown(wait=True, cancel_futures=cancel_futures)
        with self._guard:
            alive, self._alive = self._alive, set()
        for process in alive:
            process.hang_up()
        if wait:
            for process in alive:
                process.end()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Shut down; a second interrupt ends the processes where they are, which is as safe a cut as any."""
        if kind is not None and not issubclass(kind, Exception):
            self._threads.shutdown(wait=False, cancel_futures=True)
            with self._guard:
                for process in self._alive:
                    process.kill()
        self.shutdown()

    def _run(self, call: Callable[[], _Result]) -> _Result:
        process = self._idle.get()
        try:
            if process is None:
                process = self._start()
            answer = process.ask(call, self._note)
        except (EOFError, OSError) as error:
            if process is None:
                raise
            with self._guard:
                self._alive.discard(process)
            code, process = process.end(), None
            raise BrokenProcessPool(f"the worker process ended with exit code {code}") from error
        finally:
            self._idle.put(process)
        if answer.error is not None:
            raise answer.error
        result: _Result = answer.result
        return result

    def _note(self, number: int, state: Progress) -> None:
        if self.progress is not None:
            self.progress(number, state)

    def _start(self) -> _Process:
        process = _Process()
        with self._guard:
            self._alive.add(process)
            if self._is_cancelled:
                process.cancel()
        return process


class _Process:
    """One process and the pipe to it, as the client sees them."""

    def __init__(self) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        # A daemon: should this process end without saying goodbye, it is terminated, and its merge can be resumed.
        self._process = spawning.Process(
            target=work_for, args=(theirs, words_of_hints()), daemon=True, name="vhdkit-fleet"
        )
        with _interrupts_blocked():
            self._process.start()
        theirs.close()
        self._sending = threading.Lock()

    def ask(self, call: Callable[[], object], progress: Callable[[int, Progress], None]) -> _Answer:
        """Have a call made, and return how it has ended.

        Raises:
            EOFError, OSError: the process has died.

        """
        self._send(call)
        while True:
            match self._pipe.recv():
                case _Told(number, state):
                    progress(number, state)
                case answer:
                    found: _Answer = answer
                    return found

    def cancel(self) -> None:
        """Ask the process to stop what it does, now and ever after."""
        try:
            self._send(None)
        except OSError:
            # It has died; the thread that waits for its answer gets the error.
            return

    def kill(self) -> None:
        """End the process at once, also one that has been stopped."""
        self._process.kill()

    def hang_up(self) -> None:
        """Let the process end when it is idle."""
        self._pipe.close()

    def end(self) -> int | None:
        """Wait for the process to end, and return its exit code; one that does not end is killed."""
        self._process.join(_END_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        code = self._process.exitcode
        self._pipe.close()
        self._process.close()
        return code

    def _send(self, call: Callable[[], object] | None) -> None:
        with self._sending:
            self._pipe.send(call)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Let a process that is started begin with SIGINT blocked: a Ctrl-C while it loads would be a traceback.

    This is the thread of a pool, which gets no signals; Windows has no masks.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker  # noqa: PLC0415 - where there are masks

    # Were it started with the process, it would lift the block before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work_for(pipe: Connection, words: Callable[[Hint], str]) -> None:
    """Make the calls that come through a pipe, one after another, until it ends: the main function of a process.

    `words` writes the hints of what goes wrong, as the client does.
    """
    # A Ctrl-C at the terminal reaches every process of the client; the client decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    with hints_as(words):
        _work(pipe)


def _work(pipe: Connection) -> None:
    calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
    channel = _PipeChannel(pipe)
    set_channel(channel)
    threading.Thread(target=_listen, args=(pipe, calls, channel.cancel), daemon=True).start()
    while (call := calls.get()) is not None:
        if not channel.send(_answer_of(call)):
            return


def _listen(pipe: Connection, calls: SimpleQueue[Callable[[], object] | None], cancel: threading.Event) -> None:
    """Queue the calls that come, and set the event when the client says so, or is gone."""
    try:
        while True:
            call = pipe.recv()
            if call is None:
                cancel.set()
            else:
                calls.put(call)
    except (EOFError, OSError):
        cancel.set()
        calls.put(None)


def _answer_of(call: Callable[[], object]) -> _Answer:
    try:
        return _Answer(result=call())
    except Exception as error:  # noqa: BLE001 - whatever it is, the client is to have it
        return _Answer(error=error)


class _PipeChannel:
    """The channel of a worker process: reports go into its pipe."""

    def __init__(self, pipe: Connection) -> None:
        self.cancel = threading.Event()
        self._pipe = pipe
        # A task may report from threads of its own.
        self._sending = threading.Lock()

    def report(self, number: int, state: Progress) -> None:
        """Say how far a task is."""
        self.send(_Told(number, state))

    def send(self, message: _Told | _Answer) -> bool:
        """Send a message; return whether the client is still there."""
        with self._sending:
            try:
                self._pipe.send(message)
            except OSError:
                self.cancel.set()
                return False
            except Exception as error:  # noqa: BLE001 - what cannot be pickled raises anything
                self._pipe.send(_Answer(error=RuntimeError(f"what the task has returned cannot be sent: {error}")))
        return True
