"""What a rebase does, as a value: two parents, whether what they show fits, and the bytes to write."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhdkit.journal.patch import Patch


class Fit(StrEnum):
    """Whether the new parent shows what the child was made above."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebase:
    """What a rebase compares, and what it changes.

    Ids are 16 bytes, sizes in bytes, block sizes too (0 where there are no blocks), time stamps seconds since 2000:
    of the parent as the child remembers it (0 if it does not), as its footer says it was made (None of a raw file), and
    as its file was changed. `before` is the file that the child reads through as it is, "" if none is found. `fits` is
    told by reading the whole of both parents; `difference` is the first byte in which they differ. `has_step` says that
    an earlier change of its header was cut off, and is to be finished.
    """

    child: str
    parent: str
    before: str
    expected_id: bytes
    found_id: bytes
    child_size: int
    parent_size: int
    child_block_size: int
    parent_block_size: int
    remembered_stamp: int
    made_stamp: int | None
    changed_stamp: int
    fits: Fit
    difference: int | None
    remarks: tuple[str, ...]
    patches: tuple[Patch, ...]
    has_step: bool = False

    @property
    def changes_nothing(self) -> bool:
        """Whether the child says all of that already."""
        return not self.has_step and all(patch.before == patch.after for patch in self.patches)
