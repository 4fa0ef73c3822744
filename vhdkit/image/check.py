"""Judging one file by every rule of reference 4.1, going on behind whatever is wrong.

Fields and structures are judged where they are read (`metadata.examine`), what is merely odd about them in
`check_fields`, the blocks in `check_blocks`. How the image belongs to others is `chain.check`'s to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.errors import CorruptImageError, Corruption, ImageInUseError, Level, as_finding
from vhdkit.image.check_blocks import Leaks, Tally, check_blocks
from vhdkit.image.check_fields import check_fields
from vhdkit.image.metadata import examine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.image.metadata import Metadata
    from vhdkit.image.step import Patch
    from vhdkit.storage.seam import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """What was found in one file; `metadata` is None if it says nothing about itself that can be read."""

    tally: Tally
    leaks: Leaks
    metadata: Metadata | None


def check_file(storage: Storage, *, deep: bool, now: float, patches: Sequence[Patch] = ()) -> FileCheck:
    """Judge one file; with `deep` all bitmaps and the data that they say are not there are read too.

    A lock for reading is asked for, to tell whether somebody is writing meanwhile; `now` is in Unix seconds.

    Raises:
        OSError: the file cannot be read.

    """
    tally = Tally(storage.path)
    try:
        storage.lock(exclusive=False)
    except ImageInUseError as error:
        message = f"another process is writing it: what is told here may be half of a change ({error.message})"
        tally.add(Corruption.IN_USE, Level.WARNING, message)
    examined = examine(storage, patches)
    tally.extend(examined.findings)
    leaks = Leaks()
    if examined.metadata is not None:
        tally.extend(check_fields(examined.metadata, now))
        try:
            leaks = check_blocks(storage, examined.metadata, examined.entry_count, tally, deep=deep)
        except CorruptImageError as error:
            # The file has become shorter while it was read.
            tally.extend([as_finding(error, storage.path)])
    return FileCheck(tally=tally, leaks=leaks, metadata=examined.metadata)
