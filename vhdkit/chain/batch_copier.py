"""Copy stretches of layers and bytes from memory into a new file, in batches, one written while the next is planned.

A batch goes from file to file, as the storage can do best (see `storage.file_copy`), and takes no memory: the page
cache keeps no second copy of it, and the last sync finds little to write. What is written from memory over parts of it
waits until it is copied.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np

from vhdkit.disk import extents
from vhdkit.storage.background_call import Aside

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from vhdkit.disk.extents import Extents
    from vhdkit.disk.image import Image
    from vhdkit.storage.protocols import Storage, Syncing

# Several threads write the parts of a batch.
_BATCH_BYTES = 32 << 20
# Bytes from memory that a batch may keep.
_KEPT_BYTES = 8 << 20
# Bytes written from memory after which a sync is begun, while the copy goes on.
_SYNC_BYTES = 64 << 20


class _Batch:
    """What is copied from file to file, and what is then written from memory."""

    def __init__(self) -> None:
        self.copies: list[tuple[Extents, NDArray[np.int64]]] = []
        self.copied_bytes = 0
        self.writes: list[tuple[int, bytes]] = []
        self.kept_bytes = 0


class BatchCopier:
    """A copy into one file; one batch is written at a time, and nothing else then. It is a context manager.

    However the block ends, nothing is written any more by then.
    """

    def __init__(self, layers: Sequence[Image], storage: Storage) -> None:
        self._layers, self._storage = layers, storage
        self._batch = _Batch()
        self._copying: Aside | None = None
        self._syncing: Syncing | None = None
        self._written = 0
        self._length = storage.size()

    def __enter__(self) -> Self:
        """Return the copier."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Return once nothing is written any more."""
        if self._copying is not None:
            self._copying.end()

    def add(
        self, copies: Extents, offsets: NDArray[np.int64], writes: Sequence[tuple[int, memoryview]], end: int
    ) -> None:
        """Copy stretches to file offsets (int64), then write bytes at theirs; `end` is the file's length by then.

        The bytes may change once this returns.

        Raises:
            OSError: of what was added earlier.

        """
        batch = self._batch
        if len(copies):
            batch.copies.append((copies, offsets))
            batch.copied_bytes += copies.total
        if batch.copies or self._is_copying():
            batch.writes += [(offset, bytes(data)) for offset, data in writes]
            batch.kept_bytes += sum(len(data) for _, data in writes)
            if batch.copied_bytes >= _BATCH_BYTES or batch.kept_bytes >= _KEPT_BYTES:
                self._hand_over(end)
        else:
            self._write(batch.writes)
            self._write(writes)
            batch.writes.clear()
            batch.kept_bytes = 0

    def finish(self, end: int) -> None:
        """Return when everything is copied; raise the error of a sync that was begun."""
        self._hand_over(end)
        self._wait_for_copy()
        self._wait_for_sync()

    def _is_copying(self) -> bool:
        if self._copying is not None and self._copying.is_done():
            self._wait_for_copy()
        return self._copying is not None

    def _hand_over(self, end: int) -> None:
        self._wait_for_copy()
        batch, self._batch = self._batch, _Batch()
        self._copying = Aside(partial(self._run, batch, end))
        self._copying.begin()

    def _wait_for_copy(self) -> None:
        if self._copying is not None:
            self._copying.wait()
            self._copying = None

    def _run(self, batch: _Batch, end: int) -> None:
        if batch.copies:
            # Made longer first: writes behind a file's end, past the page cache, are done one by one.
            if end > self._length:
                self._storage.truncate(end)
                self._length = end
            data = extents.concatenate([data for data, _ in batch.copies])
            self._copy(data, np.concatenate([offset for _, offset in batch.copies]))
        self._write(batch.writes)

    def _copy(self, whole: Extents, offsets: NDArray[np.int64]) -> None:
        for depth in np.flatnonzero(np.bincount(whole.depth)).tolist():
            chosen = np.flatnonzero(whole.depth == depth)
            data = whole.take(chosen)
            source = self._layers[depth].storage
            # What lies past a file's end cannot be copied: of a raw disk it is zeros, of other images an error.
            length = np.minimum(data.stop - data.start, np.maximum(source.size() - data.file_offset, 0))
            within = length > 0
            self._storage.copy_many_from(
                source,
                data.file_offset[within].tolist(),
                offsets[chosen][within].tolist(),
                length[within].tolist(),
            )
            for number in np.flatnonzero(length < data.stop - data.start).tolist():
                rest = bytearray(int(data.stop[number] - data.start[number] - length[number]))
                done = int(length[number])
                self._layers[depth].fill_past_end(int(data.file_offset[number]) + done, memoryview(rest))
                self._storage.write_at(int(offsets[chosen][number]) + done, rest)

    def _write(self, writes: Sequence[tuple[int, bytes | memoryview]]) -> None:
        for offset, data in writes:
            self._storage.write_at(offset, data)
            self._length = max(self._length, offset + len(data))
            self._written += len(data)
        # A sync beside the copy, when enough was written from memory.
        if self._written >= _SYNC_BYTES and (self._syncing is None or self._syncing.is_done()):
            self._wait_for_sync()
            self._written = 0
            self._syncing = self._storage.begin_sync()

    def _wait_for_sync(self) -> None:
        """Raise the error of a sync that was begun: the system reports it once, and not to the next sync."""
        if self._syncing is not None:
            self._syncing.wait()
