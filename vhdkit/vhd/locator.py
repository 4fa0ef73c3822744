"""Parent locators: up to eight ways in which a child says where its parent was.

The text of a locator is untrusted: it names a file to open. Decoding it opens nothing.

**Source**: docs/reference/vhd.md 1.5, 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from urllib.parse import quote, unquote

from vhdkit.units import SECTOR

# A path in UTF-16 cannot be longer.
MAX_LOCATOR_BYTES = 65536


class PlatformCode(bytes, Enum):
    """What a locator's data means; the values are the format's."""

    NONE = b"\0\0\0\0"
    WINDOWS_RELATIVE_8BIT = b"Wi2r"
    WINDOWS_ABSOLUTE_8BIT = b"Wi2k"
    WINDOWS_RELATIVE = b"W2ru"
    WINDOWS_ABSOLUTE = b"W2ku"
    MAC_ALIAS = b"Mac "
    MAC_URL = b"MacX"


_UTF16 = frozenset({PlatformCode.WINDOWS_RELATIVE, PlatformCode.WINDOWS_ABSOLUTE})
_8BIT = frozenset({PlatformCode.WINDOWS_RELATIVE_8BIT, PlatformCode.WINDOWS_ABSOLUTE_8BIT})


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentLocator:
    """One entry of the table in the dynamic header; the code stays raw, unknown ones are kept."""

    platform_code: bytes = bytes(4)
    data_space: int = 0
    data_length: int = 0
    reserved: int = 0
    data_offset: int = 0

    @property
    def is_used(self) -> bool:
        """Whether the slot holds anything."""
        return self.platform_code != PlatformCode.NONE

    @property
    def space(self) -> int:
        """Bytes reserved for the data: the field counts sectors if it is small (docs/reference/vhd.md B1)."""
        return self.data_space * SECTOR if self.data_space < SECTOR else self.data_space


def decode_locator(platform_code: bytes, data: bytes) -> str | None:
    """Return the path in a locator's data, or None for an alias, an unknown code, or text with a NUL inside.

    >>> decode_locator(b"W2ru", ".\\\\base.vhd".encode("utf-16-le"))
    '.\\\\base.vhd'
    >>> decode_locator(b"MacX", b"file://localhost/vms/a%20b.vhd")
    '/vms/a b.vhd'
    """
    if platform_code in _UTF16:
        text = data[: len(data) & ~1].decode("utf-16-le", "surrogatepass")
    elif platform_code in _8BIT:
        text = data.decode("latin-1")
    elif platform_code == PlatformCode.MAC_URL:
        text = data.decode("utf-8", "surrogateescape").rstrip("\0")
        if not text.startswith("file://"):
            return None
        text = text.removeprefix("file://")
        text = text.removeprefix("localhost") if text.startswith("localhost/") else text
        text = unquote(text, errors="surrogateescape")
    else:
        return None
    text = text.rstrip("\0")
    return None if not text or "\0" in text else text


def encode_locator(platform_code: bytes, path: str) -> bytes | None:
    """Return the data that decodes to `path`, or None where the code cannot hold it.

    MacX gets `file://` and then the path even when it is relative, as blktap writes it.
    """
    if platform_code in _UTF16:
        return path.encode("utf-16-le", "surrogatepass")
    if platform_code in _8BIT:
        return path.encode("ascii") if path.isascii() else None
    if platform_code == PlatformCode.MAC_URL and not path.startswith("localhost/"):
        # blktap reads the path as it stands, without undoing escapes; so only what must be escaped is.
        try:
            return b"file://" + quote(path, safe="/ !$&'()*+,;=:@~\\", errors="surrogateescape").encode()
        except UnicodeEncodeError:
            return None
    return None
