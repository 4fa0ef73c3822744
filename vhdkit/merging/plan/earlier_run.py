"""What an earlier run of a merge, which was cut off, has left: its journal, its undo image, and what it was asked.

What does not fit is an obstacle. Nothing is written.
"""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from vhdkit.chain.catalog import read_catalog
from vhdkit.chain.children import children_of
from vhdkit.errors import JournalError, VhdError
from vhdkit.findings import Advice
from vhdkit.formats import open_image
from vhdkit.journal.merge_journal import read_journal
from vhdkit.journal.renamed_files import foreign_journal, left_behind
from vhdkit.merging.plan.finish import is_spent
from vhdkit.merging.plan.placement import as_destination, target_of, window_writes
from vhdkit.merging.plan.resume import check_undo, is_about, parents_beside, with_names
from vhdkit.merging.plan.undo_evidence import DOUBT, check_not_older, lacks_nothing, may_lack_something
from vhdkit.merging.plan.undo_image import as_undo_image
from vhdkit.storage import paths
from vhdkit.storage.new_file import is_partial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.chain.merged_layers import MergedLayers
    from vhdkit.disk.image import Image
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.options import MergeRequest
    from vhdkit.storage.protocols import Folder
    from vhdkit.storage.search_scope import SearchScope
    from vhdkit.vhd.sparse_image import SparseImage


@dataclass(slots=True, kw_only=True, eq=False)
class EarlierRun:
    """An earlier run of a merge, or that there was none: then `journal` is None and `request` what is asked now.

    `request` has what the earlier run was asked too. `undo_id` is the id of its undo image, or one for a new image;
    `undo_image` is that image while it is open, and `holds_sectors` says that something was saved into it. `spent`
    is the checksum of a journal that says nothing any more, "" if there is none.
    """

    merged: MergedLayers
    scope: SearchScope
    request: MergeRequest
    journal: Journal | None = None
    spent: str = ""
    undo_id: bytes
    undo_image: SparseImage | None = None
    holds_sectors: bool = False
    obstacles: list[VhdError] = field(default_factory=list)

    @property
    def keeps_sources(self) -> bool:
        """Whether no source is removed by the merge itself."""
        return self.request.keep_sources or self.request.undo is not None

    @property
    def may_relink_siblings(self) -> bool:
        """Whether siblings are to be relinked, and none was made after the earlier run had begun to overwrite.

        An undo image that holds sectors says so even if the journal was put back as it was earlier.
        """
        has_saved = self.holds_sectors or (self.journal is not None and self.journal.saved > 0)
        return self.request.relink_siblings and not has_saved


@contextmanager
def earlier_run(
    merged: MergedLayers, scope: SearchScope, request: MergeRequest, journal: Journal | None
) -> Iterator[EarlierRun]:
    """Yield what is left of an earlier run of a merge, with its undo image open.

    `journal` is the one beside the destination.
    """
    run = _with_journal(merged, scope, request, journal)
    left = left_behind(scope.folder, merged.destination.path, merged.destination.unique_id)
    run.obstacles[:0] = [] if left is None else [left]
    try:
        _find_undo(run)
        yield run
    finally:
        if run.undo_image is not None:
            run.undo_image.close()


def _with_journal(
    merged: MergedLayers, scope: SearchScope, request: MergeRequest, journal: Journal | None
) -> EarlierRun:
    """Return the run that a journal is about; any other unfinished merge is an obstacle."""
    folder, destination = scope.folder, merged.destination
    obstacles = [
        error for layer in merged.layers if layer is not destination for error in _unfinished_beside(layer, folder)
    ]
    spent = journal.checksum if journal is not None and is_spent(journal, folder) else ""
    undo_id = _undo_id(None if spent else journal)
    run = EarlierRun(merged=merged, scope=scope, request=request, spent=spent, undo_id=undo_id, obstacles=obstacles)
    if journal is None or spent:
        return run
    if journal.rolling_back or not is_about(journal, merged.sources, destination):
        run.obstacles.append(_unfinished(journal, folder, destination))
    else:
        run.journal = with_names(journal, merged.sources)
    return run


def _unfinished_beside(layer: Image, folder: Folder) -> Iterator[VhdError]:
    try:
        other = read_journal(folder, layer.path)
    except JournalError as error:
        yield error
        return
    if other is not None:
        yield _unfinished(other, folder, layer)


def _undo_id(journal: Journal | None) -> bytes:
    """Return the id of the undo image of an unfinished merge, whose view it keeps; else one for a new image.

    Where that merge is another one, or keeps its undo image under another name, there is an obstacle already.
    """
    known = journal.begin.undo_id if journal is not None else ""
    return bytes.fromhex(known) if known else uuid.uuid4().bytes_le


def _find_undo(run: EarlierRun) -> None:
    """Take over the undo image of an earlier run, and open it if that has come so far."""
    journal, request, merged, folder = run.journal, run.request, run.merged, run.scope.folder
    if journal is None:
        return
    destination = as_destination(merged.destination)
    path = _undo_path(journal, request, folder) if journal.begin.undo else None
    is_named = request.undo is not None
    if request.undo not in {None, path, journal.resolve(journal.begin.undo)}:
        kept, hint = "keeps nothing for an undo", Advice.UNDO_IMAGE.hint("go on without {}")
        if path:
            kept = f"keeps what it overwrites in {path} (undo image of the unfinished merge)"
            hint = Advice.RESUME.hint("go on with {}")
        message = f"an earlier run of this merge, which was cut off, {kept}"
        run.obstacles.append(JournalError(message, path=destination.path, hint=hint))
        return
    run.request = _as_begun(request, journal, path)
    if path is None:
        return
    run.journal = with_names(journal, merged.sources, path)
    found = window_writes(merged, target_of(merged, journal.begin.virtual_size))
    if not folder.exists(path):
        if journal.reserved and not (is_named and lacks_nothing(journal, None, merged, found)):
            run.obstacles.append(_lost_undo(merged.path, path))
        elif not is_named:
            run.obstacles.append(_unnamed_undo(merged.path, destination.path, path))
        return
    try:
        image = as_undo_image(open_image(path, folder=folder))
        run.undo_image = image
        check_undo(run.journal, image, destination, parents_beside(journal, run.scope))
        run.holds_sectors = check_not_older(journal, image, merged, found) > 0
    except JournalError as error:
        run.obstacles.append(error)


def _as_begun(request: MergeRequest, journal: Journal, undo: str | None) -> MergeRequest:
    """Return a request with what the earlier run was asked for."""
    return msgspec.structs.replace(
        request,
        undo=undo,
        keep_sources=request.keep_sources or journal.begin.keep_sources,
        relink_siblings=request.relink_siblings or journal.begin.relink_siblings,
        verify=request.verify or bool(journal.begin.view),
    )


def _lost_undo(leaf: str, path: str) -> JournalError:
    message = "it keeps what an earlier run of this merge has overwritten, and is gone; put it back"
    text = "if that is not possible, the disk is whole all the same: {} makes a new file of it"
    return JournalError(message, path=path, hint=Advice.MERGE.hint(text, path=leaf, to="NEWFILE"))


def _unnamed_undo(leaf: str, destination: str, path: str) -> JournalError:
    """Return the obstacle: someone who can put a journal beside a file must not choose which file is created."""
    message = "an earlier run of this merge was cut off before it made this undo image"
    hint = Advice.MERGE.hint("{} goes on", path=leaf, into=destination, undo=path)
    return JournalError(message, path=path, hint=hint)


def _undo_path(journal: Journal, request: MergeRequest, folder: Folder) -> str:
    """Return where the undo image of an earlier run is, which may have been renamed since."""
    begin = journal.begin
    path = journal.resolve(begin.undo)
    if folder.exists(path):
        return path
    asked = [paths.dirname(request.undo)] if request.undo is not None else []
    near = dict.fromkeys([paths.dirname(path), paths.dirname(journal.path), *asked])
    found = [
        image.path
        for image in read_catalog(folder, list(near), deep=False).images.values()
        if image.unique_id.hex() == begin.undo_id and not is_partial(image.path)
    ]
    return found[0] if len(found) == 1 else path


def undo_doubt(run: EarlierRun) -> str:
    """Return why the undo image may lack something that an earlier run has overwritten, "" if it cannot.

    Images that read through one that is in doubt are an obstacle.
    """
    journal, merged = run.journal, run.merged
    if journal is None or journal.doubt or not journal.begin.undo:
        return ""
    with run.scope.folder.open(journal.path) as storage:
        found = window_writes(merged, target_of(merged))
        is_doubtful = may_lack_something(journal, storage, run.undo_image, merged, found)
    if is_doubtful and run.undo_image is not None:
        children = children_of(run.undo_image, run.scope)
        if children:
            message = f"{DOUBT}; {len(children)} image(s) read through it: {', '.join(children)}"
            hint = Advice.CONVERT_EACH.hint(
                "put back both as they were last, or turn each image into one of its own first ({})"
            )
            run.obstacles.append(JournalError(message, path=run.undo_image.path, hint=hint))
    return DOUBT if is_doubtful else ""


def _unfinished(journal: Journal, folder: Folder, layer: Image) -> JournalError:
    """Return what stands in the way: another merge, of which nothing is advised that could lose data."""
    foreign = foreign_journal(journal, layer.unique_id)
    if foreign is not None:
        return foreign
    message, hint = f"finish that first: {journal.status}", journal.hint
    begin = journal.begin
    are_there = all(folder.exists(journal.resolve(state.path)) for state in begin.sources)
    if are_there and not begin.undo and not journal.merged:
        # Every source still hides what was copied of it: the topmost shows the whole disk, journal or not.
        top = journal.resolve(begin.sources[0].path)
        never = f"if it is never to go on, remove {journal.path}: {top} shows its disk all the same, and the layers"
        never += " below it no longer show what they did"
        hint = None if hint is None else replace(hint, text=f"{hint.text}; {never}")
    return JournalError(message, path=journal.destination, hint=hint)
