"""How a task that runs says how far it is, and learns that it should stop: what its worker has set up, if anything."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vhdkit.progress import Cancel, Progress

# A screen is drawn a few times a second; more would only cost the worker.
_REPORT_SECONDS = 0.25


class Channel(Protocol):
    """The way from a task to its client."""

    @property
    def cancel(self) -> Cancel:
        """What says that the task should stop."""
        ...

    def report(self, number: int, state: Progress) -> None:
        """Say how far the task of a number is."""
        ...


class NoChannel:
    """The channel of a worker that has none: an executor of another library's."""

    cancel: Cancel = threading.Event()

    def report(self, number: int, state: Progress) -> None:
        """Say nothing."""


_NONE = NoChannel()
_channel: ContextVar[Channel | None] = ContextVar("channel", default=None)


def set_channel(channel: Channel) -> None:
    """Let the tasks that this thread does use a channel from now on."""
    _channel.set(channel)


class TaskReporter:
    """The progress function of one task: a new phase is reported at once, and else a few reports a second."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._channel = _channel.get() or _NONE
        self._last = -1.0
        self._phase = ""

    @property
    def cancel(self) -> Cancel:
        """What says that the task should stop."""
        return self._channel.cancel

    def __call__(self, state: Progress) -> None:
        """Report how far the task is."""
        now = time.monotonic()
        if state.phase != self._phase or now - self._last >= _REPORT_SECONDS:
            self._phase, self._last = state.phase, now
            self._channel.report(self._number, state)
