"""Which manifest is that of a file: beside it, where signposts lead, or beside what it reads through."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vhdkit.chain.chain import open_chain
from vhdkit.errors import SnapshotError, VhdError
from vhdkit.findings import Advice
from vhdkit.journal import claims, manifest_pointer
from vhdkit.snapshot.manifest_file import SUFFIX, ManifestFile
from vhdkit.storage import paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vhdkit.storage.protocols import Folder


def find_manifest(folder: Folder, path: str, named: Iterable[str] = ()) -> ManifestFile:
    """Return the manifest of the machine that a file is of: the manifest itself, or any image of a disk.

    It is looked for beside the file, where signposts there lead, in the folder above, and beside every image that the
    file reads through. `named` are more folders that the user has named, as that of the file is one.

    Raises:
        SnapshotError: there is none.
        FileNotFoundError: neither is the file.

    """
    real = folder.real(path)
    own = paths.dirname(real)
    # Of a link somebody else may have made the user knows the name alone.
    is_link = real != paths.join(folder.real(paths.dirname(paths.abspath(path))), paths.basename(path))
    places_named = {*map(folder.real, named), *(() if is_link else (own,))}
    if real.endswith(SUFFIX) and folder.exists(real):
        return ManifestFile(folder, real, places_named)
    directories = [own, paths.dirname(own)]
    for directory in directories:
        found = _that_has(folder, directory, real, places_named)
        if found is not None:
            return found
    folder.open(real).close()
    with suppress(VhdError, OSError), open_chain(real, lock=False, folder=folder) as chain:
        directories += [paths.dirname(folder.real(layer.path)) for layer in chain.layers]
    for directory in dict.fromkeys(directories[2:]):
        found = _that_has(folder, directory, real, places_named)
        if found is not None:
            return found
    hint = Advice.ADOPT_DISKS.hint("{} begins that")
    raise SnapshotError("no machine keeps snapshots of it", path=path, hint=hint)


def _that_has(folder: Folder, directory: str, image: str, named: Iterable[str]) -> ManifestFile | None:
    return next(manifests_with(folder, directory, image, named), None)


def manifests_with(folder: Folder, directory: str, image: str, named: Iterable[str] = ()) -> Iterator[ManifestFile]:
    """Yield the manifests in a directory, or that it leads to, which have an image.

    One that cannot be read has what its name says.
    """
    for file in manifests_in(folder, directory, named):
        try:
            manifest = file.read()
        except (SnapshotError, OSError):
            if claims.is_named_for(file.path, image):
                yield file
            continue
        if image in file.images(manifest):
            yield file


def manifests_in(folder: Folder, directory: str, named: Iterable[str] = ()) -> Iterator[ManifestFile]:
    """Yield the manifests in a directory, and those to which its signposts lead, whatever they say."""
    for path in manifest_pointer.manifest_paths(folder, directory):
        yield ManifestFile(folder, path, named)
