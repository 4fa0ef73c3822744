"""The ways of doing something faster than plainly; each can be turned off, to hold it against the plain way.

The environment variable `VHDKIT_WITHOUT` names the fast paths, separated by commas, that this process and those that it
starts do without. It is for tests and measurements: what is written is the same to the byte.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

VARIABLE: Final = "VHDKIT_WITHOUT"


class FastPath(StrEnum):
    """A faster way, whose comment says what is done without it. The module that uses it has its figure."""

    # The disk takes one checkpoint while the next is copied. Without it each is synced before anything else is done.
    OVERLAP = "overlap"
    # Long pieces are copied by the kernel. Without it they go through memory.
    KERNEL_COPY = "kernel-copy"
    # Long pieces are shared, where the file system can. Without it they are copied.
    SHARE = "share"
    # Long pieces are written past the page cache. Without it they go through it.
    DIRECT = "direct"
    # Several of them are under way at once. Without it one is.
    AT_ONCE = "at-once"
    # Many short pieces are copied in one bare loop. Without it each is a copy of its own.
    MANY = "many"
    # Many pieces close together become one write. Without it each is copied alone.
    TOGETHER = "together"
    # A piece far from others is copied file to file. Without it everything goes through the staging buffer.
    ALONE = "alone"
    # The payload is counted from bits, where all sources are alike. Without it runs of sectors are counted.
    COUNTING = "counting"
    # Three layers and more are resolved together, by their bitmaps. Without it they are resolved one over the other.
    STACKED = "stacked"
    # A file that was removed is closed while its directory is synced. Without it that waits.
    CLOSING = "closing"
    # What a merge has read of a file that is removed leaves the page cache before. Without it removing takes longer.
    FORGETTING = "forgetting"


_off: set[str] = {name for name in os.environ.get(VARIABLE, "").split(",") if name}


def is_used(path: FastPath) -> bool:
    """Whether this process takes a fast path where it can."""
    return path not in _off


def turn_off(paths: Iterable[FastPath]) -> None:
    """Do without some fast paths from now on, in this process and in those that it starts."""
    _off.update(paths)
    os.environ[VARIABLE] = ",".join(sorted(_off))


@contextmanager
def without(*paths: FastPath) -> Iterator[None]:
    """Do without some fast paths in a block, in this process alone."""
    before = {*_off}
    _off.update(paths)
    try:
        yield
    finally:
        _off.clear()
        _off.update(before)
