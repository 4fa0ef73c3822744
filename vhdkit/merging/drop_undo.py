"""Making a merge final: what was kept for taking it back goes.

**Order**: the journal says so; then the sources, the undo image and the journal are removed, as step 9 of a merge.

**Source**: docs/explanation/order-of-writes.md.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.arguments import checked
from vhdkit.chain.children import children_of
from vhdkit.chain.parent_search import ParentSearch
from vhdkit.chain.relink import Relink, apply_patches, relink_patches
from vhdkit.errors import JournalError, SiblingsError, VhdError
from vhdkit.findings import Advice
from vhdkit.formats import open_changeable, open_image
from vhdkit.journal.claims import Change
from vhdkit.journal.journal_writer import JournalWriter
from vhdkit.journal.named_files import check_names
from vhdkit.merging.plan.finish import check_still_shows, find_complete, finishing_plan
from vhdkit.merging.run.engine import MergeResult, merge
from vhdkit.merging.run.locked_files import MergeFiles
from vhdkit.options import DropUndoRequest
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vhdkit.journal.merge_journal import Journal
    from vhdkit.merging.plan.plan import MergePlan
    from vhdkit.storage.protocols import Folder
    from vhdkit.storage.search_scope import SearchScope
    from vhdkit.units import StrPath

from vhdkit.merging.undo_image_search import find_undone, named_directories, read_unchanged, refuse_claimed


@checked
def drop_undo(
    path: StrPath,
    *,
    keep_file: bool = False,
    search: Sequence[StrPath] = (),
    parent_map: Mapping[str, StrPath] | None = None,
    folder: Folder | None = None,
) -> MergeResult:
    """Make a merge final: remove the sources that were kept for its undo image at `path`, and the image.

    With `keep_file` the image stays, for those that read through it.

    Raises:
        JournalError: it is no undo image of a merge that is complete.
        SiblingsError: other images read through it.
        SnapshotError: the snapshots of a machine need a file that would be removed.
        ImageInUseError: somebody holds one of the files.

    """
    request = DropUndoRequest.of(path, keep_file=keep_file, search=search, parent_map=parent_map)
    return drop_as_asked(request, folder or LocalFolder())


def drop_as_asked(request: DropUndoRequest, folder: Folder) -> MergeResult:
    """Make the merge final that is asked for; the rest is as in `drop_undo`."""
    path, keep_file = request.path, request.keep_file
    parents = ParentSearch(folder, request.parents, takes_parent=False)
    scope = parents.scope
    journal = None if folder.exists(path) else find_complete(path, scope)
    if journal is None:
        _, journal = find_undone(path, parents)
    else:
        check_names(journal, folder, named_directories(path, parents))
    if not journal.merged or journal.rolling_back:
        raise JournalError(f"it cannot be dropped: {journal.status}", path=path, hint=journal.hint)
    if not journal.dropping:
        if not keep_file:
            _check_children(path, scope)
        refuse_claimed(journal, scope, Change(others=(folder.real(path), *_sources(journal))))
    try:
        plan = finishing_plan(journal, scope)
        if not journal.dropping:
            plan = _say_dropping(journal, scope, keep_file=keep_file)
        result = merge(plan, folder=folder)
    except OSError as error:
        _add_note(error, path, scope.directories)
        raise
    is_kept = journal.keep_undo_file if journal.dropping else keep_file
    if is_kept:
        _refresh_stamp(journal, folder)
    return result


def _add_note(error: OSError, path: str, search: tuple[str, ...]) -> None:
    if not getattr(error, "__notes__", None):
        again = Advice.DROP_UNDO.hint("{} goes on with it.", path=path, **({"search": search} if search else {}))
        error.add_note(f"Every disk reads as before; {again}")


def _check_children(path: str, scope: SearchScope) -> None:
    """Refuse to drop an undo image, if it is there, that others read through."""
    if not scope.folder.exists(path):
        return
    with open_image(path, folder=scope.folder) as undo:
        children = children_of(undo, scope)
    if children:
        message = f"{len(children)} image(s) read through it: {', '.join(children)}"
        hint = Advice.KEEP_UNDO_FILE.hint("keep it for them with {}")
        raise SiblingsError(message, path=path, siblings=children, hint=hint)


def _sources(journal: Journal) -> tuple[str, ...]:
    return tuple(journal.resolve(source.path) for source in journal.begin.sources)


def _refresh_stamp(journal: Journal, folder: Folder) -> None:
    """Let a kept undo image remember its parent as it is now, after the merge: it is an image like any other.

    Only a time stamp is left as it was if it cannot be written now, which every reader says and none minds.
    """
    undo_path, destination_path = journal.resolve(journal.begin.undo), journal.destination
    with (
        suppress(VhdError, OSError),
        open_image(destination_path, exclusive=False, folder=folder) as parent,
        open_changeable(undo_path, writable=True, exclusive=True, folder=folder) as undo,
    ):
        if undo.parent is not None and undo.parent.unique_id == parent.unique_id:
            relink = Relink(
                child=undo.path, old_parent=parent.path, new_parent=parent.path, new_parent_id=parent.unique_id
            )
            apply_patches(folder, undo, relink_patches(undo, relink, parent_mtime=parent.storage.mtime))


def _say_dropping(journal: Journal, scope: SearchScope, *, keep_file: bool) -> MergePlan:
    """Write into the journal that what was kept goes; return the plan by which it does.

    Everything that stands in the way of that is looked for, and the destination read, before the first word of it is
    written: what is refused now can still be rolled back.
    """
    folder = scope.folder
    planned = finishing_plan(replace(journal, dropping=True, keep_undo_file=keep_file), scope)
    if planned.obstacles:
        raise planned.obstacles[0]
    with MergeFiles(planned, folder) as files:
        check_still_shows(planned, files.chain.layers)
        with JournalWriter.append(folder, read_unchanged(journal, folder)) as writer:
            writer.write("dropping", keep_file=keep_file)
    plan = finishing_plan(writer.journal, scope)
    # What was read is held by the states of the files, which the merge looks at again once it has locked them.
    return replace(plan, read_back=plan.virtual_size) if plan.layers == planned.layers else plan
