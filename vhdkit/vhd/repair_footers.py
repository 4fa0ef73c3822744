"""Writing an image's footers anew from the one that is believed: what other tools refuse a file for.

Only footers are written, where none is or a wrong one, and padding is removed that holds nothing; a disk reads as
before.

**Order**: one sector, or the file's length, in one call, sync. A cut leaves the file as it was, or mended; a file that
has its new length and not yet the footer at its end is mended by the same call again.

**Source**: reference 1.3, 4.1 rows 2 to 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.arguments import checked
from vhdkit.disk.image import DiskKind
from vhdkit.errors import CorruptImageError, JournalError
from vhdkit.journal.merge_journal import read_journal
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import as_text
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.corruption import Corruption
from vhdkit.vhd.metadata import FooterPlace
from vhdkit.vhd.open_image import Vhd, open_image

if TYPE_CHECKING:
    from vhdkit.storage.protocols import Folder
    from vhdkit.units import StrPath

_PIECE_BYTES = 4 << 20


@checked
def repair_footers(path: StrPath, *, folder: Folder | None = None) -> str:
    """Write the footers of an image that are lost or differ, and return what was done, "" if they are right.

    A lost footer is written from its copy, a copy that differs from the footer at the end, which every reader
    believes. A fixed disk's file ends behind its footer afterwards, if what lies there is zeros.

    Raises:
        CorruptImageError: no footer can be believed, another rule is broken so that nothing may be written, or data
            lie behind the footer of a fixed disk.
        JournalError: a merge into it is not finished, and writes its footers itself.
        ReadOnlyImageError, ImageInUseError, OSError: it cannot be written.

    """
    place = folder or LocalFolder()
    real = place.real(as_text(path))
    with open_image(real, writable=True, exclusive=True, folder=place) as image:
        image.check_readable()
        journal = read_journal(place, real)
        if journal is not None:
            raise JournalError(f"finish that first: {journal.status}", path=real, hint=journal.hint)
        return _repair(image)


def _repair(image: Vhd) -> str:
    metadata = image.metadata
    if metadata.footer_place is FooterPlace.INSIDE:
        return _end_behind_footer(image)
    if image.kind is not DiskKind.FIXED and metadata.footer_place is FooterPlace.COPY:
        end = image.file_end_for(0)
        image.write_footer(end)
        image.sync()
        doubt = ""
        if image.placed.end > metadata.footer_start - FOOTER_SIZE:
            doubt = "; the last sectors of its last block were where the footer should be: look at what they hold"
        return f"the footer was written at {end:#x} from its copy{doubt}"
    if not metadata.copy_ok:
        image.write_at(0, image.footer.to_bytes())
        image.sync()
        return "the footer copy was written from the footer at the end"
    return ""


def _end_behind_footer(image: Vhd) -> str:
    end, stop = image.size + FOOTER_SIZE, image.metadata.file_size
    for at in range(end, stop, _PIECE_BYTES):
        length = min(_PIECE_BYTES, stop - at)
        if image.storage.hole_bytes(at, length) < length and any(read_bytes(image.storage, at, length)):
            detail = f"data lie behind its footer at {image.size:#x}, in the {length} bytes from {at:#x}; convert it"
            raise CorruptImageError(Corruption.FOOTER_MISPLACED, detail, path=image.path, offset=image.size)
    image.check_writable()
    image.storage.truncate(end)
    image.sync()
    return f"{stop - end} bytes of zeros behind its footer were removed"
