"""Making a manifest from the images that are there: for disks that never had one, or whose manifest was lost.

Every image of a disk's family is a layer. Those that have children, and leaves that are not the machine's, are
snapshots, named for their files unless an earlier manifest has better names.
"""

from __future__ import annotations

import uuid
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from vhdkit.errors import ImageInUseError, SnapshotError, VhdError
from vhdkit.findings import Advice
from vhdkit.formats import check_written, open_image
from vhdkit.journal.ended_view import marked_view
from vhdkit.journal.manifest import Disk, LayerRecord, Manifest
from vhdkit.journal.merge_journal import find_journal
from vhdkit.snapshot import allowed_folders, layer_checks, new_files
from vhdkit.snapshot.adopted_snapshots import snapshots_of
from vhdkit.snapshot.disk_tree import Family, find_family, together
from vhdkit.snapshot.find_manifest import find_manifest, manifests_in
from vhdkit.snapshot.fingerprint import is_relinked_only, mark_at
from vhdkit.snapshot.manifest_file import SUFFIX, ManifestFile, manifest_path
from vhdkit.snapshot.run_pending_merges import Settler
from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vhdkit.journal.manifest import LayerMark
    from vhdkit.storage.protocols import Folder


def adopt(
    disks: Sequence[str],
    *,
    machine: str = "",
    directory: str | None = None,
    search: Sequence[str] = (),
    folder: Folder | None = None,
    new_id: Callable[[], uuid.UUID] = uuid.uuid4,
) -> str:
    """Write the manifest of a machine with these disks, or bring it up to date, and return its path.

    A disk is named by any of its images; where several leaves could be what the machine writes to, by that one.
    `directory` is where new layers are made, beside the base by default. Names, notes and kept files that an earlier
    manifest knows stay with the layers that are still there. A machine that is known already keeps its other disks, and
    their order, whichever are named.

    Raises:
        SnapshotError: the active leaf cannot be told, a disk is named twice, a parent is missing, a merge is not
            finished, the images are of two machines, or the disks' trees differ so that it cannot be told what was
            frozen together.
        ImageInUseError: the machine runs, somebody else changes its snapshots, or uses a leaf that would be frozen.

    """
    place = folder or LocalFolder()
    families = _families(place, disks, tuple(search))
    _check_formats(families)
    named = {paths.dirname(image.path) for family in families for image in family.images}
    named |= {place.real(each) for each in (*search, *([directory] if directory is not None else []))}
    roots = [family.root.path for family in families]
    if len(set(roots)) < len(roots):
        raise SnapshotError("two of the files named are of one disk; name each disk once", path=roots[0])
    file = _known(place, families, named) or _new_file(place, roots[0], named)
    _check_names(file, families, directory)
    with file.locked():
        earlier = before = _earlier(file, is_local=folder is None)
        if before is not None:
            families, before = _with_known(file, before, families, tuple(search))
        for family in families:
            _refuse_unfinished(place, family)
        made = _manifest(file, families, machine, directory, new_id, before)
        with new_files.held_actives(file, made, exclusive=True), _held_leaves(file, made, before):
            marked = _marked(file, made, before)
            if marked != earlier:
                file.write(marked)
            file.put_up_signposts(marked)
            _protect_frozen(file, marked)
    return file.path


def _protect_frozen(file: ManifestFile, manifest: Manifest) -> None:
    for disk in manifest.disks:
        for layer in disk.layers:
            if layer.mark is not None:
                file.folder.protect(file.absolute(layer.path), is_protected=True)


def _check_formats(families: Sequence[Family]) -> None:
    """Refuse disks in files of a format that is only read (ReadOnlyImageError)."""
    for family in families:
        for image in family.images:
            check_written(image.metadata)


def _check_names(file: ManifestFile, families: Sequence[Family], directory: str | None) -> None:
    """Refuse disks whose names are too long for what is made for them, or folders that take nothing.

    Raises:
        SnapshotError, ReadOnlyImageError: they are.

    """
    layer_checks.check_may_replace(file)
    folders = {paths.dirname(image.path) for family in families for image in family.images}
    folders |= {file.folder.real(directory)} if directory is not None else set()
    longest = uuid.UUID(int=0)
    layer_checks.check_signpost_names(file, str(longest), sorted(folders - {file.directory}))
    stems = {paths.splitext(paths.basename(family.root.path))[0] for family in families}
    allowed_folders.check_new_names([paths.join(file.directory, f"{stem}_{longest}.avhd") for stem in stems])


def _families(folder: Folder, disks: Sequence[str], search: tuple[str, ...]) -> list[Family]:
    """Return the families of disks; where a manifest tells of one, all folders that it tells of are looked into."""
    if not disks:
        raise SnapshotError("a machine has at least one disk")
    named = list(disks)
    for at, disk in enumerate(disks):
        with suppress(VhdError):
            file = find_manifest(folder, disk, search)
            manifest = file.read()
            search += file.search(manifest)
            # Whichever file of it is named, the machine writes to what it wrote to.
            named[at] = _active_of(file, manifest, folder.real(disk)) or disk
    families = [find_family(folder, disk, tuple(dict.fromkeys(search))) for disk in named]
    for family, was, disk in zip(families, named, disks, strict=True):
        if was is not disk and family.active.path != was:
            leaf = family.active.path
            hint = Advice.ADOPT.hint("{} lets the machine go on in it", paths=(leaf,))
            hint = hint.then(Advice.MERGE.hint("{} brings into that what it holds", path=leaf))
            message = f"it reads through {was}, which the machine writes to"
            raise SnapshotError(message, path=leaf, hint=hint)
    return families


def _active_of(file: ManifestFile, manifest: Manifest, image: str) -> str | None:
    """Return the active layer of the disk that an image is a layer of, None if it is of none, or is not there."""
    for disk in manifest.disks:
        if any(file.absolute(layer.path) == image for layer in disk.layers):
            active = file.absolute(disk.active)
            return active if file.folder.exists(active) else None
    return None


def _known(folder: Folder, families: Sequence[Family], named: set[str]) -> ManifestFile | None:
    """Return the manifest that tells of any of the images, None if there is none.

    Raises:
        SnapshotError: there are two.

    """
    images = {image.path for family in families for image in family.images}
    found: dict[str, tuple[ManifestFile, str]] = {}
    for file in (
        each for directory in {*map(paths.dirname, images)} for each in manifests_in(folder, directory, named)
    ):
        with suppress(VhdError, OSError):
            shared = sorted(images & file.images(file.read()))
            found |= {file.path: (file, shared[0])} if shared else {}
    if len(found) > 1:
        told = ", ".join(f"{image} is in {path}" for path, (_, image) in sorted(found.items()))
        message = f"the images are of {len(found)} machines: {told}; name the disks of one, or remove the manifest that"
        raise SnapshotError(f"{message} is wrong", path=min(found))
    return next((file for file, _ in found.values()), None)


def _new_file(folder: Folder, base: str, named: set[str]) -> ManifestFile:
    """Return where the manifest of a machine that none tells of is to lie: not where another machine's is.

    One without a byte, or none of whose images is there any longer, is replaced.

    Raises:
        SnapshotError: there is no place, or what is there cannot be read.

    """
    for path in (manifest_path(base), base + SUFFIX):
        file = ManifestFile(folder, path, named)
        try:
            images = file.images(file.read()) if file.exists() else frozenset[str]()
        except SnapshotError:
            file.refuse_unreadable()
            return file
        if not any(map(folder.exists, images)):
            return file
    raise SnapshotError("it is the list of snapshots of another machine; rename that machine's disks", path=path)


def _with_known(
    file: ManifestFile, known: Manifest, named: Sequence[Family], search: tuple[str, ...]
) -> tuple[list[Family], Manifest]:
    """Return the families of a known machine's disks in its order, then those that are new; and what is left known.

    A disk of which nothing is there any longer is no disk of the machine.
    """
    rest = list(named)
    families, kept = [], []
    for index, disk in enumerate(known.disks):
        layers_there = [path for path in _active_first(disk, file) if file.folder.exists(path)]
        family = _with_any_of(rest, layers_there)
        if family is not None:
            rest.remove(family)
        elif layers_there:
            family = find_family(file.folder, layers_there[0], (*file.search(known), *search))
        if family is not None:
            families.append(family)
            kept.append(index)
    return [*families, *rest], _of_disks(known, kept)


def _with_any_of(families: Sequence[Family], paths: Sequence[str]) -> Family | None:
    """Return the family that one of some files is of, None if there is none."""
    wanted = set(paths)
    return next((each for each in families if any(image.path in wanted for image in each.images)), None)


def _of_disks(known: Manifest, kept: list[int]) -> Manifest:
    """Return what a manifest says of some of its disks."""
    return replace(
        known,
        disks=tuple(known.disks[index] for index in kept),
        snapshots=tuple(replace(each, layers=tuple(each.layers[index] for index in kept)) for each in known.snapshots),
        foldings=tuple(replace(each, disk=kept.index(each.disk)) for each in known.foldings if each.disk in kept),
    )


def _active_first(disk: Disk, file: ManifestFile) -> list[str]:
    ordered = sorted(disk.layers, key=lambda layer: layer.path != disk.active)
    return [file.absolute(layer.path) for layer in ordered]


@contextmanager
def _held_leaves(file: ManifestFile, made: Manifest, before: Manifest | None) -> Iterator[None]:
    """Hold the leaves that are to be frozen, which nobody knew as frozen: no machine may be writing to one.

    Raises:
        ImageInUseError: one is in use.

    """
    frozen = {
        layer.path for disk in (before.disks if before is not None else ()) for layer in disk.layers if layer.mark
    }
    with ExitStack() as held:
        for disk in made.disks:
            below = {layer.parent for layer in disk.layers}
            for layer in disk.layers:
                if layer.path in below or layer.path == disk.active or layer.path in frozen:
                    continue
                try:
                    held.enter_context(
                        open_image(file.absolute(layer.path), exclusive=False, follow_links=False, folder=file.folder)
                    )
                except ImageInUseError as error:
                    error.add_note(
                        "It reads through the disk, and would be frozen as a snapshot of the machine. If it belongs to"
                        " another machine, the two share a base: convert one of them to a disk of its own."
                    )
                    raise
        yield


def _refuse_unfinished(folder: Folder, family: Family) -> None:
    """Refuse a family with a merge under way: what it is merged into shows neither the one nor the other yet.

    A layer that a merge went past, which would become a snapshot, no longer shows what it did.

    Raises:
        SnapshotError: there is one; with the command that finishes it, or the file that says so.

    """
    for image in family.images:
        journal = find_journal(folder, image.path)
        if journal is not None:
            message = f"its snapshots can be listed when that is finished: {journal.status}"
            raise SnapshotError(message, path=image.path, hint=journal.hint)
        with folder.open(image.path) as storage:
            view = marked_view(folder, storage, image.metadata)
        if view is not None:
            raise SnapshotError(f"it cannot be a snapshot, for {view.why}", path=image.path)


def _earlier(file: ManifestFile, *, is_local: bool) -> Manifest | None:
    """Return what an earlier manifest says, None if there is none that is believed.

    Raises:
        SnapshotError: what is there cannot be read, and would be lost.

    """
    file.refuse_unreadable()
    if not file.exists():
        return None
    try:
        return Settler(file, is_local=is_local).recover(file.read())
    except VhdError:
        return None


def _manifest(
    file: ManifestFile,
    families: Sequence[Family],
    machine: str,
    directory: str | None,
    new_id: Callable[[], uuid.UUID],
    before: Manifest | None,
) -> Manifest:
    known = before.disks if before is not None else ()
    disks = tuple(
        _disk(file, family, directory, known[at] if at < len(known) else None) for at, family in enumerate(families)
    )
    name = machine or (before.machine if before is not None else "") or disks[0].stem
    rows = together(families)
    snapshots, now = snapshots_of(file, families, rows, new_id, before)
    return Manifest(
        id=before.id if before is not None else str(new_id()).upper(),
        machine=name,
        disks=disks,
        snapshots=snapshots,
        now=now,
        doomed=before.doomed if before is not None else (),
        state_to=before.state_to if before is not None else None,
    )


def _disk(file: ManifestFile, family: Family, directory: str | None, known: Disk | None) -> Disk:
    base = family.root.path
    where = file.folder.real(directory) if directory is not None else paths.dirname(base)
    if directory is None and known is not None:
        where = file.absolute(known.directory)
    records = []
    for image in family.images:
        parent = family.parent_of[image.path]
        records.append(
            LayerRecord(
                path=file.relative(image.path),
                parent=None if parent is None else file.relative(parent.path),
                unique_id=image.unique_id.hex(),
            )
        )
    order = {layer.path: place for place, layer in enumerate(known.layers if known is not None else ())}
    records.sort(key=lambda record: order.get(record.path, len(order)))
    return Disk(
        stem=paths.splitext(paths.basename(base))[0],
        active=file.relative(family.active.path),
        directory=file.relative(where),
        layers=tuple(records),
    )


def _marked(file: ManifestFile, made: Manifest, before: Manifest | None) -> Manifest:
    """Return the manifest with what each frozen layer's file is like; what was noted earlier is not overwritten."""
    known = {layer.path: layer for disk in (before.disks if before is not None else ()) for layer in disk.layers}
    disks = []
    for disk in made.disks:
        marks = [
            None if layer.path == disk.active else _mark_of(file, layer, known.get(layer.path)) for layer in disk.layers
        ]
        layers = tuple(replace(layer, mark=mark) for layer, mark in zip(disk.layers, marks, strict=True))
        disks.append(replace(disk, layers=layers))
    return replace(made, disks=tuple(disks))


def _mark_of(file: ManifestFile, layer: LayerRecord, earlier: LayerRecord | None) -> LayerMark:
    """Return what a frozen layer's file is like: as noted, unless it was only told of another parent since."""
    now = mark_at(file.folder, file.absolute(layer.path))[0]
    mark = earlier.mark if earlier is not None and earlier.unique_id == layer.unique_id else None
    if mark is None:
        return now
    return now if mark.header != now.header and is_relinked_only(mark, now) else mark
