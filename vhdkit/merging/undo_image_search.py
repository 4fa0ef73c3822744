"""The merge that an undo image belongs to: found by the image, and held against those who need its files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.chain.parent_search import ParentSearch, find_parent
from vhdkit.disk.image import DiskKind
from vhdkit.errors import JournalError
from vhdkit.formats import open_image
from vhdkit.journal.claims import Change, obstacles
from vhdkit.journal.merge_journal import read_journal
from vhdkit.journal.named_files import check_names
from vhdkit.journal.renamed_files import left_behind
from vhdkit.merging.plan.resume import noting_unreadable_journals
from vhdkit.storage import paths

if TYPE_CHECKING:
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.storage.protocols import Folder
    from vhdkit.storage.search_scope import SearchScope


def find_undone(path: str, parents: ParentSearch) -> tuple[str, Journal]:
    """Return the destination of an undo image, and the journal of their merge; nothing below is looked for."""
    with noting_unreadable_journals(path, parents.scope):
        opened = open_image(path, folder=parents.folder)
    with opened as undo:
        if undo.kind is not DiskKind.DIFFERENCING:
            raise JournalError("it is no undo image: it has no parent that was merged into", path=path)
        with find_parent(undo, parents, {undo.storage.identity}).layer as below:
            journal = read_journal(parents.folder, below.path)
            if journal is None or journal.begin.undo_id != undo.unique_id.hex():
                left = left_behind(parents.folder, below.path, below.unique_id)
                raise left or JournalError(f"it is no undo image of a merge into {below.path}", path=path)
            check_names(journal, parents.folder, named_directories(path, parents))
            return below.path, journal


def named_directories(path: str, parents: ParentSearch) -> tuple[str, ...]:
    """Return where a roll-back may find files: beside the undo image, and where the caller says."""
    return (paths.dirname(parents.folder.real(path)), *parents.policy.folders)


def refuse_claimed(journal: Journal, scope: SearchScope, change: Change) -> None:
    """Refuse to take from a machine what its snapshots need.

    Raises:
        SnapshotError: they need a file that would be changed or removed.

    """
    if not journal.rolling_back:
        for obstacle in obstacles(scope, change):
            raise obstacle


def read_unchanged(journal: Journal, folder: Folder) -> Journal:
    """Return a journal as it is now, which is as it was.

    Raises:
        JournalError: it is not.

    """
    now = read_journal(folder, journal.destination)
    if now is None or now.checksum != journal.checksum:
        raise JournalError("another process went on with it meanwhile; try again", path=journal.path)
    return now
