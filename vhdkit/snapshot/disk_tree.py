"""The images of a machine's disks as trees, and which images of several disks were frozen together.

The family of a disk is found as `scan` finds it: every image that reads through its base, and the leaf that the machine
writes to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdkit.chain.catalog import Catalog, read_catalog
from vhdkit.chain.chain import open_chain
from vhdkit.chain.scan import arrange
from vhdkit.disk.image import DiskKind
from vhdkit.errors import SnapshotError
from vhdkit.journal.manifest import GUID
from vhdkit.storage import paths
from vhdkit.storage.new_file import is_partial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.chain.scan import ScannedImage
    from vhdkit.storage.protocols import Folder


class Family:
    """The images of one disk: a tree of them, and the leaf that the machine writes to."""

    def __init__(self, root: ScannedImage, active: ScannedImage) -> None:
        self.root = root
        self.active = active
        self.parent_of: dict[str, ScannedImage | None] = {root.path: None}
        self.images = [root]
        for image in self.images:  # which grows
            for child in image.children:
                self.parent_of[child.path] = image
                self.images.append(child)

    @property
    def line(self) -> list[str]:
        """The active leaf's path with those below it."""
        line: list[str] = []
        at: ScannedImage | None = self.active
        while at is not None:
            line.append(at.path)
            at = self.parent_of[at.path]
        return line


def find_family(folder: Folder, disk: str, search: tuple[str, ...]) -> Family:
    """Return the family of the disk that an image is of; nobody is asked for a lock.

    Raises:
        SnapshotError: its base is a raw file or not found, or several leaves could be what the machine writes to.
        VhdError, OSError: as `open_chain`.

    """
    real = folder.real(disk)
    with open_chain(real, search=search, lock=False, folder=folder) as chain:
        for layer in chain.layers:
            if layer.kind is DiskKind.RAW:
                message = "the chain ends in a raw file, which keeps no snapshots; convert it"
                raise SnapshotError(message, path=layer.path)
            # Snapshots of a disk that nobody can read are worth nothing.
            layer.check_readable()
        paths_below = [folder.real(layer.path) for layer in chain.layers]
    directories = [*dict.fromkeys(map(paths.dirname, paths_below)), *search]
    catalog = read_catalog(folder, directories)
    known = {path: image for path, image in catalog.images.items() if not is_partial(path)}
    scanned = arrange(Catalog(images=known))
    for root in scanned.bases:
        family = Family(root, root)
        if any(image.path == real for image in family.images):
            family.active = _active(family, real)
            return family
    raise SnapshotError("its family cannot be told: its base is not among the images found", path=disk)


def _active(family: Family, named: str) -> ScannedImage:
    at = next(image for image in family.images if image.path == named)
    leaves = [image for image in Family(at, at).images if not image.children]
    if len(leaves) == 1:
        return leaves[0]
    names = ", ".join(image.path for image in leaves)
    message = f"{len(leaves)} images read through it, and one of them is what the machine writes to; name that: {names}"
    raise SnapshotError(message, path=named)


def together(families: Sequence[Family]) -> list[list[ScannedImage]]:
    """Return which images of the disks were frozen together: row by row, a base first, one image a disk.

    Raises:
        SnapshotError: the trees are not alike, or it cannot be told which of their branches belong together.

    """
    rows = [[family.root for family in families]]
    for row in rows:  # which grows
        children = [_ordered(family, image) for family, image in zip(families, row, strict=True)]
        if len({len(each) for each in children}) > 1:
            told = ", ".join(f"{image.path} has {len(each)}" for image, each in zip(row, children, strict=True))
            raise SnapshotError(
                "the trees of the disks differ, so that it cannot be told what was frozen together: "
                f"{told} children; name the disks one by one, each as a machine of its own"
            )
        rows += [list(each) for each in zip(*_paired(families, children), strict=True)]
    return rows


def _ordered(family: Family, image: ScannedImage) -> list[ScannedImage]:
    """Return an image's children as they were made; the one on the way to the active leaf is always the last."""
    line = set(family.line)
    return sorted(image.children, key=lambda child: (child.path in line, child.metadata.timestamp, child.path))


def _paired(families: Sequence[Family], children: Sequence[list[ScannedImage]]) -> list[list[ScannedImage]]:
    """Return the disks' children so that those of one place were made together.

    Those that were made together here share the GUID in their names; those of others have the same time, in seconds.

    Raises:
        SnapshotError: several were made in one second, and have names of their own.

    """
    guids = [{_guid(child): child for child in each} for each in children]
    if all(len(each) == len(children[0]) and each.keys() == guids[0].keys() for each in guids):
        return [[each[_guid(child)] for child in children[0]] for each in guids]
    if len(families) > 1:
        for family, each in zip(families, children, strict=True):
            _check_times(family, each)
    return list(children)


def _check_times(family: Family, children: Sequence[ScannedImage]) -> None:
    line = set(family.line)
    stamps = [child.metadata.timestamp for child in children if child.path not in line]
    if len(set(stamps)) < len(stamps):
        names = ", ".join(child.path for child in children)
        message = f"of these some were made in one second, so that it cannot be told what was frozen together: {names}"
        raise SnapshotError(f"{message}; name the disks one by one, each as a machine of its own")


def _guid(image: ScannedImage) -> str:
    """Return the GUID that an image's name ends with, or its path if it has none."""
    end = paths.splitext(paths.basename(image.path))[0][-36:]
    return end if GUID.fullmatch(end) else image.path
