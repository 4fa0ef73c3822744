"""Keeping a merge that somebody asks for by name from ruining what a machine's manifest tells of.

No merge needs a manifest, and whoever removes it merges as he likes. As long as it is there, what it tells of is merged
by deleting snapshots, which knows what else reads through a layer.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vhdkit.errors import SnapshotError, VhdError
from vhdkit.snapshot.signpost import manifest_paths
from vhdkit.storage import paths
from vhdkit.storage.local import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhdkit.snapshot.manifest import ManifestFile
    from vhdkit.snapshot.record import Disk, Manifest


def is_near_machines(*directories: str) -> bool:
    """Whether any machine's snapshots are kept in one of these folders, or in the ones above."""
    folder = LocalFolder()
    near = dict.fromkeys(map(folder.real, directories))
    return any(manifest_paths(folder, each) for each in (*near, *map(paths.dirname, near)))


def refuse_to_ruin(sources: Sequence[str], destination: str) -> None:
    """Refuse a merge of layers of a machine, unless its manifest tells of it, or only its present changes.

    Raises:
        SnapshotError: it would leave the manifest with layers that are gone, or show something else.

    """
    from vhdkit.snapshot.manifest import manifests_in  # noqa: PLC0415 - where there are none, it need not be loaded

    folder = LocalFolder()
    files = [*sources, destination]
    directories = dict.fromkeys(paths.dirname(folder.real(path)) for path in files)
    for directory in [*directories, *map(paths.dirname, directories)]:
        for file in manifests_in(folder, directory):
            with suppress(OSError):
                _refuse(file, [folder.real(path) for path in files])


def _refuse(file: ManifestFile, files: list[str]) -> None:
    try:
        manifest = file.read()
    except VhdError:
        # What it tells of cannot be known; `snapshot list` says what is wrong with it.
        return
    for disk in manifest.disks:
        layers = {file.absolute(layer.path) for layer in disk.layers}
        touched = [path for path in files if path in layers]
        # What is merged into the present alone is what a machine could have written.
        is_present = touched == [file.absolute(disk.active)] == files[-1:]
        if touched and not is_present and not _is_noted(file, manifest, disk, files):
            raise SnapshotError(
                f"it is a layer of the machine {manifest.machine}, whose snapshots would be lost by this: `vhdkit"
                f" snapshot delete` and `settle` merge what is not needed; without {file.path} it is nobody's layer",
                path=touched[0],
            )


def _is_noted(file: ManifestFile, manifest: Manifest, disk: Disk, files: list[str]) -> bool:
    return any(
        manifest.disks[each.disk] is disk and [file.absolute(path) for path in each.fold.layers] == files
        for each in manifest.foldings
    )
