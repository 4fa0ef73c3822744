"""Writing an image's footers anew from the one that is believed: what other tools refuse a file for.

Only footers are written, where none is or a wrong one, and padding is removed that holds nothing; a disk reads as
before.

**Order**: one sector, or the file's length, in one call, sync. A cut leaves the file as it was, or mended; a file that
has its new length and not yet the footer at its end is mended by the same call again.

**Source**: docs/reference/vhd.md 1.3, 4.1 rows 2 to 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.corruption import Corruption
from vhdkit.disk.image import DiskKind
from vhdkit.errors import CorruptImageError
from vhdkit.storage.protocols import read_bytes
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.metadata import FooterPlace

if TYPE_CHECKING:
    from vhdkit.vhd.open_image import Vhd

_PIECE_BYTES = 4 << 20


def rewrite_footers(image: Vhd) -> str:
    """Write the footers of an image that is open for writing, and return what was done, "" if they are right.

    Raises:
        CorruptImageError: data lie behind the footer of a fixed disk.
        ReadOnlyImageError, OSError: it cannot be written.

    """
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
