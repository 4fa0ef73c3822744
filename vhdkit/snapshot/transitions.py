"""What each operation makes of a manifest. Pure: a manifest in, another out; files are not looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from vhdkit.errors import SnapshotError
from vhdkit.journal.manifest import Folding, LayerRecord, Made, Manifest, Snapshot
from vhdkit.snapshot.layer_tree import Removal, owed

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from vhdkit.journal.manifest import Disk, Fold, LayerMark


def taken(manifest: Manifest, snapshot: Snapshot, fresh: Sequence[LayerRecord], marks: Sequence[LayerMark]) -> Manifest:
    """Freeze the active layers for a snapshot; the fresh ones, one a disk, are active from now on."""
    disks = []
    for disk, new, mark in zip(manifest.disks, fresh, marks, strict=True):
        layers = tuple(replace(layer, mark=mark) if layer.path == disk.active else layer for layer in disk.layers)
        disks.append(replace(disk, active=new.path, layers=(*layers, new)))
    return replace(manifest, disks=tuple(disks), snapshots=(*manifest.snapshots, snapshot), now=snapshot.id)


def applied(manifest: Manifest, snapshot: Snapshot, fresh: Sequence[LayerRecord]) -> Manifest:
    """Let the machine go on from a snapshot, in fresh layers above it; what it wrote to so far is no longer needed."""
    disks = tuple(
        replace(disk, active=new.path, layers=(*disk.layers, new))
        for disk, new in zip(manifest.disks, fresh, strict=True)
    )
    return replace(manifest, disks=disks, now=snapshot.id)


def deleted(manifest: Manifest, doomed: Collection[str]) -> Manifest:
    """Take snapshots away, by their ids; those that came after one come after the one before it then."""
    heirs: dict[str | None, str | None] = {}

    def heir(snapshot_id: str | None) -> str | None:
        passed = []
        while snapshot_id in doomed and snapshot_id not in heirs:
            passed.append(snapshot_id)
            gone = manifest.by_id(snapshot_id)
            snapshot_id = gone.parent if gone is not None else None
        found = heirs.get(snapshot_id, snapshot_id)
        heirs.update(dict.fromkeys(passed, found))
        return found

    kept = tuple(replace(each, parent=heir(each.parent)) for each in manifest.snapshots if each.id not in doomed)
    files = tuple(
        Made(path=file.path, unique_id="") for each in manifest.snapshots if each.id in doomed for file in each.state
    )
    return replace(manifest, snapshots=kept, now=heir(manifest.now), doomed=(*manifest.doomed, *files))


def subtree(manifest: Manifest, snapshot: Snapshot) -> tuple[Snapshot, ...]:
    """Return a snapshot with all that came after it."""
    children: dict[str | None, list[Snapshot]] = {}
    for each in manifest.snapshots:
        children.setdefault(each.parent, []).append(each)
    found = [snapshot]
    for each in found:  # which grows
        found += children.get(each.id, ())
    return tuple(found)


def renamed(manifest: Manifest, snapshot: Snapshot, name: str, note: str | None) -> Manifest:
    """Give a snapshot another name, and another note unless that is None."""
    changed = replace(snapshot, name=name, note=snapshot.note if note is None else note)
    return replace(
        manifest, snapshots=tuple(changed if each.id == snapshot.id else each for each in manifest.snapshots)
    )


def check_name(manifest: Manifest, name: str) -> None:
    """Refuse a name that could not be asked for.

    Raises:
        SnapshotError: it is empty, holds control characters, or another snapshot has it.

    """
    if not name.strip() or not name.isprintable():
        raise SnapshotError(f"{name!r} is no name for a snapshot: it needs printable characters")
    if any(each.name == name for each in manifest.snapshots):
        raise SnapshotError(f"there is a snapshot {name!r} already; names are used once")


def removed(manifest: Manifest, disk: int, layer: str) -> Manifest:
    """Forget a layer that nothing reads through; its file is to go."""
    at = manifest.disks[disk]
    record = at.layer(layer)
    left = replace(at, layers=tuple(each for each in at.layers if each.path != layer))
    doomed = (*manifest.doomed, Made(path=layer, unique_id=record.unique_id))
    return replace(manifest.with_disk(disk, left), doomed=doomed)


def folded(manifest: Manifest, folding: Folding) -> Manifest:
    """Note that a merge is complete: the destination is where its topmost source was."""
    disk, fold = manifest.disks[folding.disk], folding.fold
    layers = []
    for layer in disk.layers:
        if layer.path in fold.sources:
            continue
        parent = fold.destination if layer.parent == fold.top else layer.parent
        # What it is like now has to be looked at.
        mark = None if layer.path == fold.destination else layer.mark
        layers.append(replace(layer, parent=parent, mark=mark))
    active = fold.destination if disk.active == fold.top else disk.active
    changed = manifest.with_disk(folding.disk, replace(disk, active=active, layers=tuple(layers)))
    snapshots = tuple(
        replace(
            each,
            layers=tuple(
                fold.destination if index == folding.disk and path == fold.top else path
                for index, path in enumerate(each.layers)
            ),
        )
        for each in manifest.snapshots
    )
    left = tuple(each for each in manifest.foldings if each != folding)
    return replace(changed, snapshots=snapshots, foldings=left)


def owed_by(manifest: Manifest) -> tuple[tuple[tuple[int, Removal], ...], tuple[Folding, ...]]:
    """Return the layers to be removed and the merges to be done, with the index of their disk.

    A merge that was begun is finished first, and whatever shares a layer with it waits until then.
    """
    removals: list[tuple[int, Removal]] = []
    foldings: list[Folding] = list(manifest.foldings)
    for index, disk in enumerate(manifest.disks):
        at_work = busy(manifest, index)
        # As long as a merge is at a layer it stays where it is.
        for step in owed(disk.parents, manifest.needed(index) | at_work):
            if isinstance(step, Removal):
                removals.append((index, step))
            elif not at_work.intersection(reach(disk, step)):
                foldings.append(Folding(disk=index, fold=step))
    return tuple(removals), tuple(foldings)


def busy(manifest: Manifest, disk: int) -> frozenset[str]:
    """Return the layers that the merges under way on a disk write to."""
    return frozenset(
        path for each in manifest.foldings if each.disk == disk for path in reach(manifest.disks[disk], each.fold)
    )


def reach(disk: Disk, fold: Fold) -> frozenset[str]:
    """Return the layers of a disk that a merge reads, changes or relinks."""
    return frozenset({*fold.layers, *disk.children.get(fold.top, ())})
