"""What a merge will do, decided with plain values and arrays before anything is touched.

Source layers lie over the destination. A sector is written once, from the topmost source that holds it. Three
things are less plain than that, all of them about disks whose sizes differ:

 - A source that is shorter than those above it hides what lies below its end: zeros are written there.
 - A destination shorter than the leaf grows, and its new part starts as zeros: what its blocks hold behind the old
   end (stale bits, old bytes) is wiped, and where its own parent is longer, zeros are written that hide the parent.
 - A destination longer than the leaf would have to shrink, which is refused.

So every window of the disk has `writes` (sectors that the destination will own, its blocks added as needed) and
`wipes` (zeros for blocks that it has already; nothing is added for them).

**Source**: docs/reference/vhd.md 3.1, 3.2, B14.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.chain.siblings import Relatives
from vhdkit.disk import extents
from vhdkit.disk.extents import Extents, Kind
from vhdkit.disk.image import DiskKind
from vhdkit.vhd.sparse_image import Placement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vhdkit.chain.relink import Relink
    from vhdkit.disk.image import Image
    from vhdkit.errors import VhdError
    from vhdkit.findings import Finding
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.vhd.growth_plan import Growth


# Where no block is placed.
NOWHERE = Placement(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerState:
    """A file of the chain as it was when the merge was planned: if it differs later, the plan is void."""

    path: str
    identity: tuple[int, int]
    unique_id: bytes
    file_size: int
    mtime: float
    ctime: float

    @classmethod
    def of(cls, layer: Image) -> LayerState:
        """Return the state of an open layer."""
        return cls(
            path=layer.path,
            identity=layer.storage.identity,
            unique_id=layer.unique_id,
            file_size=layer.storage.size(),
            mtime=layer.storage.mtime,
            ctime=layer.storage.ctime,
        )


def states_of(layers: Sequence[Image]) -> tuple[LayerState, ...]:
    """Return the files of layers as they are now."""
    return tuple(map(LayerState.of, layers))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UndoPlan:
    """The undo image of a merge: its file, id, block size, and the blocks (uint32, ascending) that it still lacks.

    `size` is what its file will have, `size_before` what an earlier run has made of it, 0 if there is none. `space` is
    what it takes on the disk beside that: the sectors that it will keep, in pages, and not whole blocks. `doubt` says
    why nothing proves that it will hold all that was overwritten, "" if that is proven.
    """

    path: str
    unique_id: bytes
    block_size: int
    blocks: NDArray[np.uint32]
    size: int
    size_before: int
    space: int
    doubt: str = ""


class Resume(StrEnum):
    """What a merge does about an earlier one of the same files: go on, begin again, or only change names."""

    CONTINUES = "continues"
    RESTARTS = "restarts"
    FINISHES = "finishes"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergePlan:
    """A merge to the byte. All sizes in bytes; paths are absolute; sources are leaf first.

    `payload_bytes` is what will be written into the destination's disk, `blocks_added` (uint32) the blocks that it
    gets, `blocks_moved` those that make way for a longer BAT, `place` where both lie and `file_end` where the footer
    then begins; `space_needed` is what they take of the disk. `journal` is that of an earlier run that was cut off, and
    `resume` what is done about it; of what that run copied the destination was read up to `read_back`, and has what the
    sources hold; `only_shown` says that of the sources of a complete merge whose topmost one is gone those go that the
    destination shows, whatever the journal says; `spent` is the checksum of a journal that says nothing any more, and
    goes; `digest` that of all that decides which bytes go where. `obstacles` says what stands in the way: a plan with
    any is not carried out.
    """

    sources: tuple[str, ...]
    destination: str
    is_new_file: bool
    block_size: int
    payload_bytes: int
    blocks_added: NDArray[np.uint32]
    blocks_moved: int = 0
    virtual_size: int
    virtual_size_before: int
    destination_size: int
    destination_size_before: int
    space_needed: int
    space_free: int
    relatives: Relatives = field(default_factory=Relatives)
    removals: tuple[str, ...] = ()
    keep_sources: bool
    growth: Growth | None = None
    place: Placement = NOWHERE
    file_end: int = 0
    undo: UndoPlan | None = None
    relink_siblings: bool = False
    sibling_relinks: tuple[Relink, ...] = ()
    verify: bool = False
    journal: Journal | None = None
    resume: Resume | None = None
    spent: str = ""
    read_back: int = 0
    only_shown: bool = False
    digest: str = ""
    layers: tuple[LayerState, ...]
    search: tuple[str, ...]
    findings: tuple[Finding, ...]
    obstacles: tuple[VhdError, ...]

    @property
    def relinks(self) -> tuple[Relink, ...]:
        """The children of the topmost source, which the destination adopts."""
        return self.relatives.relinks

    @property
    def mark(self) -> int:
        """Up to where in the disk an earlier run has come, in bytes."""
        return self.journal.mark if self.journal is not None and self.resume is Resume.CONTINUES else 0

    @property
    def bytes_done(self) -> int:
        """The bytes of payload that an earlier run has copied."""
        if self.journal is None or self.resume is not Resume.CONTINUES:
            return 0
        return min(self.journal.bytes_done, self.payload_bytes)

    @property
    def undo_path(self) -> str:
        """The undo image of this merge, or of the earlier run that it goes on with; "" if there is none to be kept."""
        journal = self.journal
        if journal is not None and journal.begin.undo and not journal.dropping:
            return journal.resolve(journal.begin.undo)
        return self.undo.path if self.undo is not None else ""

    @property
    def ending_views(self) -> tuple[str, ...]:
        """The layers between the topmost source and the destination: they read differently afterwards, if kept."""
        return () if self.is_new_file else self.sources[1:]

    def refuse_obstacles(self) -> None:
        """Raise the first obstacle, the others as notes on it; return if there is none."""
        if not self.obstacles:
            return
        first, *rest = self.obstacles
        for note in map(str, rest):
            if note not in getattr(first, "__notes__", []):
                first.add_note(note)
        raise first

    @property
    def grows(self) -> bool:
        """Whether the destination's disk becomes larger."""
        return not self.is_new_file and self.virtual_size > self.virtual_size_before


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the choice of sectors depends on: the destination's type, its size, and its parent's (0 without one)."""

    kind: DiskKind
    size: int
    parent_size: int


def choose(sources: Extents, target: Target) -> tuple[Extents, Extents]:
    """Return (writes, wipes) of a window from what the source layers say about it, in order."""
    end = int(sources.stop[-1]) if len(sources) else 0
    start = int(sources.start[0]) if len(sources) else 0
    if end > target.size:
        beyond = extents.single(max(start, target.size), end, Kind.ZERO)
        inside = [extents.single(start, target.size, Kind.PARENT)] if start < target.size else []
        sources = extents.overlay(sources, extents.concatenate([*inside, beyond]))
    writes, zeros = sources.of(Kind.DATA), sources.of(Kind.ZERO)
    if target.kind is not DiskKind.DIFFERENCING or not len(zeros):
        return writes, zeros
    hiding = extents.clipped(zeros, 0, target.parent_size)
    wipes = extents.clipped(zeros, target.parent_size, end)
    if len(hiding):
        both = extents.concatenate([writes, hiding])
        writes = both.take(np.argsort(both.start, kind="stable"))
    return writes, wipes


def missing_blocks(writes: Extents, is_lacking: NDArray[np.bool_], first: int, block_size: int) -> NDArray[np.int64]:
    """Return the blocks (ascending) that writes touch and the image lacks; `is_lacking` is of those from `first` on."""
    pieces = extents.split(writes, block_size)
    touched = extents.distinct(pieces.start // block_size)
    missing: NDArray[np.int64] = touched[is_lacking[touched - first]]
    return missing
