"""Refuse what a new layer could not be carried through: before any file of the machine is made or changed."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vhdkit.errors import JournalError, ReadOnlyImageError, SnapshotError
from vhdkit.journal.ended_view import ended_view
from vhdkit.journal.manifest_pointer import signpost_path
from vhdkit.journal.merge_journal import read_journal
from vhdkit.snapshot import allowed_folders, new_files
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.disk.image import Image
    from vhdkit.journal.manifest import LayerRecord, Manifest, StateFile
    from vhdkit.snapshot.manifest_file import ManifestFile
    from vhdkit.storage.protocols import Folder


def check_no_undo(file: ManifestFile, manifest: Manifest) -> None:
    """Refuse to leave a layer behind whose merge can still be undone or is not finished: nobody could do either then.

    The machine writes to a layer that a merge was made into, or to the undo image of one into the layer below.

    Raises:
        SnapshotError: there is such a merge, with the commands that end it.

    """
    for index, disk in enumerate(manifest.disks):
        own = {each.fold.destination for each in manifest.foldings if each.disk == index}
        below = disk.layer(disk.active).parent
        for path in filter(None, (disk.active, below)):
            where = file.absolute(path)
            if path in own or not file.folder.exists(where):
                continue
            try:
                journal = read_journal(file.folder, where)
            except JournalError as error:
                raise SnapshotError(f"a merge into it may not be finished: {error}", path=where) from error
            if journal is None:
                continue
            undo = journal.resolve(journal.begin.undo) if journal.begin.undo else ""
            if path == disk.active or undo == file.absolute(disk.active):
                raise SnapshotError(f"end that first: {journal.status}", path=where, hint=journal.hint)


def check_views(folder: Folder, actives: Sequence[Image]) -> None:
    """Refuse to freeze a layer that a merge went past: it no longer shows what it did.

    Raises:
        SnapshotError: there is one, with the file that says so.

    """
    for image in actives:
        view = ended_view(folder, image.storage, image)
        if view is not None:
            raise SnapshotError(f"it cannot be frozen, for {view.why}", path=image.path)


def check_new_files(
    file: ManifestFile,
    manifest: Manifest,
    fresh: Sequence[LayerRecord],
    kept: Sequence[StateFile] = (),
    given: Sequence[str] = (),
) -> None:
    """Refuse new files that could not be made, and a manifest that could not be replaced.

    Raises:
        SnapshotError: a name is too long.
        ReadOnlyImageError: a folder may not be written, or names in it not changed.
        FileExistsError, OSError: a name is taken, or a file that is to be kept cannot be read.

    """
    made = [file.absolute(path) for path in (*(each.path for each in fresh), *(each.path for each in kept))]
    allowed_folders.check_new_names(made)
    directories = dict.fromkeys(map(paths.dirname, made))
    check_signpost_names(file, manifest.id, [each for each in directories if each != file.directory])
    for path in made:
        if file.folder.exists(path):
            raise FileExistsError(errno.EEXIST, "the file exists already", path)
    for source in given:
        file.folder.open(file.folder.real(source)).close()
    for directory in directories:
        file.folder.check_directory(directory)
        check_directory(file, directory)
    check_may_replace(file)


def check_may_replace(file: ManifestFile) -> None:
    """Refuse to begin what ends with a new manifest, where that could not get its name.

    Raises:
        ReadOnlyImageError: its folder may not be written, or the file not be replaced.

    """
    check_directory(file, file.directory)
    if file.exists() and not file.folder.may_remove(file.path):
        message = "the list of snapshots may not be replaced: it is marked immutable, or another user's in a sticky"
        raise ReadOnlyImageError(f"{message} folder; allow that, as its owner", path=file.path)


def check_directory(file: ManifestFile, directory: str) -> None:
    """Refuse a folder in which no files can be made and renamed.

    Raises:
        ReadOnlyImageError: it is one.

    """
    if not file.folder.may_write(directory):
        message = f"new files are made in {directory}, which may not be written"
        raise ReadOnlyImageError(f"{message}; allow that first", path=file.path)


def check_may_freeze(file: ManifestFile, manifest: Manifest) -> None:
    """Refuse to freeze layers whose mode this user may not change.

    Raises:
        ReadOnlyImageError: there is one.

    """
    for disk in manifest.disks:
        path = file.absolute(disk.active)
        if file.folder.exists(path) and not file.folder.may_protect(path):
            message = "it cannot be frozen: it is marked immutable or belongs to another user, and its mode cannot be"
            raise ReadOnlyImageError(f"{message} changed; allow that first, or ask its owner", path=path)


def check_may_discard(file: ManifestFile, manifest: Manifest) -> None:
    """Refuse to discard layers that could not be removed.

    Raises:
        ReadOnlyImageError: there is one.

    """
    for disk in manifest.disks:
        path = file.absolute(disk.active)
        if file.folder.exists(path) and not file.folder.may_remove(path):
            message = "it could not be removed: it is marked immutable, or another user's in a sticky folder"
            raise ReadOnlyImageError(f"{message}; allow that first, as its owner", path=path)


def check_signpost_names(file: ManifestFile, machine_id: str, directories: Sequence[str]) -> None:
    """Refuse a machine in several folders whose signposts would have names that are too long.

    Raises:
        SnapshotError: they would.

    """
    stem = paths.basename(file.path).split(".vhdkit-snapshots", maxsplit=1)[0]
    allowed_folders.check_new_names([file.path, *(signpost_path(each, stem, machine_id) for each in directories)])


def check_below(file: ManifestFile, manifest: Manifest) -> None:
    """Refuse to build on what was changed since it was frozen, as far as that shows at a glance."""
    for disk in manifest.disks:
        new_files.check_frozen(file, manifest, disk, new_files.line_to_base(disk, disk.active)[1:], quick=True)
