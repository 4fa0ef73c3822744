"""Which mebibytes of a VHDX belong to what: everything in the format lies at multiples of one.

A byte for each MiB of the file shows overlaps, and space that nothing refers to.

**Source**: docs/reference/vhdx.md 1.1, 4, 5 rows 61, 63, 68.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from vhdkit.disk.file_check import Leaks
from vhdkit.units import MiB, ceil_div

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# qemu leaves this many unused before its first block.
_MOST_UNUSED_BEFORE: Final = 4


class Owner(IntEnum):
    """What a mebibyte belongs to."""

    NOTHING = 0
    STRUCTURE = 1
    BLOCK = 2
    BITMAP = 3
    KEPT = 4

    @property
    def named(self) -> str:
        """What it is, in words."""
        return _NAMES[self]


_NAMES = {
    Owner.NOTHING: "nothing",
    Owner.STRUCTURE: "the headers, the log or a region",
    Owner.BLOCK: "another block",
    Owner.BITMAP: "a bitmap block",
    Owner.KEPT: "the kept place of another block",
}


class FileMap:
    """The mebibytes of a file of `size` bytes; `structures` are stretches [start, stop) in bytes."""

    def __init__(self, size: int, structures: Sequence[tuple[int, int]]) -> None:
        self.count = ceil_div(size, MiB)
        self._whole = size // MiB
        self._owners = np.zeros(self.count, np.uint8)
        self._owners[:1] = Owner.STRUCTURE
        for start, stop in structures:
            self._owners[start // MiB : stop // MiB] = Owner.STRUCTURE

    def take(self, at: NDArray[np.int64], span: int, owner: Owner) -> NDArray[np.uint8]:
        """Give things of `span` MiB each their places, and return what each of them lies on: `Owner` as uint8.

        `at` are the first mebibytes, all inside the file. Of two things in one place the later one is reported.
        """
        clash = self.clashes(at, span, owner)
        for step in range(span):
            here = at + step
            self._owners[here[here < self.count]] = owner
        return clash

    def clashes(self, at: NDArray[np.int64], span: int, owner: Owner) -> NDArray[np.uint8]:
        """Return the same, and leave all places to whom they belong."""
        clash = np.zeros(len(at), np.uint8)
        order = np.argsort(at, kind="stable")
        clash[order[1:][np.diff(at[order]) < span]] = owner
        for step in range(span):
            here = at + step
            inside = here < self.count
            clash[inside] = np.maximum(clash[inside], self._owners[here[inside]])
        return clash

    def is_free(self, at: int) -> bool:
        """Whether a mebibyte belongs to nothing."""
        return at < self.count and not self._owners[at]

    def leaks(self, reserved: int) -> tuple[Leaks, int]:
        """Return the space that nothing refers to, and where it begins (in bytes).

        `reserved` mebibytes of it are not counted as lost, nor are the few that some makers leave before
        the first block.
        """
        free = self._owners[: self._whole] == Owner.NOTHING
        held = np.flatnonzero(self._owners > Owner.STRUCTURE)
        first = int(held[0]) if len(held) else self._whole
        free[np.flatnonzero(free[:first])[:_MOST_UNUSED_BEFORE]] = False
        lost = np.flatnonzero(free)
        if len(lost) <= reserved:
            return Leaks(), 0
        stretches = 1 + int(np.count_nonzero(np.diff(lost) > 1))
        return Leaks(stretches=stretches, size=(len(lost) - reserved) * MiB), int(lost[0]) * MiB
