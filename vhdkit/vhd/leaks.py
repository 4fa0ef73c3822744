"""Space in a file that nothing refers to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.corruption import Corruption
from vhdkit.disk.file_check import Leaks
from vhdkit.findings import Level

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vhdkit.disk.file_check import Tally
    from vhdkit.vhd.check_blocks import Shape

# Makers align blocks, tables and the footer to this; gaps below it are no loss (docs/reference/vhd.md 1.12).
PAGE = 4096


class Gaps:
    """What lies between the things that a file refers to, told as one walks over it in file order.

    Before the first block up to a block's span is nobody's loss: some makers leave room there for tables of their own.
    """

    def __init__(self, shape: Shape, first_block: int) -> None:
        self.limit = shape.footer_at
        self.first_block = min(first_block, shape.footer_at)
        # Blocks smaller than a page are not aligned to one.
        self.least = PAGE if shape.block_size >= PAGE else shape.span
        self.least_before = max(self.least, shape.span)
        self.fixed = sorted(shape.structures + shape.rooms)
        self.reach = self.stretches = self.size = 0
        self.first = -1

    def pass_over(self, start: NDArray[np.int64], stop: NDArray[np.int64]) -> None:
        """Go over blocks, ascending, and over whatever lies between them."""
        between = [item for item in self.fixed if item[0] <= int(start[-1])]
        self.fixed = self.fixed[len(between) :]
        if between:
            start = np.concatenate((start, np.array([item[0] for item in between], np.int64)))
            stop = np.concatenate((stop, np.array([item[1] for item in between], np.int64)))
            order = np.argsort(start, kind="stable")
            start, stop = start[order], stop[order]
        reach = np.maximum.accumulate(np.concatenate(([self.reach], stop)))
        low, high = np.minimum(reach[:-1], self.limit), np.minimum(start, self.limit)
        least = np.where(high <= self.first_block, self.least_before, self.least)
        lost = np.flatnonzero(high - low >= least)
        if len(lost):
            self.first = int(low[lost[0]]) if self.first < 0 else self.first
            self.stretches += len(lost)
            self.size += int((high - low)[lost].sum())
        self.reach = int(reach[-1])

    def finish(self, tally: Tally) -> Leaks:
        """Go over what is left before the footer, and tell what was lost."""
        end = np.array([self.limit], np.int64)
        self.fixed = [item for item in self.fixed if item[0] <= self.limit]
        self.pass_over(end, end)
        if self.stretches:
            message = f"{self.size} bytes in {self.stretches} stretches belong to nothing, the first at {self.first:#x}"
            tally.add(Corruption.LEAKED_SPACE, Level.INFO, message, self.first)
        return Leaks(stretches=self.stretches, size=self.size)
