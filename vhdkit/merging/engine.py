"""Carrying out a merge plan.

**Order**, with what a power cut leaves; the sources stay linked until 7, so that what is read through them is the
same at every instant:

 1 the chain is opened again and held against the plan; nothing written yet
 2 room: the space of holes that will be filled is reserved; the footer is written at the new end, sync, and the
   space before it reserved (unused space)
 3 a longer BAT if the disk grows (see `growth`)
 4 payload: sectors in place, new blocks with their bitmaps, sync (sectors that a source hides; unreferenced blocks)
 5 bitmaps of blocks that were there, BAT entries of new ones, sync (the same sectors, owned twice)
 6 the disk's new size if it grows, sync
 7 the children of the topmost source are relinked, each synced; and so is that source itself, if layers between it
   and the destination are to go: it reads the same over either
 8 the sources are removed, those in the middle first, folders synced

4 and 5 alternate in checkpoints, so that memory does not depend on the size of the merge. Running a merge again that
was cut off before 8 copies the same sectors to the same places.
"""

from __future__ import annotations

import errno
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.chain.chain import Chain
from vhdkit.chain.export import write_dynamic
from vhdkit.errors import MergeError, NotEnoughSpaceError, ReadOnlyImageError
from vhdkit.image.image import Image, Layer, Placement, RawImage, open_image
from vhdkit.merging.growth import finish, grow_table
from vhdkit.merging.mover import Mover
from vhdkit.merging.relatives import find_relatives
from vhdkit.merging.relink import Relink, apply_relink, check_relink
from vhdkit.merging.survey import moves, states, target_of
from vhdkit.storage import paths
from vhdkit.storage.local import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhdkit.merging.plan import LayerState, MergePlan
    from vhdkit.storage.seam import Folder

_NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class Phase(StrEnum):
    """What a merge is doing."""

    RESERVING = "reserving"
    COPYING = "copying"
    FINISHING = "finishing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a merge is: bytes of payload done and in all."""

    phase: Phase
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What a merge did. Sizes in bytes, paths absolute, sources leaf first."""

    sources: tuple[str, ...]
    destination: str
    bytes_copied: int
    blocks_added: int
    destination_size: int
    seconds: float
    removed: tuple[str, ...]
    relinked: tuple[str, ...]


def merge(
    plan: MergePlan,
    *,
    progress: Callable[[Progress], None] | None = None,
    folder: Folder | None = None,
) -> MergeResult:
    """Do what the plan says; see the module for the order of writes.

    Raises:
        MergeError, ReadOnlyImageError, CorruptImageError: the plan has obstacles (the first is raised, the others are
            notes on it), or a file changed since it was made. Nothing was written.
        NotEnoughSpaceError: the space could not be reserved. No sector was changed.
        OSError: a file failed under way. The leaf reads as before; the same merge can be run again.

    """
    place = folder or LocalFolder()
    if plan.obstacles:
        first, *rest = plan.obstacles
        for note in map(str, rest):
            if note not in getattr(first, "__notes__", []):
                first.add_note(note)
        raise first
    begun = time.monotonic()
    report = _Reporter(plan, progress)
    relinked: list[str] = []
    removed: list[str] = []
    if plan.is_new_file:
        size = _write_new_file(plan, place, report)
    else:
        with _noting("The chain reads as before the merge; the same command starts it again."):
            size = _fold(plan, place, report)
            relinked = _relink(plan, place)
        with _noting(
            f"The merge is complete and durable in {plan.destination}; only sources were still to be removed."
        ):
            _skip_middle(plan, place)
            removed = _remove(plan, place)
    return MergeResult(
        sources=plan.sources,
        destination=plan.destination,
        bytes_copied=plan.payload_bytes,
        blocks_added=len(plan.blocks_added),
        destination_size=size,
        seconds=time.monotonic() - begun,
        removed=tuple(removed),
        relinked=tuple(relinked),
    )


@contextmanager
def _noting(text: str) -> Iterator[None]:
    """Tell whoever cuts a merge off, or what does, how things stand."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        error.add_note(text)
        raise


class _Reporter:
    """Turns the engine's steps into the caller's progress."""

    def __init__(self, plan: MergePlan, progress: Callable[[Progress], None] | None) -> None:
        self.total = plan.payload_bytes
        self.done = 0
        self.progress = progress

    def say(self, phase: Phase) -> None:
        if self.progress is not None:
            self.progress(Progress(phase=phase, bytes_done=self.done, bytes_total=self.total))

    def add(self, count: int) -> None:
        self.done = min(self.total, self.done + count)
        self.say(Phase.COPYING)


def _open_planned(plan: MergePlan, folder: Folder) -> Chain:
    """Open the files of the plan, whose links it has verified, and hold them against what was planned for."""
    layers: list[Layer] = []
    try:
        for state in plan.layers:
            is_raw = not state.unique_id
            layers.append(RawImage(folder.open(state.path)) if is_raw else open_image(state.path, folder=folder))
        chain = Chain(layers)
        if states(chain) != plan.layers:
            raise MergeError("the chain has changed since the merge was planned; plan it again", path=chain.path)
    except BaseException:
        for layer in layers:
            layer.close()
        raise
    return chain


def _write_new_file(plan: MergePlan, folder: Folder, report: _Reporter) -> int:
    with _open_planned(plan, folder) as chain:

        def advance(done: int, total: int) -> None:
            report.done = report.total * done // max(1, total)
            report.say(Phase.COPYING)

        return write_dynamic(chain, folder, plan.destination, plan.block_size, progress=advance)


def _fold(plan: MergePlan, folder: Folder, report: _Reporter) -> int:
    """Steps 1 to 6; return the size of the destination's file."""
    depth = len(plan.sources)
    with (
        _open_planned(plan, folder) as chain,
        open_image(plan.destination, writable=True, folder=folder) as destination,
    ):
        if destination.storage.identity != chain.layers[depth].storage.identity:
            raise MergeError("the destination was replaced since the merge was planned", path=plan.destination)
        if find_relatives(chain, depth, folder, plan.search) != plan.relatives:
            raise MergeError("other images of its family came or went since the merge was planned", path=chain.path)
        for relink in plan.relinks:
            check_relink(folder, relink)
        target = target_of(chain.layers, depth)
        report.say(Phase.RESERVING)
        mover = Mover(chain.layers, destination, plan.blocks_added, report.add)
        if destination.storage.allocated_size < destination.storage.size():
            _reserve_holes(plan, mover, chain, destination)
        place = _make_room(plan, destination)
        if plan.growth is not None:
            grow_table(destination, plan.growth, place.offsets(np.arange(plan.blocks_moved)))
        mover.place_added(place, plan.blocks_moved)
        for writes, wipes in moves(chain.layers, depth, target):
            mover.move(writes, wipes)
        report.say(Phase.FINISHING)
        mover.checkpoint()
        destination.sync()
        if plan.grows:
            finish(destination, plan.virtual_size)
        _check_before_finishing(plan, chain, destination, folder)
        return destination.storage.size()


def _check_before_finishing(plan: MergePlan, chain: Chain, destination: Image, folder: Folder) -> None:
    """Hold the family against the plan once more: what follows goes by names, and takes files away."""
    kept = "the sectors were merged, and no source was removed or relinked; look at the files and merge again"
    depth = len(plan.sources)
    for state in plan.layers[:depth]:
        if not _is_unchanged(state, folder):
            raise MergeError(f"it was changed or replaced while it was merged: {kept}", path=state.path)
    if _identity(plan.destination, folder) != destination.storage.identity:
        raise MergeError(f"it was replaced while it was merged into: {kept}", path=plan.destination)
    if find_relatives(chain, depth, folder, plan.search) != plan.relatives:
        raise MergeError(f"other images of its family came or went during the merge: {kept}", path=chain.path)


def _is_unchanged(state: LayerState, folder: Folder) -> bool:
    try:
        storage = folder.open(state.path)
    except OSError:
        return False
    now = (storage.identity, storage.size(), storage.mtime)
    storage.close()
    return now == (state.identity, state.file_size, state.mtime)


def _identity(path: str, folder: Folder) -> tuple[int, int] | None:
    """Return which file a name leads to now."""
    try:
        storage = folder.open(path)
    except OSError:
        return None
    storage.close()
    return storage.identity


def _make_room(plan: MergePlan, destination: Image) -> Placement:
    """Step 2; return where new blocks go: those that are moved first, then those that are added."""
    if destination.is_fixed:
        return Placement(0, 0)
    count = plan.blocks_moved + len(plan.blocks_added)
    if plan.growth is not None:
        destination.floor = plan.growth.end
    place = destination.placement(count)
    try:
        destination.extend(count, reserve=True, sync=True)
    except OSError as error:
        raise _explained(error, plan) from None
    return place


def _reserve_holes(plan: MergePlan, mover: Mover, chain: Chain, destination: Image) -> None:
    """Take the space for sectors that will be written into holes of a sparse file."""
    depth = len(plan.sources)
    try:
        for writes, wipes in moves(chain.layers, depth, target_of(chain.layers, depth)):
            for offset, length in mover.places_in_old_blocks(writes, wipes):
                destination.storage.reserve(offset, length)
    except OSError as error:
        raise _explained(error, plan) from None


def _explained(error: OSError, plan: MergePlan) -> OSError | NotEnoughSpaceError:
    if error.errno not in _NO_SPACE:
        return error
    # The plan saw enough: someone else took some since, or a quota allows less than is free.
    free = min(plan.space_free, plan.space_needed - 1)
    return NotEnoughSpaceError(path=plan.destination, needed=plan.space_needed, available=free)


def _relink(plan: MergePlan, folder: Folder) -> list[str]:
    with open_image(plan.destination, folder=folder) as destination:
        mtime = destination.storage.mtime
    for relink in plan.relinks:
        apply_relink(folder, relink, parent_mtime=mtime)
    return [relink.child for relink in plan.relinks]


def _skip_middle(plan: MergePlan, folder: Folder) -> None:
    """Relink the topmost source to the destination before the layers between them go: it reads the same over either."""
    if len(plan.removals) < 2:
        return
    top, below = plan.sources[:2]
    with open_image(plan.destination, folder=folder) as destination:
        mtime, unique_id = destination.storage.mtime, destination.unique_id
    relink = Relink(child=top, old_parent=below, new_parent=plan.destination, new_parent_id=unique_id)
    with suppress(MergeError, ReadOnlyImageError):
        # Where its locator has no room, or it is marked read-only, it is left as it is: it goes in a moment, and the
        # destination has everything.
        apply_relink(folder, relink, parent_mtime=mtime)


def _remove(plan: MergePlan, folder: Folder) -> list[str]:
    """Step 8: middle layers first, for without them the topmost cannot be mistaken for what it was."""
    removed = []
    planned = {state.path: state.identity for state in plan.layers}
    for path in reversed(plan.removals):
        if _identity(path, folder) != planned[path]:
            message = f"another file has its name now, which is left alone; the merge is complete in {plan.destination}"
            raise MergeError(message, path=path)
        folder.remove(path)
        folder.sync(paths.dirname(path))
        removed.append(path)
    return list(reversed(removed))
