"""An image and what it reads through, as far as that is found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vhdkit.chain.folder_index import FolderIndex
from vhdkit.chain.parent_search import ParentSearch, find_parent
from vhdkit.errors import (
    VhdError,
)

if TYPE_CHECKING:
    from vhdkit.disk.image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestry:
    """An image and what it reads through, as far as that is found: paths, and which files they are."""

    paths: tuple[str, ...]
    identities: tuple[tuple[int, int], ...]
    is_cut_off: bool


def ancestry_of(first: Image, parents: ParentSearch) -> Ancestry:
    """Return an image and what it reads through; a layer that cannot be found or opened cuts it off."""
    found, identities = [first.path], [first.storage.identity]
    layer, is_cut_off = first, False
    quiet = replace(parents, lock=False, index=FolderIndex(parents.folder))
    while layer.parent is not None:
        try:
            below = find_parent(layer, quiet, set(identities)).layer
        except (VhdError, OSError):
            # It may be mended next; a loop in files made by others is refused when they are read.
            is_cut_off = True
            break
        finally:
            if layer is not first:
                layer.close()
        layer = below
        found.append(layer.path)
        identities.append(layer.storage.identity)
    if layer is not first:
        layer.close()
    return Ancestry(paths=tuple(found), identities=tuple(identities), is_cut_off=is_cut_off)
