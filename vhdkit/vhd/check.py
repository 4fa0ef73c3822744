"""Judging one file by every rule of docs/reference/vhd.md 4.1, going on behind whatever is wrong.

Fields and structures are judged where they are read (`metadata.examine`), what is merely odd about them in
`check_fields`, the blocks in `check_blocks`. How the image belongs to others is `chain.check`'s to say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.corruption import Corruption, as_finding
from vhdkit.disk.file_check import FileCheck, Leaks, Tally
from vhdkit.errors import CorruptImageError, ImageInUseError, UnsupportedImageError
from vhdkit.findings import Advice, Level
from vhdkit.vhd.check_blocks import check_blocks
from vhdkit.vhd.check_fields import check_fields
from vhdkit.vhd.open_image import image_of
from vhdkit.vhd.read_metadata import examine, read_metadata
from vhdkit.vhd.unfinished_merge import leaves_footer_lost, leaves_footers_apart, rooms_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhdkit.findings import Finding
    from vhdkit.journal.merge_journal import Journal
    from vhdkit.journal.patch import Patch
    from vhdkit.storage.protocols import Storage
    from vhdkit.vhd.read_metadata import Examination


def check_file(
    storage: Storage, *, deep: bool, now: float, patches: Sequence[Patch] = (), journal: Journal | None = None
) -> FileCheck:
    """Judge one file; with `deep` all bitmaps and the data that they say are not there are read too.

    `journal` is that of an unfinished merge into it: what that explains is no error, and no lost space. A lock for
    reading is asked for, to tell whether another process is writing; `now` is in Unix seconds.

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
    tally.extend(_explained(storage, examined, journal))
    leaks = Leaks()
    if examined.metadata is not None:
        tally.extend(check_fields(examined.metadata, now))
        kept = () if journal is None else rooms_of(journal, examined.metadata)
        try:
            leaks = check_blocks(storage, examined.metadata, examined.entry_count, tally, deep=deep, kept=kept)
        except CorruptImageError as error:
            # The file has become shorter while it was read.
            tally.extend([as_finding(error, storage.path)])
        tally.findings[:] = _without_vain_advice(storage, patches, tally.findings)
    return FileCheck(tally=tally, leaks=leaks, metadata=examined.metadata)


def unchecked(storage: Storage, why: str) -> FileCheck:
    """Return the check of a file that cannot be judged, for it is of another format."""
    tally = Tally(storage.path)
    tally.add(Corruption.UNSUPPORTED, Level.ERROR, why)
    return FileCheck(tally=tally, leaks=Leaks(), metadata=None)


def _without_vain_advice(storage: Storage, patches: Sequence[Patch], findings: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the findings; none advises to repair footers where `repair_footers` refuses to."""
    advised = [each for each in findings if each.hint is not None and each.hint.advice is Advice.REPAIR_FOOTERS]
    is_vain = bool(advised) and not _can_be_read(storage, patches)
    for finding in findings:
        yield replace(finding, hint=None) if is_vain and finding in advised else finding


def _can_be_read(storage: Storage, patches: Sequence[Patch]) -> bool:
    try:
        # Read again, as opening does: an examination goes on with fields that nothing can be computed from.
        image_of(storage, read_metadata(storage, patches=patches)).check_readable()
    except (CorruptImageError, UnsupportedImageError):
        return False
    return True


def _explained(storage: Storage, examined: Examination, journal: Journal | None) -> Iterator[Finding]:
    """Yield the findings, those of footers that an unfinished merge explains as warnings."""
    for finding in examined.findings:
        if journal is not None and examined.metadata is not None:
            is_lost = finding.corruption is Corruption.FOOTER_TRAILING_LOST
            is_apart = finding.corruption is Corruption.FOOTER_COPY_DIFFERS
            if (is_lost and leaves_footer_lost(journal, examined.metadata)) or (
                is_apart and leaves_footers_apart(journal, examined.metadata, storage)
            ):
                message = "a merge that is not finished left its footers so; the same command again mends that"
                yield replace(finding, level=Level.WARNING, message=message)
                continue
        yield finding
