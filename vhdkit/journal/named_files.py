"""The files that a journal names: none outside of the folders that its reader allows, and none by a link.

A journal lies beside the destination, and may be anybody's who could put a file there: names in it lead to files that
are opened, made, relinked and removed. Allowed are its own folder, those of the chain and those that the user named,
and what lies below them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.errors import JournalError
from vhdkit.findings import Advice
from vhdkit.storage import paths
from vhdkit.storage.protocols import Reach

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vhdkit.journal.merge_journal import Journal
    from vhdkit.storage.protocols import Folder


def check_names(journal: Journal, folder: Folder, allowed: Iterable[str]) -> None:
    """Refuse a journal that names sources, an undo image or children outside of the directories allowed, or by a link.

    Children may lie just above those directories, and where links in them lead: they are looked for there.

    Raises:
        JournalError: naming the file.

    """
    begin = journal.begin
    roots = list(dict.fromkeys(folder.real(each) for each in (paths.dirname(journal.path), *allowed)))
    for name in (*(source.path for source in begin.sources), *([begin.undo] if begin.undo else [])):
        _check(journal, journal.resolve(name), folder, roots)
    for relink in (*journal.former_relinks, *(journal.relinks or ())):
        path = journal.resolve(relink.path)
        if paths.dirname(path) not in map(paths.dirname, roots) and not _is_linked(path, folder, roots):
            _check(journal, path, folder, roots)


def _check(journal: Journal, path: str, folder: Folder, roots: Sequence[str]) -> None:
    # First by its text alone: even asking the system about a path outside can wake an automounter.
    directory = paths.dirname(path)
    if not paths.is_below(directory, roots) or not paths.is_below(folder.real(directory), roots):
        message = f"it names {path}, outside of the folders of its chain and of those that were named"
        hint = Advice.SEARCH_THERE.hint("if that is right, add {}", folder=directory)
        raise JournalError(message, path=journal.path, hint=hint)
    if folder.real(path) != paths.join(folder.real(directory), paths.basename(path)):
        raise JournalError(f"it names {path}, which is a link", path=journal.path)


def _is_linked(path: str, folder: Folder, roots: Sequence[str]) -> bool:
    """Whether a file outside of the roots is found there through a link, as children are."""
    if paths.is_below(paths.dirname(path), roots):
        return False
    reach = Reach()
    return any(entry.path == path for root in roots for entry in folder.walk(root, reach=reach))
