"""New layers and kept files of an operation: named, told of in the manifest, made; and removed when nobody needs them.

A name goes into the manifest before its file is made, and out of it after its file is gone: whatever a power cut
leaves, the manifest knows of every file that an operation has made.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from vhdkit.errors import ImageInUseError, SnapshotError, VhdError
from vhdkit.findings import Advice
from vhdkit.formats import open_image
from vhdkit.journal.manifest import LayerRecord, Made, Manifest, StateFile
from vhdkit.journal.merge_journal import read_journal
from vhdkit.snapshot import allowed_folders, transitions
from vhdkit.snapshot.fingerprint import differences, file_mark_at, is_alike, is_changed_file, mark_at
from vhdkit.snapshot.layer_tree import line_of
from vhdkit.storage import paths
from vhdkit.storage.new_file import new_file
from vhdkit.vhd.create import create_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from uuid import UUID

    from vhdkit.disk.image import Image
    from vhdkit.journal.manifest import Disk, Snapshot
    from vhdkit.snapshot.manifest_file import ManifestFile


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
        where = allowed_folders.check_room_for(file, disk) if directory is None else file.folder.real(directory)
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
        place = allowed_folders.check_room_for(file, manifest.disks[0])
        where = paths.join(place, f"{manifest.disks[0].stem}_{snapshot_id}_{name}")
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


def keep_files(file: ManifestFile, kept: Sequence[StateFile], given: Sequence[str]) -> tuple[StateFile, ...]:
    """Copy files to where they are kept, marked read-only; return them with what they are like."""
    marked = []
    for state, source in zip(kept, given, strict=True):
        path = file.absolute(state.path)
        copy_file(file, file.folder.real(source), path)
        file.folder.protect(path, is_protected=True)
        marked.append(replace(state, mark=file_mark_at(file.folder, path)))
    return tuple(marked)


def check_kept(file: ManifestFile, snapshot: Snapshot) -> tuple[str, ...]:
    """Return where the files lie that are kept with a snapshot, each seen to be what it was.

    Raises:
        SnapshotError: one is not there, or was changed.

    """
    for state in snapshot.state:
        path = file.absolute(state.path)
        if not allowed_folders.is_own(file, path):
            message = "it is said to be kept with the snapshot, in a folder that is not known as this machine's"
            raise SnapshotError(f"{message}; it is not handed out", path=path)
        if not file.folder.exists(path):
            raise SnapshotError("it was kept with the snapshot, and is not there; put it back", path=path)
        if state.mark is not None and is_changed_file(file.folder, path, state.mark):
            message = f"it is {state.name} of snapshot {snapshot.name}, and was changed since it was kept"
            hint = Advice.ACCEPT_CHANGED.hint("put it back, or take it as it is now: {}", path=file.path)
            raise SnapshotError(message, path=path, hint=hint)
    return tuple(file.absolute(state.path) for state in snapshot.state)


def copy_file(file: ManifestFile, source: str, destination: str) -> None:
    """Copy a file, which is no link, to a new name, durably; nobody may write to it meanwhile."""
    with file.folder.open(source) as storage:
        storage.lock(exclusive=False)
        with new_file(file.folder, destination) as copy:
            copy.copy_from(storage, 0, 0, storage.size())


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
def held_actives(
    file: ManifestFile, manifest: Manifest, *, exclusive: bool, may_miss: bool = False
) -> Iterator[tuple[Image, ...]]:
    """Lend the layers that the machine writes to, held: nobody starts it meanwhile.

    With `may_miss` those that are not there are left out.

    Raises:
        SnapshotError: one is not there.
        ImageInUseError: the machine runs, or a merge is at one of them.

    """
    file.refuse_running()
    with ExitStack() as held:
        images = []
        for disk in manifest.disks:
            path = file.absolute(disk.active)
            if may_miss and not file.folder.exists(path):
                continue
            try:
                images.append(
                    held.enter_context(open_image(path, exclusive=exclusive, follow_links=False, folder=file.folder))
                )
            except FileNotFoundError:
                if not may_miss:
                    raise missing_active(file, path) from None
            except ImageInUseError as error:
                error.add_hint(Advice.LIST_JOBS.hint("the machine runs, or a merge is at its disk: {} shows merges"))
                raise
        yield tuple(images)


def missing_active(file: ManifestFile, path: str) -> SnapshotError:
    """Return the error that what a machine writes to is not there."""
    hint = Advice.APPLY_ANY.hint("put it back, or go on from a snapshot with {}", path=file.path)
    return SnapshotError("it is what the machine writes to, and is not there", path=path, hint=hint)


def check_frozen(
    file: ManifestFile,
    manifest: Manifest,
    disk: Disk,
    layers: Iterable[str],
    *,
    quick: bool = False,
    touched: frozenset[str] | None = None,
) -> None:
    """Hold frozen layers against what they were like: what is built on a changed one is lost.

    If it is to be `quick`, one of the same length and time is taken for the same. `touched` is what `touched_by_merges`
    returns, for whoever asks for many.

    Raises:
        SnapshotError: one was changed, replaced, or is not there.

    """
    if touched is None:
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
            hint = Advice.ACCEPT_CHANGED.hint("{} takes it as it is now", path=file.path)
            raise SnapshotError(f"{message} snapshot", path=where, hint=hint)


def touched_by_merges(file: ManifestFile, manifest: Manifest, disk: int) -> frozenset[str]:
    """Return the layers of a disk that a merge has changed, or may be changing now: their marks say nothing.

    As long as its journal does not say that all is merged, that is what it is merged into, alone: one that failed early
    has no journal any longer.
    """
    touched: set[str] = set()
    for folding in manifest.foldings:
        if folding.disk != disk:
            continue
        reach = transitions.reach(manifest.disks[disk], folding.fold)
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
