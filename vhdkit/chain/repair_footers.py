"""Writing an image's footers anew, of a format that has any and is written here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.arguments import checked
from vhdkit.errors import JournalError
from vhdkit.formats import open_changeable
from vhdkit.journal.merge_journal import read_journal
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.units import as_text
from vhdkit.vhd.repair_footers import rewrite_footers

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder
    from vhdkit.units import StrPath


@checked
def repair_footers(path: StrPath, *, folder: Folder | None = None) -> str:
    """Write the footers of an image that are lost or differ, and return what was done, "" if they are right.

    A lost footer is written from its copy, a copy that differs from the footer at the end, which every reader
    believes. A fixed disk's file ends behind its footer afterwards, if what lies there is zeros.

    Raises:
        CorruptImageError: no footer can be believed, another rule is broken so that nothing may be written, or data
            lie behind the footer of a fixed disk.
        JournalError: a merge into it is not finished, and writes its footers itself.
        ReadOnlyImageError, ImageInUseError, OSError: it cannot be written, or its format is only read.

    """
    place = folder or LocalFolder()
    real = place.real(as_text(path))
    with open_changeable(real, writable=True, exclusive=True, folder=place) as image:
        image.check_readable()
        journal = read_journal(place, real)
        if journal is not None:
            raise JournalError(f"finish that first: {journal.status}", path=real, hint=journal.hint)
        return rewrite_footers(image)
