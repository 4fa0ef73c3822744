"""Who else reads through the files of a merge: siblings, who would be harmed, and children, who are relinked.

They are looked for as `chain.children` says, in the folders of the whole chain. An image of which it cannot be told
what it reads through counts as a sibling.

**Source**: docs/reference/vhd.md 3.2, 4.2 row 63.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vhdkit.chain.children import parent_id_of_damaged, parent_of, read_family, unseen_findings
from vhdkit.chain.folder_index import FolderIndex
from vhdkit.chain.parent_search import ParentSearch, find_parent
from vhdkit.chain.relink import Relink
from vhdkit.errors import VhdError
from vhdkit.formats import open_image
from vhdkit.storage import paths
from vhdkit.storage.protocols import Reach

if TYPE_CHECKING:
    from collections.abc import Collection

    from vhdkit.chain.catalog import Catalog
    from vhdkit.chain.merged_layers import MergedLayers
    from vhdkit.disk.image import Image
    from vhdkit.findings import Finding
    from vhdkit.storage.protocols import Folder
    from vhdkit.storage.search_scope import SearchScope


@dataclass(frozen=True, slots=True, kw_only=True)
class Relatives:
    """Other children of the destination, other children of sources that end, and children of the topmost source.

    `unknown` are files that look like images and cannot be read at all, so that it cannot be told whose children they
    are. `findings` name what could not be looked into; two searches that found the same are equal whatever that was.
    """

    of_destination: tuple[str, ...] = ()
    of_sources: tuple[str, ...] = ()
    relinks: tuple[Relink, ...] = ()
    unknown: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(default=(), compare=False)

    def differ(self, found: Relatives, folder: Folder) -> bool:
        """Whether a later search shows that relatives came or went.

        Bounds of seconds cut two searches at different places. One that was not found again has gone if everything was
        looked into, or its file is not there any more.
        """
        then, now = self._by_path(), found._by_path()
        if any(then.get(path) != what for path, what in now.items()):
            return True
        missing = then.keys() - now.keys()
        return bool(missing) and not (found.findings and all(map(folder.exists, missing)))

    def _by_path(self) -> dict[str, object]:
        kinds = (("destination", self.of_destination), ("source", self.of_sources), ("unknown", self.unknown))
        named = {path: {kind for kind, some in kinds if path in some} for _, some in kinds for path in some}
        return {**named, **{relink.child: relink for relink in self.relinks}}


def _parent_ids(
    catalog: Catalog, own: Collection[tuple[int, int]], undo_id: bytes, folder: Folder
) -> dict[str, bytes | None]:
    """Return whose child each image near the chain says it is, by paths; those of the chain and the undo image not."""
    found = {
        image.path: image.parent_id
        for image in catalog.images.values()
        if image.identity not in own and image.unique_id != undo_id
    }
    return found | {path: parent_id_of_damaged(folder, path) for path in catalog.unreadable}


def find_relatives(merged: MergedLayers, scope: SearchScope, undo_id: bytes = b"") -> Relatives:
    """Look for the relatives of a merge; the undo image is none."""
    top, destination = merged.layers[0], merged.destination
    own = {image.storage.identity for image in merged.sources}
    ids = {image.unique_id for image in merged.family}
    directories = tuple(dict.fromkeys(paths.dirname(layer.path) for layer in merged.layers))
    reach = Reach()
    catalog = read_family(directories, scope, reach)
    children = _parent_ids(catalog, own, undo_id, scope.folder)
    parents = ParentSearch.within(scope, *directories)
    of_destination, of_sources, relinks = [], [], []
    for path, parent_id in children.items():
        if parent_id not in ids:
            continue
        parent = parent_of(catalog.images.get(path, path), parents)
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
        findings=unseen_findings(reach),
    )


def identity_at(path: str, folder: Folder) -> tuple[int, int] | None:
    """Return which file a name leads to now, None if it leads to none that can be opened."""
    try:
        with folder.open(path) as storage:
            return storage.identity
    except OSError:
        return None


def is_above(path: str, below: Image, parents: ParentSearch) -> bool:
    """Whether an image reads through another; False where that cannot be found out."""
    try:
        return leads_to(path, below.storage.identity, parents)
    except (VhdError, OSError):
        return False


def leads_to(path: str, wanted: tuple[int, int], parents: ParentSearch) -> bool:
    """Whether an image reads through a file at any depth; what lies below that file need not be there.

    Raises:
        VhdError, OSError: a layer above it cannot be opened or found.

    """
    above: set[tuple[int, int]] = set()
    parents = replace(parents, index=parents.index or FolderIndex(parents.folder))
    while True:
        with open_image(path, folder=parents.folder) as image:
            if image.parent is None:
                return False
            above.add(image.storage.identity)
            with find_parent(image, parents, above).layer as parent:
                if parent.storage.identity == wanted:
                    return True
                if parent.parent is None:
                    return False
                path = parent.path
