"""What does not fit between a child and its parent without keeping the child from being read.

**Source**: reference 2.6, 2.9, 4.2 rows 57, 59 and 60.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.disk import unique_id
from vhdkit.findings import Finding
from vhdkit.storage import paths
from vhdkit.vhd import timestamp
from vhdkit.vhd.corruption import Corruption
from vhdkit.vhd.image import VhdImage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.disk.image import Image
    from vhdkit.vhd.metadata import Metadata


def compare_link(child: Metadata, parent: Image) -> Iterator[Finding]:
    """Yield what does not fit, each said of the child."""
    metadata = parent.metadata if isinstance(parent, VhdImage) else None
    yield from compare_metadata(child, metadata, path=parent.path, size=parent.size, mtime=parent.storage.mtime)


def compare_metadata(
    child: Metadata, parent: Metadata | None, *, path: str, size: int, mtime: float
) -> Iterator[Finding]:
    """Yield the same of a parent that may be too damaged to be opened; it is None for a raw one."""
    header, footer = child.header, child.footer
    if header is None:
        return
    if footer.current_size != size:
        message = f"its disk has {footer.current_size} bytes, that of its parent {paths.basename(path)} {size}"
        yield Finding(corruption=Corruption.PARENT_SIZE, path=child.path, message=message)
    if parent is None:
        return
    if footer.unique_id == parent.footer.unique_id and footer.unique_id != unique_id.NULL:
        message = "it has the same id as its parent, as some makers give to files of one second"
        yield Finding(corruption=Corruption.PARENT_ID_IS_OWN, path=child.path, message=message)
    stored = header.parent_timestamp
    stamps = (parent.footer.timestamp, timestamp.from_unix(mtime))
    # FAT keeps even seconds; a daylight-saving hour is a known quirk (reference 2.6).
    if stored and not any(min(abs(stored - stamp), abs(abs(stored - stamp) - 3600)) <= 2 for stamp in stamps):
        remembered, made, changed = (timestamp.to_datetime(stamp).isoformat() for stamp in (stored, *stamps))
        message = f"it remembers its parent as of {remembered}; the parent was made {made}, last changed {changed}"
        yield Finding(corruption=Corruption.PARENT_TIMESTAMP, path=child.path, message=message)
