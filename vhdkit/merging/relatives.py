"""Who else reads through the files of a merge: siblings, who would be harmed, and children, who are relinked.

Images are looked for in the folders of the chain and below them (what is mounted there left out), in the folders just
above, and in the search folders and below them. Which file an image reads through is found out as when it is opened:
several may have one id. An image of which that cannot be told counts as a sibling.

**Source**: reference 3.6, 4.2 row 63.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.chain.catalog import Catalog, Cataloged, read_catalog
from vhdkit.chain.locate import Where, find_parent, parent_identity
from vhdkit.errors import MergeError, VhdError
from vhdkit.image.create import is_partial
from vhdkit.image.image import Image, open_image
from vhdkit.image.metadata import read_metadata
from vhdkit.image.step import pending
from vhdkit.merging.relink import Relink
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.chain.chain import Chain
    from vhdkit.storage.seam import Folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Relatives:
    """Other children of the destination, other children of sources that end, and children of the topmost source.

    `unknown` are files that look like images and cannot be read at all, so that nobody can tell whose children
    they are.
    """

    of_destination: tuple[str, ...] = ()
    of_sources: tuple[str, ...] = ()
    relinks: tuple[Relink, ...] = ()
    unknown: tuple[str, ...] = ()


def find_relatives(chain: Chain, depth: int, folder: Folder, search: Sequence[str], undo_id: bytes = b"") -> Relatives:
    """Look for the relatives of a merge of the layers above `depth` into the one there; the undo image is none."""
    family = [layer for layer in chain.layers[: depth + 1] if isinstance(layer, Image)]
    top, destination = family[0], family[-1]
    own = {image.storage.identity for image in family[:-1]}
    ids = {image.unique_id for image in family}
    catalog = _catalog(chain, folder, search)
    children = {
        image.path: image.parent_id
        for image in catalog.images.values()
        if image.identity not in own and image.unique_id != undo_id
    }
    for path in catalog.unreadable:
        children[path] = _parent_id_of_damaged(folder, path)
    where = Where(folder=folder, search=(*search, *dict.fromkeys(paths.dirname(layer.path) for layer in chain.layers)))
    of_destination, of_sources, relinks = [], [], []
    for path, parent_id in children.items():
        if parent_id not in ids:
            continue
        parent = parent_of(catalog.images.get(path, path), where)
        if parent == top.storage.identity:
            relinks.append(
                Relink(
                    child=path,
                    old_parent=top.path,
                    new_parent=destination.path,
                    new_parent_id=destination.unique_id,
                )
            )
        elif parent == destination.storage.identity:
            of_destination.append(path)
        elif parent is None or parent in own:
            of_sources.append(path)
    return Relatives(
        of_destination=tuple(of_destination),
        of_sources=tuple(of_sources),
        relinks=tuple(relinks),
        unknown=tuple(path for path, error in catalog.unreadable.items() if isinstance(error, OSError)),
    )


def children_of(image: Image, folder: Folder, search: Sequence[str]) -> tuple[str, ...]:
    """Return the images that read through one: of those that it cannot be told of, all that look for its id.

    Raises:
        MergeError: a file or a folder cannot be read, so that it cannot be told: what goes would be missed by it.

    """
    directory = paths.dirname(image.path)
    catalog = _catalog_near([directory], folder, search)
    for path, error in catalog.unreadable.items():
        if isinstance(error, OSError):
            message = "it cannot be read, so that it cannot be told whether it needs what goes; make it readable"
            raise MergeError(f"{message}, or move it elsewhere", path=path) from error
    where = Where(folder=folder, search=(*search, directory))
    own = image.storage.identity
    children = {path: child.parent_id for path, child in catalog.images.items() if child.identity != own}
    children |= {path: _parent_id_of_damaged(folder, path) for path in catalog.unreadable}
    return tuple(
        path
        for path, parent_id in children.items()
        if parent_id == image.unique_id and parent_of(path, where) in {None, own}
    )


def parent_of(child: Cataloged | str, where: Where) -> tuple[int, int] | None:
    """Return the identity of the file that an image reads through, None if that cannot be found out."""
    try:
        if isinstance(child, str):
            with open_image(child, folder=where.folder) as image:
                return parent_identity(image, where, {image.storage.identity})
        return parent_identity(child, where, {child.identity})
    except (VhdError, OSError):
        return None


def identity_at(path: str, folder: Folder) -> tuple[int, int] | None:
    """Return which file a name leads to now, None if it leads to none that can be opened."""
    try:
        storage = folder.open(path)
    except OSError:
        return None
    storage.close()
    return storage.identity


def leads_to(path: str, wanted: tuple[int, int], where: Where) -> bool:
    """Whether an image reads through a file at any depth; what lies below that file need not be there.

    Raises:
        VhdError, OSError: a layer above it cannot be opened or found.

    """
    above: set[tuple[int, int]] = set()
    while True:
        with open_image(path, folder=where.folder) as image:
            if not image.is_differencing:
                return False
            above.add(image.storage.identity)
            with find_parent(image, where, above).layer as parent:
                if parent.storage.identity == wanted:
                    return True
                if not isinstance(parent, Image):
                    return False
                path = parent.path


def _parent_id_of_damaged(folder: Folder, path: str) -> bytes | None:
    """Return the id that an image with a wrong checksum looks for: the damage may be mended yet."""
    try:
        storage = folder.open(path)
    except OSError:
        return None
    try:
        header = read_metadata(storage, verify=False, patches=pending(folder, storage)).header
    except (VhdError, OSError):
        return None
    finally:
        storage.close()
    return None if header is None else header.parent_unique_id


def _catalog(chain: Chain, folder: Folder, search: Sequence[str]) -> Catalog:
    return _catalog_near(list(dict.fromkeys(paths.dirname(layer.path) for layer in chain.layers)), folder, search)


def _catalog_near(near: list[str], folder: Folder, search: Sequence[str]) -> Catalog:
    above = [paths.dirname(directory) for directory in near]
    asked, beside = read_catalog(folder, search), read_catalog(folder, near, one_device=True)
    # What cannot be read just above is passed over: it may be anybody's, and hardly reads through a folder below.
    higher = read_catalog(folder, above, deep=False)
    images, unreadable = higher.images | asked.images | beside.images, asked.unreadable | beside.unreadable
    return Catalog(
        images={path: image for path, image in images.items() if not is_partial(path)},
        unreadable={path: error for path, error in unreadable.items() if not is_partial(path)},
    )
