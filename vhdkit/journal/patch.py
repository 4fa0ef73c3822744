"""Bytes at a place in a file, before and after: what a header's rewrite changes, as side files keep it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from vhdkit.journal.field_types import Size
from vhdkit.journal.records import Record
from vhdkit.storage.protocols import read_bytes
from vhdkit.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.storage.protocols import Storage

# A dynamic header and the data of its eight locators.
MAX_PATCHES = 9
HEADER_BYTES = 1024
# Of a header that is rewritten, or the longest data of a locator.
_MAX_PATCH_BYTES = 64 << 10

_PatchBytes = Annotated[bytes, Meta(min_length=1, max_length=_MAX_PATCH_BYTES)]


class Patch(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"before": "b", "after": "a"}):
    """Bytes at a place in a file, before and after; both have the same length. In JSON they are Base64."""

    offset: Size
    before: _PatchBytes
    after: _PatchBytes

    def __post_init__(self) -> None:
        """Refuse bytes of two lengths."""
        if len(self.before) != len(self.after):
            raise ValueError("a patch has as many bytes before as after")

    def fits(self, storage: Storage) -> bool:
        """Whether every sector of the file that the patch touches is as it was before, or as it is to be."""
        if self.offset > storage.size():
            return False
        now = read_bytes(storage, self.offset, len(self.after))
        cuts = [0, *range(-self.offset % SECTOR or SECTOR, len(self.after), SECTOR), len(self.after)]
        pairs = ((slice(start, stop), now[start:stop]) for start, stop in pairwise(cuts))
        return len(now) == len(self.after) and all(part in {self.before[at], self.after[at]} for at, part in pairs)

    @property
    def reversed(self) -> Patch:
        """The patch that takes this one back."""
        return Patch(offset=self.offset, before=self.after, after=self.before)

    def to_record(self) -> dict[str, object]:
        """Return the patch as JSON has it."""
        record: dict[str, object] = msgspec.to_builtins(self)
        return record


def read_through(storage: Storage, patches: Sequence[Patch], offset: int, length: int) -> bytes:
    """Return file bytes as they will be when the patches are written, fewer where the file ends."""
    raw = bytearray(read_bytes(storage, offset, length))
    for patch in patches:
        start, stop = max(offset, patch.offset), min(offset + len(raw), patch.offset + len(patch.after))
        if start < stop:
            raw[start - offset : stop - offset] = patch.after[start - patch.offset : stop - patch.offset]
    return bytes(raw)
