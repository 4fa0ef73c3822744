"""The snapshots that images are found to be, with the names and notes that are known of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from vhdkit.disk import timestamp
from vhdkit.errors import SnapshotError
from vhdkit.journal.manifest import Manifest, Snapshot
from vhdkit.storage import paths

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Sequence

    from vhdkit.chain.scan import ScannedImage
    from vhdkit.snapshot.disk_tree import Family
    from vhdkit.snapshot.manifest_file import ManifestFile


def snapshots_of(
    file: ManifestFile,
    families: Sequence[Family],
    rows: Sequence[Sequence[ScannedImage]],
    new_id: Callable[[], uuid.UUID],
    before: Manifest | None,
) -> tuple[tuple[Snapshot, ...], str | None]:
    """Return a snapshot for every row but the active one, and which of them the active one began with.

    A row that is known, and of no snapshot, is what a deletion has left to be merged: it stays none.
    """
    known = _Known(file, before)
    names = {each.name for each in known.snapshots}
    found: list[Snapshot] = []
    id_of: dict[str, str | None] = {}
    now: str | None = None
    for row in rows:
        below = families[0].parent_of[row[0].path]
        parent_id = id_of.get(below.path) if below is not None else None
        if _is_active(row, families):
            now = parent_id
            continue
        where = tuple(file.relative(image.path) for image in row)
        at = known.snapshot_at(where, row)
        if at is None and known.has_layers(where):
            id_of[row[0].path] = parent_id
            continue
        if at is None:
            name = _free_name(paths.splitext(paths.basename(row[0].path))[0], names)
            at = Snapshot(id=str(new_id()).upper(), name=name, layers=where, taken=_frozen_at(row))
        names.add(at.name)
        found.append(replace(at, parent=parent_id, layers=where))
        id_of[row[0].path] = at.id
    order = {each.id: place for place, each in enumerate(known.snapshots)}
    return tuple(sorted(found, key=lambda each: order.get(each.id, len(order)))), now


def _is_active(row: Sequence[ScannedImage], families: Sequence[Family]) -> bool:
    """Whether the machine writes to images, one of each disk.

    Raises:
        SnapshotError: it writes to some of them.

    """
    actives = [image for family, image in zip(families, row, strict=True) if image is family.active]
    if actives and len(actives) < len(row):
        message = "the machine writes to it, and on another disk to what was not made together with it"
        raise SnapshotError(message, path=actives[0].path)
    return bool(actives)


class _Known:
    """What an earlier manifest says of layers, nothing if there is none."""

    def __init__(self, file: ManifestFile, before: Manifest | None) -> None:
        self.snapshots = before.snapshots if before is not None else ()
        self._by_layers = {each.layers: each for each in self.snapshots}
        self._layers = [set(disk.parents) - {disk.active} for disk in before.disks] if before is not None else []
        self._moved = _by_ids(file, before) if before is not None else {}

    def snapshot_at(self, where: tuple[str, ...], row: Sequence[ScannedImage]) -> Snapshot | None:
        """Return the snapshot of layers: those there, or those of their ids, none of which is where it was."""
        return self._by_layers.get(where[: len(self._layers)]) or self._moved.get(
            tuple(image.unique_id.hex() for image in row)
        )

    def has_layers(self, where: tuple[str, ...]) -> bool:
        """Whether all of these are frozen layers that were known."""
        return bool(self._layers) and all(path in known for path, known in zip(where, self._layers, strict=False))


def _by_ids(file: ManifestFile, before: Manifest) -> dict[tuple[str, ...], Snapshot]:
    """Return the snapshots none of whose images is where it was, by the unique ids of those."""
    return {
        tuple(disk.layer(path).unique_id for disk, path in zip(before.disks, each.layers, strict=True)): each
        for each in before.snapshots
        if not any(file.folder.exists(file.absolute(path)) for path in each.layers)
    }


def _frozen_at(row: Sequence[ScannedImage]) -> float:
    """Return when the first child of a row's images was made, which is when they were frozen; 0 for a leaf."""
    stamps = [child.metadata.timestamp for image in row for child in image.children]
    return timestamp.to_datetime(min(stamps)).timestamp() if stamps else 0.0


def _free_name(wanted: str, names: set[str]) -> str:
    name, count = wanted, 1
    while name in names:
        count += 1
        name = f"{wanted} ({count})"
    return name
