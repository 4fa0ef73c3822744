"""Judging one VHDX by every rule of the reference's section 5, going on behind whatever is wrong.

The log is judged first; everything behind it as it is once the log was replayed, in memory. Fields and structures are
judged where they are read (`metadata_reader`), what is merely odd about them in `check_fields`, the blocks in
`check_blocks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.corruption import as_finding
from vhdkit.disk.file_check import FileCheck, Leaks, Tally
from vhdkit.errors import CorruptImageError, ImageInUseError
from vhdkit.findings import Finding, Level
from vhdkit.storage import paths
from vhdkit.vhdx.check_blocks import check_vhdx_blocks
from vhdkit.vhdx.check_fields import check_vhdx_fields
from vhdkit.vhdx.corruption import VhdxCorruption
from vhdkit.vhdx.log_overlay import LogOverlay
from vhdkit.vhdx.metadata_reader import examine_vhdx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.storage.protocols import Folder, Storage
    from vhdkit.vhdx.metadata import VhdxMetadata

# What Hyper-V keeps beside a disk: which regions were changed since a backup.
_TRACKING_SUFFIXES = (".rct", ".mrt")


def check_vhdx(folder: Folder, storage: Storage, *, deep: bool) -> FileCheck:
    """Judge one file; with `deep` all sector bitmaps are read too.

    A lock for reading is asked for, to tell whether another process is writing.

    Raises:
        OSError: the file cannot be read.

    """
    tally = Tally(storage.path)
    try:
        storage.lock(exclusive=False)
    except ImageInUseError as error:
        message = f"another process is writing it: these findings may show half of a change ({error.message})"
        tally.add(VhdxCorruption.IN_USE, Level.WARNING, message)
    examined = examine_vhdx(storage)
    tally.extend(examined.findings)
    tally.extend(check_vhdx_fields(storage, examined))
    tally.extend(_tracking(folder, storage.path))
    leaks = Leaks()
    if examined.metadata is not None:
        replay = examined.metadata.replay
        whole = storage if replay is None else LogOverlay(storage, replay)
        try:
            leaks = check_vhdx_blocks(whole, examined.metadata, tally, deep=deep)
        except CorruptImageError as error:
            # The file has become shorter while it was read.
            tally.extend([as_finding(error, storage.path)])
    return FileCheck(tally=tally, leaks=leaks, metadata=examined.metadata)


def _tracking(folder: Folder, path: str) -> Iterator[Finding]:
    """Yield what a backup relies on that is no longer true once anything but Hyper-V changes the disk."""
    found = [path + suffix for suffix in _TRACKING_SUFFIXES if folder.exists(path + suffix)]
    if found:
        names = " and ".join(paths.basename(each) for each in found)
        message = f"{names} beside it track its changes: once it is changed without Hyper-V, a full backup is needed"
        yield Finding(corruption=VhdxCorruption.CHANGE_TRACKING, path=path, message=message)


def compare_vhdx(child: VhdxMetadata, parent: VhdxMetadata) -> Iterator[Finding]:
    """Yield what does not fit between a child and its parent besides their ids and sizes, said of the child."""
    name = paths.basename(parent.path)
    own, below = child.logical_sector_size, parent.logical_sector_size
    if own != below:
        message = f"its sectors have {own} bytes, those of its parent {name} {below}"
        yield _of_child(child, VhdxCorruption.PARENT_SECTORS, message, Level.ERROR)
    if None not in {child.disk_id, parent.disk_id} and child.disk_id != parent.disk_id:
        message = f"its disk has another id than that of its parent {name}: a guest sees another disk"
        yield _of_child(child, VhdxCorruption.DISK_ID_DIFFERS, message, Level.INFO)
    if parent.replay is not None:
        message = f"the log of its parent {name} was not replayed: who ignores that reads stale sectors through it"
        yield _of_child(child, VhdxCorruption.PARENT_LOG, message, Level.WARNING)


def _of_child(child: VhdxMetadata, rule: VhdxCorruption, message: str, level: Level) -> Finding:
    return Finding(corruption=rule, path=child.path, message=message, level=level)
