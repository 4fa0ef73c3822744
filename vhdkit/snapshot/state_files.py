"""A machine's saved state in its place: the memory of the snapshot that is applied, and never that of another.

**Order** of applying, where the manifest says where the state belongs: 1 the snapshot's files are copied there under
temporary names (a cut leaves those) · 2 files of any snapshot's state that lie there get other names,
`NAME.before-XXXXXXXX` (a cut leaves the machine without saved state, and nothing is lost) · 3 the manifest with the new
active layers (the same) · 4 the copies get their names. A machine that is started after a cut has its own memory, or
none.
"""

from __future__ import annotations

import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from vhdkit.errors import SnapshotError, VhdError
from vhdkit.findings import Advice
from vhdkit.snapshot import allowed_folders, new_files
from vhdkit.storage import paths
from vhdkit.storage.new_file import partial_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhdkit.journal.manifest import Manifest, Snapshot
    from vhdkit.snapshot.manifest_file import ManifestFile


class HandedBack(NamedTuple):
    """Where the files are that were kept with a snapshot, and those that had to make room, under their new names."""

    files: tuple[str, ...]
    set_aside: tuple[str, ...]


def keep_state_at(file: ManifestFile, directory: str) -> None:
    """Note in a manifest the folder in which the machine's saved state belongs; `apply` puts it there.

    Raises:
        OSError: there is no such folder, or it takes no signpost.
        SnapshotError, ImageInUseError: as any change of a manifest.

    """
    where = file.folder.real(directory)
    file.folder.check_directory(where)
    file.named.add(where)
    with file.locked():
        manifest = file.read()
        file.write(replace(manifest, state_to=file.relative(where)))


@contextmanager
def handed_back(
    file: ManifestFile, manifest: Manifest, snapshot: Snapshot, state_to: str | None
) -> Iterator[HandedBack]:
    """Lend where the files kept with a snapshot are when the block has ended well; if it fails all is as before.

    With `state_to` they are copied there under new names; else to where the manifest says, and if it says nothing they
    stay where they are kept.
    """
    kept = new_files.check_kept(file, snapshot)
    names = [state.name for state in snapshot.state]
    if state_to is not None:
        where = file.folder.real(state_to)
        file.folder.make_directory(where)
        copies = {paths.join(where, name): path for name, path in zip(names, kept, strict=True)}
        with new_files.copied_files(file, copies) as made:
            yield HandedBack(made, ())
    elif manifest.state_to is not None:
        with _in_place(file, manifest, names, kept) as placed:
            yield placed
    else:
        yield HandedBack(kept, ())


@contextmanager
def _in_place(
    file: ManifestFile, manifest: Manifest, names: Sequence[str], kept: Sequence[str]
) -> Iterator[HandedBack]:
    """Put files where the machine's saved state belongs when the block ends well; see the module for the order."""
    where = _state_folder(file, manifest)
    token = uuid.uuid4().hex
    placed = tuple(paths.join(where, name) for name in names)
    drafts = tuple(partial_name(path, token) for path in placed)
    there = _state_there(file, manifest, where)
    with new_files.copied_files(file, dict(zip(drafts, kept, strict=True))):
        moved: dict[str, str] = {}
        try:
            for path in there:
                other = f"{path}.before-{token[:8]}"
                file.folder.replace(path, other)
                moved[path] = other
            file.folder.sync(where)
            yield HandedBack(placed, tuple(moved.values()))
        except BaseException:
            if _is_as_before(file, manifest):
                for path, other in moved.items():
                    with suppress(OSError):
                        file.folder.replace(other, path)
            raise
    for draft, path in zip(drafts, placed, strict=True):
        file.folder.replace(draft, path)
    file.folder.sync(where)


def _is_as_before(file: ManifestFile, manifest: Manifest) -> bool:
    """Whether a machine has its old active layers: what failed may have failed after the manifest got its name."""
    try:
        now = file.read()
    except (VhdError, OSError):
        return False
    return [disk.active for disk in now.disks] == [disk.active for disk in manifest.disks]


def _state_folder(file: ManifestFile, manifest: Manifest) -> str:
    """Return where a machine's saved state belongs.

    Raises:
        SnapshotError: the folder is neither the manifest's, nor did the user name it, nor does a signpost lead back.

    """
    where = file.absolute_folder(manifest.state_to or ".")
    if not allowed_folders.is_own(file, paths.join(where, "x")):
        message = f"the saved state belongs in {where}, from where no signpost leads back"
        raise SnapshotError(message, path=file.path, hint=Advice.STATE_FOLDER.hint("{} names a folder"))
    return where


def _state_there(file: ManifestFile, manifest: Manifest, where: str) -> list[str]:
    """Return the files in a folder that have the name of any that is kept with a snapshot.

    Raises:
        SnapshotError: one of them is a layer or a kept file of the machine, or the manifest: it must stay where it is.

    """
    kept = [state for snapshot in manifest.snapshots for state in snapshot.state]
    there = [paths.join(where, name) for name in sorted({state.name for state in kept})]
    for path in sorted(_own_files(file, manifest).intersection(there)):
        message = "a file that is kept with a snapshot has its name, and would have to take its place"
        raise SnapshotError(message, path=path, hint=Advice.STATE_FOLDER.hint("{} names another folder"))
    return [path for path in there if file.folder.exists(path)]


def _own_files(file: ManifestFile, manifest: Manifest) -> set[str]:
    """Return the manifest, the layers, and the files that are kept with snapshots."""
    found = {file.path}
    for disk in manifest.disks:
        found |= {file.absolute(layer.path) for layer in disk.layers}
    for snapshot in manifest.snapshots:
        found |= {file.absolute(state.path) for state in snapshot.state}
    return found
