"""Calls of the system that take their time, made while this thread goes on."""

from __future__ import annotations

import time
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Aside(Thread):
    """A call that is under way; where no thread is to be had, it is made at once.

    By a thread, since there is no other way to go on meanwhile: the calls let go of the interpreter.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__(name="vhdkit-aside")
        self._call = call
        self._seconds = 0.0
        self._error: Exception | None = None
        try:
            self.start()
        except RuntimeError:
            self.run()

    def run(self) -> None:
        """Make the call; it is Thread that asks."""
        begun = time.monotonic()
        try:
            self._call()
        except Exception as error:  # noqa: BLE001 - whatever it was, `wait` tells: nothing is known to be done
            self._error = error
        self._seconds = time.monotonic() - begun

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return not self.is_alive()

    def end(self) -> None:
        """Return once the call has returned, however it ended."""
        if self.ident is None:
            return
        try:
            self.join()
        except BaseException:
            # A Ctrl-C: whoever asked must not go on while the call does.
            self.join()
            raise

    def wait(self) -> float:
        """Return, once the call has returned, the seconds that it took; or raise what it raised."""
        self.end()
        if self._error is not None:
            raise self._error
        return self._seconds
