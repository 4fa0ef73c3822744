"""Drop the page cache of source files that are about to be deleted.

What a merge reads of them stays in the page cache until they are deleted. For one file of 6 GiB that took 0.44 s of a
merge of a second. Dropped by another thread while the merge goes on, nothing waits for it, and other files stay cached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.storage.fast_paths import FastPath, is_used

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vhdkit.disk.image import Image

# Ten files of 600 MiB are let go of at once when they are removed: done earlier, block by block, it only took the
# processor from the merge. So it begins with this much of one file; it is also what is left for the end.
_ENOUGH_BYTES = 256 << 20
# Of smaller blocks there are too many to be remembered one by one, of a thousand sources.
_LEAST_BLOCK = 512 << 10


class CacheDropper:
    """What of each of the sources is behind a merge that goes over the disk once, from the offset `mark` on."""

    def __init__(self, sources: Sequence[Image], mark: int = 0) -> None:
        large = [source for source in sources if source.block_size >= _LEAST_BLOCK]
        self._sources = [_Behind(source, mark) for source in large if is_used(FastPath.FORGETTING)]

    def passed(self, stop: int) -> None:
        """Note that the merge needs nothing before the disk's offset `stop` any more."""
        for source in self._sources:
            source.passed(stop)


class _Behind:
    def __init__(self, image: Image, mark: int) -> None:
        self._image = image
        self._done = mark // image.block_size * image.block_size
        self._found: list[NDArray[np.int64]] = []
        self._size = 0

    def passed(self, stop: int) -> None:
        # Of a block that the offset cuts the bits are needed once more.
        whole = stop // self._image.block_size * self._image.block_size
        if whole <= self._done:
            return
        at, span = self._image.block_places(self._done, whole)
        self._done = whole
        self._found.append(at)
        self._size += len(at) * span
        if self._size >= _ENOUGH_BYTES:
            self._forget(np.sort(np.concatenate(self._found)), span)
            self._found, self._size = [], 0

    def _forget(self, at: NDArray[np.int64], span: int) -> None:
        # What lies between two blocks and is shorter than a block is padding.
        for run in np.split(at, np.flatnonzero(np.diff(at) >= 2 * span) + 1):
            self._image.storage.forget(int(run[0]), int(run[-1] - run[0]) + span)
