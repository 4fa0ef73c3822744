"""What is said of a file of a machine, or of one beside its disks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhdkit.findings import Hint


class RemarkKind(StrEnum):
    """What a remark is of."""

    CHANGED = "changed"
    MISSING = "missing"
    UNPROTECTED = "unprotected"
    UNFINISHED = "unfinished"
    OWED = "owed"
    ORPHAN = "orphan"
    LEFT_OVER = "left over"


# What may be seen for an instant while an operation or a merge goes on beside.
PASSING = frozenset(
    {RemarkKind.CHANGED, RemarkKind.MISSING, RemarkKind.UNPROTECTED, RemarkKind.UNFINISHED, RemarkKind.LEFT_OVER}
)


# What cannot be put right by settling.
DAMAGES = frozenset({RemarkKind.CHANGED, RemarkKind.MISSING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """Something about a file of a machine, or beside its disks; each of `hints` mends it in its own way."""

    kind: RemarkKind
    path: str
    message: str
    hints: tuple[Hint, ...] = ()
