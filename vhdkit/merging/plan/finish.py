"""What is left of a merge that is complete: names to be changed, and sources to be removed.

Nothing is removed because a journal says so. As long as the topmost source is there, the destination is read and held
against what the sources hold, in the run that removes them. Once it is gone that cannot be done for what it hid: then
a source goes only if

 - the journal has its state as it was when the destination had been read, the source is as it was, and so is the
   destination; or
 - the destination shows all that it holds.

Where the command names such a source itself, or asks to verify, only the second counts: identities in a journal prove
nothing against one who writes it, and the run that removes a source has then seen what it holds.

Any other is kept, and said to be: its view has ended, and it is never to be merged. If the destination is not as it
was, and does not show what is left, a disk that was written to cannot be told from one that was put back: refused.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.chain.children import children_of, ended_advice
from vhdkit.chain.relink import Relink, check_relink
from vhdkit.chain.siblings import Relatives, is_above
from vhdkit.corruption import Corruption
from vhdkit.disk.image import Image
from vhdkit.errors import JournalError, ReadOnlyImageError, SiblingsError, VhdError
from vhdkit.findings import Advice, Finding
from vhdkit.formats import open_image
from vhdkit.merging.plan.evidence import has_what_sources_hold, is_untouched
from vhdkit.merging.plan.placement import target_of, window_writes
from vhdkit.merging.plan.plan import LayerState, MergePlan, Resume
from vhdkit.merging.plan.resume import check_relinks, check_undo, is_as_left, journals_near, parents_beside
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vhdkit.chain.parent_search import ParentSearch
    from vhdkit.disk.image import Image
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.journal.merge_records import FileState
    from vhdkit.storage.protocols import Folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is left of the sources: those of the chain, leaf first, those of them that may go, and those that are kept.

    `is_whole` says whether all of them are there, so that the destination can be held against them.
    """

    states: tuple[LayerState, ...]
    removable: tuple[str, ...]
    kept: tuple[str, ...] = ()
    is_whole: bool = False


def find_complete(folder: Folder, path: str, search: Sequence[str]) -> Journal | None:
    """Return the journal of a complete merge whose topmost source, or dropped undo image, was at `path`."""
    path = folder.real(path)
    for journal in journals_near(folder, path, search):
        if isinstance(journal, JournalError):
            continue
        begin = journal.begin
        if journal.merged and journal.resolve(begin.sources[0].path) == path:
            return journal
        if begin.undo and journal.resolve(begin.undo) == path:
            return journal
    return None


def is_complete(journal: Journal, layers: Sequence[Image], depth: int, *, keep_sources: bool, verify: bool) -> bool:
    """Whether the destination has all that the sources hold, which are there: both are read.

    Where no source goes, and unless it is to `verify`, it is enough that no file was touched since they were merged.
    """
    begin, destination = journal.begin, layers[depth]
    if not journal.merged or destination.size != layers[0].size:
        return False
    is_kept = _keeps(journal, keep_sources=keep_sources)
    if is_kept and not verify and is_untouched(journal, layers[:depth], destination):
        return True
    found = window_writes(layers, depth, target_of(layers, depth, begin.virtual_size))
    return has_what_sources_hold(layers, depth, found)


def _keeps(journal: Journal, *, keep_sources: bool) -> bool:
    begin = journal.begin
    return keep_sources or begin.keep_sources or (bool(begin.undo) and not journal.dropping)


def is_leftover(journal: Journal, sources: Sequence[Image], folder: Folder) -> bool:
    """Whether sources are some of those of a complete merge whose topmost one is gone: they are not to be merged."""
    begin = journal.begin
    if not journal.merged or journal.rolling_back or (begin.undo and not journal.dropping):
        return False
    ids = {source.unique_id for source in begin.sources[1:]}
    mine = [layer.unique_id.hex() for layer in sources]
    return set(mine) <= ids and not _is_there(journal, begin.sources[0], folder)


def is_spent(journal: Journal, folder: Folder) -> bool:
    """Whether a journal has nothing left to say: its merge is complete, and none of the files that were to go is there.

    Another file may have the name of one by now.
    """
    begin = journal.begin
    if not journal.merged or journal.rolling_back or (begin.undo and not journal.dropping):
        return False
    is_kept = begin.undo and not journal.keep_undo_file and folder.exists(journal.resolve(begin.undo))
    return not is_kept and not any(_is_there(journal, source, folder) for source in begin.sources)


def _is_there(journal: Journal, source: FileState, folder: Folder) -> bool:
    path = journal.resolve(source.path)
    if not folder.exists(path):
        return False
    try:
        with open_image(path, folder=folder) as image:
            return image.unique_id.hex() == source.unique_id
    except VhdError:
        return True


def finishing_plan(
    journal: Journal,
    folder: Folder,
    search: tuple[str, ...],
    findings: tuple[Finding, ...] = (),
    *,
    keep_sources: bool = False,
    is_read: bool = False,
    only_shown: bool = False,
) -> MergePlan:
    """Return the plan to finish a merge that is complete: relink what is not relinked, remove what is still there.

    With `keep_sources` nothing is removed, whatever the merge was begun with. `is_read` says that the destination was
    read and has what the sources hold. With `only_shown` a source that is left without the topmost one goes only if the
    destination shows all that it holds, whatever the journal says.

    Raises:
        JournalError: the journal names files that are not of this chain, or that are not what they were.

    """
    begin = journal.begin
    _refuse_unfinished(journal)
    is_kept = _keeps(journal, keep_sources=keep_sources)
    with open_image(journal.destination, folder=folder) as destination:
        parents = parents_beside(journal, folder, search)
        _check_complete(journal, destination, parents)
        here = LayerState.of(destination)
        block_size, size, file_size = destination.block_size, destination.size, destination.storage.size()
        left = _what_is_left(journal, destination, parents, only_shown=only_shown)
    removals = () if is_kept else left.removable
    relinks, siblings = _born_since(journal, removals, destination.unique_id, folder, search)
    return MergePlan(
        sources=tuple(journal.resolve(source.path) for source in begin.sources),
        destination=journal.destination,
        is_new_file=False,
        block_size=block_size,
        payload_bytes=0,
        blocks_added=np.empty(0, np.uint32),
        virtual_size=size,
        virtual_size_before=size,
        destination_size=file_size,
        destination_size_before=file_size,
        space_needed=0,
        space_free=folder.free_space(paths.dirname(journal.destination)),
        relatives=Relatives(relinks=relinks),
        removals=removals,
        keep_sources=keep_sources or begin.keep_sources,
        journal=journal,
        resume=Resume.FINISHES,
        read_back=size if is_read or not left.is_whole else 0,
        only_shown=only_shown,
        layers=(*left.states, here),
        search=search,
        findings=(*findings, *(_ended(path, journal.destination) for path in left.kept)),
        obstacles=(
            *_sibling_obstacles(siblings, removals, folder),
            *removal_obstacles(removals, folder),
            *removal_obstacles(_dropped(journal, folder), folder, Advice.KEEP_UNDO_FILE),
        ),
    )


def _refuse_unfinished(journal: Journal) -> None:
    if journal.relinks is None:
        raise JournalError("it says of no merge that it is complete", path=journal.path)
    if journal.rolling_back:
        raise JournalError(f"finish that first: {journal.status}", path=journal.destination, hint=journal.hint)


def _sibling_obstacles(siblings: tuple[str, ...], removals: Sequence[str], folder: Folder) -> Iterator[VhdError]:
    """Yield that images read through what is to go."""
    if siblings:
        message = f"image(s) were made since of what is to go: {', '.join(siblings)}{ended_advice(siblings, folder)}"
        hint = Advice.CONVERT_EACH.hint("turn each into one of its own first ({})")
        yield SiblingsError(message, path=removals[0], siblings=siblings, hint=hint)


def removal_obstacles(
    removals: Sequence[str], folder: Folder, keep: Advice = Advice.KEEP_SOURCES
) -> tuple[VhdError, ...]:
    """Return an obstacle for each file that is to be removed, and could not be by this user."""
    message = "it could not be removed: it is marked immutable, or another user's in a sticky folder, or its folder may"
    message = f"{message} not be written"
    hint = keep.hint("allow that, as its owner, or keep it with {}")
    return tuple(ReadOnlyImageError(message, path=path, hint=hint) for path in removals if not folder.may_remove(path))


def _dropped(journal: Journal, folder: Folder) -> list[str]:
    """Return the undo image that goes with the sources, if one does."""
    if not journal.begin.undo or not journal.dropping or journal.keep_undo_file:
        return []
    return [path for path in [journal.resolve(journal.begin.undo)] if folder.exists(path)]


def _ended(path: str, destination: str) -> Finding:
    message = (
        f"it is kept, for nothing proves that {destination} got all that it holds; its view has ended, and it is not to"
        " be merged again: remove it if nothing in it is needed"
    )
    return Finding(corruption=Corruption.VIEW_ENDED, path=path, message=message)


def _check_complete(journal: Journal, destination: Image, parents: ParentSearch) -> None:
    """Hold the destination, its undo image and the relinked children against the journal of a complete merge."""
    begin = journal.begin
    if destination.unique_id.hex() != begin.destination.unique_id:
        raise JournalError("the file beside it is not the destination that it speaks of", path=journal.path)
    check_relinks(journal, destination, parents)
    undo = journal.resolve(begin.undo) if begin.undo else ""
    if undo and journal.dropping and parents.folder.exists(undo):
        with open_image(undo, folder=parents.folder) as image:
            check_undo(journal, image, destination, parents)


def _what_is_left(journal: Journal, destination: Image, parents: ParentSearch, *, only_shown: bool) -> Left:
    folder, sources = parents.folder, journal.begin.sources
    there = [journal.resolve(source.path) for source in sources if _is_there(journal, source, folder)]
    own = tuple(path for path in there if is_above(path, destination, parents))
    with ExitStack() as opened:
        images = [opened.enter_context(open_image(path, folder=folder)) for path in own]
        states = tuple(map(LayerState.of, images))
        if len(own) == len(sources):
            return Left(states=states, removable=own, is_whole=True)
        left = Left(states=states, removable=own, kept=tuple(path for path in there if path not in own))
        return _without_the_topmost(journal, destination, images, left, only_shown=only_shown)


def _without_the_topmost(
    journal: Journal, destination: Image, opened: Sequence[Image], left: Left, *, only_shown: bool
) -> Left:
    """Return which sources may go, though not all are there any more; see the module."""
    if _is_as_left(journal, destination):
        fitting = () if only_shown else _as_verified(journal, opened)
    elif opened and _shows_all(opened, destination):
        fitting = left.removable
    else:
        raise JournalError(_cannot_be_told(journal, left), path=destination.path)
    kept = tuple(image.path for image in opened if image.path not in fitting)
    if kept and _shows_all(opened, destination):
        fitting, kept = left.removable, ()
    states = tuple(state for state in left.states if state.path in fitting)
    return Left(states=states, removable=fitting, kept=(*kept, *left.kept))


def _as_verified(journal: Journal, opened: Sequence[Image]) -> tuple[str, ...]:
    """Return the paths of the images that are as they were when the destination was read."""
    verified = {journal.resolve(state.path): state for state in journal.verified or ()}
    return tuple(image.path for image in opened if _is_as_verified(image, verified.get(image.path)))


def _cannot_be_told(journal: Journal, left: Left) -> str:
    begin = journal.begin
    top = journal.resolve(begin.sources[0].path)
    files = ", ".join((*left.removable, *left.kept, journal.path))
    return (
        f"{top} was merged into it and is gone, and it is not as the merge has left it: it was written since, or put"
        f" back as it was earlier. If its disk is what it should be, remove {files}; if not, put back it or {top}"
    )


def _is_as_left(journal: Journal, destination: Image) -> bool:
    seen, after = journal.destination_seen, journal.destination_after
    if seen is None:
        return after is not None and is_as_left(after, destination)
    return seen.proves(destination.storage) or seen.fits(destination.storage)


def _is_as_verified(image: Image, state: FileState | None) -> bool:
    if state is None or state.seen is None:
        return False
    seen, storage = state.seen, image.storage
    return seen.proves(storage) or (seen.fits(storage) and image.digest == state.header)


def is_verified(journal: Journal, plan: MergePlan, layers: Sequence[Image]) -> bool:
    """Whether a journal has the states already of all that is to be removed."""
    verified = {journal.resolve(state.path): state for state in journal.verified or ()}
    going = [layer for layer in layers if layer.path in plan.removals]
    return all(_is_as_verified(image, verified.get(image.path)) for image in going)


def _shows_all(opened: Sequence[Image], destination: Image) -> bool:
    """Whether the destination shows what the sources that are left hold, one over the other."""
    layers = (*opened, destination)
    if any(image.size > destination.size for image in opened):
        return False
    return has_what_sources_hold(
        layers, len(opened), window_writes(layers, len(opened), target_of(layers, len(opened)))
    )


def check_still_shows(plan: MergePlan, layers: Sequence[Image], check: Callable[[], None] = lambda: None) -> None:
    """Read a destination whose sources are about to go, and hold it against what they hold.

    Raises:
        JournalError: it does not have that.

    """
    journal, depth = plan.journal, len(layers) - 1
    if journal is None or plan.read_back >= plan.virtual_size:
        return
    found = window_writes(layers, depth, target_of(layers, depth, journal.begin.virtual_size))
    if layers[0].size == layers[depth].size and has_what_sources_hold(layers, depth, found, None, check):
        return
    message = (
        "it does not show what its sources hold: it was put back as it was earlier, or one of them was written after it"
        " was merged into it"
    )
    hint = Advice.MERGE.hint("{} merges them again, from the start", path=plan.sources[0], into=plan.destination)
    raise JournalError(message, path=plan.destination, hint=hint)


def _born_since(
    journal: Journal, left: Sequence[str], destination_id: bytes, folder: Folder, search: Sequence[str]
) -> tuple[tuple[Relink, ...], tuple[str, ...]]:
    """Return how children that the topmost source got since are relinked, and those of the others, which cannot be."""
    top = journal.resolve(journal.begin.sources[0].path)
    known = {*left, *(journal.resolve(relink.path) for relink in journal.relinks or ())}
    relinks: list[Relink] = []
    siblings: list[str] = []
    for path in left:
        with open_image(path, folder=folder) as image:
            born = [child for child in children_of(image, folder, search) if child not in known]
        if path != top:
            siblings += born
            continue
        for child in born:
            relink = Relink(child=child, old_parent=top, new_parent=journal.destination, new_parent_id=destination_id)
            check_relink(folder, relink)
            relinks.append(relink)
    return tuple(relinks), tuple(siblings)
