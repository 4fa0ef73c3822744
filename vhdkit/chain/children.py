"""Which images read through a file: looked for in folders, whatever leads there.

Images are looked for in the folders near a chain and below them, of Hyper-V's own layout in both folders, in the
folders just above, and in the search folders and below them. Symbolic links in all of these are looked through, and
what is mounted below, as far as a `Reach` goes:
an image that was moved to another disk and left a link behind still reads through its parent. Only what files say of
themselves is read there, and nothing that was found so is opened as a parent.

Which file an image reads through is found out as when it is opened: several may have one id. An image of which that
cannot be told counts as a child.

**Source**: docs/reference/vhd.md 3.2, 4.2 row 63.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhdkit.chain.catalog import Catalog, Cataloged, is_called_as_image, read_catalog
from vhdkit.chain.folder_index import layout_folders
from vhdkit.chain.parent_search import ParentSearch, parent_identity
from vhdkit.corruption import Corruption
from vhdkit.errors import MergeError, VhdError
from vhdkit.findings import Finding
from vhdkit.formats import open_image, read_summary
from vhdkit.journal.ended_view import marked_view
from vhdkit.storage import paths
from vhdkit.storage.new_file import is_partial
from vhdkit.storage.protocols import Reach

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.disk.image import Image
    from vhdkit.storage.protocols import Folder
    from vhdkit.storage.search_scope import SearchScope


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """The images that read through a file, and which folders could not be looked into for more."""

    paths: tuple[str, ...]
    findings: tuple[Finding, ...]


def find_children(image: Image, scope: SearchScope) -> Children:
    """Return the images that read through one; where that is unknown, all that look for its id.

    Raises:
        MergeError: a file or a folder cannot be read, so that it is unknown whether it reads through the image.

    """
    directory = paths.dirname(image.path)
    reach = Reach()
    catalog = read_family([directory], scope, reach)
    for path, error in catalog.unreadable.items():
        if isinstance(error, OSError):
            message = f"it cannot be read, so that it cannot be told whether it needs {image.path}; make it readable"
            raise MergeError(f"{message}, or move it elsewhere", path=path) from error
    parents = ParentSearch.within(scope, directory)
    own = image.storage.identity
    found = {path: child.parent_id for path, child in catalog.images.items() if child.identity != own}
    found |= {path: parent_id_of_damaged(scope.folder, path) for path in catalog.unreadable}
    return Children(
        paths=tuple(
            path
            for path, parent_id in found.items()
            if parent_id == image.unique_id and parent_of(catalog.images.get(path, path), parents) in {None, own}
        ),
        findings=unseen_findings(reach),
    )


def children_of(image: Image, scope: SearchScope) -> tuple[str, ...]:
    """Return the paths that `find_children` finds.

    Raises:
        MergeError: as `find_children`.

    """
    return find_children(image, scope).paths


def read_family(near: Sequence[str], scope: SearchScope, reach: Reach) -> Catalog:
    """Read the images that may be relatives of those in some folders; what is half made is left out."""
    folder, above = scope.folder, [paths.dirname(directory) for directory in near]
    layout = (other for directory in near for other in layout_folders(scope.folder, directory))
    near = tuple(dict.fromkeys((*near, *layout)))
    asked = read_catalog(folder, scope.directories, reach=reach)
    beside = read_catalog(folder, near, one_device=True, reach=reach)
    # What cannot be read just above is passed over: it may be anybody's, and hardly reads through a folder below. Only
    # a link that is called as an image is one that was moved away.
    apart = Reach(directories=reach.directories)
    higher = read_catalog(folder, above, deep=False, reach=apart)
    reach.unseen |= {place: why for place, why in apart.unseen.items() if is_called_as_image(place)}
    images, unreadable = higher.images | asked.images | beside.images, asked.unreadable | beside.unreadable
    return Catalog(
        images={path: image for path, image in images.items() if not is_partial(path)},
        unreadable={path: error for path, error in unreadable.items() if not is_partial(path)},
    )


def unseen_findings(reach: Reach) -> tuple[Finding, ...]:
    """Return a warning for each place that could not be looked into for relatives."""
    message = "what it leads to, or holds, was not looked at for images that read through the chain: {}"
    return tuple(
        Finding(corruption=Corruption.SIBLINGS, path=place, message=message.format(reason))
        for place, reason in reach.unseen.items()
    )


def ended_advice(children: Sequence[str], folder: Folder) -> str:
    """Return what else may be done about children whose views have ended, "" if there are none: no copy is worth it."""
    ended = []
    for path in children:
        with suppress(VhdError, OSError), open_image(path, folder=folder) as image:
            if marked_view(folder, image.storage, image) is not None:
                ended.append(path)
    if not ended:
        return ""
    return (
        f". A merge went past {', '.join(ended)}, whose view has ended: remove it instead, with what reads through it,"
        " if none of that is needed"
    )


def parent_of(child: Cataloged | str, parents: ParentSearch) -> tuple[int, int] | None:
    """Return the identity of the file that an image reads through, None if that cannot be found out."""
    try:
        if isinstance(child, str):
            with open_image(child, folder=parents.folder) as image:
                return parent_identity(image, parents, {image.storage.identity})
        return parent_identity(child, parents, {child.identity})
    except (VhdError, OSError):
        return None


def parent_id_of_damaged(folder: Folder, path: str) -> bytes | None:
    """Return the id that an image with a wrong checksum looks for: the damage may be mended yet."""
    try:
        with folder.open(path) as storage:
            return read_summary(folder, storage, verify=False).remembered_parent_id
    except (VhdError, OSError):
        return None
