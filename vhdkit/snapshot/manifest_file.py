"""The manifest's file: found by any file of the machine, locked, read, and replaced in one instant.

It lies beside the base of the machine's first disk, and is named for it; other folders with images of the machine have
signposts that lead to it. Only what holds the lock file beside it may replace it; who only reads needs no lock, since
there is never half of a manifest under its name.

**Order** of writing: 1 new signposts, each durable: layers in other folders count only where one leads back (a cut
leaves the old manifest, and perhaps a signpost too many) · 2 new content under another name, sync · 3 the name, folder
sync. A cut leaves the old manifest or the new one, and perhaps a file with a temporary name, which the next writer
removes · 4 signposts that are no longer needed go.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vhdkit.debug_log import debug
from vhdkit.errors import ImageInUseError, SnapshotError
from vhdkit.findings import Advice
from vhdkit.journal import manifest_pointer
from vhdkit.journal.manifest import MAX_BYTES, Manifest
from vhdkit.journal.relative_paths import RelativePaths
from vhdkit.snapshot import allowed_folders
from vhdkit.snapshot.known_machines import note_machine
from vhdkit.storage import paths
from vhdkit.storage.handle import closing_on_error
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.new_file import is_partial, make_missing, replace_file
from vhdkit.storage.protocols import read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vhdkit.findings import Hint
    from vhdkit.storage.protocols import Folder, Storage

SUFFIX = manifest_pointer.MANIFEST_SUFFIX
_LOCK_SUFFIX = ".vhdkit-snapshots.lock"
_RUNNING_SUFFIX = ".vhdkit-snapshots.running"
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
    """A manifest where it lies; it need not exist yet.

    `named` are the folders that the user has named: layers may lie there before a signpost leads back here.
    """

    def __init__(self, folder: Folder, path: str, named: Iterable[str] = ()) -> None:
        self.folder = folder
        self.path = path
        self.directory = paths.dirname(path)
        self.named = set(named)
        self._paths = RelativePaths(folder, self.directory)
        # What was read last: whoever changes the manifest must not undo what another process has made of it.
        self._raw = b""
        self._parsed: Manifest | None = None
        self._lock: Storage | None = None

    def absolute(self, path: str) -> str:
        """Return where a file lies that the manifest names; a link with its name is not followed."""
        return self._paths.absolute(path)

    def absolute_folder(self, directory: str) -> str:
        """Return the real path of a folder that the manifest names."""
        return paths.dirname(self.absolute(f"{directory}/x"))

    def relative(self, path: str) -> str:
        """Return how the manifest names a file at a real path."""
        return self._paths.relative(path)

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
            SnapshotError: it is no manifest, its owner may not speak for the layers, or layers lie in other folders
                from which no signpost leads back here.

        """
        with self.folder.open(self.path) as storage:
            manifest = self._parse(storage)
            owner = storage.owner
        allowed_folders.check_owner(self, manifest, owner)
        allowed_folders.check_folders(self, manifest)
        return manifest

    def _parse(self, storage: Storage) -> Manifest:
        size = storage.size()
        if size > MAX_BYTES:
            message = f"it has {size} bytes, too many for a manifest"
            raise SnapshotError(message, path=self.path, hint=self._way_out())
        raw = read_bytes(storage, 0, size)
        if self._parsed is None or raw != self._raw:
            try:
                self._parsed = Manifest.from_json(raw)
            except SnapshotError as error:
                raise SnapshotError(error.message, path=self.path, hint=self._way_out()) from error.__cause__
            self._raw = raw
        self._paths.look_again()
        return self._parsed

    def _way_out(self) -> Hint:
        """Return what to do about a file that cannot be read: it may hold names and notes that nothing else has."""
        aside, count = f"{self.path}.unreadable", 1
        while self.folder.exists(aside):
            count += 1
            aside = f"{self.path}.unreadable-{count}"
        move = Advice.MOVE_FILE.hint("put back a copy of it, or move it away ({})", path=self.path, new_path=aside)
        text = "when it is away, make a new tree from the images, without names and notes: {}"
        return move.then(Advice.ADOPT_DISKS.hint(text))

    def refuse_unreadable(self) -> None:
        """Refuse to write over a file that holds something that cannot be read; one without a byte holds nothing.

        Raises:
            SnapshotError: it holds something else than a manifest.

        """
        if not self.exists():
            return
        with self.folder.open(self.path) as storage:
            if storage.size():
                self._parse(storage)

    def write(self, manifest: Manifest) -> None:
        """Replace it, durably; see the module for the order.

        Raises:
            SnapshotError: another process has changed it since it was read here; nothing was changed.

        """
        raw = manifest.to_json()
        before = self._refuse_changed()
        wanted = allowed_folders.signposts_of(self, manifest)
        self.put_up_signposts(manifest)
        replace_file(self.folder, self.path, raw)
        self._raw, self._parsed = raw, manifest
        self.folder.sync(self.directory)
        if isinstance(self.folder, LocalFolder):
            note_machine(self.path)
        if before is not None:
            for path in allowed_folders.signposts_of(self, before) - wanted:
                manifest_pointer.take_away(self.folder, path)

    def _refuse_changed(self) -> Manifest | None:
        """Return the manifest that is replaced, None if there is none or it cannot be read.

        Raises:
            SnapshotError: it is another than was read last, or the lock was taken from us.

        """
        if not self.exists():
            if self._parsed is None:
                return None
        elif self._parsed is None or self._bytes() == self._raw:
            self._refuse_lost_lock()
            return self._parsed
        message = "another process has changed it meanwhile; nothing was changed here: run the same command again"
        raise SnapshotError(message, path=self.path)

    def _bytes(self) -> bytes:
        with self.folder.open(self.path) as storage:
            return read_bytes(storage, 0, min(storage.size(), MAX_BYTES))

    def put_up_signposts(self, manifest: Manifest) -> None:
        """Let every folder with images of the machine lead here, each once; `manifest` is what is written.

        Raises:
            OSError: a folder takes none.

        """
        for path in sorted(allowed_folders.signposts_of(self, manifest)):
            manifest_pointer.put_up(self.folder, path, self.path)
            for other in tuple(manifest_pointer.signposts(self.folder, paths.dirname(path))):
                if other.manifest == self.path and other.path != path:
                    manifest_pointer.take_away(self.folder, other.path)

    def forget_partial(self) -> None:
        """Remove what a cut left of it half written; only for who holds the lock."""
        for name in self.folder.names(self.directory):
            leftover = paths.join(self.directory, name)
            if name.startswith(f"{paths.basename(self.path)}.") and is_partial(leftover):
                self.folder.remove(leftover)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold it against other processes that would change it.

        Raises:
            ImageInUseError: another process holds it, and does not release it within some seconds.

        """
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                lock = self._taken_lock()
            except ImageInUseError as error:
                if time.monotonic() > until:
                    message = "another process is changing its snapshots; try again when it is done"
                    raise ImageInUseError(message, path=self.path, holders=error.holders) from error
                debug("snapshot", "%s: waiting for the process that changes it", self.path)
            else:
                if lock is not None:
                    break
            time.sleep(0.05)
        self._lock = lock
        try:
            self._parsed = None
            self.forget_partial()
            yield
        finally:
            self._lock = None
            lock.close()

    def _taken_lock(self) -> Storage | None:
        """Return the lock file, held; None if its name led to another file before it was."""
        make_missing(self.folder, self._lock_path)
        try:
            storage = self.folder.open(self._lock_path, writable=True)
        except FileNotFoundError:
            return None
        with closing_on_error(storage):
            storage.lock(exclusive=True)
            if self._leads_to(self._lock_path, storage):
                return storage
        storage.close()
        return None

    def _leads_to(self, path: str, storage: Storage) -> bool:
        """Whether a name leads to an open file, and not to one that has taken its place."""
        try:
            named = self.folder.open(path)
        except OSError:
            return False
        named.close()
        return named.identity == storage.identity

    def _refuse_lost_lock(self) -> None:
        """Refuse to write when the lock file has lost its name: another process may hold one of that name.

        Raises:
            SnapshotError: it has.

        """
        if self._lock is not None and not self._leads_to(self._lock_path, self._lock):
            message = "its lock file was removed while it was held, and another process may be changing the snapshots"
            raise SnapshotError(f"{message}; nothing was changed here: run the same command again", path=self.path)

    @property
    def _lock_path(self) -> str:
        return self.path.removesuffix(SUFFIX) + _LOCK_SUFFIX

    # The machine that is run

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the machine be known as running, whatever runs it and whether or not that locks the images.

        Raises:
            ImageInUseError: it runs already.

        """
        make_missing(self.folder, self._running_path)
        with self.folder.open(self._running_path, writable=True) as storage:
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

    def refuse_running(self) -> None:
        """Refuse what a machine that is run forbids.

        Raises:
            ImageInUseError: `vhdkit snapshot run` runs it.

        """
        try:
            storage = self.folder.open(self._running_path)
        except FileNotFoundError:
            return
        except OSError as error:
            message = f"whether the machine runs cannot be told ({error.strerror}), and it may: let this user read"
            message += f" {self._running_path}, or remove it when the machine is off"
            raise ImageInUseError(message, path=self.path) from error
        with storage:
            try:
                storage.lock(exclusive=False)
            except ImageInUseError as error:
                hint = Advice.RUN_MACHINE.hint("{} has begun it, and waits for its end")
                raise ImageInUseError("the machine runs", path=self.path, holders=error.holders, hint=hint) from error

    @property
    def _running_path(self) -> str:
        return self.path.removesuffix(SUFFIX) + _RUNNING_SUFFIX
