"""What does not fit between a child and its parent without keeping the child from being read.

**Source**: docs/reference/vhd.md 2.6, 2.9, 4.2 rows 57, 59 and 60.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.corruption import Corruption
from vhdkit.disk import timestamp, unique_id
from vhdkit.disk.image import DiskKind, ImageSummary
from vhdkit.findings import Finding
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.disk.image import Image


def compare_link(child: ImageSummary, parent: Image) -> Iterator[Finding]:
    """Yield what does not fit, each said of the child."""
    yield from compare_summaries(child, parent, path=parent.path, size=parent.size, mtime=parent.storage.mtime)


def compare_summaries(
    child: ImageSummary, parent: ImageSummary | None, *, path: str, size: int, mtime: float
) -> Iterator[Finding]:
    """Yield the same of a parent that may be too damaged to be opened; it is None if it says nothing of itself."""
    link = child.parent
    if link is None:
        return
    if child.size != size:
        message = f"its disk has {child.size} bytes, that of its parent {paths.basename(path)} {size}"
        yield Finding(corruption=Corruption.PARENT_SIZE, path=child.path, message=message)
    if parent is None or parent.kind is DiskKind.RAW:
        return
    if child.unique_id == parent.unique_id and child.unique_id != unique_id.NULL:
        message = "it has the same id as its parent, as some makers give to files of one second"
        yield Finding(corruption=Corruption.PARENT_ID_IS_OWN, path=child.path, message=message)
    stored = link.timestamp
    stamps = (parent.timestamp, timestamp.from_unix(mtime))
    # FAT keeps even seconds; a daylight-saving hour is a known quirk (docs/reference/vhd.md 2.6).
    if stored and not any(min(abs(stored - stamp), abs(abs(stored - stamp) - 3600)) <= 2 for stamp in stamps):
        remembered, made, changed = (timestamp.to_datetime(stamp).isoformat() for stamp in (stored, *stamps))
        message = f"it remembers its parent as of {remembered}; the parent was made {made}, last changed {changed}"
        yield Finding(corruption=Corruption.PARENT_TIMESTAMP, path=child.path, message=message)
