"""Which of a destination's children is the undo image of a merge into it, and no image that a guest has written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.errors import VhdError
from vhdkit.journal.merge_journal import read_journal
from vhdkit.storage import paths

if TYPE_CHECKING:
    from vhdkit.chain.catalog import Cataloged
    from vhdkit.storage.protocols import Folder


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoImage:
    """What a journal says of an undo image: its id as 16 bytes in hexadecimal, and the destination's path."""

    unique_id: str
    destination: str
    is_merged: bool

    @property
    def message(self) -> str:
        """What it is, in words."""
        state = "" if self.is_merged else "unfinished "
        return f"it is the undo image of the {state}merge into {paths.basename(self.destination)}"

    def is_it(self, image: Cataloged) -> bool:
        """Whether a child of the destination is the undo image, whatever its name."""
        return image.unique_id.hex() == self.unique_id


def undo_image_of(folder: Folder, destination: str) -> UndoImage | None:
    """Return the undo image that the journal beside a file names, None if there is no such journal.

    One that is kept for others when the merge is made final is an image like any other from then on.
    """
    try:
        journal = read_journal(folder, destination)
    except (VhdError, OSError):
        return None
    if journal is None or not journal.begin.undo_id:
        return None
    if journal.dropping and journal.keep_undo_file:
        return None
    return UndoImage(unique_id=journal.begin.undo_id, destination=destination, is_merged=journal.merged)
