"""What a merge that is not finished explains about the file that it writes to.

A journal is untrusted: it explains only what the file itself shows as well, and nothing that it explains is read
otherwise for that.

**Source**: docs/explanation/order-of-writes.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.errors import VhdError
from vhdkit.storage.protocols import read_bytes
from vhdkit.vhd.constants import FOOTER_SIZE
from vhdkit.vhd.footer import Footer
from vhdkit.vhd.metadata import SparseMetadata

if TYPE_CHECKING:
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.storage.protocols import Storage
    from vhdkit.vhd.metadata import Metadata


def leaves_footer_lost(journal: Journal, metadata: Metadata) -> bool:
    """Whether the file, or the undo image, got its length from the merge, and not yet the footer at its end."""
    if journal.begin.undo_id == metadata.footer.unique_id.hex():
        return not journal.merged
    before = _footer_before(journal)
    is_as_long = metadata.file_size <= journal.begin.file_end + FOOTER_SIZE
    return is_as_long and before is not None and _are_alike(before, metadata.footer)


def leaves_footers_apart(journal: Journal, metadata: Metadata, storage: Storage) -> bool:
    """Whether the merge, or its roll-back, gave one of the footers the disk's other size, and not yet the other."""
    before = _footer_before(journal)
    try:
        copy = Footer.from_bytes(read_bytes(storage, 0, FOOTER_SIZE))
    except VhdError:
        return False
    return before is not None and _are_alike(before, metadata.footer) and _are_alike(before, copy)


def rooms_of(journal: Journal, metadata: Metadata) -> tuple[tuple[int, int], ...]:
    """Return the stretches of the file that the merge has reserved, and that nothing in the file refers to yet."""
    begin = journal.begin
    if metadata.footer_start != begin.file_end:
        return ()
    rooms = [(min(begin.first, begin.file_end), begin.file_end)]
    if begin.growth is not None and isinstance(metadata, SparseMetadata):
        rooms.append((metadata.header.table_offset, min(begin.growth.end, begin.file_end)))
    return tuple(rooms)


def _footer_before(journal: Journal) -> Footer | None:
    try:
        return Footer.from_bytes(bytes.fromhex(journal.begin.footer))
    except (ValueError, VhdError):
        return None


def _are_alike(one: Footer, other: Footer) -> bool:
    """Whether two footers differ in nothing but the disk's size."""
    return replace(one, current_size=other.current_size, geometry=other.geometry) == other
