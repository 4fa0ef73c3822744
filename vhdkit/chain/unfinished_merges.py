"""Merges that were begun and not finished, as findings about the files that they go into."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.corruption import Corruption
from vhdkit.errors import JournalError
from vhdkit.findings import Finding
from vhdkit.journal.merge_journal import find_journal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vhdkit.storage.protocols import Folder


def unfinished_merges(folder: Folder, files: Iterable[str]) -> Iterator[Finding]:
    """Yield a finding for each file into which a merge was begun and not finished."""
    for path in files:
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
            message, hint = journal.status, journal.hint
        yield Finding(corruption=Corruption.MERGE_UNFINISHED, path=path, message=message, hint=hint)
