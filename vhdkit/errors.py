"""What can go wrong, as a tree that callers catch and people read::

    VhdError                        .path  .windows_code  .hint (what mends it, see findings)
    +- CorruptImageError            .corruption  .offset  .detail
    +- UnsupportedImageError        valid, not ours
    +- ReadOnlyImageError           asked to change what may not be changed
    +- FileNameError                .suffix  .written: a new file's name says another format; a ValueError too
    +- ImageInUseError              .holders (who has it, where the system can tell)
    +- Cancelled                    stopped as asked
    +- ServeError                   another program that it takes is missing, or has failed
    +- FleetError                   a run over many chains, or one of its workers, cannot go on
    +- MissingExtraError            .extra: the one of this package that would bring a library it takes
    +- GuestFileError               what is inside of a disk is not there, or cannot be read as asked
    +- ChainError                   .candidates (everything that was tried, and why it was not taken)
    |  +- ParentNotFoundError
    |  +- ParentMismatchError       .expected  .found
    |  +- ParentRefusedError        named by the image, outside of what the caller allowed
    |  +- ChainLoopError
    +- MergeError
       +- SiblingsError             .siblings
       +- NotEnoughSpaceError       .needed  .available
       +- JobError                  there is no such job, or it is past what is asked of it
       +- JournalError              an unfinished merge stands in the way, or its journal does not fit
       +- MergeCancelled            a Cancelled too; the same command continues
       +- VerificationError         the destination does not read as the leaf did; no source was removed

Attributes come first, the message is derived from them. An OSError is never wrapped.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from vhdkit.findings import printable, with_hint

if TYPE_CHECKING:
    from vhdkit.findings import Candidate, Hint, Rule


class WindowsCode(IntEnum):
    """What Windows calls a failure: HRESULTs, and the codes of virtual disks (winerror.h, facility 0x3A)."""

    FAIL = 0x80004005  # a failure that has no name
    ACCESS_DENIED = 0x80070005
    CRC = 0x80070017
    SHARING_VIOLATION = 0x80070020
    DISK_FULL = 0x80070070
    CANCELLED = 0x800704C7
    VHD_DRIVE_FOOTER_MISSING = 0xC03A0001
    VHD_DRIVE_FOOTER_CHECKSUM_MISMATCH = 0xC03A0002
    VHD_DRIVE_FOOTER_CORRUPT = 0xC03A0003
    VHD_FORMAT_UNKNOWN = 0xC03A0004
    VHD_FORMAT_UNSUPPORTED_VERSION = 0xC03A0005
    VHD_SPARSE_HEADER_CHECKSUM_MISMATCH = 0xC03A0006
    VHD_SPARSE_HEADER_UNSUPPORTED_VERSION = 0xC03A0007
    VHD_SPARSE_HEADER_CORRUPT = 0xC03A0008
    VHD_BLOCK_ALLOCATION_TABLE_CORRUPT = 0xC03A000A
    VHD_INVALID_BLOCK_SIZE = 0xC03A000B
    VHD_PARENT_VHD_NOT_FOUND = 0xC03A000D
    VHD_CHILD_PARENT_ID_MISMATCH = 0xC03A000E
    VHD_INVALID_SIZE = 0xC03A0012
    VHD_INVALID_FILE_SIZE = 0xC03A0013
    VHD_PARENT_VHD_ACCESS_DENIED = 0xC03A0016
    VHD_CHILD_PARENT_SIZE_MISMATCH = 0xC03A0017
    VHD_DIFFERENCING_CHAIN_CYCLE_DETECTED = 0xC03A0018
    VHD_INVALID_STATE = 0xC03A001C


class VhdError(Exception):
    """The base of all errors that are not the operating system's own."""

    windows_code: int | None = None

    def __init__(self, message: str, *, path: str = "", hint: Hint | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.hint = hint

    @property
    def text(self) -> str:
        """The message, and what mends it."""
        return with_hint(self.message, self.hint)

    def add_hint(self, hint: Hint) -> None:
        """Say what else mends it."""
        self.hint = hint if self.hint is None else self.hint.then(hint)

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.text}" if self.path else self.text)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders; the keyword-only constructors do not survive the default way.
        return _restore, (type(self), self.args, self.__dict__)


def error_text(error: BaseException) -> str:
    """Return an error's text; one of the system is PATH: REASON, without the number that Python puts before it."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return printable(f"{where}{error.strerror}")
    return str(error) or type(error).__name__


def _restore(kind: type[VhdError], args: tuple[object, ...], state: dict[str, object]) -> VhdError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class CorruptImageError(VhdError):
    """The file breaks a rule of the format, so that reading on would be guessing."""

    def __init__(
        self, corruption: Rule, detail: str, *, path: str = "", offset: int | None = None, hint: Hint | None = None
    ) -> None:
        super().__init__(detail, path=path, hint=hint)
        self.corruption = corruption
        self.detail = detail
        self.offset = offset
        self.windows_code = corruption.windows_code

    def __str__(self) -> str:
        where = "" if self.offset is None else f" at offset {self.offset:#x}"
        return f"{super().__str__()} [{self.corruption}{where}]"

    def located(self, path: str, offset: int) -> CorruptImageError:
        """Return the same error with the file's path and the offset of the checked bytes in it."""
        return CorruptImageError(
            self.corruption, self.detail, path=path, offset=offset + (self.offset or 0), hint=self.hint
        )


class UnsupportedImageError(VhdError):
    """The file is a valid something, but not a VHD of a kind that is read here."""

    windows_code: int | None = WindowsCode.VHD_FORMAT_UNKNOWN

    def __init__(self, message: str, *, path: str = "", windows_code: int = WindowsCode.VHD_FORMAT_UNKNOWN) -> None:
        super().__init__(message, path=path)
        self.windows_code = windows_code


class ReadOnlyImageError(VhdError):
    """The image may not be changed: its file is read-only, it was opened so, or an earlier write failed."""

    windows_code: int | None = WindowsCode.ACCESS_DENIED


class FileNameError(VhdError, ValueError):
    """A new file's name says that it is of another format than what would be written; nothing was written.

    `suffix` is the name's, in lower case with its dot; `written` is the format, "VHD" or "raw".
    """

    def __init__(self, message: str, *, path: str, suffix: str, written: str) -> None:
        super().__init__(message, path=path)
        self.suffix = suffix
        self.written = written


class ImageInUseError(VhdError):
    """Another process holds the file in a way that excludes what was asked; `holders` says who, if that is known."""

    windows_code: int | None = WindowsCode.SHARING_VIOLATION

    def __init__(self, message: str, *, path: str, holders: tuple[str, ...] = (), hint: Hint | None = None) -> None:
        super().__init__(message, path=path, hint=hint)
        self.holders = holders


class ChainError(VhdError):
    """The layers below an image cannot be put together."""

    def __init__(
        self, message: str, *, path: str = "", candidates: tuple[Candidate, ...] = (), hint: Hint | None = None
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.candidates = candidates

    def __str__(self) -> str:
        return "\n  ".join([super().__str__(), *(f"tried {candidate}" for candidate in self.candidates)])


class ParentNotFoundError(ChainError):
    """No file that was looked at is the parent."""

    windows_code: int | None = WindowsCode.VHD_PARENT_VHD_NOT_FOUND


class ParentMismatchError(ChainError):
    """The file that should be the parent has another unique id than the child remembers."""

    windows_code: int | None = WindowsCode.VHD_CHILD_PARENT_ID_MISMATCH

    def __init__(
        self,
        message: str,
        *,
        path: str,
        expected: bytes,
        found: bytes,
        candidates: tuple[Candidate, ...] = (),
        hint: Hint | None = None,
    ) -> None:
        super().__init__(message, path=path, candidates=candidates, hint=hint)
        self.expected = expected
        self.found = found


class ParentRefusedError(ChainError):
    """The image names a parent outside of the folders that the caller allowed."""

    windows_code: int | None = WindowsCode.VHD_PARENT_VHD_ACCESS_DENIED


class ChainLoopError(ChainError):
    """A file is its own ancestor."""

    windows_code: int | None = WindowsCode.VHD_DIFFERENCING_CHAIN_CYCLE_DETECTED


class MergeError(VhdError):
    """The merge cannot be done as asked; nothing was changed unless the message says so."""

    def __init__(
        self, message: str, *, path: str = "", windows_code: int | None = None, hint: Hint | None = None
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.windows_code = windows_code


class SiblingsError(MergeError):
    """Other images read through a file that the merge would change."""

    def __init__(self, message: str, *, path: str, siblings: tuple[str, ...], hint: Hint | None = None) -> None:
        super().__init__(message, path=path, hint=hint)
        self.siblings = siblings


class NotEnoughSpaceError(MergeError):
    """The file system has not the room that the work is known to need."""

    def __init__(self, *, path: str, needed: int, available: int) -> None:
        missing = needed - available
        super().__init__(
            f"not enough space: {needed} bytes are needed, {available} are free, {missing} are missing; "
            "free that much and run the same command again",
            path=path,
            windows_code=WindowsCode.DISK_FULL,
        )
        self.needed = needed
        self.available = available


class JournalError(MergeError):
    """An unfinished merge is in the way, a journal does not fit its files, or a merge has ended the view of a layer."""


class JobError(MergeError):
    """There is no such job, or it is in no state for what is asked of it."""


class SnapshotError(VhdError):
    """A machine's snapshots cannot be changed or read as asked; nothing was changed unless the message says so."""


class ServeError(VhdError):
    """A program that serves or takes a disk is missing, could not begin, or ended before it should."""


class FleetError(VhdError):
    """A run over many chains cannot be done as asked, or a worker of it has died again and again."""


class MissingExtraError(VhdError):
    """A library that this takes is not installed; an extra of this package brings it."""

    def __init__(self, purpose: str, *, extra: str) -> None:
        super().__init__(f"{purpose} takes an extra: pip install 'vhdkit[{extra}]'")
        self.extra = extra


class GuestFileError(VhdError):
    """What is inside of a disk is not there, or cannot be read as asked; `path` is the image's."""


class Cancelled(VhdError):  # noqa: N818 - a state that was asked for, named as the field names it
    """A verb stopped because it was asked to."""


class MergeCancelled(MergeError, Cancelled):  # noqa: N818 - a state that was asked for, named as the field names it
    """The merge was stopped as asked; everything reads as before, and the same command continues it."""

    windows_code: int | None = WindowsCode.CANCELLED


class VerificationError(MergeError):
    """What was merged does not read as it should; no source was removed."""

    windows_code: int | None = WindowsCode.CRC
