"""Do two disks hold the same bytes? Chains or raw files, compared by what they show, not by how they keep it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.arguments import checked
from vhdkit.chain.open_view import open_view, view_length
from vhdkit.chain.unlike_cells import unlike_cells
from vhdkit.corruption import Corruption
from vhdkit.disk.image import DiskKind
from vhdkit.errors import Cancelled, CorruptImageError
from vhdkit.options import ParentPolicy
from vhdkit.progress import Phase, Reporter
from vhdkit.storage.first_found import first_found
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.units import as_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vhdkit.chain.chain import Chain
    from vhdkit.chain.disk_view import DiskView
    from vhdkit.chain.unlike_cells import Cell
    from vhdkit.options import ReadFormat
    from vhdkit.progress import Cancel, Progress
    from vhdkit.storage.protocols import Folder
    from vhdkit.units import StrPath

# So much of either view is compared at once. It stays in a processor's cache between reading and comparing: of 1 GiB in
# the page cache with another one, 256 KiB at a time took 0.8 of the processor time of 2 MiB.
CELL_BYTES = 256 << 10
_THREADS = 2


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
    format_a: ReadFormat | None = None,
    format_b: ReadFormat | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Cancel | None = None,
    lock: bool = True,
    folder: Folder | None = None,
) -> Comparison:
    """Compare the views of two images through their chains, or of raw files.

    `format_a` and `format_b` are "vhd" or "raw". With None a file without any footer is taken as raw, unless its suffix
    is that of another format, or it is empty and the other file is an image: such a file is a damaged image rather than
    a disk. Only what either holds is read, and nothing of a file
    that both show at one place. `parent` is the parent of the first; `progress` is called with how much of
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
        reporter = Reporter(
            max(a.size, b.size), 0, progress, cancel, cancelled=Cancelled("the comparison was cancelled")
        )
        first = first_difference(a, b, partial(reporter.reach, phase=Phase.COMPARING))
        if first is None:
            reporter.reach(reporter.total, Phase.COMPARING)
        return Comparison(
            equal=first is None, first_difference=first, size_a=view_length(a.leaf), size_b=view_length(b.leaf)
        )


def first_difference(a: DiskView, b: DiskView, looked: Callable[[int], None] = lambda _done: None) -> int | None:
    """Return the first offset at which two views differ, the shorter one followed by zeros; None if there is none.

    `looked` is called with how much was compared.
    """
    comparers = [_Comparer(a, b).first_difference for _ in range(_THREADS)]
    return first_found(comparers, unlike_cells(a, b, CELL_BYTES), lambda cell: looked(cell.offset + cell.length))


class _Comparer:
    """Compare cells, by buffers of its own: one thread's."""

    def __init__(self, a: DiskView, b: DiskView) -> None:
        self._a, self._b = a, b
        self._zeros = bytearray(CELL_BYTES)
        self._buffers = bytearray(CELL_BYTES), bytearray(CELL_BYTES)

    def first_difference(self, cell: Cell) -> int | None:
        """Return the first offset at which both differ, None if there is none; zeros are not read."""
        one = self._read(self._a, cell, self._buffers[0]) if cell.is_held_by_a else self._zeros
        other = self._read(self._b, cell, self._buffers[1]) if cell.is_held_by_b else self._zeros
        # Of whole bytearrays memcmp compares them, many times as fast as arrays are compared.
        if cell.length < CELL_BYTES:
            one, other = one[: cell.length], other[: cell.length]
        if one == other:
            return None
        return cell.offset + int((np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)).argmax())

    def _read(self, view: DiskView, cell: Cell, buffer: bytearray) -> bytearray:
        """Read into the first bytes of a buffer; behind the disk's end there are zeros."""
        with memoryview(buffer)[: cell.length] as wanted:
            count = view.read_into(cell.offset, wanted)
            if count < cell.length:
                wanted[count:] = bytes(cell.length - count)
        return buffer


def _refuse_empty(view: Chain, other: Chain, file_format: str | None) -> None:
    """Refuse to compare an image with a file of no bytes, which reads as zeros: most likely it was cut off."""
    if file_format is None and other.leaf.kind is not DiskKind.RAW and view.leaf.kind is DiskKind.RAW:
        storage = view.leaf.storage
        if not storage.size():
            raise CorruptImageError(Corruption.FILE_TOO_SHORT, "the file is empty", path=storage.path)
