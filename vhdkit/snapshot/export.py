"""Bringing a snapshot elsewhere: flat, as one disk that needs no other, or as the chain that it is.

**Order**: each file gets its name when it is whole and durable; after a failure those that were written are removed.
"""

from __future__ import annotations

import errno
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from vhdkit.chain.chain import open_chain
from vhdkit.chain.convert import convert
from vhdkit.errors import SnapshotError
from vhdkit.snapshot import new_files
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhdkit.journal.manifest import Manifest, Snapshot
    from vhdkit.progress import Cancel, Progress
    from vhdkit.snapshot.manifest_file import ManifestFile


def export(
    file: ManifestFile,
    manifest: Manifest,
    snapshot: Snapshot,
    directory: str,
    *,
    chain: bool,
    progress: Callable[[Progress], None] | None,
    cancel: Cancel | None,
) -> tuple[str, ...]:
    """Write a snapshot's disks and kept files into a directory; return the files, leaves and flat disks first.

    Disks that are called alike get a folder of their own each, called disk0, disk1 and so on.

    Raises:
        SnapshotError: a layer was changed since it was frozen, or two files would get one name.
        FileExistsError: a file of that name is there already; none is replaced.
        ImageInUseError: a merge is at a layer.

    """
    where = file.folder.real(directory)
    kept = {*new_files.check_kept(file, snapshot)}
    for disk, layer in zip(manifest.disks, snapshot.layers, strict=True):
        new_files.check_frozen(file, manifest, disk, new_files.line_to_base(disk, layer))
    planned = _planned(file, manifest, snapshot, where, chain=chain)
    file.folder.make_directory(where)
    for _, target in planned:
        if file.folder.exists(target):
            raise FileExistsError(errno.EEXIST, "the file exists already", target)
    for place in _places(manifest, where):
        file.folder.make_directory(place)
    written: list[str] = []
    try:
        for source, target in planned:
            if chain or source in kept:
                new_files.copy_file(file, source, target)
            else:
                search = file.search(manifest)
                convert(source, target, search=search, progress=progress, cancel=cancel, folder=file.folder)
            written.append(target)
        if chain:
            _check_chains(file, manifest, snapshot, where)
    except BaseException:
        for target in written:
            with suppress(OSError):
                file.folder.remove(target)
        raise
    return tuple(written)


def _places(manifest: Manifest, where: str) -> list[str]:
    """Return the folder that each disk's files go to: one of their own for disks that are called alike."""
    stems = [disk.stem for disk in manifest.disks]
    return [where if stems.count(stem) == 1 else paths.join(where, f"disk{index}") for index, stem in enumerate(stems)]


def _planned(
    file: ManifestFile, manifest: Manifest, snapshot: Snapshot, where: str, *, chain: bool
) -> list[tuple[str, str]]:
    """Return which file becomes which, all of whose names differ."""
    planned: list[tuple[str, str]] = []
    for disk, layer, place in zip(manifest.disks, snapshot.layers, _places(manifest, where), strict=True):
        if not chain:
            planned.append((file.absolute(layer), paths.join(place, f"{disk.stem}.vhd")))
            continue
        line = map(file.absolute, new_files.line_to_base(disk, layer))
        planned += [(path, paths.join(place, paths.basename(path))) for path in line]
    planned += [(file.absolute(state.path), paths.join(where, state.name)) for state in snapshot.state]
    counts = Counter(target for _, target in planned)
    twice = next((target for target, count in counts.items() if count > 1), None)
    if twice is not None:
        raise SnapshotError("two files of the snapshot would get this name", path=twice)
    return planned


def _check_chains(file: ManifestFile, manifest: Manifest, snapshot: Snapshot, where: str) -> None:
    """Open what was exported where it lies, as its next user will."""
    for disk, layer, place in zip(manifest.disks, snapshot.layers, _places(manifest, where), strict=True):
        leaf = paths.join(place, paths.basename(file.absolute(layer)))
        with open_chain(leaf, folder=file.folder) as opened:
            if len(opened.layers) != len(new_files.line_to_base(disk, layer)):
                raise SnapshotError("what was exported does not open as the chain that it was", path=leaf)
