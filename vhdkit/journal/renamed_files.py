"""Journals and images that no longer lie beside each other, since one of them got another name.

A journal says of which file it speaks by that file's id. So one that was left behind when its image was renamed can be
pointed out, and one beside a new file of an old name does not speak of that.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vhdkit.disk.unique_id import guid
from vhdkit.errors import JournalError
from vhdkit.journal.merge_journal import SUFFIX, Journal, find_journal, journal_path
from vhdkit.storage import paths

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder


def foreign_journal(journal: Journal, unique_id: bytes) -> JournalError | None:
    """Return the error that a journal beside an image with an id speaks of another file; None if it does not."""
    spoken_of = journal.begin.destination.unique_id
    if spoken_of == unique_id.hex():
        return None
    message = (
        f"it is the journal of a merge into another file that had the name {journal.destination}, and that has the id"
        f" {guid(bytes.fromhex(spoken_of))}. Give it that file's name, with {SUFFIX}, or remove it if that file is no"
        " more"
    )
    return JournalError(message, path=journal.path)


def left_behind(folder: Folder, path: str, unique_id: bytes) -> JournalError | None:
    """Return the error that a merge into an image is unfinished, though no journal is beside it; None if none is."""
    journal = journal_left_behind(folder, path, unique_id)
    if journal is None:
        return None
    message = (
        f"a merge into it is not finished, and its journal {journal.path} was left behind when the image got another"
        f" name: rename the journal to {journal_path(path)}, and try again"
    )
    return JournalError(message, path=path)


def journal_left_behind(folder: Folder, path: str, unique_id: bytes) -> Journal | None:
    """Return the journal of a merge with an undo image that lies in the folder under the name that its image had.

    A merge without an undo image begins again, and needs none.
    """
    if folder.exists(journal_path(path)):
        return None
    directory = paths.dirname(path)
    for name in folder.names(directory):
        former = paths.join(directory, name.removesuffix(SUFFIX))
        if name.endswith(SUFFIX) and not folder.exists(former):
            with suppress(JournalError, OSError):
                journal = find_journal(folder, former, image=path)
                if isinstance(journal, Journal) and _is_of(journal, unique_id):
                    return journal
    return None


def _is_of(journal: Journal, unique_id: bytes) -> bool:
    return bool(journal.begin.undo) and journal.begin.destination.unique_id == unique_id.hex()
