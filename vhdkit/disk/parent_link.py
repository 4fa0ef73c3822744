"""What a child says of its parent: its id, and where it was. All of it is untrusted text from inside a file."""

from __future__ import annotations

from dataclasses import dataclass

from vhdkit.disk import unique_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentPath:
    """A path as it stands in the file, and the format's name for the place; a bare name is no path to follow."""

    text: str
    origin: str
    is_bare_name: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentChange:
    """The new parent of a child: the path of the parent so far, that of the new one, its id and its time stamp."""

    old_parent: str
    new_parent: str
    unique_id: bytes
    timestamp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentLink:
    """The link of a child to its parent.

    `unique_id` has 16 bytes, all null if the parent has no id; a parent with one of the `other_ids`, none of them null,
    fits as well: a format may name two while its parent is changed. `timestamp` is when the parent was last changed, as
    the child remembers it, in the seconds of `timestamp`; 0 if it does not. `paths` come in the order in which they are
    to be tried.
    """

    unique_id: bytes = unique_id.NULL
    timestamp: int = 0
    paths: tuple[ParentPath, ...] = ()
    other_ids: tuple[bytes, ...] = ()

    @property
    def ids(self) -> tuple[bytes, ...]:
        """All ids that fit, the usual one first."""
        return (self.unique_id, *self.other_ids)
