"""What can go wrong, as a tree that callers catch and people read.

    VhdError                        .path  .windows_code
    +- CorruptImageError            .corruption  .offset  .detail
    +- UnsupportedImageError        valid, not ours
    +- ReadOnlyImageError           asked to change what may not be changed
    +- FileNameError                .suffix  .written: a new file's name says another format; a ValueError too
    +- ImageInUseError              .holders (who has it, where the system can tell)
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
       +- MergeCancelled            stopped as asked; the same command continues
       +- VerificationError         the destination does not read as the leaf did; no source was removed

Attributes come first, the message is derived from them. An OSError is never wrapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Corruption(StrEnum):
    """One member per rule of the format that a file can break; the values are stable names.

    The numbers are the rows of reference 4.1 and 4.2, and `check` tells every one: what keeps a file from being opened
    is of level error. Row 62 has no member: tables are read in windows, so a chain takes no more memory than one image.
    """

    # The file and its footers
    UNSUPPORTED = "unsupported"  # 42: a split image; another format; encrypted by blktap
    NOT_A_VHD = "not-a-vhd"  # 2
    FILE_TOO_SHORT = "file-too-short"  # 1
    FILE_LENGTH = "file-length"  # 37
    FOOTER_CHECKSUM = "footer-checksum"  # 3
    FOOTER_POISONED = "footer-poisoned"  # 41
    FOOTER_TRAILING_LOST = "footer-trailing-lost"  # 2, 3
    FOOTER_COPY_DIFFERS = "footer-copy-differs"  # 4
    FOOTER_MISPLACED = "footer-misplaced"  # 2
    FOOTERS_LOST = "footers-lost"  # 2
    FOOTER_511_BYTES = "footer-511-bytes"  # 42
    FOOTER_RESERVED = "footer-reserved"  # 16
    FEATURES = "features"  # 5
    FORMAT_VERSION = "format-version"  # 6
    DISK_TYPE = "disk-type"  # 7
    DISK_SIZE = "disk-size"  # 10
    ORIGINAL_SIZE = "original-size"  # 11
    GEOMETRY = "geometry"  # 12
    GEOMETRY_SIZE = "geometry-size"  # 13
    TIMESTAMP_FUTURE = "timestamp-future"  # 14
    SAVED_STATE = "saved-state"  # 15
    UNIQUE_ID_NULL = "unique-id-null"  # 17
    CREATOR_HOST_OS = "creator-host-os"  # 18
    CREATOR_VERSION = "creator-version"  # 19
    FIXED_DATA_OFFSET = "fixed-data-offset"  # 8
    FIXED_DATA_MISSING = "fixed-data-missing"  # 9
    FIXED_DATA_EXTRA = "fixed-data-extra"  # 9
    # The dynamic header and the BAT
    HEADER_OFFSET = "header-offset"  # 20
    HEADER_COOKIE = "header-cookie"  # 21
    HEADER_CHECKSUM = "header-checksum"  # 21
    HEADER_VERSION = "header-version"  # 22
    HEADER_DATA_OFFSET = "header-data-offset"  # 23
    HEADER_RESERVED = "header-reserved"  # 24
    BLOCK_SIZE = "block-size"  # 25
    BLOCK_SIZE_UNUSUAL = "block-size-unusual"  # 25
    BAT_TOO_SHORT = "bat-too-short"  # 26
    BAT_LARGER = "bat-larger"  # 26
    BAT_TOO_LONG = "bat-too-long"  # 27
    BAT_OUTSIDE_FILE = "bat-outside-file"  # 27
    BAT_OFFSET = "bat-offset"  # 28
    BAT_PADDING = "bat-padding"  # 29
    PARENT_FIELDS = "parent-fields"  # 39
    # The blocks
    BLOCK_IN_HEADERS = "block-in-headers"  # 30
    BLOCK_OUTSIDE_FILE = "block-outside-file"  # 31
    BLOCK_IN_FOOTER = "block-in-footer"  # 31
    BLOCK_TAIL_CUT = "block-tail-cut"  # 31
    BLOCKS_OVERLAP = "blocks-overlap"  # 32
    BLOCK_BEYOND_DISK = "block-beyond-disk"  # 33
    BLOCK_ALIGNMENT = "block-alignment"  # 34
    CLEAR_SECTOR_DATA = "clear-sector-data"  # 35
    BITS_BEYOND_END = "bits-beyond-end"  # 36
    LEAKED_SPACE = "leaked-space"  # 38
    BATMAP = "batmap"  # 40
    # Locators and the chain
    PARENT_ID_NULL = "parent-id-null"  # 50
    PARENT_UNNAMED = "parent-unnamed"  # 51
    LOCATOR_UNREADABLE = "locator-unreadable"  # 52, 53
    LOCATOR_CODE = "locator-code"  # 52
    LOCATOR_DUPLICATE = "locator-duplicate"  # 52
    LOCATOR_RESERVED = "locator-reserved"  # 52
    LOCATOR_OVERLAPS = "locator-overlaps"  # 52
    LOCATOR_LENGTH = "locator-length"  # 53
    LOCATOR_TEXT = "locator-text"  # 54
    LOCATOR_NAME = "locator-name"  # 54
    PARENT_NOT_FOUND = "parent-not-found"  # 55
    PARENT_REFUSED = "parent-refused"  # 55
    PARENT_FOUND_ELSEWHERE = "parent-found-elsewhere"  # 55
    PARENT_ID_DIFFERS = "parent-id-differs"  # 56
    PARENT_TIMESTAMP = "parent-timestamp"  # 57
    PARENT_TIMESTAMP_FUTURE = "parent-timestamp-future"  # 58
    PARENT_SIZE = "parent-size"  # 59
    PARENT_ID_IS_OWN = "parent-id-is-own"  # 60
    ID_SHARED = "id-shared"  # 60
    CHAIN_LOOP = "chain-loop"  # 60
    CHAIN_TOO_LONG = "chain-too-long"  # 61
    SIBLINGS = "siblings"  # 63
    UNDO_IMAGE = "undo-image"  # 63
    IN_USE = "in-use"  # 64
    # Work that was cut off
    MERGE_UNFINISHED = "merge-unfinished"
    HEADER_UNFINISHED = "header-unfinished"
    VIEW_ENDED = "view-ended"
    UNDO_DOUBTED = "undo-doubted"


_WINDOWS_CODES = {
    Corruption.NOT_A_VHD: 0xC03A0001,
    Corruption.FILE_TOO_SHORT: 0xC03A0013,
    Corruption.FOOTER_CHECKSUM: 0xC03A0002,
    Corruption.FOOTER_POISONED: 0xC03A0003,
    Corruption.DISK_TYPE: 0xC03A0003,
    Corruption.DISK_SIZE: 0xC03A0012,
    Corruption.FIXED_DATA_MISSING: 0xC03A0013,
    Corruption.HEADER_OFFSET: 0xC03A0003,
    Corruption.HEADER_COOKIE: 0xC03A0008,
    Corruption.HEADER_CHECKSUM: 0xC03A0006,
    Corruption.BLOCK_SIZE: 0xC03A000B,
    Corruption.BAT_TOO_SHORT: 0xC03A000A,
    Corruption.BAT_TOO_LONG: 0xC03A000A,
    Corruption.BAT_OFFSET: 0xC03A000A,
    Corruption.BAT_OUTSIDE_FILE: 0xC03A000A,
    Corruption.BLOCK_IN_HEADERS: 0xC03A000A,
    Corruption.BLOCK_OUTSIDE_FILE: 0xC03A000A,
    Corruption.BLOCKS_OVERLAP: 0xC03A000A,
    Corruption.BLOCK_IN_FOOTER: 0xC03A000A,
    Corruption.FOOTER_MISPLACED: 0xC03A0001,
    Corruption.FOOTERS_LOST: 0xC03A0001,
}


class Level(StrEnum):
    """How bad a finding is: an error makes reading on a guess, a warning does not, information is neither."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something about a file that breaks a rule or is odd; `offset` is where in the file, if it is in one place."""

    corruption: Corruption
    path: str
    message: str
    level: Level = Level.WARNING
    offset: int | None = None

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.message}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file that might have been the parent, where its name came from, and why it was not taken."""

    path: str
    origin: str
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.path} ({self.origin}): {self.reason}")


def printable(text: str) -> str:
    """Return text with control characters escaped: names inside an image are untrusted."""
    if text.isprintable():
        return text
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class VhdError(Exception):
    """Any failure that vhdkit tells apart from the operating system's own errors."""

    windows_code: int | None = None

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.message}" if self.path else self.message)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders; the keyword-only constructors do not survive the default way.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[VhdError], args: tuple[object, ...], state: dict[str, object]) -> VhdError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class CorruptImageError(VhdError):
    """The file breaks a rule of the format, so that reading on would be guessing."""

    def __init__(self, corruption: Corruption, detail: str, *, path: str = "", offset: int | None = None) -> None:
        super().__init__(detail, path=path)
        self.corruption = corruption
        self.detail = detail
        self.offset = offset
        self.windows_code = _WINDOWS_CODES.get(corruption)

    def __str__(self) -> str:
        where = "" if self.offset is None else f" at offset {self.offset:#x}"
        return f"{super().__str__()} [{self.corruption}{where}]"

    def located(self, path: str, offset: int) -> CorruptImageError:
        """Return the same error, told of the file and of where in it the checked bytes begin."""
        return CorruptImageError(self.corruption, self.detail, path=path, offset=offset + (self.offset or 0))


class UnsupportedImageError(VhdError):
    """The file is a valid something, but not a VHD of a kind that is read here."""

    windows_code = 0xC03A0004

    def __init__(self, message: str, *, path: str = "", windows_code: int = 0xC03A0004) -> None:
        super().__init__(message, path=path)
        self.windows_code = windows_code


class ReadOnlyImageError(VhdError):
    """The image may not be changed: its file is read-only, it was opened so, or an earlier write failed."""

    windows_code = 0x80070005


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

    windows_code = 0x80070020

    def __init__(self, message: str, *, path: str, holders: tuple[str, ...] = ()) -> None:
        super().__init__(message, path=path)
        self.holders = holders


class ChainError(VhdError):
    """The layers below an image cannot be put together."""

    def __init__(self, message: str, *, path: str = "", candidates: tuple[Candidate, ...] = ()) -> None:
        super().__init__(message, path=path)
        self.candidates = candidates

    def __str__(self) -> str:
        return "\n  ".join([super().__str__(), *(f"tried {candidate}" for candidate in self.candidates)])


class ParentNotFoundError(ChainError):
    """No file that was looked at is the parent."""

    windows_code = 0xC03A000D


class ParentMismatchError(ChainError):
    """The file that should be the parent has another unique id than the child remembers."""

    windows_code = 0xC03A000E

    def __init__(
        self,
        message: str,
        *,
        path: str,
        expected: bytes,
        found: bytes,
        candidates: tuple[Candidate, ...] = (),
    ) -> None:
        super().__init__(message, path=path, candidates=candidates)
        self.expected = expected
        self.found = found


class ParentRefusedError(ChainError):
    """The image names a parent outside of the folders that the caller allowed."""

    windows_code = 0xC03A0016


class ChainLoopError(ChainError):
    """A file is its own ancestor."""

    windows_code = 0xC03A0018


class MergeError(VhdError):
    """The merge cannot be done as asked; nothing was changed unless the message says so."""

    def __init__(self, message: str, *, path: str = "", windows_code: int | None = None) -> None:
        super().__init__(message, path=path)
        self.windows_code = windows_code


class SiblingsError(MergeError):
    """Other images read through a file that the merge would change."""

    def __init__(self, message: str, *, path: str, siblings: tuple[str, ...]) -> None:
        super().__init__(message, path=path)
        self.siblings = siblings


class NotEnoughSpaceError(MergeError):
    """The file system has not the room that the work is known to need."""

    def __init__(self, *, path: str, needed: int, available: int) -> None:
        missing = needed - available
        super().__init__(
            f"not enough space: {needed} bytes are needed, {available} are free, {missing} are missing; "
            "free that much and run the same command again",
            path=path,
            windows_code=0x80070070,
        )
        self.needed = needed
        self.available = available


class JournalError(MergeError):
    """An unfinished merge is in the way, a journal does not fit its files, or a merge has ended the view of a layer."""


class JobError(MergeError):
    """There is no such job, or it is in no state for what is asked of it."""


class SnapshotError(VhdError):
    """A machine's snapshots cannot be changed or read as asked; nothing was changed unless the message says so."""


class MergeCancelled(MergeError):  # noqa: N818 - a state that was asked for, named as the field names it
    """The merge was stopped as asked; everything reads as before, and the same command continues it."""

    windows_code = 0x800704C7


class VerificationError(MergeError):
    """What was merged does not read as it should; no source was removed."""

    windows_code = 0x80070017


_VERSION_RULES = {0xC03A0005: Corruption.FORMAT_VERSION, 0xC03A0007: Corruption.HEADER_VERSION}


def as_finding(error: VhdError, path: str) -> Finding:
    """Return a failure to read a file as what was found wrong with it."""
    if isinstance(error, CorruptImageError):
        return Finding(
            corruption=error.corruption, path=path, message=error.detail, level=Level.ERROR, offset=error.offset
        )
    rule = _VERSION_RULES.get(error.windows_code or 0, Corruption.UNSUPPORTED)
    return Finding(corruption=rule, path=path, message=error.message, level=Level.ERROR)
