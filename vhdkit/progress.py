"""How far a verb that takes long is, how it is slowed down, and how it is asked to stop.

It can be stopped between any two writes: by a Ctrl-C, by an event, or by the progress function, which may raise
`Cancelled`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from vhdkit.errors import Cancelled, MergeCancelled

if TYPE_CHECKING:
    from collections.abc import Callable

# However slow the rate, being asked to stop is noticed this soon.
_NAP = 0.1
# A pause (a sync, SIGSTOP, a verification) is made up for by going faster for so long at most, in seconds.
_CREDIT = 0.5


class Phase(StrEnum):
    """What a verb is doing."""

    RESERVING = "reserving"
    COPYING = "copying"
    COMPARING = "comparing"
    HASHING = "hashing"
    VERIFYING = "verifying"
    FINISHING = "finishing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a verb is, in bytes: of a merge's payload, or of the disk that is converted, compared or hashed."""

    phase: Phase
    bytes_done: int
    bytes_total: int


class Cancel(Protocol):
    """What says that a verb should stop: `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether to stop."""
        ...


class Clock(Protocol):
    """A clock and its way of waiting, in seconds: the module `time` is one."""

    def monotonic(self) -> float:
        """Return the time since some moment."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Wait."""
        ...


class RateLimit:
    """The most bytes a second, None for no bound; it may be changed from any thread while a verb keeps to it."""

    def __init__(self, rate: int | None) -> None:
        if rate is not None and rate <= 0:
            raise ValueError(f"the rate is {rate}: expected bytes a second, more than none")
        self.rate = rate


class Reporter:
    """Turn the steps of a verb into the caller's progress, no faster than `rate` bytes a second.

    `cancelled` is raised when `cancel` is set: without it, that the merge was cancelled.
    """

    def __init__(
        self,
        total: int,
        done: int,
        progress: Callable[[Progress], None] | None,
        cancel: Cancel | None,
        rate: RateLimit | int | None = None,
        clock: Clock = time,
        *,
        cancelled: Cancelled | None = None,
    ) -> None:
        self._limit = rate if isinstance(rate, RateLimit) else RateLimit(rate)
        self.total = total
        self.done = done
        self._progress = progress
        self._cancel = cancel
        self._rate = self._limit.rate
        self._cancelled = cancelled
        self.clock = clock
        self._begun = clock.monotonic()
        self._since = 0

    def report(self, phase: Phase) -> None:
        """Call the caller's function."""
        if self._progress is not None:
            self._progress(Progress(phase=phase, bytes_done=self.done, bytes_total=self.total))

    def add(self, count: int) -> None:
        """Count bytes that were written, and wait if that was too fast.

        Raises:
            Cancelled: it should stop.

        """
        self.done = min(self.total, self.done + count)
        self.report(Phase.COPYING)
        self.throttle(count)

    def reach(self, done: int, phase: Phase = Phase.COPYING) -> None:
        """Report that a number of bytes are done.

        Raises:
            Cancelled: it should stop.

        """
        self.done = done
        self.report(phase)
        self.check()

    def throttle(self, count: int) -> None:
        """Wait if writing so many bytes, which need not be payload, was too fast.

        Raises:
            Cancelled: it should stop.

        """
        self._since += count
        self.check()
        if self._rate is not None:
            self._begun = max(self._begun, self.clock.monotonic() - self._since / self._rate - _CREDIT)
        while (rate := self._limit.rate) is not None:
            if rate != self._rate:
                # What was written at another rate is neither made up for nor waited for.
                self._begun, self._since, self._rate = self.clock.monotonic(), count, rate
            ahead = self._since / rate - (self.clock.monotonic() - self._begun)
            if ahead <= 0:
                break
            self.clock.sleep(min(ahead, _NAP))
            self.check()
        self._rate = self._limit.rate

    def check(self) -> None:
        """Stop if that was asked for.

        Raises:
            Cancelled: it was.

        """
        if self._cancel is not None and self._cancel.is_set():
            raise self._cancelled or MergeCancelled("the merge was cancelled")
