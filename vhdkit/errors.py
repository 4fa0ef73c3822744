"""What can go wrong, as a tree that callers catch and people read.

    VhdError                        .path  .windows_code
    +- CorruptImageError            .corruption  .offset  .detail
    +- UnsupportedImageError        valid, not ours
    +- ReadOnlyImageError           asked to change what may not be changed
    +- ChainError                   .candidates (everything that was tried, and why it was not taken)
    |  +- ParentNotFoundError
    |  +- ParentMismatchError       .expected  .found
    |  +- ParentRefusedError        named by the image, outside of what the caller allowed
    |  +- ChainLoopError
    +- MergeError
       +- SiblingsError             .siblings
       +- NotEnoughSpaceError       .needed  .available

Attributes come first, the message is derived from them. An OSError is never wrapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Corruption(StrEnum):
    """One member per rule of the format that a file can break; the values are stable names."""

    NOT_A_VHD = "not-a-vhd"
    FILE_TOO_SHORT = "file-too-short"
    FOOTER_CHECKSUM = "footer-checksum"
    FOOTER_POISONED = "footer-poisoned"
    FOOTER_TRAILING_LOST = "footer-trailing-lost"
    FOOTER_COPY_DIFFERS = "footer-copy-differs"
    FOOTER_511_BYTES = "footer-511-bytes"
    DISK_TYPE = "disk-type"
    DISK_SIZE = "disk-size"
    FIXED_DATA_MISSING = "fixed-data-missing"
    SAVED_STATE = "saved-state"
    HEADER_OFFSET = "header-offset"
    HEADER_COOKIE = "header-cookie"
    HEADER_CHECKSUM = "header-checksum"
    BLOCK_SIZE = "block-size"
    BAT_TOO_SHORT = "bat-too-short"
    BAT_TOO_LONG = "bat-too-long"
    BAT_OFFSET = "bat-offset"
    BAT_OUTSIDE_FILE = "bat-outside-file"
    BLOCK_IN_HEADERS = "block-in-headers"
    BLOCK_OUTSIDE_FILE = "block-outside-file"
    BLOCKS_OVERLAP = "blocks-overlap"
    LOCATOR_UNREADABLE = "locator-unreadable"
    PARENT_ID_NULL = "parent-id-null"
    PARENT_ID_IS_OWN = "parent-id-is-own"
    PARENT_TIMESTAMP = "parent-timestamp"
    PARENT_FOUND_ELSEWHERE = "parent-found-elsewhere"
    PARENT_SIZE = "parent-size"


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
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong with a file that does not keep it from being read: a warning."""

    corruption: Corruption
    path: str
    message: str

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
