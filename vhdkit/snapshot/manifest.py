"""The manifest's file: found by any file of the machine, locked, read, and replaced in one instant.

It lies beside the base of the machine's first disk, and is named for it; other folders with images of the machine have
signposts that lead to it. Only what holds the lock file beside it may replace it; who only reads needs no lock, since
there is never half of a manifest under its name.

**Order** of writing: 1 signposts that are no longer needed go (a cut leaves the old manifest; who writes next puts them
up again) · 2 new content under another name, sync · 3 the name, folder sync. A cut leaves the old manifest or the new
one, and perhaps a file with a temporary name, which the next writer removes · 4 new signposts.
"""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from vhdkit.chain.chain import open_chain
from vhdkit.errors import ImageInUseError, SnapshotError, VhdError
from vhdkit.image.create import is_partial, partial_name
from vhdkit.image.records import is_believable
from vhdkit.snapshot import signpost
from vhdkit.snapshot.record import Manifest
from vhdkit.storage import paths
from vhdkit.storage.reading import read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhdkit.storage.seam import Folder

SUFFIX = signpost.MANIFEST_SUFFIX
_LOCK_SUFFIX = ".vhdkit-snapshots.lock"
_RUNNING_SUFFIX = ".vhdkit-snapshots.running"
# A manifest of a thousand snapshots has less than a megabyte.
_MAX_BYTES = 64 << 20
# An operation holds the lock for as long as a few files take to be made; whoever waits longer waits for a stopped one.
_PATIENCE_SECONDS = 10.0
_GLANCE_SECONDS = 1.0


def manifest_path(base: str) -> str:
    """Return where the manifest of a machine lies whose first disk has this base.

    >>> manifest_path("/vms/xp.vhd")
    '/vms/xp.vhdkit-snapshots.json'
    """
    return paths.splitext(base)[0] + SUFFIX


class ManifestFile:
    """A manifest where it lies; it need not exist yet."""

    def __init__(self, folder: Folder, path: str) -> None:
        self.folder = folder
        self.path = path
        self.directory = paths.dirname(path)

    def absolute(self, path: str) -> str:
        """Return the real path of a file that the manifest names."""
        return self.folder.real(paths.join(self.directory, *path.split("/")))

    def relative(self, path: str) -> str:
        """Return how the manifest names a file at a real path."""
        try:
            return paths.relpath(path, self.directory).replace(paths.sep, "/")
        except ValueError:  # another drive of a Windows machine
            return path.replace(paths.sep, "/")

    def images(self, manifest: Manifest) -> frozenset[str]:
        """Return the real paths of all layers."""
        return frozenset(self.absolute(layer.path) for disk in manifest.disks for layer in disk.layers)

    def search(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the folders in which layers lie, for finding their parents; nothing if all are in one."""
        layers = (self.absolute(layer.path) for disk in manifest.disks for layer in disk.layers)
        directories = tuple(dict.fromkeys(map(paths.dirname, layers)))
        return directories if len(directories) > 1 else ()

    def exists(self) -> bool:
        """Whether there is one."""
        return self.folder.exists(self.path)

    def read(self) -> Manifest:
        """Return what it says.

        Raises:
            SnapshotError: it is no manifest, or belongs to somebody who may not speak for the disk.

        """
        storage = self.folder.open(self.path)
        try:
            size = storage.size()
            if size > _MAX_BYTES:
                raise SnapshotError(f"it has {size} bytes, too many for a manifest", path=self.path)
            try:
                manifest = Manifest.from_json(read_bytes(storage, 0, size))
            except SnapshotError as error:
                raise SnapshotError(error.message, path=self.path) from error.__cause__
            with suppress(FileNotFoundError):
                image = self.folder.open(self.absolute(manifest.disks[0].active))
                try:
                    if not is_believable(storage, image):
                        message = (
                            "it belongs to another user than the disk, and is not believed; remove it if it is wrong"
                        )
                        raise SnapshotError(message, path=self.path)
                finally:
                    image.close()
            self._refuse_copy(manifest)
            return manifest
        finally:
            storage.close()

    def _refuse_copy(self, manifest: Manifest) -> None:
        """Refuse the copy of a manifest whose images in other folders belong to the machine that was copied.

        Raises:
            SnapshotError: it is one.

        """
        for path in sorted(self._signposts(manifest)):
            shown = signpost.manifest_at(self.folder, path)
            if shown is not None and shown != self.path and self.folder.exists(shown):
                message = f"the images in {paths.dirname(path)} that it tells of are those of {shown}, of which it is a"
                message += " copy; remove it, and take what is wanted from there with `vhdkit snapshot export`"
                raise SnapshotError(message, path=self.path)

    def write(self, manifest: Manifest) -> None:
        """Replace it, durably; see the module for the order."""
        with suppress(SnapshotError, OSError):
            for path in self._signposts(self.read()) - self._signposts(manifest):
                signpost.take_away(self.folder, path)
        temporary = partial_name(self.path, uuid.uuid4().hex)
        storage = self.folder.create(temporary)
        try:
            try:
                storage.write_at(0, manifest.to_json())
                storage.sync()
            finally:
                storage.close()
            self.folder.replace(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                self.folder.remove(temporary)
            raise
        self.folder.sync(self.directory)
        self.put_up_signposts(manifest)

    def put_up_signposts(self, manifest: Manifest) -> None:
        """Let every folder with images of the machine lead here, each once; `manifest` is what is written."""
        for path in sorted(self._signposts(manifest)):
            signpost.put_up(self.folder, path, self.path)
            for other, shown in signpost.signposts(self.folder, paths.dirname(path)):
                if shown == self.path and other != path:
                    signpost.take_away(self.folder, other)

    def _signposts(self, manifest: Manifest) -> set[str]:
        """Return where signposts are to stand."""
        layers = (layer.path for disk in manifest.disks for layer in disk.layers)
        made = (each.path for each in (*manifest.begun, *manifest.doomed))
        directories = {paths.dirname(self.absolute(path)) for path in (*layers, *made)} - {self.directory}
        stem = paths.basename(self.path).removesuffix(SUFFIX)
        return {signpost.signpost_path(directory, stem, manifest.id) for directory in directories}

    def forget_partial(self) -> None:
        """Remove what a cut left of it half written; only for who holds the lock."""
        for name in self.folder.names(self.directory):
            leftover = paths.join(self.directory, name)
            if name.startswith(paths.basename(self.path)) and is_partial(leftover):
                self.folder.remove(leftover)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold it against other processes that would change it.

        Raises:
            ImageInUseError: another process holds it, and does not let go within some seconds.

        """
        name = self.path.removesuffix(SUFFIX) + _LOCK_SUFFIX
        with suppress(FileExistsError):
            self.folder.create(name).close()
        storage = self.folder.open(name, writable=True)
        try:
            until = time.monotonic() + _PATIENCE_SECONDS
            while True:
                try:
                    storage.lock(exclusive=True)
                    break
                except ImageInUseError as error:
                    if time.monotonic() > until:
                        message = "another process is changing its snapshots; try again when it is done"
                        raise ImageInUseError(message, path=self.path, holders=error.holders) from error
                    time.sleep(0.05)
            self.forget_partial()
            yield
        finally:
            storage.close()

    # The machine that is run

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the machine be known as running, whatever runs it and whether or not that locks the images.

        Raises:
            ImageInUseError: it runs already.

        """
        with suppress(FileExistsError):
            self.folder.create(self._running_path).close()
        storage = self.folder.open(self._running_path, writable=True)
        try:
            until = time.monotonic() + _GLANCE_SECONDS
            while True:
                try:
                    storage.lock(exclusive=True)
                    break
                except ImageInUseError:
                    # Who only looks whether it runs is done in a moment.
                    if time.monotonic() > until:
                        self.refuse_running()
                time.sleep(0.01)
            yield
        finally:
            storage.close()

    def refuse_running(self) -> None:
        """Refuse what a machine that is run forbids.

        Raises:
            ImageInUseError: `vhdkit snapshot run` runs it.

        """
        try:
            storage = self.folder.open(self._running_path)
        except OSError:
            return
        try:
            storage.lock(exclusive=False)
        except ImageInUseError as error:
            message = "the machine runs: `vhdkit snapshot run` has begun it, and waits for its end"
            raise ImageInUseError(message, path=self.path, holders=error.holders) from error
        finally:
            storage.close()

    @property
    def _running_path(self) -> str:
        return self.path.removesuffix(SUFFIX) + _RUNNING_SUFFIX


def find_manifest(folder: Folder, path: str) -> ManifestFile:
    """Return the manifest of the machine that a file is of: the manifest itself, or any image of a disk.

    It is looked for beside the file, where signposts there lead, in the folder above, and beside every image that the
    file reads through.

    Raises:
        SnapshotError: there is none.
        FileNotFoundError: neither is the file.

    """
    real = folder.real(path)
    if real.endswith(SUFFIX) and folder.exists(real):
        return ManifestFile(folder, real)
    directories = [paths.dirname(real), paths.dirname(paths.dirname(real))]
    for directory in directories:
        found = _that_has(folder, directory, real)
        if found is not None:
            return found
    folder.open(real).close()
    with suppress(VhdError, OSError), open_chain(real, lock=False, folder=folder) as chain:
        directories += [paths.dirname(folder.real(layer.path)) for layer in chain.layers]
    for directory in dict.fromkeys(directories[2:]):
        found = _that_has(folder, directory, real)
        if found is not None:
            return found
    message = "no machine keeps snapshots of it; `vhdkit snapshot init` with its disks begins that"
    raise SnapshotError(message, path=path)


def _that_has(folder: Folder, directory: str, image: str) -> ManifestFile | None:
    return next(manifests_with(folder, directory, image), None)


def manifests_with(folder: Folder, directory: str, image: str) -> Iterator[ManifestFile]:
    """Yield the manifests in a directory, or that it leads to, which have an image.

    One that cannot be read has what its name says.
    """
    for file in manifests_in(folder, directory):
        try:
            manifest = file.read()
        except (SnapshotError, OSError):
            stem = paths.basename(file.path).removesuffix(SUFFIX)
            if paths.basename(image).startswith((f"{stem}.", f"{stem}_")):
                yield file
            continue
        if image in file.images(manifest):
            yield file


def manifests_in(folder: Folder, directory: str) -> Iterator[ManifestFile]:
    """Yield the manifests in a directory, and those to which its signposts lead, whatever they say."""
    for path in signpost.manifest_paths(folder, directory):
        yield ManifestFile(folder, path)
