"""Extract files of a disk into a folder of this system, and never anything outside of that folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.arguments import checked
from vhdkit.errors import Cancelled, GuestFileError, NotEnoughSpaceError
from vhdkit.filesystem.guest_files import FileKind
from vhdkit.progress import Reporter
from vhdkit.storage.confined_folder import NAME_ERRORS, ConfinedFolder
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.units import as_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from vhdkit.filesystem.guest_files import GuestFile, GuestFiles
    from vhdkit.progress import Cancel, Progress
    from vhdkit.units import StrPath

# A run of zeros of this length becomes a hole.
_HOLE_BYTES = 1 << 16
_ZEROS = bytes(_HOLE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A file that was not extracted, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """What was extracted: how many files with how many bytes, and what was not."""

    files: int
    bytes: int
    skipped: tuple[Skipped, ...]


@checked
def extract_files(
    files: GuestFiles,
    path: str,
    directory: StrPath,
    *,
    progress: Callable[[Progress], None] | None = None,
    cancel: Cancel | None = None,
) -> Extraction:
    """Copy a file, or a directory with everything below it, into a folder, which is made if it is not there.

    Nothing is replaced. Links, devices and pipes are left out, and so is what has a name that no file here can have, or
    cannot be read; the result says which. Owners and permissions are those of new files here, times are kept.

    Raises:
        GuestFileError: there is no such file, or nothing could be extracted.
        NotEnoughSpaceError: the files are larger than what is free. Nothing was written.
        Cancelled: it was stopped; what was copied stays.
        OSError: a write failed; the file that it was for is gone again.

    """
    found = tuple(files.walk(path))
    total = sum(each.size for each in found if each.kind is FileKind.FILE)
    target = ConfinedFolder(as_text(directory))
    free = LocalFolder().free_space(target.nearest)
    if total > free:
        raise NotEnoughSpaceError(path=target.path, needed=total, available=free)
    target.make()
    reporter = Reporter(total, 0, progress, cancel, cancelled=Cancelled("the extraction was cancelled"))
    run = _Run(files, target, reporter)
    above = found[0].path.rpartition("/")[0]
    for each in found:
        run.take(each, each.path.removeprefix(above))
    return Extraction(files=run.file_count, bytes=run.byte_count, skipped=tuple(run.skipped))


class _Run:
    """One extraction."""

    def __init__(self, files: GuestFiles, target: ConfinedFolder, reporter: Reporter) -> None:
        self._files, self._target, self._reporter = files, target, reporter
        self.file_count = self.byte_count = 0
        self.skipped: list[Skipped] = []

    def take(self, file: GuestFile, path: str) -> None:
        """Extract one file to a path inside of the folder."""
        names = [name for name in path.split("/") if name]
        try:
            match file.kind:
                case FileKind.DIRECTORY:
                    self._target.make_directory(names)
                case FileKind.FILE:
                    with self._target.create(names, file.modified or None) as out:
                        self._copy(file, out)
                    self.file_count += 1
                case FileKind.LINK:
                    self._skip(file, f"it is a link to {file.target}")
                case FileKind.OTHER:
                    self._skip(file, "it is a device, a pipe or a socket")
        except GuestFileError as error:
            self._skip(file, error.message)
        except OSError as error:
            # The name is the disk's affair; a full or broken disk here is the user's.
            if error.errno not in NAME_ERRORS:
                raise
            self._skip(file, error.strerror or str(error))

    def _skip(self, file: GuestFile, reason: str) -> None:
        self.skipped.append(Skipped(path=file.path, reason=reason))

    def _copy(self, file: GuestFile, out: BinaryIO) -> None:
        for piece in self._files.pieces(file):
            for at in range(0, len(piece), _HOLE_BYTES):
                part = piece[at : at + _HOLE_BYTES]
                if part == _ZEROS:
                    out.seek(len(part), 1)
                else:
                    out.write(part)
            self.byte_count += len(piece)
            self._reporter.add(len(piece))
        out.truncate(file.size)
