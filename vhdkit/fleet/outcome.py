"""How it went with one chain."""

from __future__ import annotations

from enum import StrEnum


class ChainOutcome(StrEnum):
    """How a chain's task has ended.

    DONE: as asked · RESUMED: an earlier run's merge was finished · WAS_DONE: an earlier run had done it ·
    WAITS_FOR_DROP: it is done, and an undo image is kept for taking it back · CLEAN, LEAKS, CORRUPT, NOT_CHECKED: what
    a check found · FAILED · IN_USE: another program holds a file, try later · CANCELLED:
    stopped as asked, and goes on when asked for again · NOT_BEGUN: the run ended before.
    """

    DONE = "done"
    RESUMED = "resumed"
    WAS_DONE = "was-done"
    WAITS_FOR_DROP = "waits-for-drop"
    CLEAN = "clean"
    LEAKS = "leaks"
    CORRUPT = "corrupt"
    NOT_CHECKED = "not-checked"
    FAILED = "failed"
    IN_USE = "in-use"
    CANCELLED = "cancelled"
    NOT_BEGUN = "not-begun"

    @property
    def is_good(self) -> bool:
        """Whether nothing is left to be done or looked at."""
        return self in _GOOD


_GOOD = {
    ChainOutcome.DONE,
    ChainOutcome.RESUMED,
    ChainOutcome.WAS_DONE,
    ChainOutcome.WAITS_FOR_DROP,
    ChainOutcome.CLEAN,
}
