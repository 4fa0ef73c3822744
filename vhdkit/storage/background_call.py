"""Run a slow system call (fsync, close) on a background thread."""

from __future__ import annotations

import errno
import os
import time
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Aside(Thread):
    """A call that `begin` runs on another thread; where none can be started, it is made at once.

    By a thread, since there is no other way to go on meanwhile: the calls let go of the interpreter. Files and their
    descriptors depend on knowing when such a call is over, so an exception that comes from outside, a Ctrl-C, may come
    at any place here: `join` would take an interrupted wait for the end of the thread.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__(name="vhdkit-aside")
        self._call = call
        self._seconds = 0.0
        self._error: Exception | None = None
        self._is_begun = False
        # Who has it makes the call, or has decided that nobody will.
        self._claim = Lock()
        self._over = Event()

    def begin(self) -> None:
        """Let the call be made."""
        try:
            self.start()
        except RuntimeError:
            self.run()
        self._is_begun = True

    def run(self) -> None:
        """Make the call; it is Thread that asks."""
        if not self._claim.acquire(blocking=False):
            return
        begun = time.monotonic()
        try:
            self._call()
        except Exception as error:  # noqa: BLE001 - whatever it was, `wait` tells: nothing is known to be done
            self._error = error
        finally:
            self._seconds = time.monotonic() - begun
            self._over.set()

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return self._over.is_set()

    def end(self) -> None:
        """Return once the call is over, however it ended; one whose beginning was interrupted is not made any more."""
        if not self._is_begun and self._claim.acquire(blocking=False):
            self._error = OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self._over.set()
        interrupted: BaseException | None = None
        while not self._over.is_set():
            try:
                self._over.wait()
            except BaseException as error:  # noqa: BLE001 - raised below: who asks must not go on while the call does
                interrupted = error
        if interrupted is not None:
            raise interrupted

    def wait(self) -> float:
        """Return, once the call has returned, the seconds that it took; or raise what it raised."""
        if not self._is_begun:
            self.run()
        self.end()
        if self._error is not None:
            raise self._error
        return self._seconds


def end_all(asides: Sequence[Aside]) -> None:
    """Return once all of the calls are over, however often this is interrupted; raise the interruption then."""
    interrupted: BaseException | None = None
    while not all(each.is_done() for each in asides):
        try:
            for each in asides:
                each.end()
        except BaseException as error:  # noqa: BLE001 - raised below: the others are still under way
            interrupted = error
    if interrupted is not None:
        raise interrupted
