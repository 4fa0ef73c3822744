"""The machines whose snapshots this user has begun to keep: where their manifests lie.

One small file a machine, in the directory of this user's state, named for the digest of the manifest's path and holding
that. They are for asking alone, and may be lost: the next operation on a machine notes it again. A file is untrusted:
the manifest that it names is opened as if the user had named it, and nothing is written there.
"""

from __future__ import annotations

from contextlib import suppress

from vhdkit.storage import paths
from vhdkit.storage.local_folder import LocalFolder
from vhdkit.storage.protocols import read_bytes
from vhdkit.storage.state_folder import check_plain, make_private, state_directory

_FOLDER = "machines"
# The longest path of Windows in UTF-8.
_MOST_BYTES = 128 << 10


def note_machine(manifest: str) -> None:
    """Note where a machine's manifest lies; what keeps it from being noted is no failure of the operation."""
    folder = LocalFolder()
    with suppress(OSError, ValueError):
        path = _path_of(manifest)
        if folder.exists(path):
            return
        make_private(state_directory())
        make_private(paths.dirname(path))
        with suppress(FileExistsError), folder.create(path, private=True) as storage:
            storage.write_at(0, _bytes_of(manifest))


def known_machines() -> tuple[str, ...]:
    """Return where the manifests of machines lie that were noted and are there."""
    folder, directory = LocalFolder(), paths.join(state_directory(), _FOLDER)
    found: list[str] = []
    try:
        names = folder.names(directory)
    except OSError:
        return ()
    # Loaded by those that have machines.
    from vhdkit.journal.manifest_pointer import MANIFEST_SUFFIX  # noqa: PLC0415

    for name in sorted(names):
        path = paths.join(directory, name)
        with suppress(OSError, ValueError):
            check_plain(path)
            with folder.open(path) as storage:
                manifest = read_bytes(storage, 0, min(storage.size(), _MOST_BYTES)).decode("utf-8", "surrogateescape")
            if (
                path != _path_of(manifest)
                or not manifest.endswith(MANIFEST_SUFFIX)
                or paths.abspath(manifest) != manifest
            ):
                continue
            # One that is missing was removed or moved, or its disk is not mounted now.
            if folder.exists(manifest):
                found.append(manifest)
    return tuple(found)


def _path_of(manifest: str) -> str:
    import hashlib  # noqa: PLC0415 - `job list` needs it where machines are known

    name = hashlib.sha256(_bytes_of(manifest)).hexdigest()[:32]
    return paths.join(state_directory(), _FOLDER, name)


def _bytes_of(manifest: str) -> bytes:
    return manifest.encode("utf-8", "surrogateescape")
