"""Copying sectors into a destination: payload first, what refers to it after the next sync.

`merging.plan.destination_pieces` says what is copied alone and what as a span. In a block that the destination has, the
gaps in a span are read first and written again unchanged; in a new block the gaps are zeros.

The disk takes one checkpoint while the next is copied: what refers to a checkpoint is written when its sync has
returned, and is durable with the sync after.

Memory: one staging buffer of 4 MiB, and of two checkpoints three numbers a piece.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vhdkit.disk import extents
from vhdkit.disk.extents import Extents, Kind
from vhdkit.disk.image import DiskKind
from vhdkit.disk.read_extents import read_exactly, read_extents
from vhdkit.disk.written_sectors import WrittenSectors
from vhdkit.errors import MergeCancelled
from vhdkit.merging.plan import destination_pieces as planned
from vhdkit.units import round_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from vhdkit.disk.image import Image
    from vhdkit.merging.plan.destination_pieces import DestinationBlocks
    from vhdkit.progress import Clock
    from vhdkit.storage.protocols import Syncing

_BATCH_PIECES = 2048
# The caller is told when pieces have taken so long, and may stop the merge there. Long ones are written several at a
# time: the fewer calls, the less of it is spent waiting for the last of them. 2 GiB in calls of 8 MiB took 1.1 of the
# time of calls of 64 MiB.
_BATCH_SECONDS = 0.05
_BATCH_BYTES = 128 << 20
_CHECKPOINT_PIECES = 250_000
# What is not durable yet is lost to a cut, and a sync cannot be interrupted: so a checkpoint comes after as many bytes
# as the disk takes in a quarter of a second, within these bounds; and after an eighth of that if the disk is idle.
_FEW_BYTES, _MANY_BYTES = 2 << 20, 1 << 30
_PART_BYTES = 8 << 20
# Until the first checkpoint parts are smaller: a merge that is cancelled early keeps all but the part that it was at.
_FIRST_PART_BYTES = 1 << 20
_SYNC_SECONDS = 0.25
# A merge that is asked to stop does so within a second; so long it may take to keep what was not durable yet.
_KEEP_SECONDS = 0.5
# Until a sync was for so many pieces it is not known how long they take: then as on a disk that takes few of them.
_MANY_SYNCED, _SECONDS_A_PIECE = 1000, 1 / 2000
# Before the first sync, as on a disk that takes 16 MiB a second.
_SECONDS_A_BYTE = 1 / (16 << 20)
_END = 1 << 62


class _Weight(NamedTuple):
    """What was written and is not durable: pieces, and bytes."""

    pieces: int
    size: int


class _UnderWay(NamedTuple):
    """A checkpoint whose payload is being made durable: what then refers to it, and up to where the disk is written."""

    syncing: Syncing
    written: WrittenSectors
    reached: tuple[int, int]
    weight: _Weight


class SectorCopier:
    """Writes into one destination, into the blocks that it has and those that it gets.

    `report` gets the bytes of each batch of writes, and `check` is called when a sync has ended; both may raise to stop
    it. `durable` is called with the offset up to which the disk is durable in the destination, with what refers to it,
    and how many bytes that took: after each checkpoint what the one before reached.

    With `again` bits and table entries are written even if the file seems to have them: after a sync that failed, what
    is read back may be in memory only.
    """

    def __init__(
        self,
        layers: Sequence[Image],
        blocks: DestinationBlocks,
        report: Callable[[int], None],
        durable: Callable[[int, int], None] = lambda _stop, _bytes: None,
        *,
        again: bool = False,
        check: Callable[[], None] = lambda: None,
        clock: Clock = time,
    ) -> None:
        self.layers = layers
        self.destination = blocks.image
        self.blocks = blocks
        self.report = report
        self.durable = durable
        self.again = again
        self.check = check
        self._clock = clock
        self._reached = self._linked = (0, 0)
        self._under_way: _UnderWay | None = None
        self._batch_bytes = planned.STAGING_BYTES
        self._checkpoint_bytes = 2 * _FEW_BYTES
        self._seconds_a_byte: float | None = None
        self._seconds_a_piece = _SECONDS_A_PIECE
        self._copying = _Weight(0, 0)
        self._staging = np.empty(planned.STAGING_BYTES, np.uint8)
        self._pending: list[tuple[NDArray[np.int64], ...]] = []
        self._pending_pieces = self._pending_bytes = 0

    def copy(self, writes: Extents, wipes: Extents, stop: int = 0) -> None:
        """Write the sectors of a window that ends at `stop`; a checkpoint follows whenever enough has gathered."""
        while (cut := self._cut(writes, wipes)) is not None:
            self._copy_part(extents.clipped(writes, 0, cut), extents.clipped(wipes, 0, cut), cut)
            writes, wipes = extents.clipped(writes, cut, _END), extents.clipped(wipes, cut, _END)
        self._copy_part(writes, wipes, stop)

    def _cut(self, writes: Extents, wipes: Extents) -> int | None:
        """Return the block's edge up to which there is enough for a part, None if all of it is no more."""
        is_first = self._under_way is None and not any(self._linked)
        part = min(self._part_bytes, _FIRST_PART_BYTES) if is_first else self._part_bytes
        if writes.total + wipes.total <= part:
            return None
        both = planned.in_order(writes, wipes)
        upto = np.cumsum(both.stop - both.start)
        index = int(np.searchsorted(upto, part))
        unit = self.destination.block_size or planned.STAGING_BYTES
        cut = round_up(int(both.stop[index]) - int(upto[index]) + part, unit)
        return cut if cut < int(both.stop[-1]) else None

    def _copy_part(self, writes: Extents, wipes: Extents, stop: int) -> None:
        cut = self.blocks.pieces(writes, wipes)
        pieces, at, is_new = cut
        self._copying = _Weight(len(pieces), pieces.total)
        heads, tails = cut.spans()
        many = planned.are_many(tails - heads)
        self._copy_alone(pieces, at, ~np.repeat(many, tails - heads))
        for head, tail in zip(heads[many].tolist(), tails[many].tolist(), strict=True):
            self._write_span(pieces.take(np.arange(head, tail)), int(at[head]), is_new=bool(is_new[head]))
        self._copying = _Weight(0, 0)
        self._reached = (stop, self._reached[1] + writes.total)
        if self.destination.kind is DiskKind.FIXED:
            self._gathers(len(pieces), pieces.total)
            return
        owned = extents.split(writes, self.destination.block_size)
        block = owned.start // self.destination.block_size
        base = block * self.destination.block_size
        sector = self.destination.logical_sector_size
        self._pending.append((block, (owned.start - base) // sector, (owned.stop - base) // sector))
        self._gathers(len(pieces), pieces.total)

    def _gathers(self, pieces: int, size: int) -> None:
        """Count what is written and not yet durable."""
        self._pending_pieces += pieces
        self._pending_bytes += size
        is_idle = self._under_way is None or self._under_way.syncing.is_done()
        enough = self._part_bytes if is_idle else self._checkpoint_bytes
        if self._pending_bytes >= enough or self._pending_pieces >= _CHECKPOINT_PIECES:
            self._begin_checkpoint()

    @property
    def _part_bytes(self) -> int:
        """So many bytes are written before it is looked whether the disk is idle."""
        return min(self._checkpoint_bytes, max(_PART_BYTES, self._checkpoint_bytes // 8))

    def checkpoint(self) -> None:
        """Make all of the payload durable, then write what refers to it."""
        self._begin_checkpoint()
        self._end_checkpoint()
        self._linked = self._reached

    def keep(self) -> bool:
        """Make durable what was copied so far, with what refers to it, and report it: nothing more is copied.

        On a disk on which that would take too long, as the last syncs show, nothing is done, and the answer is False:
        a caller who cancels does not wait, and what is not durable is copied again.
        """
        self.check = lambda: None
        if self._seconds_a_byte is None:
            # Closing the file would wait for a sync that is under way; and it shows how fast the disk is.
            self._end_checkpoint()
        waiting = [self._copying, _Weight(self._pending_pieces, self._pending_bytes)]
        waiting += [self._under_way.weight] if self._under_way is not None else []
        seconds_a_byte = _SECONDS_A_BYTE if self._seconds_a_byte is None else self._seconds_a_byte
        seconds = sum(each.pieces * self._seconds_a_piece + each.size * seconds_a_byte for each in waiting)
        if seconds > _KEEP_SECONDS:
            return False
        self.checkpoint()
        if any(self._linked):
            self.destination.sync()
            self.durable(*self._linked)
        return True

    @contextmanager
    def kept_when_cancelled(self) -> Iterator[None]:
        """Keep what was copied if the merge is cancelled inside, or say on the error that it is not kept."""
        try:
            yield
        except MergeCancelled as error:
            try:
                is_kept = self.keep()
            except OSError as failure:
                # It reads as before all the same, and goes on at the last mark.
                error.add_note(f"What was copied last could not be made durable, and is copied again: {failure}")
            else:
                if not is_kept:
                    error.add_note("What was copied last is copied again: making it durable would have taken too long.")
            raise

    def _begin_checkpoint(self) -> None:
        """Begin to make the payload durable, and with it what refers to the checkpoint before."""
        self._end_checkpoint()
        if not self._pending_pieces:
            return
        # Check for cancellation between syncs, so that a caller waits for one at most.
        self.check()
        block, start, stop = self._gathered()
        weight = _Weight(self._pending_pieces, self._pending_bytes)
        self._pending, self._pending_pieces, self._pending_bytes = [], 0, 0
        touched, row = np.unique(block, return_inverse=True)
        at, is_new = self.blocks.locate(touched)
        written = WrittenSectors(touched, at, is_new, row, start, stop)
        self.destination.begin_blocks(written)
        self._under_way = _UnderWay(self.destination.begin_sync(), written, self._reached, weight)

    def _end_checkpoint(self) -> None:
        """Wait until the payload that is under way is durable, and write what refers to it."""
        if self._under_way is None:
            return
        (syncing, written, reached, weight), self._under_way = self._under_way, None
        took = syncing.wait()
        if weight.pieces >= _MANY_SYNCED:
            self._seconds_a_piece = took / weight.pieces
        elif weight.size:
            self._seconds_a_byte = took / weight.size
        self._adapt(took)
        if any(self._linked):
            self.durable(*self._linked)
        self.destination.commit(written, again=self.again)
        self._linked = reached

    def _adapt(self, took: float) -> None:
        """Let the next checkpoints be of as many bytes as the disk takes in the time that a sync may take."""
        if took > _SYNC_SECONDS:
            self._checkpoint_bytes = max(_FEW_BYTES, self._checkpoint_bytes // 2)
        elif took < _SYNC_SECONDS / 2:
            self._checkpoint_bytes = min(_MANY_BYTES, self._checkpoint_bytes * 2)

    def _gathered(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        if not self._pending:
            empty = np.empty(0, np.int64)
            return empty, empty, empty
        block, start, stop = (np.concatenate(column) for column in zip(*self._pending, strict=True))
        return block, start, stop

    def _copy_alone(self, pieces: Extents, at: NDArray[np.int64], chosen: NDArray[np.bool_]) -> None:
        """Copy the chosen pieces, each alone, in batches."""
        pieces, at = pieces.take(chosen), at[chosen]
        length = pieces.stop - pieces.start
        total = np.cumsum(length)
        first = 0
        while first < len(pieces):
            upto = int(np.searchsorted(total, total[first] - length[first] + self._batch_bytes, "right"))
            last = max(first + 1, min(upto, first + _BATCH_PIECES))
            self._copy_batch(pieces.take(np.arange(first, last)), at[first:last])
            first = last

    def _copy_batch(self, pieces: Extents, at: NDArray[np.int64]) -> None:
        """Write zeros where there are to be any, then what each source has, by as few calls as time allows."""
        zeros = pieces.kind == Kind.ZERO
        for offset, length in zip(at[zeros].tolist(), (pieces.stop - pieces.start)[zeros].tolist(), strict=True):
            self._staging[:length] = 0
            self.destination.write_at(offset, self._staging[:length].data)
            self._tell(length)
        for depth in np.flatnonzero(np.bincount(pieces.depth[~zeros])).tolist():
            of_layer = ~zeros & (pieces.depth == depth)
            found = pieces.take(of_layer)
            columns = found.file_offset.tolist(), at[of_layer].tolist(), (found.stop - found.start).tolist()
            while columns[0]:
                until = self._clock.monotonic() + _BATCH_SECONDS
                count = self.destination.copy_many_from(self.layers[depth], *columns, until)
                self._tell(sum(columns[2][:count]))
                columns = columns[0][count:], columns[1][count:], columns[2][count:]

    def _tell(self, size: int) -> None:
        begun = self._clock.monotonic()
        self.report(size)
        # The callback may block to keep to a rate, so it is called in small steps.
        is_held = self._clock.monotonic() - begun > _BATCH_SECONDS
        self._batch_bytes = planned.STAGING_BYTES if is_held else min(_BATCH_BYTES, self._batch_bytes * 2)

    def _write_span(self, pieces: Extents, at: int, *, is_new: bool) -> None:
        first, length = int(pieces.start[0]), int(pieces.stop[-1] - pieces.start[0])
        out = self._staging[:length]
        if pieces.total < length and is_new:
            out[:] = 0
        elif pieces.total < length:
            read_exactly(self.destination, at, out)
        read_extents(pieces, self.layers, first, out)
        self.destination.write_at(at, out.data)
        self.report(pieces.total)
