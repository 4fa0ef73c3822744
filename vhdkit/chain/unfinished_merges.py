"""Merges that were begun and not finished, as findings about the files that they go into."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.corruption import Corruption
from vhdkit.errors import JournalError
from vhdkit.findings import Finding
from vhdkit.journal.merge_journal import Journal, UnbegunJournal, find_journal
from vhdkit.journal.renamed_files import foreign_journal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vhdkit.findings import Hint
    from vhdkit.storage.protocols import Folder


def unfinished_merges(folder: Folder, unique_ids: Mapping[str, bytes]) -> Iterator[Finding]:
    """Yield a finding for each file into which a merge was begun and not finished.

    The files have these ids, b"" where none is known. A journal of a file with another id gets a message of its own.
    """
    for path, unique_id in unique_ids.items():
        hint = None
        try:
            journal = find_journal(folder, path)
        except JournalError as error:
            message = f"there is a journal of a merge into it that cannot be read: {error.text}"
        except OSError as error:
            message = f"there is a journal of a merge into it that cannot be read: {error.strerror}"
        else:
            if journal is None:
                continue
            message, hint = _told(journal, unique_id)
        yield Finding(corruption=Corruption.MERGE_UNFINISHED, path=path, message=message, hint=hint)


def _told(journal: Journal | UnbegunJournal, unique_id: bytes) -> tuple[str, Hint | None]:
    """Return what a journal beside a file means for it, and what mends that."""
    if isinstance(journal, Journal) and unique_id:
        foreign = foreign_journal(journal, unique_id)
        if foreign is not None:
            return f"the journal {journal.path} does not speak of it: {foreign.text}", None
    return journal.status, journal.hint
