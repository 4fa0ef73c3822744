"""Do two disks hold the same bytes? Chains or raw files, compared by what they show, not by how they keep it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.arguments import checked
from vhdkit.chain.held_pieces import PIECE_BYTES
from vhdkit.chain.open_view import open_view, view_length
from vhdkit.chain.resolve_layers import resolve, windows
from vhdkit.disk import extents
from vhdkit.disk.extents import Kind
from vhdkit.disk.holes import without_holes
from vhdkit.disk.image import DiskKind
from vhdkit.errors import Cancelled, CorruptImageError
from vhdkit.options import ParentPolicy
from vhdkit.progress import Phase, Reporter
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.read_ahead import read_ahead
from vhdkit.units import as_text
from vhdkit.vhd.corruption import Corruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vhdkit.chain.chain import Chain
    from vhdkit.progress import Cancel, Progress
    from vhdkit.storage.protocols import Folder
    from vhdkit.units import StrPath

# Pieces of the first view that are read before they are asked for.
_AHEAD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Whether two views are equal, and if not, the offset of the first byte that differs; both sizes in bytes.

    Views of different size are equal if the rest of the larger one is zeros; `same_size` tells.
    """

    equal: bool
    first_difference: int | None
    size_a: int
    size_b: int

    @property
    def same_size(self) -> bool:
        """Whether both disks are of one size."""
        return self.size_a == self.size_b


@checked
def compare(
    path_a: StrPath,
    path_b: StrPath,
    *,
    search: Sequence[StrPath] = (),
    parent_map: Mapping[str, StrPath] | None = None,
    parent: StrPath | None = None,
    accept_id_mismatch: bool = False,
    format_a: str | None = None,
    format_b: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Cancel | None = None,
    lock: bool = True,
    folder: Folder | None = None,
) -> Comparison:
    """Compare the views of two images through their chains, or of raw files.

    `format_a` and `format_b` are "vhd" or "raw". With None a file without any footer is taken as raw, unless its suffix
    is that of another format, or it is empty and the other file is an image: such a file is a damaged image rather than
    a disk. Only what either holds is read. `parent` is the parent of the first; `progress` is called with how much of
    the larger disk is done, and `cancel` (a `threading.Event`) stops the work; the others are as in `open_chain`.

    Raises:
        ValueError: another format is asked for.
        Cancelled: it was stopped.
        VhdError, OSError: one of them cannot be read.

    """
    if not {format_a, format_b} <= {None, "vhd", "raw"}:
        raise ValueError(f"the formats are {format_a!r} and {format_b!r}: expected vhd or raw")
    place = folder or LocalFolder()
    policy = ParentPolicy.of(search, parent_map, parent, accept_id_mismatch=accept_id_mismatch)
    with (
        open_view(as_text(path_a), format_a, policy, place, lock=lock) as a,
        open_view(as_text(path_b), format_b, policy.without_named_parent(), place, lock=lock) as b,
    ):
        _refuse_empty(a, b, format_a)
        _refuse_empty(b, a, format_b)
        reporter = Reporter(max(a.size, b.size), 0, progress, cancel, stopped=_stopped)
        first = first_difference(a, b, partial(reporter.reach, phase=Phase.COMPARING))
        return Comparison(
            equal=first is None, first_difference=first, size_a=view_length(a.leaf), size_b=view_length(b.leaf)
        )


def _stopped() -> Cancelled:
    return Cancelled("the comparison was cancelled")


def first_difference(a: Chain, b: Chain, looked: Callable[[int], None] = lambda _done: None) -> int | None:
    """Return the first offset at which two views differ, the shorter one followed by zeros; None if there is none.

    `looked` is called with how much was compared.
    """
    other = bytearray(PIECE_BYTES)
    # The first view is read on another thread, the second one here.
    with read_ahead(_read_first(a, b), _AHEAD) as pieces:
        for first, length, one in pieces:
            _fill(b, first, other, length)
            # Of whole bytearrays memcmp compares them, many times as fast as arrays are compared.
            if one != other if length == PIECE_BYTES else one[:length] != other[:length]:
                return first + int((np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)).argmax())
            looked(first + length)
    return None


def _read_first(a: Chain, b: Chain) -> Iterator[tuple[int, int, bytearray]]:
    """Yield (offset, length, bytes of the first view) of each piece in which one of the views holds data."""
    buffers = [bytearray(PIECE_BYTES) for _ in range(_AHEAD + 2)]
    size, number = max(a.size, b.size), 0
    for start, stop in windows((*a.layers, *b.layers), 0, size):
        for cell in np.unique(np.concatenate([_held(chain, start, stop) for chain in (a, b)])).tolist():
            first, last = max(start, cell * PIECE_BYTES), min(stop, (cell + 1) * PIECE_BYTES)
            buffer = buffers[number % len(buffers)]
            _fill(a, first, buffer, last - first)
            yield first, last - first, buffer
            number += 1


def _fill(chain: Chain, offset: int, buffer: bytearray, length: int) -> None:
    """Read into the first bytes of a buffer; behind the disk's end there are zeros."""
    with memoryview(buffer)[:length] as view:
        count = chain.read_into(offset, view) if offset < chain.size else 0
        if count < length:
            view[count:] = bytes(length - count)


def _held(chain: Chain, start: int, stop: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the numbers of the pieces of a window in which the chain holds data."""
    if start >= chain.size:
        return np.empty(0, np.int64)
    data = without_holes(resolve(chain.layers, start, min(stop, chain.size)), chain.layers).of(Kind.DATA)
    return extents.distinct(extents.split(data, PIECE_BYTES).start // PIECE_BYTES)


def _refuse_empty(view: Chain, other: Chain, file_format: str | None) -> None:
    """Refuse to compare an image with a file of no bytes, which reads as zeros: most likely it was cut off."""
    if file_format is None and other.leaf.kind is not DiskKind.RAW and view.leaf.kind is DiskKind.RAW:
        storage = view.leaf.storage
        if not storage.size():
            raise CorruptImageError(Corruption.FILE_TOO_SHORT, "the file is empty", path=storage.path)
