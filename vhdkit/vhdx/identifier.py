"""The 520 bytes that every VHDX file begins with; no program changes them after they were made.

**Source**: docs/reference/vhdx.md 1.2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vhdkit.errors import CorruptImageError
from vhdkit.vhdx import structs
from vhdkit.vhdx.constants import FILE_SIGNATURE, IDENTIFIER_SIZE
from vhdkit.vhdx.corruption import VhdxCorruption


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIdentifier:
    """Who made the file; `creator_bytes` are 512 bytes of UTF-16LE and mean nothing to readers."""

    creator_bytes: bytes

    @classmethod
    def from_bytes(cls, raw: bytes) -> FileIdentifier:
        """Read 520 bytes.

        Raises:
            CorruptImageError: they do not begin as a VHDX does, or are too few.

        """
        if raw[:8] != FILE_SIGNATURE:
            detail = f"not a VHDX: expected {FILE_SIGNATURE!r}, found {raw[:8]!r}"
            raise CorruptImageError(VhdxCorruption.FILE_SIGNATURE, detail, offset=0)
        if len(raw) < IDENTIFIER_SIZE:
            raise CorruptImageError(VhdxCorruption.IMAGE_CUT, f"{len(raw)} bytes are too few for a VHDX", offset=0)
        fields = structs.parse_record(structs.IDENTIFIER, raw)
        return cls(creator_bytes=fields["creator_bytes"])

    def to_bytes(self) -> bytes:
        """Return the 520 bytes."""
        return structs.build_record(structs.IDENTIFIER, asdict(self) | {"signature": FILE_SIGNATURE})

    @property
    def creator(self) -> str:
        """The name of the program that made the file, as far as it is text."""
        return self.creator_bytes.decode("utf-16-le", "replace").partition("\0")[0]
