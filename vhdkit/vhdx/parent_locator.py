"""The parent locator: keys and values that say which file the parent is, and where it was.

**Source**: docs/reference/vhdx.md 1.7, 2.1, 2.2.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from uuid import UUID

from vhdkit.disk.parent_link import ParentLink, ParentPath
from vhdkit.errors import CorruptImageError, UnsupportedImageError
from vhdkit.vhdx import structs
from vhdkit.vhdx.constants import NULL_GUID, VHDX_LOCATOR
from vhdkit.vhdx.corruption import VhdxCorruption

ABSOLUTE_PATH = "absolute_win32_path"
# In the order in which paths are to be tried.
PATH_KEYS = ("relative_path", "volume_path", ABSOLUTE_PATH)
LINKAGE, SECOND_LINKAGE = "parent_linkage", "parent_linkage2"
_HEADER_SIZE, _ENTRY_SIZE = 20, 12
# Longer names are no paths on any system.
_MAX_PATH = 4096
_GUID = re.compile(r"\{?[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\}?")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatorEntry:
    """Where a key and its value lie in the item, in bytes from its start."""

    key_offset: int
    value_offset: int
    key_length: int
    value_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VhdxLocator:
    """A locator; `rest` is everything behind its entries, where the texts are."""

    locator_type: bytes
    entries: tuple[LocatorEntry, ...]
    rest: bytes
    reserved: int = 0

    @classmethod
    def from_bytes(cls, raw: bytes) -> VhdxLocator:
        """Read the bytes of the item.

        Raises:
            CorruptImageError: it is too short for the entries that it says it has.
            UnsupportedImageError: it is a locator of another kind than VHDX files have.

        """
        count = int.from_bytes(raw[18:20], "little")
        if len(raw) < _HEADER_SIZE or len(raw) < _HEADER_SIZE + count * _ENTRY_SIZE:
            detail = f"the parent locator has {len(raw)} bytes, too few for {count} entries"
            raise CorruptImageError(VhdxCorruption.LOCATOR_TABLE, detail, offset=0)
        if raw[:16] != VHDX_LOCATOR:
            raise UnsupportedImageError(f"parent locators of type {UUID(bytes_le=raw[:16])} are unknown")
        fields = structs.parse_record(structs.LOCATOR, raw)
        entries = tuple(LocatorEntry(**entry) for entry in fields["entries"])
        return cls(
            locator_type=fields["locator_type"],
            entries=entries,
            rest=fields["rest"],
            reserved=fields["reserved"],
        )

    def to_bytes(self) -> bytes:
        """Return the bytes of the item."""
        return structs.build_record(structs.LOCATOR, asdict(self) | {"entry_count": len(self.entries)})

    def texts(self) -> dict[str, str]:
        """Return the values by their keys, untrusted text both.

        Raises:
            CorruptImageError: a text lies outside of the item or is no UTF-16, or a key is there twice.

        """
        found: dict[str, str] = {}
        for number, entry in enumerate(self.entries):
            key = self._text(number, entry.key_offset, entry.key_length)
            if key in found:
                raise CorruptImageError(VhdxCorruption.LOCATOR_TABLE, f"the parent locator has the key {key!r} twice")
            found[key] = self._text(number, entry.value_offset, entry.value_length)
        return found

    def _text(self, number: int, offset: int, length: int) -> str:
        start = offset - _HEADER_SIZE - len(self.entries) * _ENTRY_SIZE
        if not length or length % 2 or start < 0 or start + length > len(self.rest):
            detail = f"entry {number} of the parent locator has no text at [{offset:#x}, {offset + length:#x})"
            raise CorruptImageError(VhdxCorruption.LOCATOR_TABLE, detail, offset=offset)
        # A name on NTFS may hold half of a surrogate pair.
        text = self.rest[start : start + length].decode("utf-16-le", "surrogatepass")
        if "\0" in text:
            detail = f"a text in entry {number} of the parent locator holds a NUL"
            raise CorruptImageError(VhdxCorruption.LOCATOR_TABLE, detail, offset=offset)
        return text


def parent_link(texts: dict[str, str]) -> ParentLink:
    """Return what the texts of a locator say of the parent.

    Windows writes a second linkage of zeros: it fits nothing.

    Raises:
        CorruptImageError: no linkage that could fit a parent.

    """
    if LINKAGE not in texts:
        raise CorruptImageError(VhdxCorruption.LOCATOR_LINKAGE, f"the parent locator has no {LINKAGE}")
    ids = [_linkage(key, texts[key]) for key in (LINKAGE, SECOND_LINKAGE) if key in texts]
    ids = [found for found in ids if found != NULL_GUID]
    if not ids:
        raise CorruptImageError(
            VhdxCorruption.LOCATOR_LINKAGE, "the parent locator's linkage is zeros, which fit no parent"
        )
    paths = tuple(
        ParentPath(text=texts[key], origin=key) for key in PATH_KEYS if len(texts.get(key, "")) in range(1, _MAX_PATH)
    )
    return ParentLink(unique_id=ids[0], other_ids=tuple(ids[1:]), paths=paths)


def _linkage(key: str, text: str) -> bytes:
    if _GUID.fullmatch(text) is None:
        detail = f"{key} of the parent locator is {text[:64]!r}: expected a GUID in braces"
        raise CorruptImageError(VhdxCorruption.LOCATOR_LINKAGE, detail)
    return UUID(text).bytes_le
