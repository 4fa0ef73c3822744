"""New layers and kept files of an operation: named, told of in the manifest, made; and removed when nobody needs them.

A name goes into the manifest before its file is made, and out of it after its file is gone: whatever a power cut
leaves, the manifest knows of every file that an operation has made.
"""

from __future__ import annotations

import errno
import re
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vhdkit.chain.children import children_of
from vhdkit.errors import ImageInUseError, SnapshotError, VhdError
from vhdkit.image.create import create_image, creating, is_partial
from vhdkit.image.image import Image, open_image
from vhdkit.image.journal import read_journal
from vhdkit.snapshot import changes
from vhdkit.snapshot.marks import differences, is_alike, mark_at
from vhdkit.snapshot.record import LayerRecord, Made, Manifest, StateFile
from vhdkit.snapshot.tree import line_of
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from uuid import UUID

    from vhdkit.snapshot.manifest import ManifestFile
    from vhdkit.snapshot.record import Disk

# As names of files have it.
GUID = re.compile(r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}")


def named_layers(
    file: ManifestFile,
    manifest: Manifest,
    parents: Sequence[str],
    new_id: Callable[[], UUID],
    directory: str | None = None,
) -> tuple[LayerRecord, ...]:
    """Return the layers that are to be made above these parents, one a disk, named as Hyper-V names them.

    They are made in `directory`, or where the disk's layers are made. Those that are made together share the GUID in
    their names, by which they are known should the manifest be lost; but for disks of one name.
    """
    fresh = []
    guid = str(new_id()).upper()
    named = set[str]()
    for disk, parent in zip(manifest.disks, parents, strict=True):
        if disk.stem in named:
            guid = str(new_id()).upper()
        named.add(disk.stem)
        name = f"{disk.stem}_{guid}.avhd"
        where = file.absolute(disk.directory) if directory is None else file.folder.real(directory)
        path = file.relative(paths.join(where, name))
        fresh.append(LayerRecord(path=path, parent=parent, unique_id=new_id().bytes_le.hex()))
    return tuple(fresh)


def named_state(
    file: ManifestFile, manifest: Manifest, snapshot_id: str, given: Iterable[str]
) -> tuple[StateFile, ...]:
    """Return where files that are given to a snapshot are to be kept.

    Raises:
        SnapshotError: two of them have one name.

    """
    kept: dict[str, StateFile] = {}
    for source in given:
        name = paths.basename(source)
        if name in kept:
            raise SnapshotError(f"two files called {name} cannot be kept with one snapshot", path=source)
        where = paths.join(file.absolute(manifest.disks[0].directory), f"{manifest.disks[0].stem}_{snapshot_id}_{name}")
        kept[name] = StateFile(name=name, path=file.relative(where))
    return tuple(kept.values())


def make_layers(file: ManifestFile, fresh: Sequence[LayerRecord], stamp: int | None) -> None:
    """Make the layers that the manifest tells of as begun."""
    for layer in fresh:
        create_image(
            file.absolute(layer.path),
            parent=file.absolute(layer.parent or ""),
            unique_id=bytes.fromhex(layer.unique_id),
            stamp=stamp,
            folder=file.folder,
        )


def keep_files(file: ManifestFile, kept: Sequence[StateFile], given: Sequence[str]) -> None:
    """Copy files to where they are kept, marked read-only."""
    for state, source in zip(kept, given, strict=True):
        copy_file(file, source, file.absolute(state.path))
        file.folder.protect(file.absolute(state.path), is_protected=True)


def copy_file(file: ManifestFile, source: str, destination: str) -> None:
    """Copy a file to a new name, durably; nobody may write to it meanwhile."""
    storage = file.folder.open(file.folder.real(source))
    try:
        storage.lock(exclusive=False)
        with creating(file.folder, destination, None) as copy:
            copy.copy_from(storage, 0, 0, storage.size())
    finally:
        storage.close()


@contextmanager
def copied_files(file: ManifestFile, sources: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Copy files to new names, which map to them, and lend those: all stay if the block ends well, none if not.

    Raises:
        FileExistsError: a file of such a name is there already; nothing was copied.

    """
    for copy in sources:
        if file.folder.exists(copy):
            raise FileExistsError(errno.EEXIST, "the file exists already", copy)
    made: list[str] = []
    try:
        for copy, source in sources.items():
            copy_file(file, source, copy)
            made.append(copy)
        yield tuple(made)
    except BaseException:
        for copy in made:
            with suppress(OSError):
                file.folder.remove(copy)
        raise


def begun_of(fresh: Sequence[LayerRecord], kept: Sequence[StateFile] = ()) -> tuple[Made, ...]:
    """Return what the manifest tells of files before they are made."""
    images = (Made(path=layer.path, unique_id=layer.unique_id) for layer in fresh)
    return (*images, *(Made(path=state.path, unique_id="") for state in kept))


# What may be used


@contextmanager
def held_actives(file: ManifestFile, manifest: Manifest, *, exclusive: bool) -> Iterator[tuple[Image, ...]]:
    """Lend the layers that the machine writes to, held: nobody starts it meanwhile.

    Raises:
        ImageInUseError: the machine runs, or a merge is at one of them.

    """
    file.refuse_running()
    with ExitStack() as held:
        images = []
        for disk in manifest.disks:
            path = file.absolute(disk.active)
            try:
                images.append(held.enter_context(open_image(path, exclusive=exclusive, folder=file.folder)))
            except ImageInUseError as error:
                error.add_note("The machine runs, or a merge is at its disk: `vhdkit job list` shows merges.")
                raise
        yield tuple(images)


def check_frozen(
    file: ManifestFile, manifest: Manifest, disk: Disk, layers: Iterable[str], *, quick: bool = False
) -> None:
    """Hold frozen layers against what they were like: what is built on a changed one is lost.

    If it is to be `quick`, one of the same length and time is taken for the same.

    Raises:
        SnapshotError: one was changed, replaced, or is not there.

    """
    touched = touched_by_merges(file, manifest, manifest.disks.index(disk))
    for path in layers:
        record = disk.layer(path)
        where = file.absolute(path)
        try:
            if quick and record.mark is not None and is_alike(file.folder, where, record.mark):
                continue
            now, unique_id = mark_at(file.folder, where)
        except FileNotFoundError:
            raise SnapshotError("it is a layer of the disk, and is not there; put it back", path=where) from None
        if unique_id != record.unique_id:
            raise SnapshotError("another image has taken the place of a layer of the disk", path=where)
        different = () if record.mark is None or path in touched else differences(record.mark, now)
        if different:
            message = f"it was changed since it was frozen: {', '.join(different)}; what it shows may no longer be the"
            raise SnapshotError(
                f"{message} snapshot. `vhdkit snapshot check --accept` takes it as it is now", path=where
            )


def touched_by_merges(file: ManifestFile, manifest: Manifest, disk: int) -> frozenset[str]:
    """Return the layers of a disk that a merge has changed, or may be changing now: their marks say nothing.

    As long as its journal does not say that all is merged, that is what it is merged into, alone: one that failed early
    has no journal any longer.
    """
    touched: set[str] = set()
    for folding in manifest.foldings:
        if folding.disk != disk:
            continue
        reach = changes.reach(manifest.disks[disk], folding.fold)
        try:
            journal = read_journal(file.folder, file.absolute(folding.fold.destination))
        except (VhdError, OSError):
            touched |= reach
            continue
        touched |= reach if journal is not None and journal.merged else {folding.fold.destination}
    return frozenset(touched)


def line_to_base(disk: Disk, layer: str) -> tuple[str, ...]:
    """Return a layer of a disk and everything below it."""
    return line_of(disk.parents, layer)


# What goes


def why_kept(file: ManifestFile, manifest: Manifest, record: LayerRecord) -> str:
    """Return why a layer that nobody needs cannot be removed now, "" if it can.

    Raises:
        OSError: a file failed.

    """
    path = file.absolute(record.path)
    try:
        with open_image(path, exclusive=True, folder=file.folder) as image:
            if image.unique_id.hex() != record.unique_id:
                return "another image has its name"
            if read_journal(file.folder, path) is not None:
                return "a merge into it is not finished"
            known = children_of(image, file.folder, file.search(manifest))
    except FileNotFoundError:
        return ""
    except VhdError as error:
        return str(error.message)
    return f"other images read through it: {', '.join(known)}" if known else ""


def sweep(file: ManifestFile, manifest: Manifest) -> Manifest:
    """Remove what is doomed, and what an operation that was cut off had begun to make; return what is then known.

    The manifest is not written: whoever is cut off here finds the same to do again.
    """
    known = {layer.path for disk in manifest.disks for layer in disk.layers}
    known |= {state.path for each in manifest.snapshots for state in each.state}
    left: list[Made] = []
    for each in manifest.doomed + manifest.begun:
        if each.path in known:
            continue
        try:
            _remove(file, manifest, each)
        except (VhdError, OSError):
            # It is in use, cannot be read, or the disk fails: `check` tells of it until that is over.
            left.append(Made(path=each.path, unique_id=each.unique_id))
    if (tuple(left), ()) == (manifest.doomed, manifest.begun):
        return manifest
    return replace(manifest, doomed=tuple(left), begun=())


def _remove(file: ManifestFile, manifest: Manifest, each: Made) -> None:
    path = file.absolute(each.path)
    directory = paths.dirname(path)
    for name in file.folder.names(directory):
        leftover = paths.join(directory, name)
        if name.startswith(f"{paths.basename(path)}.") and is_partial(leftover):
            file.folder.remove(leftover)
    if not file.folder.exists(path):
        file.folder.sync(directory)
        return
    if not each.unique_id:
        if not is_kept_name(manifest, path):
            return
        file.folder.protect(path, is_protected=False)
        file.folder.remove(path)
    else:
        image = open_image(path, exclusive=True, folder=file.folder)
        with image:
            if image.unique_id.hex() != each.unique_id:
                return
            try:
                file.folder.remove(path)
            except PermissionError:
                # Windows removes no file that is open, or marked.
                image.close()
                file.folder.protect(path, is_protected=False)
                file.folder.remove(path)
    file.folder.sync(directory)


def is_kept_name(manifest: Manifest, path: str) -> bool:
    """Whether a file has a name as kept files get it: whoever writes a manifest must not have others removed."""
    name, prefix = paths.basename(path), f"{manifest.disks[0].stem}_"
    unique_id, end = name[len(prefix) : len(prefix) + 36], name[len(prefix) + 36 :]
    return name.startswith(prefix) and end.startswith("_") and GUID.fullmatch(unique_id) is not None
