"""What a caller asks for, spelled once: built at the door of a verb, and passed down whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vhdkit.units import as_text, as_text_map, as_texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vhdkit.units import StrPath


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentPolicy:
    """Which files may be opened as parents.

    A parent may lie in its child's folder, in the folders of `search` and below them. `parent_map` says which local
    folder stands for a folder that absolute paths in images name. `parent` is the parent of the image, or of the layer
    further down that it fits; a raw parent is only taken if it is named so. With `accept_id_mismatch` the file that the
    child names, or `parent`, is taken though its id is another, if none has the right one: for reading only.
    """

    search: tuple[str, ...] = ()
    parent_map: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None
    accept_id_mismatch: bool = False

    @classmethod
    def of(
        cls,
        search: Sequence[StrPath] = (),
        parent_map: Mapping[str, StrPath] | None = None,
        parent: StrPath | None = None,
        *,
        accept_id_mismatch: bool = False,
    ) -> ParentPolicy:
        """Return the policy that the arguments of a public function say."""
        return cls(
            search=as_texts(search),
            parent_map=as_text_map(parent_map),
            parent=as_text(parent),
            accept_id_mismatch=accept_id_mismatch,
        )

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders that the caller named."""
        return (*self.search, *self.parent_map.values())
