"""How a merge tells how far it is, how it is slowed down, and how it is asked to stop.

It can be stopped between any two writes: a Ctrl-C, an event, or the progress function raising `MergeCancelled`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from vhdkit.errors import MergeCancelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.journal.merge_journal import JournalWriter
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.storage.protocols import Storage

# However slow the rate, being asked to stop is noticed this soon.
_NAP = 0.1
# A pause (a sync, SIGSTOP, a verification) is made up for by going faster for so long at most, in seconds.
_CREDIT = 0.5

# At most so many marks by bytes in a merge, and one in so many seconds besides.
_MARKS = 4096
_MARK_SECONDS = 30


class Phase(StrEnum):
    """What a merge is doing."""

    RESERVING = "reserving"
    COPYING = "copying"
    VERIFYING = "verifying"
    FINISHING = "finishing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a merge is: bytes of payload done and in all."""

    phase: Phase
    bytes_done: int
    bytes_total: int


class Cancel(Protocol):
    """What says that a merge should stop: `threading.Event` is one."""

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


class Pace:
    """Turns the engine's steps into the caller's progress, no faster than `rate` bytes a second."""

    def __init__(
        self,
        total: int,
        done: int,
        progress: Callable[[Progress], None] | None,
        cancel: Cancel | None,
        rate: int | None,
        clock: Clock = time,
    ) -> None:
        if rate is not None and rate <= 0:
            raise ValueError(f"the rate is {rate}: expected bytes a second, more than none")
        self.total = total
        self.done = done
        self._progress = progress
        self._cancel = cancel
        self._rate = rate
        self.clock = clock
        self._begun = clock.monotonic()
        self._since = 0

    def say(self, phase: Phase) -> None:
        """Tell the caller."""
        if self._progress is not None:
            self._progress(Progress(phase=phase, bytes_done=self.done, bytes_total=self.total))

    def add(self, count: int) -> None:
        """Count bytes that were written, and wait if that was too fast.

        Raises:
            MergeCancelled: it should stop.

        """
        self.done = min(self.total, self.done + count)
        self.say(Phase.COPYING)
        self.slow(count)

    def slow(self, count: int) -> None:
        """Wait if writing so many bytes, which need not be payload, was too fast.

        Raises:
            MergeCancelled: it should stop.

        """
        self._since += count
        self.check()
        if self._rate is not None:
            self._begun = max(self._begun, self.clock.monotonic() - self._since / self._rate - _CREDIT)
        while self._rate is not None:
            ahead = self._since / self._rate - (self.clock.monotonic() - self._begun)
            if ahead <= 0:
                break
            self.clock.sleep(min(ahead, _NAP))
            self.check()

    def check(self) -> None:
        """Stop if that was asked for.

        Raises:
            MergeCancelled: it was.

        """
        if self._cancel is not None and self._cancel.is_set():
            raise MergeCancelled("the merge was cancelled")


class Marks:
    """Writes the journal's mark, not after every checkpoint: the marks of a merge of terabytes must not fill a disk."""

    def __init__(self, plan: MergePlan, writer: JournalWriter, destination: Storage) -> None:
        self.writer = writer
        self.destination = destination
        self.before = self.last = plan.bytes_done
        self.step = plan.payload_bytes // _MARKS
        self.time = time.monotonic()

    def durable(self, stop: int, size: int) -> None:
        """Take note that the disk is durable up to `stop`, after `size` bytes of this run."""
        done, now = self.before + size, time.monotonic()
        if done - self.last >= self.step or now - self.time >= _MARK_SECONDS:
            self.writer.write("mark", offset=stop, bytes=done, mtime=self.destination.mtime)
            self.last, self.time = done, now
