"""What is left to do of a merge that is complete: names to be changed, and sources to be removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vhdkit.chain.children import children_of, ended_advice
from vhdkit.chain.merged_layers import MergedLayers
from vhdkit.chain.relink import Relink, check_relink
from vhdkit.chain.siblings import Relatives
from vhdkit.corruption import Corruption
from vhdkit.disk.image import Image
from vhdkit.errors import JournalError, ReadOnlyImageError, SiblingsError, VhdError
from vhdkit.findings import Advice, Finding
from vhdkit.formats import open_image
from vhdkit.journal.named_files import check_names
from vhdkit.merging.plan.complete_merge import CompleteMerge, is_there
from vhdkit.merging.plan.evidence import has_what_sources_hold, is_untouched
from vhdkit.merging.plan.placement import target_of, window_writes
from vhdkit.merging.plan.plan import LayerState, MergePlan, Resume
from vhdkit.merging.plan.resume import is_about, journals_near, parents_beside, with_names
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vhdkit.disk.image import Image
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.options import MergeRequest
    from vhdkit.storage.protocols import Folder
    from vhdkit.storage.search_scope import SearchScope


def plan_without_leaf(request: MergeRequest, scope: SearchScope) -> MergePlan | None:
    """Return the plan to finish a merge whose topmost source was removed already, None if there is none."""
    folder = scope.folder
    if folder.exists(request.child) or request.to is not None:
        return None
    complete = find_complete(request.child, scope)
    if complete is None:
        return None
    check_names(complete, folder, [paths.dirname(folder.real(request.child)), *request.parents.folders])
    return finishing_plan(complete, scope, keep_sources=request.keep_sources, only_shown=request.verify)


def plan_if_complete(
    merged: MergedLayers, scope: SearchScope, request: MergeRequest, journal: Journal
) -> MergePlan | None:
    """Return the plan to finish a merge that is complete, None if there is none of these files, or they were written.

    What was written since a merge was complete is merged again, from the start.

    Raises:
        JournalError: the request names an undo image that the merge has not kept.

    """
    keep_sources = request.keep_sources
    if is_about(journal, merged.sources, merged.destination) and not journal.rolling_back:
        if not _is_complete(journal, merged, keep_sources=keep_sources, verify=request.verify):
            return None
        _refuse_other_undo(journal, request.undo, scope.folder)
        return finishing_plan(with_names(journal, merged.sources), scope, keep_sources=keep_sources, is_read=True)
    if _is_leftover(journal, merged.sources, scope.folder):
        return finishing_plan(journal, scope, keep_sources=keep_sources, only_shown=True)
    return None


def _refuse_other_undo(journal: Journal, undo: str | None, folder: Folder) -> None:
    """Refuse to end a merge as one that has an undo image which was never made; one that is there may be renamed."""
    kept = journal.resolve(journal.begin.undo) if journal.begin.undo else ""
    if undo is None or undo == kept or folder.exists(undo):
        return
    what = f"its undo image is {kept}" if kept else "it kept nothing for an undo"
    message = f"there will be no undo image {undo}: the merge is complete, and {what}"
    raise JournalError(message, path=journal.destination, hint=journal.hint)


def find_complete(path: str, scope: SearchScope) -> Journal | None:
    """Return the journal of a complete merge whose topmost source, or dropped undo image, was at `path`."""
    path = scope.folder.real(path)
    for journal in journals_near(path, scope):
        if isinstance(journal, JournalError):
            continue
        begin = journal.begin
        if journal.merged and journal.resolve(begin.sources[0].path) == path:
            return journal
        if begin.undo and journal.resolve(begin.undo) == path:
            return journal
    return None


def _is_complete(journal: Journal, merged: MergedLayers, *, keep_sources: bool, verify: bool) -> bool:
    """Whether the destination has all that the sources hold, which are there: both are read.

    Where no source goes, and unless it is to `verify`, it is enough that no file was touched since they were merged.
    """
    begin, destination = journal.begin, merged.destination
    if not journal.merged or destination.size != merged.size:
        return False
    is_kept = _keeps(journal, keep_sources=keep_sources)
    if is_kept and not verify and is_untouched(journal, merged.sources, destination):
        return True
    found = window_writes(merged, target_of(merged, begin.virtual_size))
    return has_what_sources_hold(merged, found)


def _keeps(journal: Journal, *, keep_sources: bool) -> bool:
    begin = journal.begin
    return keep_sources or begin.keep_sources or (bool(begin.undo) and not journal.dropping)


def _is_leftover(journal: Journal, sources: Sequence[Image], folder: Folder) -> bool:
    """Whether sources are some of those of a complete merge whose topmost one is gone: they are not to be merged."""
    begin = journal.begin
    if not journal.merged or journal.rolling_back or (begin.undo and not journal.dropping):
        return False
    ids = {source.unique_id for source in begin.sources[1:]}
    mine = [layer.unique_id.hex() for layer in sources]
    return set(mine) <= ids and not is_there(journal, begin.sources[0], folder)


def is_spent(journal: Journal, folder: Folder) -> bool:
    """Whether a journal has nothing left to say: its merge is complete, and none of the files that were to go is there.

    Another file may have the name of one by now.
    """
    begin = journal.begin
    if not journal.merged or journal.rolling_back or (begin.undo and not journal.dropping):
        return False
    is_kept = begin.undo and not journal.keep_undo_file and folder.exists(journal.resolve(begin.undo))
    return not is_kept and not any(is_there(journal, source, folder) for source in begin.sources)


def finishing_plan(
    journal: Journal,
    scope: SearchScope,
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
    begin, folder = journal.begin, scope.folder
    _refuse_unfinished(journal)
    is_kept = _keeps(journal, keep_sources=keep_sources)
    with open_image(journal.destination, folder=folder) as destination:
        complete = CompleteMerge(journal, destination, parents_beside(journal, scope))
        complete.check()
        here = LayerState.of(destination)
        block_size, size, file_size = destination.block_size, destination.size, destination.storage.size()
        left = complete.left(only_shown=only_shown)
    removals = () if is_kept else left.removable
    relinks, siblings = _born_since(journal, removals, destination.unique_id, scope)
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
        search=scope.directories,
        findings=tuple(_ended(path, journal.destination) for path in left.kept),
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


def check_still_shows(plan: MergePlan, layers: Sequence[Image], check: Callable[[], None] = lambda: None) -> None:
    """Read a destination whose sources are about to go, and hold it against what they hold.

    Raises:
        JournalError: it does not have that.

    """
    journal, merged = plan.journal, MergedLayers(layers, len(layers) - 1)
    if journal is None or plan.read_back >= plan.virtual_size:
        return
    found = window_writes(merged, target_of(merged, journal.begin.virtual_size))
    if merged.size == merged.destination.size and has_what_sources_hold(merged, found, None, check):
        return
    message = (
        "it does not show what its sources hold: it was put back as it was earlier, or one of them was written after it"
        " was merged into it"
    )
    hint = Advice.MERGE.hint("{} merges them again, from the start", path=plan.sources[0], into=plan.destination)
    raise JournalError(message, path=plan.destination, hint=hint)


def _born_since(
    journal: Journal, left: Sequence[str], destination_id: bytes, scope: SearchScope
) -> tuple[tuple[Relink, ...], tuple[str, ...]]:
    """Return how children that the topmost source got since are relinked, and those of the others, which cannot be."""
    top = journal.resolve(journal.begin.sources[0].path)
    known = {*left, *(journal.resolve(relink.path) for relink in journal.relinks or ())}
    relinks: list[Relink] = []
    siblings: list[str] = []
    for path in left:
        with open_image(path, folder=scope.folder) as image:
            born = [child for child in children_of(image, scope) if child not in known]
        if path != top:
            siblings += born
            continue
        for child in born:
            relink = Relink(child=child, old_parent=top, new_parent=journal.destination, new_parent_id=destination_id)
            check_relink(scope.folder, relink)
            relinks.append(relink)
    return tuple(relinks), tuple(siblings)
