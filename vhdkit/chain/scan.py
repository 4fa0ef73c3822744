"""A folder's images as family trees: who is whose child, who has lost its parent, who shares an id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.arguments import checked
from vhdkit.chain.catalog import Catalog, Cataloged, Parents, read_catalog
from vhdkit.chain.undo_image import undo_image_of
from vhdkit.chain.unfinished_merges import unfinished_merges
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.units import as_texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vhdkit.chain.undo_image import UndoImage
    from vhdkit.disk.image import ImageSummary
    from vhdkit.errors import VhdError
    from vhdkit.findings import Finding
    from vhdkit.storage.protocols import Folder
    from vhdkit.units import StrPath


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedImage:
    """An image in its family: `children` are the images that read through it.

    `undo_of` is the file that was merged into, if this is that merge's undo image, else "".
    """

    path: str
    metadata: ImageSummary
    children: tuple[ScannedImage, ...]
    undo_of: str = ""

    @property
    def unique_id(self) -> bytes:
        """Its id, 16 bytes."""
        return self.metadata.unique_id

    @property
    def parent_id(self) -> bytes | None:
        """The id of the parent that it looks for, None if it needs none."""
        link = self.metadata.parent
        return None if link is None else link.unique_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a folder holds.

    `bases` are images that need no parent, with everything above them; `orphans` need one that is not there, or is
    there several times so that none can be chosen (`ambiguous` has the choices by the orphan's path); `duplicates` are
    files that share an id; `unreadable` files look like images and cannot be read; `unfinished` tells of
    merges that were begun and not finished.
    """

    bases: tuple[ScannedImage, ...]
    orphans: tuple[ScannedImage, ...]
    ambiguous: Mapping[str, tuple[str, ...]]
    duplicates: Mapping[bytes, tuple[str, ...]]
    unreadable: Mapping[str, VhdError | OSError]
    unfinished: tuple[Finding, ...]


@checked
def scan(directory: StrPath, *, search: Sequence[StrPath] = (), folder: Folder | None = None) -> Scan:
    """Find the images in a folder and below it, and how they belong together; a bad file stops nothing.

    Parents may also lie in the `search` folders, whose families are reported as well. Only headers are read.

    Raises:
        OSError: the folder itself cannot be read.

    """
    place = folder or LocalFolder()
    directories = as_texts([directory, *search])
    place.check_directory(directories[0])
    catalog = read_catalog(place, directories)
    unfinished = tuple(unfinished_merges(place, {path: image.unique_id for path, image in catalog.images.items()}))
    merged_into = dict.fromkeys(finding.path for finding in unfinished)
    undo = {path: image for path in merged_into if (image := undo_image_of(place, path)) is not None}
    return arrange(catalog, unfinished, undo)


def arrange(
    catalog: Catalog, unfinished: tuple[Finding, ...] = (), undo: Mapping[str, UndoImage] | None = None
) -> Scan:
    """Turn a catalog into family trees; `undo` are the undo images of merges, by the path that was merged into."""
    links = _links(catalog)
    children = links.children
    placed: set[str] = set()
    undo_of = _undo_images(undo or {}, children)
    trees = [_tree(image, children, placed, undo_of) for image in links.roots]
    # What was not reached from a root hangs in a loop of parents; its members are reported as orphans.
    trees += [_tree(image, children, placed, undo_of) for image in catalog.images.values() if image.path not in placed]
    return Scan(
        bases=tuple(tree for tree in trees if tree.parent_id is None),
        orphans=tuple(tree for tree in trees if tree.parent_id is not None),
        ambiguous=links.ambiguous,
        duplicates=_duplicates(catalog),
        unreadable=dict(catalog.unreadable),
        unfinished=unfinished,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Links:
    """The children of images by path, the images that hang below none, and those of which several may be the parent."""

    children: dict[str, list[Cataloged]]
    roots: list[Cataloged]
    ambiguous: dict[str, tuple[str, ...]]


def _links(catalog: Catalog) -> _Links:
    found = _Links(children={}, roots=[], ambiguous={})
    known = Parents(catalog)
    for image in catalog.images.values():
        parents = known.of(image)
        if len(parents) == 1:
            found.children.setdefault(parents[0].path, []).append(image)
            continue
        found.roots.append(image)
        if parents:
            found.ambiguous[image.path] = tuple(parent.path for parent in parents)
    return found


def _undo_images(undo: Mapping[str, UndoImage], children: Mapping[str, Sequence[Cataloged]]) -> dict[str, str]:
    """Return what was merged into by the paths of the undo images that keep its view."""
    return {child.path: path for path, image in undo.items() for child in children.get(path, ()) if image.is_it(child)}


def _tree(
    root: Cataloged, children: dict[str, list[Cataloged]], placed: set[str], undo_of: Mapping[str, str]
) -> ScannedImage:
    """Return an image with what hangs below it; without recursion, for a chain may be deeper than Python's stack."""
    order = [root]
    below: list[list[Cataloged]] = []
    placed.add(root.path)
    for image in order:  # which grows
        below.append([child for child in children.get(image.path, []) if child.path not in placed])
        placed.update(child.path for child in below[-1])
        order += below[-1]
    built: dict[str, ScannedImage] = {}
    for image, own in zip(reversed(order), reversed(below), strict=True):
        members = tuple(built.pop(child.path) for child in own)
        built[image.path] = ScannedImage(
            path=image.path, metadata=image.metadata, children=members, undo_of=undo_of.get(image.path, "")
        )
    return built[root.path]


def _duplicates(catalog: Catalog) -> dict[bytes, tuple[str, ...]]:
    by_id: dict[bytes, dict[tuple[int, int], str]] = {}
    for image in catalog.images.values():
        by_id.setdefault(image.unique_id, {}).setdefault(image.identity, image.path)
    return {key: tuple(files.values()) for key, files in by_id.items() if len(files) > 1}
