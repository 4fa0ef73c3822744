"""Which files changed between two layers of a chain: what did this snapshot change?

Both views are read with the same partition table and file systems that each of them has. A file is held against the one
of the same path: by what the file system says of it, and by its bytes where they may differ. They may if they lie in
other places, or where a layer in between holds sectors, or in the file system's own records; all other files have the
same bytes in the same sectors of the same layer, and are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from vhdkit.arguments import checked
from vhdkit.chain.disk_view import DiskView
from vhdkit.disk.extents import Kind
from vhdkit.errors import ChainError, GuestFileError
from vhdkit.filesystem.disk_source import DiskSource
from vhdkit.filesystem.guest_files import FileKind, GuestFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.chain.chain import Chain
    from vhdkit.filesystem.disk_source import Partition
    from vhdkit.filesystem.guest_files import GuestFile


class ChangeKind(StrEnum):
    """What became of a file."""

    ADDED = "added"
    DELETED = "deleted"
    MODIFIED = "modified"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """A file that changed; `what` names what of it, of a modified one: content, size, mode and others."""

    partition: int
    path: str
    kind: ChangeKind
    what: tuple[str, ...] = ()


_FIELDS = ("kind", "size", "mode", "uid", "gid", "modified", "target")


@checked
def changed_files(chain: Chain, against: int = 1, partition: int | None = None) -> Iterator[FileChange]:
    """Yield the files that differ between the disk and what it was at a lower layer, by partition and path.

    `against` is the depth of that layer: 1 is the parent. A file that was moved is deleted and added. Where a layer is
    of a time when the guest was running, what the guest had not written yet is in neither.

    Raises:
        ChainError: the chain has no such layer.
        MissingExtraError: pytsk3 is not installed.
        GuestFileError: there is no such partition, or no file system, or it cannot be read.

    """
    if len(chain.layers) == 1:
        raise ChainError("it has no parent, so there is nothing to compare its files with", path=chain.path)
    if not 0 < against < len(chain.layers):
        message = f"it has {len(chain.layers)} layers, and what it shows is to be held against that at depth {against}"
        raise ChainError(message, path=chain.path)
    after, before = DiskSource(chain), DiskSource(DiskView(chain.layers[against:]))
    now, then = _by_number(after), _by_number(before)
    numbers = sorted(now.keys() | then.keys())
    if partition is not None:
        numbers = [number for number in numbers if number == partition]
    if not numbers:
        what = "no file system that is known here" if partition is None else f"no files in partition {partition}"
        raise GuestFileError(f"it holds {what}", path=chain.path)
    written = _Written(chain, against)
    for number in numbers:
        new, old = now.get(number), then.get(number)
        yield from _differences(
            number,
            None if old is None else GuestFiles(before, old),
            None if new is None else GuestFiles(after, new),
            written,
        )


def _by_number(source: DiskSource) -> dict[int, Partition]:
    return {part.number: part for part in source.partitions() if part.file_system is not None}


class _Written:
    """Where the layers above another hold sectors."""

    def __init__(self, chain: Chain, depth: int) -> None:
        starts, stops = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for found in chain.extents():
            # Zeros of any depth may hide data, unless there is nothing below them either.
            is_above = found.depth < depth
            chosen = found.take(is_above & (found.kind != Kind.PARENT))
            starts.append(chosen.start)
            stops.append(chosen.stop)
        self._starts = np.concatenate(starts)
        self._stops = np.concatenate(stops)

    def touches(self, start: int, stop: int) -> bool:
        """Whether any of them holds a sector of a range."""
        index = int(np.searchsorted(self._stops, start, "right"))
        return index < len(self._starts) and bool(self._starts[index] < stop)


def _differences(
    number: int, before: GuestFiles | None, after: GuestFiles | None, written: _Written
) -> Iterator[FileChange]:
    old, new = _tree(before), _tree(after)
    for path in sorted(old.keys() | new.keys()):
        if path not in new:
            yield FileChange(partition=number, path=path, kind=ChangeKind.DELETED)
        elif path not in old:
            yield FileChange(partition=number, path=path, kind=ChangeKind.ADDED)
        elif before is not None and after is not None:
            what = [name for name in _FIELDS if getattr(old[path], name) != getattr(new[path], name)]
            if _has_other_content(before, after, old[path], new[path], written):
                what.insert(0, "content")
            if new[path].kind is FileKind.DIRECTORY and "size" in what:
                what.remove("size")  # that of its table, which says nothing to a user
            if what:
                yield FileChange(partition=number, path=path, kind=ChangeKind.MODIFIED, what=tuple(what))


def _tree(files: GuestFiles | None) -> dict[str, GuestFile]:
    return {} if files is None else {each.path: each for each in files.walk() if each.path != "/"}


def _has_other_content(
    before: GuestFiles, after: GuestFiles, old: GuestFile, new: GuestFile, written: _Written
) -> bool:
    if old.kind is not FileKind.FILE or new.kind is not FileKind.FILE:
        return False
    if old.size != new.size:
        return True
    if not new.size:
        return False
    runs = after.runs(new)
    is_elsewhere = before.block_size != after.block_size or before.runs(old) != runs
    if runs and not is_elsewhere and not any(written.touches(start, stop) for start, stop in runs):
        return False
    pairs = zip(before.pieces(old), after.pieces(new), strict=False)
    return any(ours != theirs for ours, theirs in pairs)
